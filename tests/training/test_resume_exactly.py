"""A run that was stopped and goes on takes the very steps it would have taken: every objective, every kind of state."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import llm_config, write_language_model
from tests.training.runs import Outcome, same
from tests.training.test_resume import interrupted
from training.checkpointing.conditions import ORDER, changes
from training.checkpointing.manifest import Checkpoint
from training.data.sampling_order import ORDER_VERSION, StepSampler, flow_seed
from training.failure.preemption import PREEMPTED
from training.failure.run_guard import RunGuard

ROOT = Path(__file__).resolve().parents[2]
Start = Callable[..., Outcome]


def message(outcome: Outcome) -> list[dict[str, Any]]:
    """Every line of the metrics, without what depends on the clock."""
    return [{k: v for k, v in record.items() if not k.startswith("speed/")} for record in outcome.metrics]


def goes_on_exactly(run: Start, step: int, settings: dict[str, Any]) -> None:
    whole = run("whole", **settings)
    interrupted(run, whole, step, "resumed")
    resumed = run("resumed", **settings, experiment__resume_from_checkpoint="latest")
    assert same(whole.weights(), resumed.weights())
    assert message(resumed) == message(whole)


@pytest.mark.parametrize("objective", ["ar", "mdm", "bd"])
def test_every_objective_goes_on_in_the_middle_of_an_epoch_and_of_a_log_window(run: Start, objective: str) -> None:
    settings = {
        "objective": objective,
        "training__text_objective": objective,
        "training__max_train_steps": 3,
        "training__gradient_accumulation_steps": 2,
        "training__cond_dropout_prob": 0.5,
        "training__batch_size_mmu": 1,
        "training__max_grad_norm": 1.0,
        "experiment__save_every": 2,
        "experiment__log_every": 3,
        "experiment__log_grad_norm_every": 2,
    }
    goes_on_exactly(run, 2, settings)


def test_dropout_an_average_of_the_weights_and_diffused_actions_go_on_too(run: Start, tmp_path: Path) -> None:
    folder = write_language_model(tmp_path / "dropping")
    config = llm_config()
    config.resid_pdrop = config.embd_pdrop = config.attention_dropout = 0.2
    config.save_pretrained(str(folder))
    settings = {
        "objective": "bd",
        "training__text_objective": "bd",
        "model__showo__llm_model_path": folder,
        "training__ema_decay": 0.9,
        "block_diffusion__action_enabled": "true",
        "training__max_train_steps": 3,
        "experiment__save_every": 2,
        "dataset__params__num_workers": 1,
    }
    goes_on_exactly(run, 2, settings)


def test_flows_that_take_turns_go_on_in_theirs(run: Start) -> None:
    settings = {
        "training__max_train_steps": 5,
        "training__batch_size_pre": 4,
        "dataset__combined_loader_mode": "max_size",
        "experiment__save_every": 3,
    }
    goes_on_exactly(run, 3, settings)


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[int]]:
    """The samples that runs of this test have trained on, in order."""
    found: dict[str, list[int]] = {"robot": [], "mmu": []}
    read = RunGuard.read

    def recording(self: RunGuard, *arguments: Any) -> Any:
        batches = read(self, *arguments)
        for batch in batches:
            found["robot"] += batch.robot.indices.tolist()
            found["mmu"] += batch.text.indices.tolist()
        return batches

    monkeypatch.setattr(RunGuard, "read", recording)
    return found


def test_other_batch_sizes_repeat_and_skip_no_sample_and_are_reported(
    run: Start, taken: dict[str, list[int]], capfd: pytest.CaptureFixture[str]
) -> None:
    sizes = [(2, 1), (3, 2), (5, 1)]
    for number, (robot, mmu) in enumerate(sizes):
        run(
            training__batch_size_pre=robot,
            training__batch_size_mmu=mmu,
            training__max_train_steps=2 * (number + 1),
            experiment__resume_from_checkpoint="latest",
        )
    for flow, length, seed in (("robot", 16, flow_seed(10086, "robot")), ("mmu", 6, flow_seed(10086, "mmu"))):
        alone = StepSampler(length, 1, seed)
        assert taken[flow] == [alone.batch(place)[0] for place in range(len(taken[flow]))]
    assert (len(taken["robot"]), len(taken["mmu"])) == (20, 8)
    output = capfd.readouterr().out
    assert "note: from here on not bit for bit the run that was interrupted" in output
    assert "training.batch_size_pre 3 (was 2)" in output
    assert "no sample of the epoch comes again or is left out" in output


def test_other_data_is_reported_not_to_go_on_in_its_order(
    run: Start, world: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run(experiment__save_every=1)
    shorter = tmp_path / "shorter"
    shorter.mkdir()
    episodes = json.loads((world / "robot" / "dataset_info.json").read_text())
    for record in episodes[0]["frames"]:
        record["dir"] = str(world / "robot" / record["dir"])
    (shorter / "dataset_info.json").write_text(json.dumps(episodes[:1]))
    run(
        experiment__resume_from_checkpoint=1,
        dataset__params__train_pre_shards_path_or_url=shorter,
    )
    output = capfd.readouterr().out
    assert "robot samples 9 (was 16)" in output
    assert "samples of this epoch may come again or be left out" in output


def test_the_same_command_reports_no_changes(run: Start, capfd: pytest.CaptureFixture[str]) -> None:
    run(experiment__save_every=1)
    run(experiment__resume_from_checkpoint=1)
    assert "not bit for bit" not in capfd.readouterr().out


def test_a_checkpoint_without_the_version_of_its_order_is_logged_as_the_first(tmp_path: Path) -> None:
    now = {"training.seed": 1, ORDER: ORDER_VERSION}
    old = Checkpoint(tmp_path, 1, None, {"conditions": {"training.seed": 1}})
    (output,) = changes(old, now)
    assert f"{ORDER} {ORDER_VERSION} (was 1)" in output
    assert "the order of the data is another one" in output
    assert changes(Checkpoint(tmp_path, 1, None, {"conditions": now}), now) == []


# --- asked to stop ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", [signal.SIGTERM, signal.SIGUSR1])
def test_a_run_that_is_asked_to_stop_ends_its_step_and_can_go_on(
    run: Start, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], asked: signal.Signals
) -> None:
    whole = run("whole", training__max_train_steps=3)
    read = RunGuard.read

    def reading(self: RunGuard, batches: Any, count: int, step: int) -> Any:
        if step == 3:
            os.kill(os.getpid(), asked)
        return read(self, batches, count, step)

    handler = signal.getsignal(asked)
    with monkeypatch.context() as patch:
        patch.setattr(RunGuard, "read", reading)
        with pytest.raises(SystemExit) as end:
            run("stopped", training__max_train_steps=3)
    assert end.value.code == PREEMPTED == 75
    assert signal.getsignal(asked) is handler
    assert f"stopped by {asked.name} after step 2: checkpoint-2 is written" in capfd.readouterr().out
    status = json.loads((whole.folder.parent / "stopped" / "status.json").read_text())
    assert (status["state"], status["step"], status["reason"]) == ("preempted", 2, asked.name)
    resumed = run("stopped", training__max_train_steps=3, experiment__resume_from_checkpoint="latest")
    assert same(whole.weights(), resumed.weights())
    assert message(resumed) == message(whole)
    assert json.loads((resumed.folder / "status.json").read_text())["state"] == "finished"


# --- what is left where ---------------------------------------------------------------------------------------------


def test_going_on_from_an_older_step_moves_newer_checkpoints_aside(
    run: Start, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = {"training__max_train_steps": 3, "experiment__save_every": 1}
    whole = run("whole", **settings)
    (whole.folder / ".checkpoint-9.tmp" / "half").mkdir(parents=True)  # what a kill leaves
    capfd.readouterr()
    older = run("whole", **{**settings, "experiment__resume_from_checkpoint": 1, "training__max_train_steps": 2})
    aside, moved = whole.folder / "earlier-1", "checkpoint-2, checkpoint-3 (newer than checkpoint-1 or damaged)"
    assert sorted(p.name for p in aside.iterdir()) == ["checkpoint-2", "checkpoint-3"]
    assert f"moved to {aside}: {moved}" in capfd.readouterr().out
    assert [r["step"] for r in older.metrics] == [1, 2]
    again = run("whole", **{**settings, "experiment__resume_from_checkpoint": "latest"})
    assert [r["step"] for r in again.metrics] == [1, 2, 3]
    assert not list(whole.folder.glob(".checkpoint-*"))


def test_going_on_from_another_runs_checkpoint_mixes_nothing(run: Start) -> None:
    first = run("first", experiment__save_every=1)
    second = run("second", experiment__save_every=1, training__seed=4)
    run("second", experiment__resume_from_checkpoint=first.folder / "checkpoint-1")
    assert sorted(p.name for p in (second.folder / "earlier-1").iterdir()) == [
        "checkpoint-1",
        "checkpoint-2",
        "metrics.jsonl",
    ]
    assert [r["step"] for r in second.metrics] == [2]
    assert same(first.weights(), second.weights())


def test_a_flipped_bit_anywhere_is_found_and_the_checkpoint_before_is_used(
    run: Start, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = {"training__max_train_steps": 2, "experiment__save_every": 1}
    whole = run("whole", **settings)
    expected, newest = whole.weights(), whole.folder / "checkpoint-2"
    for file in (newest / "metadata.json", newest / "training_state" / "optimizer.bin"):
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 4
        file.write_bytes(content)
        capfd.readouterr()
        resumed = run("whole", **settings, experiment__resume_from_checkpoint="latest")
        output = capfd.readouterr().out
        assert "warning: skipping checkpoint-2" in output
        assert file.name in output
        assert same(expected, resumed.weights())


@pytest.mark.slow
def test_a_short_round_of_faults_is_survived() -> None:
    """``python -m tests.faults --short``; docs/reliability.md has the numbers of the long one."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults", "--short"], cwd=ROOT, capture_output=True, text=True, timeout=1500
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "| **all** |" in done.stdout
