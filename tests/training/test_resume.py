"""Runs that stop and go on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from config.loading import ConfigError
from tests.tiny import write_language_model
from tests.training.runs import Outcome, same
from training.checkpointing.checkpoint import find_checkpoint
from training.checkpointing.manifest import open_checkpoint

Start = Callable[..., Outcome]
NUMBERS = ("image/loss", "action/loss", "text/loss", "total/loss", "lr", "grad_norm")


def interrupted(run: Start, whole: Outcome, step: int, name: str) -> Path:
    """A folder as ``whole`` left it if it was killed shortly after ``checkpoint-<step>``."""
    folder = whole.folder.parent / name
    folder.mkdir()
    shutil.copytree(whole.folder / f"checkpoint-{step}", folder / f"checkpoint-{step}")
    shutil.copy(whole.folder / "metrics.jsonl", folder / "metrics.jsonl")
    return folder


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(run: Start, accumulation: int) -> None:
    settings = {
        "training__max_train_steps": 7,  # past the end of both data sets
        "training__gradient_accumulation_steps": accumulation,
        "training__cond_dropout_prob": 0.5,
        "experiment__save_every": 3,
    }
    whole = run("whole", **settings)
    interrupted(run, whole, 3, "resumed")
    resumed = run("resumed", **settings, experiment__resume_from_checkpoint="latest")
    assert same(whole.weights(), resumed.weights())
    assert [r["step"] for r in resumed.metrics] == list(range(1, 8))
    for tag in NUMBERS:
        assert resumed.curve(tag) == whole.curve(tag), tag


def test_resuming_with_other_data_workers_changes_nothing(run: Start) -> None:
    settings = {"training__max_train_steps": 4, "experiment__save_every": 2}
    whole = run("whole", **settings)
    interrupted(run, whole, 2, "resumed")
    resumed = run("resumed", **settings, experiment__resume_from_checkpoint=2, dataset__params__num_workers=2)
    assert same(whole.weights(), resumed.weights())


def test_a_damaged_newest_checkpoint_is_passed_over_with_a_warning(
    run: Start, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = {"training__max_train_steps": 3, "experiment__save_every": 1}
    whole = run("whole", **settings)
    with (whole.folder / "checkpoint-3" / "unwrapped_model" / "model.safetensors").open("r+b") as file:
        file.truncate(1000)
    (whole.folder / ".checkpoint-4.tmp").mkdir()  # what a kill while saving leaves
    capfd.readouterr()
    resumed = run("whole", **settings, experiment__resume_from_checkpoint="latest")
    output = capfd.readouterr().out
    assert "skipping checkpoint-3" in output
    assert "continuing from" in output
    assert "checkpoint-2 at step 2" in output
    assert open_checkpoint(resumed.folder / "checkpoint-3").step == 3


def test_latest_without_a_checkpoint_starts_from_zero(run: Start, capfd: pytest.CaptureFixture[str]) -> None:
    done = run(experiment__resume_from_checkpoint="latest")
    assert [r["step"] for r in done.metrics] == [1, 2]
    assert "starting at step 0" in capfd.readouterr().out


def test_a_checkpoint_that_is_not_there_is_an_error_that_lists_those_that_are(run: Start) -> None:
    done = run(experiment__save_every=1)
    with pytest.raises(ConfigError, match=r"resume_from_checkpoint=7.*checkpoint-1, checkpoint-2"):
        run(experiment__resume_from_checkpoint=7)
    with pytest.raises(ConfigError, match="resume_from_checkpoint"):
        run(experiment__resume_from_checkpoint=done.folder / "nowhere")


def test_a_run_can_go_on_elsewhere_from_a_path(run: Start) -> None:
    settings = {"training__max_train_steps": 2, "experiment__save_every": 1}
    whole = run("whole", **settings)
    other = run("other", **settings, experiment__resume_from_checkpoint=whole.folder / "checkpoint-1")
    assert same(whole.weights(), other.weights())


@pytest.mark.parametrize(
    ("change", "output"),
    [
        ({"model__vla__num_view": 2}, r"num_view is 2.*trained with 1"),
        ({"act_step": 3}, r"act_step is 3.*trained with 4"),
        ({"model__showo__llm_model_path": "{other}"}, r"hidden_size is 64.*trained with 32"),
    ],
)
def test_a_model_of_other_sizes_does_not_go_on(
    run: Start, tmp_path: Path, change: dict[str, object], output: str
) -> None:
    run(experiment__save_every=1, training__max_train_steps=1)
    other = write_language_model(tmp_path / "other", hidden=64)
    wanted = {key: str(value).format(other=other) for key, value in change.items()}
    with pytest.raises(ConfigError, match=output):
        run(experiment__resume_from_checkpoint="latest", **wanted)


def test_an_optimizer_of_other_parameters_does_not_go_on(run: Start) -> None:
    run(experiment__save_every=1, training__act_coeff=0, training__max_train_steps=1)
    with pytest.raises(ConfigError, match="trained other parameters"):
        run(experiment__resume_from_checkpoint="latest", training__act_coeff=1)


def test_weights_without_training_state_are_refused_with_their_use(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-7"
    (folder / "unwrapped_model").mkdir(parents=True)
    (folder / "metadata.json").write_text(json.dumps({"global_step": 7}))
    with pytest.raises(ValueError, match=r"model\.showo\.pretrained_model_path"):
        find_checkpoint(tmp_path, 7)


def test_a_new_run_moves_an_earlier_one_aside(run: Start, capfd: pytest.CaptureFixture[str]) -> None:
    first = run(training__max_train_steps=1)
    run(training__seed=5)
    assert "moved to" in capfd.readouterr().out
    assert (first.folder / "earlier-1" / "checkpoint-1").is_dir()
    assert [r["step"] for r in first.metrics] == [1, 2]
    assert not (first.folder / "checkpoint-1").exists()


def test_only_the_newest_checkpoints_stay(run: Start) -> None:
    done = run(training__max_train_steps=5, experiment__save_every=1, experiment__checkpoints_total_limit=2)
    assert sorted(p.name for p in done.folder.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-5"]


def test_a_finished_run_started_again_trains_nothing_and_logs_it(run: Start, capfd: pytest.CaptureFixture[str]) -> None:
    first = run().weights()
    again = run(experiment__resume_from_checkpoint="latest")
    assert "nothing to train" in capfd.readouterr().out
    assert same(first, again.weights())
