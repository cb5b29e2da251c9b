"""What every closed loop benchmark has to be. One that is added is tested here by being there."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from dataclasses import FrozenInstanceError
from typing import Any

import numpy as np
import pytest

from policy_rollout.benchmarks.base import Benchmark, benchmark_names, find_benchmark
from policy_rollout.calvin.tasks import TASK_NAMES
from policy_rollout.closed_loop.interface import observation
from tests.policy.test_evaluation import settings


def benchmark(name: str) -> Benchmark:
    try:
        return find_benchmark({**settings("model_config=none", f"environment={name}"), "local_rank": 0})
    except (ValueError, FileNotFoundError) as missing:
        pytest.skip(str(missing))


@pytest.fixture(params=benchmark_names())
def found(request: Any) -> Benchmark:
    return benchmark(request.param)


def test_the_desk_is_found_by_being_a_module() -> None:
    assert "desk" in benchmark_names()
    assert "offline" not in benchmark_names()


@pytest.mark.parametrize("name", benchmark_names())
def test_finding_it_loads_neither_a_network_nor_a_simulator(name: str) -> None:
    """Worker processes import the module, and the list of benchmarks does."""
    heavy = "[n for n in ('torch', 'mujoco', 'pybullet') if n in sys.modules]"
    code = f"import sys, policy_rollout.benchmarks.{name}; print({heavy})"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"


def test_it_can_be_sent_to_another_process_and_not_be_changed(found: Benchmark) -> None:
    assert pickle.loads(pickle.dumps(found)) == found
    with pytest.raises(FrozenInstanceError):
        found.other = 1  # type: ignore[attr-defined]


def test_its_stamp_is_json_that_names_it_and_what_draws(found: Benchmark) -> None:
    stamp = found.stamp()
    assert json.loads(json.dumps(stamp)) == stamp
    assert stamp["name"] == found.name
    assert stamp["renderer"]
    assert all(isinstance(version, str) for version in stamp["versions"].values())
    assert stamp == found.stamp()


def test_fewer_chains_are_a_prefix_of_more(found: Benchmark) -> None:
    few, more = found.jobs(3), found.jobs(20)
    assert [job.index for job in more] == list(range(20))
    assert [(job.tasks, job.instructions) for job in few] == [(job.tasks, job.instructions) for job in more[:3]]
    assert all(len(job.tasks) == len(job.instructions) > 0 for job in more)
    assert {task for job in more for task in job.tasks} <= set(TASK_NAMES)
    with pytest.raises(ValueError, match="1000"):
        found.jobs(1001)


def test_its_world_can_be_run_in(found: Benchmark) -> None:
    env, oracle, job = found.make_env(), found.oracle(), found.jobs(1)[0]
    try:
        env.reset(robot_obs=job.robot_obs, scene_obs=job.scene_obs)
        start = env.get_info()
        seen = observation(env.get_obs(render=("static", "gripper")), job.instructions[0])
        for image in (seen.rgb_static, seen.rgb_gripper):
            assert image is not None
            assert image.dtype == np.uint8
            assert image.ndim == 3
        _, _, _, info = env.step(np.array([0, 0, 0, 0, 0, 0, 1.0]), render=False)
        assert oracle.tasks_done(start, info, among=set(job.tasks)) == set()
        again = [env.reset(robot_obs=job.robot_obs, scene_obs=job.scene_obs), env.get_obs(render=("static",))][1]
        assert np.array_equal(again["rgb_obs"]["rgb_static"], seen.rgb_static), "a reset puts everything back"
    finally:
        env.close()


def test_its_actions_are_metres_and_radians_of_a_stated_size(found: Benchmark) -> None:
    assert found.convention.position_m_per_unit > 0
    assert found.convention.rotation_rad_per_unit > 0
    assert found.envs_per_process is None or found.envs_per_process >= 1
