"""Chains of tasks in closed loop, and the records that several processes write of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from policy_rollout.closed_loop.interface import ChainJob, ChainRecord, PolicyCall
from policy_rollout.closed_loop.runner import run_chains
from policy_rollout.policies.baselines import ConstantPolicy
from policy_rollout.policies.upvla import Observation
from tests.policy.counting import Counting, LoggingRecorder, job


class RecordingPolicy(ConstantPolicy):
    """Lists the instructions that it gets."""

    def __init__(self) -> None:
        super().__init__(np.zeros(7, np.float32), act_step=4)
        self.instructions: list[str] = []

    def act(self, observations: Any) -> Any:
        self.instructions += [observation.instruction for observation in observations]
        assert all(isinstance(observation, Observation) for observation in observations)
        return super().act(observations)


def play(jobs: list[ChainJob], parallel: int = 1, **options: Any) -> tuple[dict[int, ChainRecord], RecordingPolicy]:
    done: dict[int, ChainRecord] = {}
    policy = RecordingPolicy()

    def finished(record: ChainRecord) -> None:
        assert record.index not in done
        done[record.index] = record

    run_chains(Counting(), policy, jobs, finished, max_steps=10, parallel=parallel, **options)
    return done, policy


def test_a_chain_continues_in_the_same_world_until_a_task_fails() -> None:
    done, _ = play([job(0, 3, 7, 11, 2), job(1, 1, 1, 1)])
    assert done[0] == ChainRecord(0, ("add 3", "add 7", "add 11", "add 2"), 2, (3, 7, 10))
    assert done[1] == ChainRecord(1, ("add 1", "add 1", "add 1"), 3, (1, 1, 1))


def test_no_action_of_one_sentence_is_executed_for_the_next() -> None:
    """The chunk has four actions; the first task takes one, so the policy has to look again at once."""
    _, policy = play([job(0, 1, 5)])
    assert policy.instructions == ["please add 1", "please add 5", "please add 5"]


@pytest.mark.parametrize(("parallel", "workers"), [(3, 0), (8, 0), (1, 1), (5, 2)])
def test_parallel_chains_and_worker_processes_do_not_change_outcomes(parallel: int, workers: int) -> None:
    jobs = [job(i, 1 + i % 4, 5, 1 + i % 12) for i in range(9)]
    assert play(jobs, parallel, workers=workers)[0] == play(jobs)[0]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_recorder_gets_the_chains_that_it_selects_in_order(workers: int) -> None:
    recorder = LoggingRecorder({1, 2})
    play([job(i, 3, 6) for i in range(4)], parallel=2, workers=workers, recorder=recorder)
    assert recorder.calls[1] == [
        "start",
        "observation 0:0 shows 1",  # the world starts from the chain's index
        "frame 0:0 shows 2",
        "frame 0:2 shows 4",
        "observation 1:0 shows 4",  # the second task starts with a look of its own
        "frame 1:0 shows 5",
        "frame 1:2 shows 7",
        "observation 1:4 shows 8",
        "frame 1:4 shows 9",
        "frame 1:5 shows 10",  # the state in which the task was done, though only every second step is recorded
        "finished with 2",
    ]
    assert sorted(recorder.calls) == [1, 2]
    assert len(recorder.calls[2]) == 11


@pytest.mark.parametrize("frame_interval", [1, 2, 3, 7])
def test_the_last_frame_of_every_task_shows_its_final_state(frame_interval: int) -> None:
    """World 0 counts steps: task 1 is done at 3, task 2 at 8, and task 3 fails after ten steps at 18."""
    recorder = LoggingRecorder({0}, frame_interval=frame_interval)
    play([job(0, 3, 5, 99)], recorder=recorder)
    frames = [line.removeprefix("frame ") for line in recorder.calls[0] if line.startswith("frame")]
    last = {line.split(":")[0]: line for line in frames}
    assert list(last.values()) == ["0:2 shows 3", "1:4 shows 8", "2:9 shows 18"]
    assert len(frames) == len(set(frames)), "no step is recorded twice"


class PredictingPolicy(ConstantPolicy):
    """Predicts its number of calls as the image code of every observation."""

    predicts_with_actions = True

    def __init__(self) -> None:
        super().__init__(np.zeros(7, np.float32), act_step=4)
        self.predictions = 0

    def act_with_codes(self, observations: Any) -> Any:
        self.predictions += 1
        return self.act(observations), np.full((len(observations), 3), self.predictions)

    def decode(self, codes: Any) -> Any:
        raise AssertionError("the runner decodes nothing")


@pytest.mark.parametrize("wants_codes", [True, False])
def test_codes_are_predicted_for_a_recorder_that_wants_them_only(wants_codes: bool) -> None:
    found: list[int | None] = []

    class CodeRecorder(LoggingRecorder):
        def add_call(self, job: ChainJob, call: PolicyCall) -> None:
            super().add_call(job, call)
            found.append(None if call.codes is None else int(call.codes[0]))

    policy = PredictingPolicy()
    recorder = CodeRecorder({0}, wants_codes=wants_codes)
    run_chains(Counting(), policy, [job(0, 3, 6)], lambda record: None, max_steps=10, recorder=recorder)
    assert found == ([1, 2, 3] if wants_codes else [None] * 3)
    assert policy.predictions == (3 if wants_codes else 0)
