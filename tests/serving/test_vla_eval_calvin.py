"""vla-eval's own episode runner and its CALVIN, all but the simulator, against the server."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
import torch

from policy_rollout.policies.action_units import in_metres
from policy_rollout.policies.interface import ActionConvention
from tests.serving.served import EchoPolicy, T, serving

pytest.importorskip("vla_eval", reason="make venv-dev brings vla-eval")

START = np.array([0.1, -0.2, 0.5, 3.1, 0.0, 1.5])
STEPS, SUCCEEDS_AT = 10, 6
REL_ACTION = np.float32([0.5, -1.0, 0.25, 0.0, 0.4, -1.0, 0.8])


@pytest.fixture
def calvin(monkeypatch):
    """Their CALVIN benchmark: its observations and its execution of actions, over a world that only notes them."""
    for name in ("PYOPENGL_PLATFORM", "EGL_PLATFORM"):
        monkeypatch.setenv(name, "unchanged")  # importing it would choose a renderer for every test after this one
    from vla_eval.benchmarks.base import StepResult
    from vla_eval.benchmarks.calvin.benchmark import CALVINBenchmark

    class NotedCalvin(CALVINBenchmark):
        def reset(self, task: Any) -> Any:
            self._eval_sequence, self._subtask_idx, self.steps = list(task["eval_sequence"]), 0, 0
            self._subtask_just_reset = False
            self._last_act = np.append(START, 1.0)
            self.targets: list[np.ndarray] = []
            self.raw: list[np.ndarray] = []
            return self._seen()

        def _seen(self) -> Any:
            bright = torch.full((1, 1, 3, 20, 20), (self.steps * 10) / 127.5 - 1)
            return {"rgb_obs": {"rgb_static": bright}}

        def step(self, action: Any) -> StepResult:
            self.raw.append(np.array(action["actions"]))
            self.targets.append(self._process_delta_action(action))
            self.steps += 1
            if self.steps == SUCCEEDS_AT:
                self._subtask_idx, self._subtask_just_reset = 1, True
            return StepResult(obs=self._seen(), reward=0.0, done=self.steps == STEPS, info={"completed": 1})

    return NotedCalvin()


def run(served: Any, benchmark: Any) -> Any:
    from vla_eval.connection import Connection
    from vla_eval.runners.sync_runner import SyncEpisodeRunner

    async def episode() -> Any:
        connection = Connection(served.url("/vla-eval"), timeout=10)
        await connection.connect(benchmark="vla_eval.benchmarks.calvin.benchmark:CALVINBenchmark")
        try:
            task = {"name": "seq_0000", "eval_sequence": ["open_drawer", "close_drawer"]}
            return await SyncEpisodeRunner().run_episode(benchmark, task, connection)
        finally:
            await connection.close()

    return asyncio.run(asyncio.wait_for(episode(), 30))


def test_their_runner_moves_the_hand_as_calvins_rel_actions_say(calvin):
    policy = EchoPolicy()
    policy.act = lambda seen: np.tile(REL_ACTION, (len(seen), T, 1))
    with serving(policy) as served:
        result = run(served, calvin)
    assert result["steps"] == STEPS
    moved = np.array(calvin.targets)[:SUCCEEDS_AT] - np.append(START, 0)
    expected = np.cumsum(np.tile(in_metres(REL_ACTION, ActionConvention()), (SUCCEEDS_AT, 1)), axis=0)
    np.testing.assert_allclose(moved[:, :5], expected[:, :5], atol=1e-6)
    assert moved[0, 0] == pytest.approx(0.01), "0.5 of 0.02 m"
    assert (np.array(calvin.targets)[:, 6] == 1).all(), "open"


def test_their_next_task_is_not_begun_with_the_chunk_of_the_last(calvin):
    with serving() as served:
        run(served, calvin)
        assert served.policy.batches == [1] * 3
    of_chunk = [round(float(action[1]) / 0.02) for action in calvin.raw]
    assert of_chunk == [0, 1, 2, 3, 0, 1, 0, 1, 2, 3], "flushed when the drawer was open"
    images = [round(float(action[0]) / 0.02 * 1000) for action in calvin.raw]
    assert images == pytest.approx([0] * 4 + [40] * 2 + [60] * 4, abs=1)
