"""Means are computed once, and every writer logs the same values."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from common.image_grid import add_caption
from config.loading import ConfigError
from models.losses import SumAndCount
from tests.training.runs import Outcome
from training.metrics import samples
from training.metrics.logger import JsonLinesWriter, Meter
from training.metrics.samples import Answer, answer_sheet
from training.metrics.tensorboard import LOSSES, TensorBoardWriter, layout, tag_of


def tally(total: float, count: float) -> SumAndCount:
    return SumAndCount(torch.tensor(total), torch.tensor(count))


def test_a_mean_is_over_what_was_counted_not_over_batches() -> None:
    meter = Meter()
    meter.add({"loss": tally(10.0, 1.0)})
    meter.add({"loss": tally(2.0, 3.0), "silent": tally(0.0, 0.0)})
    assert meter.read(lambda table: table) == {"loss": 3.0}
    assert meter.read(lambda table: table) == {}


def test_ranks_are_summed_before_the_division() -> None:
    meter = Meter()
    meter.add({"b": tally(1.0, 1.0), "a": tally(6.0, 2.0)})
    other = torch.tensor([[0.0, 2.0], [5.0, 2.0]], dtype=torch.float64)  # the other rank's table, names sorted
    assert meter.read(lambda table: table + other) == {"a": 1.5, "b": 2.0}


def test_a_resumed_run_logs_no_step_twice(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "x": 1}\n{"step": 2, "x": 2}\n{"step": 3, "x": 3}\n{"step": 4, "x')
    writer = JsonLinesWriter(path, step=2)
    writer.scalars({"x": 30.0}, step=3)
    writer.close()
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(r["step"], r["x"]) for r in records] == [(1, 1), (2, 2), (3, 30.0)]


@pytest.mark.parametrize(
    ("name", "tag"),
    [
        ("total/loss", "loss/total"),
        ("action_bd/loss", "loss/action_bd"),
        ("validation/image/loss", "loss_val/image"),
        ("validation/action/mae", "loss_val/action_mae"),
        ("grad_norm", "optim/grad_norm"),
        ("speed/mfu", "speed/mfu"),
        ("text/nats_hidden_25_50", "details/text_nats_hidden_25_50"),
        ("validation/ground/error_mm", "details_val/ground_error_mm"),
    ],
)
def test_tensorboard_has_few_groups(name: str, tag: str) -> None:
    assert tag_of(name) == tag


def test_tensorboard_has_a_constant_once_and_no_copy_of_the_text_loss_of_ar(tmp_path: Path) -> None:
    values = {"text/loss": 2.0, "text/nats_per_token": 2.0, "text/answer_tokens": 7.0}
    for objective in ("ar", "bd"):
        writer = TensorBoardWriter(tmp_path / objective, 0, objective)
        for step in (1, 2):
            writer.scalars({**values, **{f"validation/{name}": value for name, value in values.items()}}, step)
        writer.close()
        events = EventAccumulator(str(tmp_path / objective))
        events.Reload()
        points = {tag: len(events.Scalars(tag)) for tag in events.Tags()["scalars"]}
        details = {f"details{end}/text_answer_tokens": 1 for end in ("", "_val")}
        if objective == "bd":
            details |= {f"details{end}/text_nats_per_token": 1 for end in ("", "_val")}
        assert points == {"loss/text": 2, "loss_val/text": 2, **details}


def test_a_chart_of_tensorboard_has_the_training_and_the_validation_curve() -> None:
    (losses, *_) = layout().values()
    assert losses["image"] == ["Multiline", ["^loss/image$", "^loss_val/image$"]]
    assert losses.keys() == set(LOSSES)


def test_an_answer_is_right_without_case_and_final_period() -> None:
    assert Answer("q", "It is  red", "it is red.").verdict == "right"
    assert Answer("q", "It is blue", "it is red.").verdict == "wrong"
    assert Answer("q", "It is blue").verdict == ""
    assert Answer("q", "a", "b", True).markdown(8) == "**q** a *(cut at max_new_tokens=8)* *(in the data: b)* wrong"


def test_a_sheet_of_answers_has_the_image_and_a_caption_for_each() -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    one = answer_sheet(image, [Answer("q", "a", "a")])
    two = answer_sheet(image, [Answer("q", "a", "a"), Answer("q", "a")])
    assert one.shape[0] == 3
    assert one.shape[2] == two.shape[2] == 256
    assert 256 < one.shape[1] < two.shape[1]


def test_a_warning_about_an_unused_kernel_is_hidden_and_others_are_not(caplog: pytest.LogCaptureFixture) -> None:
    log = logging.getLogger("bitsandbytes.backends.cpu.ops")
    log.warning("Failed to load CPU gemm_4bit_forward from kernels-community: %s", "no kernels")
    log.warning("another one")
    assert [record.getMessage() for record in caplog.records] == ["another one"]


def test_wandb_gets_the_same_numbers_where_it_is_installed(
    run: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[dict[str, Any]] = []

    class Session:
        def log(self, values: dict[str, Any], step: int) -> None:
            logged.append({"step": step, **values})

        def finish(self) -> None:
            logged.append({"finished": True})

    wandb = ModuleType("wandb")
    wandb.__spec__ = object()  # type: ignore[assignment]  # what find_spec looks for
    wandb.init = lambda **settings: Session()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    done = run(experiment__tracker="wandb")
    assert logged == [*done.metrics, {"finished": True}]


def test_wandb_that_is_not_installed_is_reported_at_start(
    run: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install wandb"):
        run(experiment__tracker="wandb")
    assert not (tmp_path / "run").exists()


def test_the_sheet_of_future_frames_states_the_error_of_prediction_and_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[str] = []

    def read(image: Any, text: str, note: str = "") -> Any:
        notes.append(f"{text}: {note}")
        return add_caption(image, text, note)

    monkeypatch.setattr(samples, "add_caption", read)
    now, predicted, true = (torch.full((2, 3, 8, 8), level, dtype=torch.uint8) for level in (100, 107, 110))
    sheet = samples.future_sheet(now, predicted, true, ["open it", "shut it"], 10)
    assert sheet.shape[0] == 3
    errors = "mean pixel error: prediction 3.0, copy of the present frame 10.0 of 255"
    note = f"now | predicted | true, 10 steps ahead; {errors}"
    assert notes == [f"open it: {note}", f"shut it: {note}"]
