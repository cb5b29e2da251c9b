"""DDP, DeepSpeed ZeRO-1/2/3 and FSDP2: the step of one process, checkpoints that anybody loads, exact resuming."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from models.pretrained.model_io import load_folder
from tests.training.launches import complaint, launch, sharded, start
from tests.training.runs import Outcome, same
from tests.training.test_resume import NUMBERS

KINDS = ("ddp", "zero1", "zero2", "zero3", "fsdp2")
pytestmark = pytest.mark.slow


def require(kind: str) -> None:
    if kind.startswith("zero"):
        pytest.importorskip("deepspeed")


def steps(last: int, *more: str) -> tuple[str, ...]:
    return (f"training.max_train_steps={last}", *more)


def left_at(whole: Outcome, step: int, folder: Path) -> Path:
    """A folder as ``whole`` left it, had it been killed shortly after ``checkpoint-<step>``."""
    folder.mkdir()
    shutil.copytree(whole.folder / f"checkpoint-{step}", folder / f"checkpoint-{step}")
    shutil.copy(whole.folder / "metrics.jsonl", folder)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_take_the_step_of_one_and_go_on_after_a_kill(
    kind: str, run: Callable[..., Outcome], world: Path, tmp_path: Path
) -> None:
    """One process with batch 8, two with batch 2 and two micro-batches; then the second half once more."""
    require(kind)
    big = {"training__batch_size_pre": 8, "training__batch_size_mmu": 8, "training__max_train_steps": 4}
    one = run("one", **big, training__max_grad_norm=1.0, optimizer__params__epsilon=1e-3)
    settings = steps(
        4, "training.gradient_accumulation_steps=2", "training.max_grad_norm=1.0", "experiment.save_every=2"
    )
    options, env = sharded(kind)
    two = launch(world, tmp_path / "two", options, env, settings)
    assert two.curve("total/loss") == pytest.approx(one.curve("total/loss"), rel=3e-6)
    assert two.curve("grad_norm") == pytest.approx(one.curve("grad_norm"), rel=1e-4)
    assert same(one.weights(), two.weights(), tolerance=5e-6)

    resume = (*settings, "experiment.resume_from_checkpoint=latest")
    resumed = launch(world, left_at(two, 2, tmp_path / "resumed"), options, env, resume)
    assert same(two.weights(), resumed.weights())
    for tag in NUMBERS:
        assert resumed.curve(tag) == two.curve(tag), tag


BF16 = ("training.mixed_precision=bf16", "training.gradient_accumulation_steps=2", "experiment.save_every=2")


@pytest.fixture(scope="module")
def ddp_in_bf16(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return launch(world, tmp_path_factory.mktemp("bf16") / "ddp", *sharded("ddp"), steps(4, *BF16))


@pytest.mark.parametrize("kind", ["zero1", "zero2", "zero3", "fsdp2"])
def test_bf16_trains_and_goes_on_bit_for_bit(kind: str, ddp_in_bf16: Outcome, world: Path, tmp_path: Path) -> None:
    require(kind)
    settings = steps(4, *BF16)
    options, env = sharded(kind)
    whole = launch(world, tmp_path / "whole", options, env, settings)
    assert whole.curve("total/loss") == pytest.approx(ddp_in_bf16.curve("total/loss"), rel=2e-2)
    assert {tensor.dtype for tensor in whole.weights().values()} == {torch.float32}, (
        "saved in the optimizer's precision"
    )
    resume = (*settings, "experiment.resume_from_checkpoint=latest")
    resumed = launch(world, left_at(whole, 2, tmp_path / "resumed"), options, env, resume)
    assert same(whole.weights(), resumed.weights())
    assert resumed.curve("total/loss") == whole.curve("total/loss")


@pytest.mark.parametrize("kind", ["zero3", "fsdp2"])
def test_a_sharded_model_is_saved_and_evaluated_with_full_weights(kind: str, world: Path, tmp_path: Path) -> None:
    """Held-out figures, frames and answers during training, and a folder that one process acts from."""
    require(kind)
    looks = (
        "experiment.eval_every=1",
        "experiment.generate_every=1",
        f"dataset.params.validation_pre_shards_path_or_url={world / 'robot_validation'}",
        f"dataset.params.validation_mmu_shards_path_or_url={world / 'chat'}",
    )
    ours = launch(world, tmp_path / "ours", *sharded(kind), steps(2, "experiment.save_every=1", *looks))
    plain = launch(world, tmp_path / "plain", *sharded("ddp"), steps(2, *looks))
    for tag in ("validation/image/loss", "validation/action/mae"):
        assert ours.curve(tag) == pytest.approx(plain.curve(tag), rel=1e-4), tag
    for folder in (ours.folder, ours.folder / "checkpoint-1"):
        loaded = load_folder(folder).model.state_dict()
        assert all(tensor.numel() > 0 and tensor.isfinite().all() for tensor in loaded.values())
    assert same(ours.weights(), plain.weights(), tolerance=5e-6)


@pytest.mark.parametrize("kind", ["zero2", "zero3"])
def test_deepspeed_goes_on_with_another_number_of_processes(kind: str, world: Path, tmp_path: Path) -> None:
    """Its state is written for one number of processes; it is rewritten for another, moments included."""
    require(kind)
    options, env = sharded(kind)
    settings = steps(4, "experiment.save_every=2", "training.batch_size_pre=2", "training.batch_size_mmu=2")
    two = launch(world, tmp_path / "two", options, env, settings)
    alone = steps(
        4, "training.batch_size_pre=4", "training.batch_size_mmu=4", "experiment.resume_from_checkpoint=latest"
    )
    one = launch(world, left_at(two, 2, tmp_path / "one"), (*options[:-1], "1"), env, alone)
    assert one.curve("total/loss") == pytest.approx(two.curve("total/loss"), rel=3e-6)
    assert same(one.weights(), two.weights(), tolerance=5e-6)


def test_a_checkpoint_of_another_way_to_share_the_model_is_refused_in_one_line(world: Path, tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    ddp = launch(world, tmp_path / "ddp", *sharded("ddp"), steps(1))
    options, env = sharded("zero2")
    resume = steps(2, "experiment.resume_from_checkpoint=latest")
    output = complaint(start(world, ddp.folder, options, env, resume))
    assert "checkpoint-1" in output
    assert "DDP" in output
    assert "DeepSpeed ZeRO-2" in output
    assert "model.showo.pretrained_model_path" in output
