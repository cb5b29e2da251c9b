"""What the robot data declares is compared at start, learned normalised, and saved with the model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from config.loading import ConfigError, load_job
from models.pretrained.model_config import ModelConfig
from models.pretrained.model_io import load_folder
from policy_rollout.policies.interface import Observation
from policy_rollout.policies.upvla import UPVLAPolicy
from tests.training.runs import Outcome, train
from training.data.checks.robot_data import drop_unusable_validation
from training.data.dataset_spec import Statistics, read_contract, write_contract
from training.data.episode_index import read_index

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
    assert spec.data.action_convention["rate_hz"] == 5
    assert spec.data.cameras == {"rgb_static": [40, 40], "rgb_gripper": [40, 40]}
    statistics = read_contract(robot).statistics
    assert statistics is not None
    assert spec.data.scale == statistics.scale("quantile")


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
    assert spec.data.scale is None
    assert spec.data.cameras == {}


def test_statistics_are_those_of_the_data_where_the_contract_has_none(run: Start, world: Path) -> None:
    spec = load_folder(run(**SMALL, dataset__action_normalisation="min_max").folder).spec
    assert spec.data.scale == Statistics.of(read_index(world / "robot").actions[:]).scale("min_max")


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


# --- data against their contract ----------------------------------------------------------------------------------


def edited(folder: Path, action: Callable[[int, list[float]], list[float]]) -> Path:
    """The robot data with other actions: of the number of a frame and its action."""
    path = folder / "dataset_info.json"
    episodes = json.loads(path.read_text())
    for episode in episodes:
        for number, frame in enumerate(episode["frames"]):
            frame["rel_action"] = action(number, frame["rel_action"])
    path.write_text(json.dumps(episodes))
    return folder


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (lambda number, a: [*a[:6], float(number % 2)], r"the gripper is neither -1 nor 1 in 9 of 16 frames"),
        (lambda number, a: [400 * x for x in a[:6]] + [1.0], r"far out of \[-1, 1\].*16 of 16 frames"),
    ],
)
@pytest.mark.parametrize("held_out", [False, True])
def test_actions_against_the_contract_are_refused(
    run: Start, robot: Path, tmp_path: Path, action: Any, message: str, held_out: bool
) -> None:
    there = tmp_path / "held_out"
    shutil.copytree(robot, there)
    edited(there if held_out else robot, action)
    with pytest.raises(ConfigError, match=message) as caught:
        run(**SMALL, **{DATA: robot}, dataset__params__validation_pre_shards_path_or_url=there)
    assert str(there if held_out else robot) in str(caught.value)


def test_statistics_of_other_data_are_refused_where_they_are_used(
    run: Start, robot: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edited(robot, lambda number, a: [0.5 * x for x in a[:6]] + [a[6]])
    with pytest.raises(ConfigError, match=r"dataset_contract\.json: its statistics are those of other actions"):
        run(**SMALL, **{DATA: robot}, dataset__action_normalisation="min_max")
    run(**SMALL, **{DATA: robot})
    output = capsys.readouterr()
    assert "its statistics are those of other actions" in output.out + output.err
    assert "16 frames and 2 instructions" in output.out + output.err


# --- cameras by name ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("names", [("rgb_static", "rgb_gripper"), ("rgb_gripper", "rgb_static")])
def test_each_camera_is_compared_with_its_own_images(
    run: Start, world: Path, robot: Path, tmp_path: Path, views: int, names: tuple[str, str]
) -> None:
    sizes = {"rgb_static": (30, 40), "rgb_gripper": (24, 24)}
    for file in (robot / "frames").glob("*.npz"):
        np.savez(file, **{name: np.zeros((*size, 3), np.uint8) for name, size in sizes.items()})
    write_contract(robot, {name: sizes[name] for name in names})
    outcome = run(**{**SMALL, "training__max_train_steps": 1}, **{DATA: robot}, model__vla__num_view=views)
    yaml = tmp_path / "model.yaml"
    where = f"{{vq_model: {{vq_model_name: {world}/magvit}}, showo: {{tuned_model_path: {outcome.folder}}}}}"
    yaml.write_text(f"model: {{framework: upvla, {where[1:]}\n")
    policy = UPVLAPolicy.from_config(yaml, device="cpu")
    static, gripper = (np.zeros((*size, 3), np.uint8) for size in sizes.values())
    assert policy.act([Observation(static, "open the drawer", gripper)]).shape == (1, 4, 7)
    policy.warm_up()
    with pytest.raises(ValueError, match="rgb_static"):
        policy.act([Observation(gripper, "open the drawer", static)])


def test_sizes_of_an_older_checkpoint_are_read_by_name(run: Start, robot: Path) -> None:
    saved = load_folder(run(**SMALL, **{DATA: robot}).folder).spec.to_json()

    def cameras(held: dict[str, list[int]]) -> Any:
        return ModelConfig.from_json({**saved, "cameras": held}).data.cameras

    assert list(cameras({"rgb_gripper": [24, 24], "rgb_static": [30, 40]}).items()) == [
        ("rgb_static", [30, 40]),
        ("rgb_gripper", [24, 24]),
    ]
    assert cameras({"front": [30, 40]}) == {"rgb_static": [30, 40]}
    assert cameras({"front": [30, 40], "hand": [24, 24]}) == {}  # sorted: nobody knows which is which


# --- validation data that nobody chose ----------------------------------------------------------------------------


def debug_job(robot: Path, tmp_path: Path, *more: str) -> Any:
    data = f"dataset.params.train_pre_shards_path_or_url={robot}"
    output = f"experiment.output_dir={tmp_path / 'run'}"
    return load_job(["config=config/debug_arvla_1step.yaml", data, output, *more])


def test_validation_data_that_were_not_chosen_follow_the_training_data(robot: Path, tmp_path: Path) -> None:
    key = "dataset.params.validation_pre_shards_path_or_url"
    assert load_job(["config=config/debug_arvla_1step.yaml"]).default_validation == []
    assert debug_job(robot, tmp_path, f"{key}={robot}").default_validation == []
    job = debug_job(robot, tmp_path)
    assert job.default_validation == [key]
    (line,) = drop_unusable_validation(job)
    assert "calvin_processed_validation" in line
    assert "nothing is evaluated" in line
    assert job.dataset.params.validation_pre_shards_path_or_url is None

    other = debug_job(robot, tmp_path, "experiment.eval_every=1")  # 5 Hz, not 30
    (line,) = drop_unusable_validation(other)
    assert "rate_hz" in line
    assert other.dataset.params.validation_pre_shards_path_or_url is None

    (robot / "dataset_contract.json").unlink()
    same = debug_job(robot, tmp_path, "experiment.eval_every=1")
    assert drop_unusable_validation(same) == []
    assert "calvin_processed_validation" in str(same.dataset.params.validation_pre_shards_path_or_url)
