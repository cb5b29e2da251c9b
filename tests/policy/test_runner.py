"""Chains of tasks in closed loop, and the records that several processes write of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from policy_rollout.closed_loop.runner import ChainJob, ChainRecord, run_chains
from policy_rollout.policies.upvla import ConstantPolicy, Observation
from tests.policy.counting import Counting, StepLog, job


class Listener(ConstantPolicy):
    """Writes down what it was told."""

    def __init__(self) -> None:
        super().__init__(np.zeros(7, np.float32), act_step=4)
        self.heard: list[str] = []

    def act(self, observations: Any) -> Any:
        self.heard += [observation.instruction for observation in observations]
        assert all(isinstance(observation, Observation) for observation in observations)
        return super().act(observations)


def play(jobs: list[ChainJob], parallel: int = 1, **options: Any) -> tuple[dict[int, ChainRecord], Listener]:
    done: dict[int, ChainRecord] = {}
    policy = Listener()

    def finished(record: ChainRecord) -> None:
        assert record.index not in done
        done[record.index] = record

    run_chains(Counting(), policy, jobs, finished, max_steps=10, parallel=parallel, **options)
    return done, policy


def test_a_chain_goes_on_in_the_same_world_until_a_task_fails() -> None:
    done, _ = play([job(0, 3, 7, 11, 2), job(1, 1, 1, 1)])
    assert done[0] == ChainRecord(0, ("add 3", "add 7", "add 11", "add 2"), 2, (3, 7, 10))
    assert done[1] == ChainRecord(1, ("add 1", "add 1", "add 1"), 3, (1, 1, 1))


def test_no_action_of_one_sentence_is_played_for_the_next() -> None:
    """The chunk has four actions; the first task takes one, so the policy has to look again at once."""
    _, policy = play([job(0, 1, 5)])
    assert policy.heard == ["please add 1", "please add 5", "please add 5"]


@pytest.mark.parametrize(("parallel", "workers"), [(3, 0), (8, 0), (1, 1), (5, 2)])
def test_who_plays_beside_whom_and_in_which_process_changes_nothing(parallel: int, workers: int) -> None:
    jobs = [job(i, 1 + i % 4, 5, 1 + i % 12) for i in range(9)]
    assert play(jobs, parallel, workers=workers)[0] == play(jobs)[0]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_recorder_hears_of_the_chains_that_it_wants_in_order(workers: int) -> None:
    diary = StepLog({1, 2})
    play([job(i, 3, 6) for i in range(4)], parallel=2, workers=workers, recorder=diary)
    assert diary.heard[1] == [
        "began",
        "looked 0:0 sees 1",  # the world starts from the chain's index
        "filmed 0:0 shows 2",
        "filmed 0:2 shows 4",
        "looked 1:0 sees 4",  # the second task starts with a look of its own
        "filmed 1:0 shows 5",
        "filmed 1:2 shows 7",
        "looked 1:4 sees 8",
        "filmed 1:4 shows 9",
        "filmed 1:5 shows 10",  # the state in which the task was done, though only every second step is filmed
        "ended with 2",
    ]
    assert sorted(diary.heard) == [1, 2]
    assert len(diary.heard[2]) == 11


@pytest.mark.parametrize("film_every", [1, 2, 3, 7])
def test_the_last_frame_of_every_task_shows_the_state_that_was_judged(film_every: int) -> None:
    """World 0 counts steps: task 1 is done at 3, task 2 at 8, and task 3 fails after ten steps at 18."""
    diary = StepLog({0}, film_every=film_every)
    play([job(0, 3, 5, 99)], recorder=diary)
    filmed = [line.removeprefix("filmed ") for line in diary.heard[0] if line.startswith("filmed")]
    last = {line.split(":")[0]: line for line in filmed}
    assert list(last.values()) == ["0:2 shows 3", "1:4 shows 8", "2:9 shows 18"]
    assert len(filmed) == len(set(filmed)), "no step is filmed twice"
