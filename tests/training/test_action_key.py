"""Runs whose label is what the expert wanted."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from config.parsing import ConfigError
from tests.training.runs import Outcome

Start = Callable[..., Outcome]
DATA = "dataset__params__train_pre_shards_path_or_url"


def with_expert(source: Path, target: Path, factor: float) -> Path:
    """Copy a processed split; the expert wanted ``factor`` times the motion."""
    shutil.copytree(source, target)
    file = target / "dataset_info.json"
    episodes = json.loads(file.read_text())
    for frame in (frame for episode in episodes for frame in episode["frames"]):
        action = frame["rel_action"]
        frame["expert_action"] = [*(factor * number for number in action[:6]), action[6]]
    file.write_text(json.dumps(episodes))
    (target / "dataset_info.index").unlink(missing_ok=True)
    return target


def losses(outcome: Outcome) -> list[float]:
    return outcome.curve("total/loss")


def test_it_learns_them_by_the_same_path(run: Start, world: Path, tmp_path: Path) -> None:
    common: dict[str, Any] = {"training__max_train_steps": 2, "dataset__und_type": "null", "experiment__log_every": 1}
    same, half = (with_expert(world / "robot", tmp_path / str(factor), factor) for factor in (1.0, 0.5))
    plain = losses(run("plain", **{DATA: same}, **common))
    assert len(plain) == 2
    assert losses(run("equal", **{DATA: same}, dataset__action_key="expert_actions", **common)) == plain
    assert losses(run("half", **{DATA: half}, dataset__action_key="expert_actions", **common)) != plain
    assert losses(run("motion", **{DATA: half}, **common)) == plain


def test_without_them_the_run_does_not_start(run: Start) -> None:
    with pytest.raises(
        ConfigError, match=r"dataset\.action_key=expert_actions: .* set dataset\.action_key=rel_actions"
    ):
        run(dataset__action_key="expert_actions", training__max_train_steps=1)
