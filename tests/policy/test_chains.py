"""Chains of tasks in closed loop, and the records that several processes write of them."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from policy_rollout import calvin_evaluate_upvla as app
from policy_rollout import records
from policy_rollout.chains import ChainJob, ChainRecord, run_chains
from policy_rollout.policy import ConstantPolicy, Observation


class Counter:
    """A world in which a step adds one; nothing but a new chain puts it back."""

    def __init__(self) -> None:
        self.count = 0
        self.resets = 0

    def reset(self, robot_obs: Any = None, scene_obs: Any = None) -> dict[str, Any]:
        self.count, self.resets = int(scene_obs[0]), self.resets + 1
        return self.get_obs()

    def step(self, action: Any, render: Any = True) -> tuple[dict[str, Any], Any, bool, dict[str, Any]]:
        self.count += 1
        return self.get_obs(), 0, False, self.get_info()

    def get_obs(self, render: Any = True) -> dict[str, Any]:
        return {"rgb_obs": {"rgb_static": np.full((2, 2, 3), self.count, np.uint8)}}

    def get_info(self) -> dict[str, Any]:
        return {"count": self.count}

    def close(self) -> None:
        self.count = -1


class Judge:
    """Task ``add n`` is done when n was added since it began."""

    def tasks_done(
        self, start: Mapping[str, Any], end: Mapping[str, Any], among: Collection[str] | None = None
    ) -> set[str]:
        return {task for task in among or () if end["count"] - start["count"] >= int(task.split()[1])}


class Listener(ConstantPolicy):
    """Writes down what it was told."""

    def __init__(self) -> None:
        super().__init__(np.zeros(7, np.float32), act_step=4)
        self.heard: list[str] = []

    def act(self, observations: Any) -> Any:
        self.heard += [observation.instruction for observation in observations]
        assert all(isinstance(observation, Observation) for observation in observations)
        return super().act(observations)


def job(index: int, *numbers: int) -> ChainJob:
    tasks = tuple(f"add {n}" for n in numbers)
    return ChainJob(
        index, tasks, tuple(f"please {task}" for task in tasks), np.zeros(15), np.full(24, index, np.float64)
    )


def play(
    jobs: list[ChainJob], parallel: int = 1, **options: Any
) -> tuple[dict[int, ChainRecord], dict[int, int], Listener]:
    done: dict[int, ChainRecord] = {}
    frames: dict[int, int] = {}
    policy = Listener()

    def finished(record: ChainRecord, film: Any) -> None:
        done[record.index] = record
        if film is not None:
            frames[record.index] = len(film)

    run_chains(Counter, policy, jobs, Judge(), finished, max_steps=10, parallel=parallel, **options)
    return done, frames, policy


def test_a_chain_goes_on_in_the_same_world_until_a_task_fails() -> None:
    done, _, _ = play([job(0, 3, 7, 11, 2), job(1, 1, 1, 1)])
    assert done[0] == ChainRecord(0, ("add 3", "add 7", "add 11", "add 2"), 2, (3, 7, 10))
    assert done[1] == ChainRecord(1, ("add 1", "add 1", "add 1"), 3, (1, 1, 1))


def test_no_action_of_one_sentence_is_played_for_the_next() -> None:
    """The chunk has four actions; the first task takes one, so the policy has to look again at once."""
    _, _, policy = play([job(0, 1, 5)])
    assert policy.heard == ["please add 1", "please add 5", "please add 5"]


@pytest.mark.parametrize("parallel", [1, 3, 8])
def test_who_plays_beside_whom_changes_nothing(parallel: int) -> None:
    jobs = [job(i, 1 + i % 4, 5, 1 + i % 12) for i in range(9)]
    assert play(jobs, parallel)[0] == play(jobs)[0]


def test_films_are_of_the_chains_that_were_asked_for() -> None:
    _, frames, _ = play([job(i, 4, 4) for i in range(3)], film=frozenset({1}), film_every=2)
    assert frames == {1: 4}


def written(folder: Path, chains: list[ChainRecord]) -> None:
    for i, record in enumerate(chains):
        records.append(folder, i % 2, record)


def test_the_average_is_the_sum_of_the_rates_and_tasks_count_where_they_were_begun(tmp_path: Path) -> None:
    chains = [ChainRecord(i, ("a", "b", "a"), i % 4, (5,) * min(i % 4 + 1, 3)) for i in range(8)]
    results = records.write_results(tmp_path, chains, {"checkpoint": "x"})
    assert results["average_length"]["value"] == pytest.approx(1.5)
    assert sum(rate["value"] for rate in results["success_rates"]) == pytest.approx(1.5)
    assert results["per_task"]["b"]["tried"] == 6
    assert results["per_task"]["b"]["value"] == pytest.approx(4 / 6)
    assert json.loads((tmp_path / "results.json").read_text())["records"][3] == json.loads(
        json.dumps(asdict(chains[3]))
    )


def test_records_of_several_processes_are_one_and_a_cut_line_is_left_out(tmp_path: Path) -> None:
    chains = [ChainRecord(i, ("a",), 1, (2,)) for i in range(5)]
    written(tmp_path, chains)
    with (tmp_path / "records" / "1.jsonl").open("a") as file:
        file.write('{"index": 9, "tas')
    assert records.read(tmp_path) == {record.index: record for record in chains}


def test_records_of_two_checkpoints_do_not_mix(tmp_path: Path) -> None:
    records.claim(tmp_path, {"checkpoint_sha256": "a", "ep_len": 360})
    records.claim(tmp_path, {"checkpoint_sha256": "a", "ep_len": 360})
    with pytest.raises(ValueError, match="checkpoint_sha256=a, now it is b"):
        records.claim(tmp_path, {"checkpoint_sha256": "b", "ep_len": 360})
    assert [file.name for file in tmp_path.iterdir()] == ["settings.json"]


def test_torchrun_and_slurm_say_which_process_this_is() -> None:
    step = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "1"}
    assert app.place_in(step) == app.Place(3, 4, 1)
    assert app.place_in({**step, "WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}) == app.Place(1, 2, 1)
    assert app.place_in({**step, "SLURM_STEP_NUM_TASKS": "1"}) == app.Place()
    assert app.place_in({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}) == app.Place(), (
        "a batch script is no task of a step"
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"environment": "calvin"}, "environment=desk plays"),
        ({"environment": "moon"}, "allowed are calvin, desk"),
        ({"num_sequences": 0}, "num_sequences=0"),
        ({"log_wandb": True}, "log_wandb=true"),
    ],
)
def test_what_cannot_be_played_is_said_in_one_line(change: dict[str, Any], said: str) -> None:
    given = {"environment": "desk", "num_sequences": 1, "ep_len": 1, "parallel": 1, "num_videos": 0}
    with pytest.raises(ValueError, match=said):
        app.evaluate({**given, "save_rollout_as_video": False, "log_wandb": False, **change}, app.Place())
