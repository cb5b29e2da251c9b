"""An evaluation that ends when it is known which policy is better."""

from __future__ import annotations

from pathlib import Path

import pytest

from policy_rollout.calvin_evaluate_upvla import _check
from policy_rollout.closed_loop import records
from policy_rollout.closed_loop.evaluation import RolloutSettings, run_distributed
from policy_rollout.closed_loop.interface import ChainRecord
from policy_rollout.closed_loop.progress import Progress
from policy_rollout.closed_loop.stopping import EarlyStop
from tests.policy.counting import Counting, Still, job

BENCHMARK = {"ep_len": 9, "benchmark": {"name": "counting"}}


def other(folder: Path, completed: list[int], **settings: object) -> Path:
    records.claim(folder, {**BENCHMARK, "checkpoint_sha256": "b" * 64, **settings})
    for index, done in enumerate(completed):
        records.append(folder, "me", ChainRecord(index, ("add 3",), done, (9,)))
    return folder


def evaluate(folder: Path, stop: EarlyStop, count: int = 60) -> dict[str, object]:
    jobs = [job(i, 3) for i in range(count)]
    records.claim(folder, BENCHMARK)
    rollout = RolloutSettings(max_steps=9, parallel=2)
    return run_distributed(folder, Counting(), Still(), jobs, rollout, Progress(folder, jobs, rank=1), stop=stop)


def test_the_evaluation_ends_after_the_decision_and_states_it(tmp_path: Path) -> None:
    stop = EarlyStop(other(tmp_path / "other", [0] * 60), BENCHMARK, length=1)
    results = evaluate(tmp_path / "mine", stop)
    decided = results["sequential"]["decided_at"]
    assert decided <= results["num_sequences"] <= decided + 2 < 20
    assert f"better than {tmp_path / 'other'}: known after {decided} chains" in stop.verdict()
    assert results["average_length"]["value"] == 1.0


def test_a_decided_evaluation_starts_no_chain_and_continues_without_the_test(tmp_path: Path) -> None:
    theirs = other(tmp_path / "other", [0] * 60)
    first = evaluate(tmp_path / "mine", EarlyStop(theirs, BENCHMARK, length=1))
    again = evaluate(tmp_path / "mine", EarlyStop(theirs, BENCHMARK, length=1))
    assert again["num_sequences"] == first["num_sequences"]
    assert (
        evaluate(tmp_path / "mine", EarlyStop(other(tmp_path / "equal", [1] * 20), BENCHMARK, 1), 25)["num_sequences"]
        == 25
    )


def test_chains_count_in_the_order_of_their_index(tmp_path: Path) -> None:
    stop = EarlyStop(other(tmp_path / "other", [0] * 60), BENCHMARK, length=1)
    mine = {i: ChainRecord(i, ("add 3",), 1, (1,)) for i in range(60) if i != 2}
    assert not stop.is_decided(mine)
    assert stop.as_json()["items"] == 2
    assert "not distinguished" in stop.verdict()
    assert stop.is_decided(mine | {2: ChainRecord(2, ("add 3",), 1, (1,))})


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no settings\.json"):
        EarlyStop(tmp_path / "nothing", BENCHMARK, 1)
    with pytest.raises(ValueError, match="ep_len is 7 there and 9 here"):
        EarlyStop(other(tmp_path / "short", [0], ep_len=7), BENCHMARK, 1)
    stop = EarlyStop(other(tmp_path / "other", [0]), BENCHMARK, 1)
    with pytest.raises(ValueError, match="chain 0 has other tasks"):
        stop.is_decided({0: ChainRecord(0, ("add 4",), 1, (1,))})


def test_a_margin_needs_something_to_compare_with() -> None:
    plain = {"num_sequences": 1, "ep_len": 1, "parallel": 1, "num_videos": 0, "workers": None, "replan_every": None}
    plain |= {"ensemble": None, "save_rollout_as_video": False, "log_wandb": False, "compare_with": None}
    with pytest.raises(ValueError, match="no effect without compare_with"):
        _check({**plain, "margin": 0.2})
    with pytest.raises(ValueError, match="margin=-1"):
        _check({**plain, "margin": -1, "compare_with": "x"})
