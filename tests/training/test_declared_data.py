"""What the robot data declares is compared at start, learned normalised, and saved with the model."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from config.load import ConfigError
from models.checkpoint import load_folder
from tests.training.runs import Outcome, train
from training.data.contract import Statistics, read_contract, write_contract
from training.data.processed import read_index

Start = Callable[..., Outcome]
DATA = "dataset__params__train_pre_shards_path_or_url"
SMALL = {"dataset__und_type": "null", "training__max_train_steps": 2}


@pytest.fixture
def robot(world: Path, tmp_path: Path) -> Path:
    """Robot data with a contract of its own."""
    folder = tmp_path / "robot"
    shutil.copytree(world / "robot", folder)
    write_contract(folder, {"rgb_static": (40, 40), "rgb_gripper": (40, 40)}, {"rate_hz": 5})
    return folder


def test_the_contract_is_saved_with_the_model(run: Start, robot: Path) -> None:
    outcome = run(**SMALL, **{DATA: robot}, dataset__action_normalisation="quantile")
    spec = load_folder(outcome.folder).spec
    assert spec.action_convention["rate_hz"] == 5
    assert spec.cameras == {"rgb_static": [40, 40], "rgb_gripper": [40, 40]}
    statistics = read_contract(robot).statistics
    assert statistics is not None
    assert spec.scale == statistics.scale("quantile")


def test_normalised_actions_are_another_loss_and_the_error_stays_in_the_robots_units(
    run: Start, robot: Path, tmp_path: Path
) -> None:
    there = tmp_path / "held_out"
    shutil.copytree(robot, there)
    measured = {"experiment__eval_every": 2, "dataset__params__validation_pre_shards_path_or_url": there}
    held_out = {**SMALL, DATA: robot, **measured}
    plain = run("plain", **held_out)
    scaled = run("scaled", **held_out, dataset__action_normalisation="min_max")
    assert plain.curve("action/loss")[0] != scaled.curve("action/loss")[0]
    # An untrained head says about 0: in robot units that is about the middle of the range, close to the plain run's 0.
    raw, back = (outcome.curve("validation/action/mae") for outcome in (plain, scaled))
    assert raw
    assert back == pytest.approx(raw, rel=0.5)
    assert back != raw


def test_without_a_contract_nothing_changes(run: Start, world: Path, robot: Path) -> None:
    without = run("without", **SMALL)
    (robot / "dataset_contract.json").unlink()
    assert run("with", **SMALL, **{DATA: robot}).curve("total/loss") == without.curve("total/loss")
    spec = load_folder(without.folder).spec
    assert spec.scale is None
    assert spec.cameras == {}


def test_statistics_are_those_of_the_data_where_the_contract_has_none(run: Start, world: Path) -> None:
    spec = load_folder(run(**SMALL, dataset__action_normalisation="min_max").folder).spec
    assert spec.scale == Statistics.of(read_index(world / "robot").actions[:]).scale("min_max")


def test_held_out_data_of_another_meaning_stops_the_run(run: Start, robot: Path, world: Path, tmp_path: Path) -> None:
    other = tmp_path / "held_out"
    shutil.copytree(world / "robot_validation", other)  # 30 Hz, as nobody says otherwise
    with pytest.raises(ConfigError, match=r"rate_hz as 5, but .*held_out as 30"):
        run(**SMALL, **{DATA: robot}, dataset__params__validation_pre_shards_path_or_url=other)


def test_a_second_camera_that_is_not_declared_is_refused(world: Path, robot: Path, tmp_path: Path) -> None:
    write_contract(robot, {"front": (40, 40)})
    with pytest.raises(ConfigError, match=r"model\.vla\.num_view=2.*declares one camera \(front\)"):
        train(world, tmp_path / "run", **SMALL, **{DATA: robot}, model__vla__num_view=2)


@pytest.mark.parametrize("normalisation", ["quantile", "none"])
def test_another_scale_does_not_go_on(run: Start, robot: Path, normalisation: str) -> None:
    settings = {**SMALL, DATA: robot, "experiment__save_every": 1}
    run(**settings, dataset__action_normalisation="min_max")
    again = {**settings, "experiment__resume_from_checkpoint": "latest", "training__max_train_steps": 3}
    with pytest.raises(ConfigError, match=rf"action_normalisation={normalisation} gives .* learned with min_max"):
        run(**again, dataset__action_normalisation=normalisation)
    run(**again, dataset__action_normalisation="min_max")
