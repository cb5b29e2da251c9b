"""Means are computed once, and every writer logs the same values."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from config.loading import ConfigError
from models.losses import SumAndCount
from tests.training.runs import Outcome
from training.metrics.logger import JsonLinesWriter, Meter


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
