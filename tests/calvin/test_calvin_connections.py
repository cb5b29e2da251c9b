"""EGL connections: warm-up images, bounded memory, and outcomes that depend on neither. The stand-in draws the first
two images of a connection without shadows and leaks memory with every loaded world, as the real simulator does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from policy_rollout.benchmarks.calvin import CalvinBenchmark
from policy_rollout.calvin.egl import Graphics
from policy_rollout.calvin.initial_states import initial_state
from policy_rollout.calvin.sequences import official_sequences
from policy_rollout.calvin.simulator import WORLDS_PER_CONNECTION, CalvinEnv
from policy_rollout.closed_loop.interface import ChainJob, ChainRecord
from policy_rollout.closed_loop.runner import run_chains
from policy_rollout.policies.baselines import ConstantPolicy
from policy_rollout.policies.interface import Observation

Data = Callable[[str], Path]
PULL = np.array([0, -0.9, 0, 0, 0, 0, 1], np.float32)
SHADOW = 141


@pytest.fixture
def split(fake_calvin_env: Path, data: Data) -> Path:
    return data("D") / "validation"


@pytest.fixture
def make(split: Path) -> Iterator[Callable[[], CalvinEnv]]:
    made: list[CalvinEnv] = []

    def one() -> CalvinEnv:
        made.append(CalvinEnv(split, egl=True))
        return made[-1]

    yield one
    for env in made:
        env.close()


def first_images(env: CalvinEnv, chain: int) -> dict[str, Any]:
    env.reset(*initial_state(official_sequences(chain + 1)[chain].state))
    images: dict[str, Any] = env.get_obs()["rgb_obs"]
    return images


def test_the_stand_in_misbehaves_as_the_simulator_does(make: Callable[[], CalvinEnv]) -> None:
    sim: Any = make()._sim
    sim.images = 0  # as if the connection were new
    camera = make_camera(sim)
    shadows = [bool((camera.render()[0] == SHADOW).any()) for _ in range(4)]
    assert shadows == [False, False, True, True]


def make_camera(sim: Any) -> Any:
    from calvin_env.envs.play_table_env import Camera

    return Camera(sim, "static", 20, 20)


def test_every_image_of_a_chain_is_that_of_a_warm_renderer(make: Callable[[], CalvinEnv]) -> None:
    """The first of a process, the first of a renewed connection, and all others."""
    env = make()
    expected = first_images(env, 0)
    assert (expected["rgb_static"][:10, :, 1] == SHADOW).all()
    assert (expected["rgb_gripper"][:4, :, 1] == SHADOW).all()
    for chain in [1, 2, 0] * (WORLDS_PER_CONNECTION + 1):
        images = first_images(env, chain)
        if chain == 0:
            assert all(np.array_equal(images[name], expected[name]) for name in expected)
        else:
            assert (images["rgb_static"][:10, :, 1] == SHADOW).all()
    env.close()
    again = first_images(make(), 0)
    assert all(np.array_equal(again[name], expected[name]) for name in expected)


def test_a_thousand_chains_run_in_bounded_memory(make: Callable[[], CalvinEnv]) -> None:
    env = make()
    from calvin_env.envs import play_table_env as fake

    start, before = initial_state(official_sequences(1)[0].state), fake.connections
    for _ in range(1000):
        env.reset(*start)
    assert fake.peak_memory <= fake.LEAK * (WORLDS_PER_CONNECTION + 1)
    assert fake.connections - before == 1000 // WORLDS_PER_CONNECTION - 1, "a connection costs time"
    env.close()
    assert fake.memory == 0


def test_the_cpu_renderer_keeps_its_connection(split: Path) -> None:
    env = CalvinEnv(split)
    from calvin_env.envs import play_table_env as fake

    before = fake.connections
    for _ in range(3 * WORLDS_PER_CONNECTION):
        env.reset()
    env.close()
    assert fake.connections == before


class ShadowPolicy(ConstantPolicy):
    """Pulls the drawer open if the image of the static camera has shadows, else does nothing."""

    def act(self, observations: Any) -> Any:
        chunks = super().act(observations)
        for chunk, seen in zip(chunks, observations, strict=True):
            assert isinstance(seen, Observation)
            if not (seen.rgb_static == SHADOW).any():
                chunk[:, :6] = 0
        return chunks


def play(benchmark: CalvinBenchmark, jobs: list[ChainJob], workers: int) -> dict[int, ChainRecord]:
    records: dict[int, ChainRecord] = {}
    run_chains(
        benchmark,
        ShadowPolicy(PULL, act_step=10),  # one chunk a task: the first image decides
        jobs,
        lambda record: records.__setitem__(record.index, record),
        max_steps=10,
        workers=workers,
        parallel=max(workers, 1),
    )
    return records


def test_outcomes_depend_on_neither_process_nor_order_nor_kills(fake_calvin_env: Path, split: Path) -> None:
    benchmark = CalvinBenchmark(split, Graphics(True, "nobody"))
    drawers = [job for job in benchmark.jobs(200) if job.tasks[0] == "open_drawer"][:4]
    jobs = [replace(job, tasks=("open_drawer",), instructions=("open the drawer",)) for job in drawers]
    expected = play(benchmark, jobs, workers=0)
    assert [expected[job.index].completed for job in jobs] == [1, 1, 1, 1]
    assert play(benchmark, jobs[::-1], workers=0) == expected
    alone = {job.index: play(benchmark, [job], workers=0)[job.index] for job in jobs}
    assert alone == expected, "each in a connection of its own"
    assert play(benchmark, jobs, workers=2) == expected
    crash = fake_calvin_env / "calvin_env" / "envs" / "crash"
    crash.touch()
    assert play(benchmark, jobs, workers=1) == expected
    assert not crash.exists(), "no worker was killed"
