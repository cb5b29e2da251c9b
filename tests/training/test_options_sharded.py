"""Adapters, an average and frozen parts with several processes: as with one, or refused where they cannot be had."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.pretrained.model_io import load_folder
from tests.training.launches import complaint, launch, sharded, start
from tests.training.runs import same, train
from training.checkpointing import trained_weights

pytestmark = pytest.mark.slow
ADAPTERS = ("lora.rank=2", "training.freeze=[projector.*]")


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("ddp", (*ADAPTERS, "training.ema_decay=0.5")),
        ("zero2", (*ADAPTERS, "training.ema_decay=0.5")),
        ("zero3", ADAPTERS),
        ("fsdp2", ADAPTERS),
    ],
)
def test_two_processes_take_the_steps_of_one(world: Path, tmp_path: Path, kind: str, options: tuple[str, ...]) -> None:
    pytest.importorskip("peft")
    if kind.startswith("zero"):
        pytest.importorskip("deepspeed")
    whole = {"training__batch_size_pre": 4, "training__batch_size_mmu": 4, "optimizer__params__epsilon": 1e-3}
    given = dict(option.split("=", 1) for option in options)
    one = train(world, tmp_path / "one", **whole, **{name.replace(".", "__"): text for name, text in given.items()})
    two = launch(world, tmp_path / "two", *sharded(kind), options)
    assert two.curve("total/loss") == pytest.approx(one.curve("total/loss"), rel=2e-6)
    assert same(one.weights(), two.weights(), tolerance=2e-6)
    assert (two.folder / "adapter" / "adapter_model.safetensors").is_file()


def test_the_average_is_of_the_fp32_weights_that_deepspeeds_bf16_weights_are_rounded_from(
    world: Path, tmp_path: Path
) -> None:
    pytest.importorskip("deepspeed")
    start = train(world, tmp_path / "start", training__max_train_steps=1, optimizer__params__learning_rate=1e-30)
    options = ("training.mixed_precision=bf16", "training.ema_decay=0.999", "training.max_train_steps=1")
    launch(world, tmp_path / "out", *sharded("zero2"), options)
    saved = trained_weights.read(tmp_path / "out" / "checkpoint-1" / "training_state")
    assert saved is not None
    before = {name: p.detach() for name, p in load_folder(start.folder).model.named_parameters()}
    expected = {name: 2 / 11 * before[name] + 9 / 11 * now for name, now in saved.weights.items()}  # by hand: d = 2/11
    assert same(dict(saved.average), expected, tolerance=1e-6)
    rounded = {name: 2 / 11 * before[name] + 9 / 11 * now.bfloat16().float() for name, now in saved.weights.items()}
    assert not same(dict(saved.average), rounded, tolerance=1e-6)


def test_an_average_of_weights_that_no_process_has_is_refused(world: Path, tmp_path: Path) -> None:
    done = start(world, tmp_path / "out", *sharded("fsdp2"), ("training.ema_decay=0.5",))
    assert complaint(done).startswith("config error: training.ema_decay=0.5: an average needs whole weights")
    assert not (tmp_path / "out").exists()
