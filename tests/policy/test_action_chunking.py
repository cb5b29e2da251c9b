"""How chunks are played: when a new plan is asked for, and what several overlapping plans amount to."""

from __future__ import annotations

import numpy as np
import pytest

from policy_rollout.policies.action_chunking import Actions, ChunkPlayer

T = 4


def numbered(first: float) -> Actions:
    """A chunk whose k-th action is `first + k` in all seven dimensions."""
    return np.tile(first + np.arange(T, dtype=np.float32)[:, None], (1, 7))


def play(player: ChunkPlayer, steps: int) -> list[float]:
    """First component of `steps` actions; the n-th plan is numbered 100 n."""
    played, plans = [], 0
    for _ in range(steps):
        if player.needs_chunk:
            player.add_chunk(numbered(100 * plans))
            plans += 1
        played.append(float(player.next_action()[0]))
    return played


def test_a_chunk_is_executed_before_the_next_is_requested():
    assert play(ChunkPlayer(T), 6) == [0, 1, 2, 3, 100, 101]


def test_replanning_every_n_steps_drops_the_rest_of_the_chunk():
    assert play(ChunkPlayer(T, replan_every=2), 6) == [0, 1, 100, 101, 200, 201]


def test_a_plan_given_early_replaces_the_one_in_execution():
    player = ChunkPlayer(T)
    player.add_chunk(numbered(0))
    player.next_action()
    player.add_chunk(numbered(50))
    assert player.next_action()[0] == 50


def test_ensembling_averages_every_plan_that_covers_the_step():
    # Step 2 is proposed by plan 0 (2), plan 1 (100 + 1) and plan 2 (200): plain mean with m = 0.
    assert play(ChunkPlayer(T, replan_every=1, ensemble=0.0), 3) == [0, (1 + 100) / 2, (2 + 101 + 200) / 3]


def test_ensembling_weighs_the_oldest_plan_most_and_forgets_plans_that_ended():
    m = 0.5
    weights = np.exp(-m * np.arange(T))
    # At step 4 plan 0 is over: plans 1..4 propose 103, 202, 301, 400.
    expected = (weights @ [103, 202, 301, 400]) / weights.sum()
    assert play(ChunkPlayer(T, replan_every=1, ensemble=m), 5)[4] == pytest.approx(expected)


def test_reset_forgets_the_plan_of_the_last_instruction():
    player = ChunkPlayer(T, ensemble=0.0)
    player.add_chunk(numbered(0))
    player.next_action()
    player.reset()
    assert player.needs_chunk
    player.add_chunk(numbered(70))
    assert player.next_action()[0] == 70


def test_an_action_given_out_can_be_changed_without_changing_the_plan():
    player = ChunkPlayer(T)
    chunk = numbered(0)
    player.add_chunk(chunk)
    player.next_action()[:] = -1
    assert chunk[0, 0] == 0


def test_playing_past_the_end_of_a_chunk_is_refused():
    player = ChunkPlayer(T, replan_every=1)
    player.add_chunk(numbered(0))
    player.next_action()
    with pytest.raises(RuntimeError, match="no action is left"):
        player.next_action()


@pytest.mark.parametrize("replan_every", [0, T + 1])
def test_a_replanning_interval_that_the_chunk_cannot_serve_is_refused(replan_every):
    with pytest.raises(ValueError, match=r"1\.\.act_step \(4\)"):
        ChunkPlayer(T, replan_every=replan_every)


@pytest.mark.parametrize("ensemble", [-0.1, float("inf"), float("nan")])
def test_weights_that_are_no_numbers_are_refused(ensemble):
    with pytest.raises(ValueError, match="at least 0"):
        ChunkPlayer(T, ensemble=ensemble)


def test_a_chunk_of_another_length_is_refused():
    with pytest.raises(ValueError, match=r"\[4, A\]"):
        ChunkPlayer(T).add_chunk(np.zeros((T + 1, 7), dtype=np.float32))


def test_a_plan_that_took_its_time_skips_the_actions_executed_meanwhile():
    player = ChunkPlayer(T)
    player.add_chunk(numbered(0))
    played = [player.next_action()[0] for _ in range(2)]
    player.add_chunk(numbered(100), age=2)  # asked for before the first of them
    while not player.needs_chunk:
        played.append(player.next_action()[0])
    assert played == [0, 1, 102, 103]


def test_a_plan_may_be_older_than_the_player():
    player = ChunkPlayer(T)
    player.add_chunk(numbered(100), age=T - 1)
    assert player.next_action()[0] == 100 + T - 1
    assert player.needs_chunk


def test_a_plan_of_which_nothing_is_left_is_refused():
    with pytest.raises(ValueError, match="age must lie in"):
        ChunkPlayer(T).add_chunk(numbered(0), age=T)
