"""The model that an output folder stands for, while runs begin, continue, finish and are killed in it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from models.pretrained.model_io import load_folder, model_folder
from models.pretrained.weights_io import files_sha256
from tests.training.runs import Outcome
from training.checkpointing.checkpoint import archive_previous_run
from training.checkpointing.checkpointer import Checkpointer, save_final_model
from training.checkpointing.manifest import Checkpoint, list_checkpoints, open_checkpoint

Start = Callable[..., Outcome]
FINAL = ("model.safetensors", "config.json", "tokenizer")


class Killed(BaseException):
    """Stands for SIGKILL: nothing of the product catches it."""


def newest_sha256(folder: Path) -> str:
    return files_sha256(list_checkpoints(folder)[-1] / "unwrapped_model")


def stop_after_saving(step: int, patch: pytest.MonkeyPatch) -> None:
    """Let the process die when the checkpoint of this step is complete."""
    save = Checkpointer.save

    def saving(self: Checkpointer, now: int, *args: Any) -> Any:
        saved = save(self, now, *args)
        if now == step:
            raise Killed
        return saved

    patch.setattr(Checkpointer, "save", saving)


@pytest.mark.parametrize("resume", ["false", "latest", "1"])
def test_a_run_that_begins_or_continues_in_the_folder_of_a_finished_one_leaves_no_stale_model(
    run: Start, resume: str
) -> None:
    first = run(experiment__save_every=1)
    finished = files_sha256(first.folder)
    assert model_folder(first.folder) == first.folder
    again = {"training__seed": 7, "training__max_train_steps": 9, "experiment__save_every": 2}
    with pytest.MonkeyPatch.context() as patch:
        stop_after_saving(4, patch)
        with pytest.raises(Killed):
            run(**again, experiment__resume_from_checkpoint=resume)
    assert not any((first.folder / name).exists() for name in FINAL)
    found = model_folder(first.folder)
    assert found == first.folder / "checkpoint-4" / "unwrapped_model"
    assert files_sha256(found) != finished


def test_nothing_of_a_finished_run_is_lost_when_its_checkpoint_differs(run: Start) -> None:
    first = run(experiment__save_every=1)
    finished = files_sha256(first.folder)
    shutil.rmtree(first.folder / "checkpoint-2")  # its copy
    run(training__max_train_steps=1)
    assert files_sha256(first.folder / "earlier-1") == finished
    assert load_folder(first.folder / "earlier-1").spec == load_folder(first.folder).spec


def test_a_finished_run_started_again_ends_with_the_same_model_and_makes_no_copy(run: Start) -> None:
    first = run()
    finished = files_sha256(first.folder)
    run(experiment__resume_from_checkpoint="latest")
    assert files_sha256(first.folder) == finished
    assert model_folder(first.folder) == first.folder
    assert not list(first.folder.glob("earlier-*"))


def killing(patch: pytest.MonkeyPatch, at: int) -> None:
    """Let the call number ``at`` of all that changes names on the disk be the process's last."""
    left = [at]

    def counted(act: Callable[..., Any]) -> Callable[..., Any]:
        def acting(*args: Any, **kwargs: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return act(*args, **kwargs)

        return acting

    patch.setattr(os, "replace", counted(os.replace))
    patch.setattr(os, "unlink", counted(os.unlink))
    patch.setattr(Path, "unlink", counted(Path.unlink))
    patch.setattr(Path, "mkdir", counted(Path.mkdir))


@pytest.mark.parametrize("resumed_step", [None, 1, 2])
@pytest.mark.parametrize("copy", [True, False])
def test_wherever_the_start_of_a_run_is_killed_the_folders_model_is_its_newest_checkpoints(
    run: Start, tmp_path: Path, resumed_step: int | None, copy: bool
) -> None:
    whole = run("whole", experiment__save_every=1)
    known = {files_sha256(path / "unwrapped_model") for path in list_checkpoints(whole.folder)}
    for at in range(100):
        folder = tmp_path / f"killed-{at}"
        shutil.copytree(whole.folder, folder)
        if not copy:  # a final model whose checkpoint is gone
            shutil.rmtree(folder / "checkpoint-2")
        resumed = None if resumed_step is None else open_checkpoint(whole.folder / f"checkpoint-{resumed_step}")
        if resumed is not None and (folder / resumed.path.name).is_dir():
            resumed = open_checkpoint(folder / resumed.path.name)
        with pytest.MonkeyPatch.context() as patch:
            killing(patch, at)
            try:
                archive_previous_run(folder, resumed)
                ended = True
            except Killed:
                ended = False
        before = files_sha256(whole.folder)
        if (folder / "model.safetensors").is_file():  # nothing else was moved yet
            assert files_sha256(model_folder(folder)) == before
        elif list_checkpoints(folder):
            assert files_sha256(model_folder(folder)) == newest_sha256(folder)
        moved = {files_sha256(path.parent) for path in folder.rglob("model.safetensors")}
        assert moved >= (known if copy else {before})  # nothing is lost
        archive_previous_run(folder, resumed)  # the next start
        assert not any((folder / name).exists() for name in FINAL)
        if ended:
            assert at > 0
            return
    raise AssertionError("never ended")


def test_wherever_the_end_of_a_run_is_killed_the_folders_model_is_whole(run: Start, tmp_path: Path) -> None:
    whole = run("whole")
    expected = files_sha256(whole.folder)
    for at in range(100):
        folder = tmp_path / f"killed-{at}"
        shutil.copytree(whole.folder, folder)
        archive_previous_run(folder, open_checkpoint(folder / "checkpoint-2"))

        def save_model(path: Path) -> None:
            shutil.copytree(whole.folder / "checkpoint-2" / "unwrapped_model", path)

        with pytest.MonkeyPatch.context() as patch:
            killing(patch, at)
            try:
                save_final_model(folder, save_model)
                ended = True
            except Killed:
                ended = False
        found = model_folder(folder)
        assert load_folder(found).notes == ()
        assert files_sha256(found) == expected
        if ended:
            assert found == folder
            return
    raise AssertionError("never ended")


@pytest.mark.parametrize("name", [*FINAL, "language_model", "adapter", "pytorch_model.bin"])
def test_every_part_of_an_earlier_runs_final_model_is_moved_aside(tmp_path: Path, name: str) -> None:
    """What stays would be read as a part of the next run's model."""
    for folder in ("tokenizer", "language_model", "adapter"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.json").write_text("{}", encoding="utf-8")
    for file in ("model.safetensors", "config.json", "pytorch_model.bin"):
        (tmp_path / file).write_bytes(b"of the earlier run")
    archive_previous_run(tmp_path, None)
    assert not (tmp_path / name).exists()
    assert (tmp_path / "earlier-1" / name).exists()


def test_a_linked_checkpoint_that_is_moved_aside_still_leads_to_its_folder(tmp_path: Path) -> None:
    store, folder = tmp_path / "store", tmp_path / "out"
    for path in (store / "step 5", folder / "checkpoint-1"):
        path.mkdir(parents=True)
    (folder / "checkpoint-5").symlink_to(Path("../store/step 5"))
    archive_previous_run(folder, Checkpoint(folder / "checkpoint-1", 1))
    assert not (folder / "checkpoint-5").is_symlink()
    assert (folder / "earlier-1" / "checkpoint-5").resolve() == (store / "step 5").resolve()


def test_a_copy_that_cannot_be_deleted_blocks_no_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = tmp_path / "checkpoint-1" / "unwrapped_model"
    for folder in (saved, tmp_path):
        (folder / "tokenizer").mkdir(parents=True)
        for name in ("model.safetensors", "config.json"):
            (folder / name).write_bytes(b"the same bytes")

    def busy(path: object, **_: object) -> None:
        raise OSError(16, "Device or resource busy", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", busy)
        archive_previous_run(tmp_path, Checkpoint(tmp_path / "checkpoint-1", 1))
    assert not any((tmp_path / name).exists() for name in FINAL)
    assert list(tmp_path.glob(".checkpoint-*"))
    archive_previous_run(tmp_path, Checkpoint(tmp_path / "checkpoint-1", 1))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-1"]
