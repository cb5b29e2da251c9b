"""The output folder of a run: held by one run, kept tidy as far as possible, readable by whom the umask lets."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from common import folder_lock
from common.folder_lock import hold
from config import sweep
from config.loading import ConfigError
from models.pretrained.model_io import require_same_words
from policy_rollout.policies.upvla import UPVLAPolicy
from tests.training.runs import Outcome

Start = Callable[..., Outcome]


def test_a_second_run_in_a_folder_is_refused_and_the_first_left_whole(
    run: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_lock, "PATIENCE", 0.1)
    done = run("out", training__max_train_steps=1)
    before = {path: path.stat().st_mtime_ns for path in done.folder.rglob("*") if path.is_file()}
    with hold(done.folder, "another run", "experiment.output_dir="), pytest.raises(ConfigError) as refused:
        run("out", training__max_train_steps=2)
    assert f"experiment.output_dir={done.folder}" in str(refused.value)
    assert {path: path.stat().st_mtime_ns for path in done.folder.rglob("*") if path.is_file()} == before
    run("out", training__max_train_steps=2)
    assert not (done.folder / folder_lock.LOCK_NAME).exists()


LATEST = {"experiment__resume_from_checkpoint": "latest"}
KEPT = {"experiment__save_every": 1, "experiment__checkpoints_total_limit": 2, **LATEST}


def test_a_linked_checkpoint_stays_and_the_run_continues(
    run: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = run("out", training__max_train_steps=2, **KEPT)
    (tmp_path / "disk").mkdir()
    shutil.move(done.folder / "checkpoint-1", tmp_path / "disk" / "checkpoint-1")
    (done.folder / "checkpoint-1").symlink_to(tmp_path / "disk" / "checkpoint-1")
    capsys.readouterr()
    run("out", training__max_train_steps=4, **KEPT)
    output = capsys.readouterr()
    assert (output.out + output.err).count("checkpoint-1 could not be deleted") == 1
    assert (tmp_path / "disk" / "checkpoint-1" / "metadata.json").is_file()
    assert sorted(path.name for path in done.folder.glob("checkpoint-*")) == [f"checkpoint-{n}" for n in (1, 3, 4)]


def test_files_that_cannot_be_deleted_end_no_run_and_block_no_start(
    run: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done = run("out", training__max_train_steps=1, **KEPT)
    left = done.folder / ".checkpoint-3.tmp"
    left.mkdir()
    (left / "busy").touch()
    real = shutil.rmtree

    def busy(path: object, *more: object, **named: object) -> None:
        if "checkpoint-" in Path(str(path)).name and not named.get("ignore_errors") and not more:
            raise OSError(16, "Device or resource busy")
        real(path, *more, **named)  # type: ignore[arg-type, call-overload]

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", busy)
        run("out", training__max_train_steps=4, **KEPT)
    output = capsys.readouterr()
    assert ".checkpoint-3.tmp is not needed any more and could not be deleted" in output.out + output.err
    assert (done.folder / "checkpoint-4" / "metadata.json").is_file()
    assert (left / "busy").is_file()
    run("out", training__max_train_steps=5, **KEPT)
    assert not list(done.folder.glob(".checkpoint-*"))


@pytest.mark.parametrize("mask", [0o022, 0o027])
def test_every_file_of_a_run_has_the_permissions_that_the_umask_gives(run: Start, mask: int) -> None:
    before = os.umask(mask)
    try:
        done = run("out", training__max_train_steps=1, training__ema_decay=0.9, lora__rank=2, experiment__save_every=1)
    finally:
        os.umask(before)
    wrong = [p for p in done.folder.rglob("*") if p.is_file() and p.stat().st_mode & 0o777 != 0o666 & ~mask]
    assert wrong == []


def test_every_metric_of_the_sweeps_table_is_written_by_a_run(run: Start, world: Path) -> None:
    held_out = {
        "dataset__params__validation_pre_shards_path_or_url": world / "robot_validation",
        "dataset__params__validation_mmu_shards_path_or_url": world / "chat",
    }
    done = run("out", training__max_train_steps=1, experiment__eval_every=1, experiment__log_every=1, **held_out)
    assert set(sweep.COLUMNS) <= set(sweep.last_metrics(done.folder / "metrics.jsonl"))
    assert {"text/nats_per_token", "validation/text/nats_per_token"} <= set(sweep.COLUMNS)


def test_weights_act_and_continue_with_the_image_tokenizer_that_they_learned(
    run: Start, world: Path, tmp_path: Path
) -> None:
    done = run("out", training__max_train_steps=1)
    other = tmp_path / "magvit"
    shutil.copytree(world / "magvit", other)
    file = other / "pytorch_model.safetensors"
    weights = load_file(file)
    name = next(name for name in weights if name.startswith("encoder.conv_in"))
    save_file({**weights, name: weights[name] + 1}, file)
    with pytest.raises(ConfigError, match=r"model\.vq_model\.vq_model_name"):
        run("out", training__max_train_steps=2, model__vq_model__vq_model_name=other, **LATEST)
    UPVLAPolicy.from_config(done.folder / "config.yaml", "cpu", checkpoint=done.folder)
    config = (done.folder / "config.yaml").read_text(encoding="utf-8")
    (tmp_path / "other.yaml").write_text(config.replace(str(world / "magvit"), str(other)), encoding="utf-8")
    with pytest.raises(ValueError, match=r"model\.vq_model\.vq_model_name"):
        UPVLAPolicy.from_config(tmp_path / "other.yaml", "cpu", checkpoint=done.folder)


def test_a_run_starts_from_weights_with_the_tokenizer_that_they_learned(run: Start, tmp_path: Path) -> None:
    done = run("first", training__max_train_steps=1)
    start = {"model__showo__load_from_showo": "true", "model__showo__pretrained_model_path": done.folder}
    run("second", training__max_train_steps=1, **start)
    file = done.folder / "tokenizer" / "tokenizer.json"
    held = json.loads(file.read_text(encoding="utf-8"))
    words = held["model"]["vocab"]
    one, other = [word for word in words if len(word) == 1 and word.isalpha()][:2]
    words[one], words[other] = words[other], words[one]
    file.write_text(json.dumps(held), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"model\.showo\.llm_model_path.*tokenizer"):
        run("third", training__max_train_steps=1, **start)


def test_adapters_name_the_weights_they_start_from_and_refuse_others_of_the_same_size(
    run: Start, tmp_path: Path
) -> None:
    base = run("base", training__max_train_steps=1)
    start = {"model__showo__load_from_showo": "true", "model__showo__pretrained_model_path": base.folder}
    done = run("out", training__max_train_steps=1, lora__rank=2, experiment__save_every=1, **start)
    adapter = json.loads((done.folder / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    assert adapter["base_model_name_or_path"] == str(base.folder)
    weights = load_file(base.folder / "model.safetensors")
    name = next(name for name in weights if name.endswith("q_proj.weight"))
    weights[name] = torch.flip(weights[name], [0])  # the same sum of squares
    save_file(weights, base.folder / "model.safetensors")
    with pytest.raises(ConfigError, match="other weights"):
        run("out", training__max_train_steps=2, lora__rank=2, **start, **LATEST)


def test_words_with_other_ids_are_named() -> None:
    class Words:
        def __init__(self, **ids: int) -> None:
            self.get_vocab = lambda: ids

    require_same_words(Words(a=1, b=2), Words(a=1, b=2), "x")
    with pytest.raises(ValueError, match=r"'a' the id 2, that of x gives it 1"):
        require_same_words(Words(a=1, b=2), Words(a=2, b=1), "x")


def test_a_killed_run_does_not_block_the_next_start(run: Start, tmp_path: Path) -> None:
    done = run("out", training__max_train_steps=1)
    owner = vars(folder_lock.Owner.me("a killed run")) | {"pid": 1 << 22, "process": f"{1 << 22} 1"}
    (done.folder / folder_lock.LOCK_NAME).write_text(json.dumps(owner), encoding="utf-8")
    started = time.monotonic()
    with hold(done.folder, "a test", "experiment.output_dir="):
        assert time.monotonic() - started < 1


def test_temporary_files_of_a_killed_process_are_deleted_at_the_next_start(run: Start, tmp_path: Path) -> None:
    done = run(training__max_train_steps=1, experiment__save_every=1)
    left = done.folder / ".status.json.0123abcd.tmp"
    left.write_text("{", encoding="utf-8")
    run(training__max_train_steps=2, experiment__resume_from_checkpoint="latest")
    assert not left.exists()
    assert (done.folder / "status.json").is_file()
