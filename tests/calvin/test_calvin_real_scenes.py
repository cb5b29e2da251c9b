"""Layouts, experts and recordings in the real simulator. Skipped where it is not installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from policy_rollout.calvin.initial_states import SHELF_SPOTS, SLIDER_LEFT, SWITCH_UP
from policy_rollout.calvin.installation import package_folder
from policy_rollout.calvin.oracle import TaskOracle
from policy_rollout.calvin.scene_state import symbolic_state
from policy_rollout.calvin.scenes.configuration import SCENES, compose_configuration
from policy_rollout.calvin.scenes.env import SceneEnv
from policy_rollout.calvin.scenes.layout import read_layout
from policy_rollout.calvin.simulator import read_configuration
from policy_rollout.calvin.symbolic import feasible_tasks
from policy_rollout.calvin.tasks import DOORS_AND_LIGHTS
from policy_rollout.desk.experts.evaluate import run_episode
from policy_rollout.desk.experts.policy import task_resets
from policy_rollout.desk.experts.worlds import regions_of
from training.data.calvin import CalvinSplit

ROOT = Path(__file__).resolve().parents[2]
RECORDED = Path(os.environ.get("BLOCKDIFF_CALVIN_DIR", ROOT.parent / "shared" / "calvin")) / "mini_D_D"
pytestmark = [
    pytest.mark.skipif(package_folder() is None, reason="calvin_env is not installed (scripts/install_calvin_env.sh)")
]
needs_recordings = pytest.mark.skipif(not RECORDED.is_dir(), reason=f"no recordings of the real CALVIN in {RECORDED}")


@pytest.fixture(scope="module")
def env() -> Iterator[SceneEnv]:
    made = SceneEnv("D")
    yield made
    made.close()


@needs_recordings
def test_the_composed_configuration_is_that_of_the_recordings() -> None:
    from omegaconf import OmegaConf

    recorded, composed = read_configuration(RECORDED / "validation"), compose_configuration("D")
    for section in ("cameras", "scene", "robot"):
        resolved = [OmegaConf.to_container(config[section], resolve=True) for config in (recorded, composed)]
        assert resolved[0] == resolved[1]


@pytest.mark.parametrize("scene", SCENES)
def test_every_layout_is_complete_and_each_scene_has_its_own(scene: str) -> None:
    layout = read_layout(compose_configuration(scene), scene)
    furniture = layout.furniture
    assert sorted(layout.blocks) == ["block_blue", "block_pink", "block_red"]
    assert sorted(round(size[0], 3) for size in layout.blocks.values()) == [0.04, 0.056, 0.08]
    assert abs(furniture.switch_travel - SWITCH_UP) < 1e-6
    assert abs(furniture.table_z - 0.44) < 1e-3
    assert furniture.table_front_y > layout.drawer_handle_at(0.0)[1] > -0.3
    low, high = layout.drawer_space_at(furniture.drawer_travel)
    assert (high - low > (0.3, 0.15, 0.05)).all()
    for name, (start, end) in layout.compartments.items():
        middle = (start + end) / 2
        assert layout.opening_x[0] < middle[0] < layout.opening_x[1], name


def test_scene_d_is_where_the_official_states_are(env: SceneEnv) -> None:
    assert abs(env.layout.furniture.slide_travel - SLIDER_LEFT) < 1e-6
    for name, spot in SHELF_SPOTS.items():
        low, high = env.layout.compartments[name]
        assert (low - 0.002 <= spot).all()
        assert (spot <= high + 0.002).all()


@pytest.mark.parametrize("task", ["open_drawer", "place_in_slider", "lift_pink_block_slider", "unstack_block"])
def test_a_reset_for_a_task_is_a_state_in_which_the_task_can_be_done(env: SceneEnv, task: str) -> None:
    robot, scene = task_resets(task, 1, env.layout)
    obs = env.reset(robot, scene)
    assert np.abs(obs["robot_obs"][:3] - robot[:3]).max() < 0.005
    assert np.abs(obs["scene_obs"] - scene).max() < 0.01
    state = symbolic_state(obs["scene_obs"], obs["robot_obs"], env.get_info(), regions_of(env.layout))
    assert task in feasible_tasks(state, unique=False)


@pytest.mark.parametrize("task", [*DOORS_AND_LIGHTS, "lift_red_block_table", "stack_block"])
def test_the_expert_does_its_task(env: SceneEnv, task: str) -> None:
    first, again = (run_episode(env, TaskOracle(), task, seed=0) for _ in range(2))
    assert first.success
    assert (again.success, again.steps) == (True, first.steps)


def _run(*command: object) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def _record(out: Path, *options: object) -> None:
    _run(
        "preprocess_data/make_desk_demos.py", "--environment=calvin", "--renderer=tiny", "--out", out, "--no-preview",
        "--tasks=doors_and_lights", "--tasks-per-episode=1", "--static-size=64", "--gripper-size=48", *options,
    )  # fmt: skip


@pytest.mark.slow
@needs_recordings
def test_experts_recording_training_and_chains_in_the_simulator(tmp_path: Path) -> None:
    report = tmp_path / "experts.md"
    _run(
        "-m", "policy_rollout.desk.experts", "--environment=calvin", "--table", "--resets=1", "--workers=1",
        "--tasks", "open_drawer", "turn_on_led", "--chains=0", "--markdown", report,
    )  # fmt: skip
    assert "| all | 2/2 | | |" in report.read_text()

    data = tmp_path / "data"
    _record(data, "--episodes=2", "--workers=2")
    _record(data, "--episodes=1", "--split=validation")
    _record(tmp_path / "again", "--episodes=1")
    _record(tmp_path / "again", "--episodes=2")  # resumed
    assert _contents(data / "training") == _contents(tmp_path / "again" / "training")
    _check_fields(CalvinSplit(data / "training"), CalvinSplit(RECORDED / "training"))

    processed, run = tmp_path / "processed", tmp_path / "run"
    _run("preprocess_data/process_calvin.py", "--source-split-dir", data / "training", "--output-dir", processed)
    _run(
        "train_upvla.py", "config=./config/tiny_desk.yaml", f"dataset.params.train_pre_shards_path_or_url={processed}",
        f"experiment.output_dir={run}", "experiment.tracker=none", "experiment.save_every=0",
        "training.batch_size_pre=2", "training.max_train_steps=2", "lr_scheduler.params.warmup_steps=1",
    )  # fmt: skip
    assert (run / "model.safetensors").is_file()

    model, results = tmp_path / "model.yaml", tmp_path / "rollouts"
    shipped = (ROOT / "policy_rollout" / "desk_model.yaml").read_text()
    model.write_text(shipped.replace("./assets/desk_policy", str(run)))
    _run(
        "-m", "policy_rollout.calvin_evaluate_upvla", "environment=calvin", f"dataset_path={data}", "renderer=tiny",
        f"model_config={model}", "annotations=own", "num_sequences=2", "num_videos=0", "ep_len=10", "device=cpu",
        "parallel=1", "workers=0", f"log_dir={results}",
    )  # fmt: skip
    content = json.loads((results / "results.json").read_text())
    assert len(content["records"]) == 2
    _run(
        "-m", "scripts.evaluate_desk", "--checkpoint", run, "--environment=calvin", "--renderer=tiny", "--episodes=2",
        "--chains=1", "--max-steps=40", "--only", "trained", "scripted experts",
    )  # fmt: skip
    assert json.loads((run / "judged" / "scripted_experts.json").read_text())["done"] == [True, True]


def _contents(split: Path) -> dict[str, bytes]:
    return {str(p.relative_to(split)): p.read_bytes() for p in sorted(split.rglob("*")) if p.is_file()}


def _check_fields(ours: CalvinSplit, published: CalvinSplit) -> None:
    """Check that a frame of ours has the arrays of a recorded one: keys, types and numbers of dimensions."""

    def fields(split: CalvinSplit) -> dict[str, Any]:
        with np.load(next(split.path.glob("episode_*.npz"))) as frame:
            return {name: (frame[name].dtype, frame[name].ndim) for name in frame.files}

    mine, theirs = fields(ours), fields(published)
    assert {name: mine[name] for name in theirs} == theirs
    assert set(mine) - set(theirs) == {"expert_actions"}
