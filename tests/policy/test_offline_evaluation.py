"""Offline evaluation: which frames are asked about, what is compared, and what is read from disk."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from policy_rollout.benchmarks import offline
from policy_rollout.benchmarks.offline import Errors, act_in_parts, evaluate, list_samples, mean_action
from policy_rollout.policies.baselines import ConstantPolicy
from policy_rollout.policies.upvla import CAMERAS
from tests.policy.recorded_play import WINDOWS, Recorder, frame_actions
from training.data.calvin import CalvinSplit

T = 10


@pytest.fixture
def split(split_dir):
    return CalvinSplit(split_dir)


def perfect(observation):
    """Reads the frame number out of the image and answers with what was recorded from there."""
    start = int(observation.rgb_static[0, 0, 0])
    return np.stack([frame_actions(start + step) for step in range(T)])


def test_start_frames_lie_in_the_window_and_the_horizon_ends_with_it(split):
    samples = list_samples(split.annotations, T, stride=5)
    assert [(s.start, s.horizon) for s in samples] == [
        (100, 10),
        (105, 7),
        (110, 2),
        (108, 1),
        (120, 10),
        (125, 10),
        (130, 5),
    ]
    assert [s.task for s in samples[2:5]] == ["open_drawer", "lift_red", "open_drawer"]


def test_start_only_asks_once_per_window(split):
    assert [s.start for s in list_samples(split.annotations, T, start_only=True)] == [w[2] for w in WINDOWS]


def test_max_samples_keeps_the_first_and_zero_keeps_all(split):
    everything = list_samples(split.annotations, T)
    assert len(everything) == 12 + 1 + 15
    assert list_samples(split.annotations, T, max_samples=3) == everything[:3]


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_the_demonstrators_own_actions_have_no_error_whatever_the_batch(split, batch_size):
    report = evaluate(split, Recorder(perfect), list_samples(split.annotations, T), batch_size=batch_size)
    assert report.overall["samples"] == 28
    assert report.overall["mae_all"] == 0
    assert report.overall["gripper_sign_acc"] == 1


def test_a_known_error_is_reported_in_its_own_group_and_task(split):
    def wrong_in_one_task(observation):
        chunk = perfect(observation)
        chunk[:, 4] += 0.3 if observation.instruction == "lift it" else 0.0
        return chunk

    report = evaluate(split, Recorder(wrong_in_one_task), list_samples(split.annotations, T))
    lift, drawer = report.per_task["lift_red"], report.per_task["open_drawer"]
    assert lift["mae_rot"] == pytest.approx(0.1)
    assert lift["rmse_rot"] == pytest.approx(0.1)
    assert (lift["mae_pos"], lift["mae_gripper"], drawer["mae_all"]) == (0, 0, 0)
    assert lift["steps"] == 1
    assert lift["steps"] + drawer["steps"] == report.overall["steps"]


def test_only_the_horizon_is_compared(split):
    def right_until_frame_112(observation):
        start = int(observation.rgb_static[0, 0, 0])
        return np.stack([frame_actions(f) if f < 112 else np.full(7, 99.0) for f in range(start, start + T)])

    first_window = [s for s in list_samples(split.annotations, T) if s.start < 112]
    assert evaluate(split, Recorder(right_until_frame_112), first_window).overall["mae_all"] == 0


def test_the_action_key_chooses_the_recorded_actions(split):
    samples = list_samples(split.annotations, T, start_only=True)
    report = evaluate(split, Recorder(lambda o: 2 * perfect(o)), samples, action_key="actions")
    assert report.overall["mae_all"] == 0
    assert evaluate(split, Recorder(perfect), samples, action_key="actions").overall["mae_all"] > 0


def test_clipping_cuts_predictions_and_not_the_record(split):
    samples = list_samples(split.annotations, T, start_only=True)
    doubled_gripper = Recorder(lambda o: perfect(o) * np.array([1, 1, 1, 1, 1, 1, 2]))
    assert evaluate(split, doubled_gripper, samples).overall["mae_gripper"] == 1
    assert evaluate(split, doubled_gripper, samples, clip=True).overall["mae_all"] == 0


def test_an_unknown_action_key_is_refused_with_the_allowed_ones(split):
    with pytest.raises(ValueError, match="rel_actions, actions"):
        evaluate(split, Recorder(perfect), [], action_key="abs_actions")


def test_nothing_to_evaluate_gives_zeros(split):
    summary = evaluate(split, Recorder(perfect), []).overall
    assert set(summary.values()) == {0}


def test_every_frame_file_is_opened_once_and_only_for_what_is_needed(split, monkeypatch):
    opened: list[tuple[int, tuple[str, ...]]] = []
    read = CalvinSplit.frame

    def watch(self, index, keys):
        opened.append((index, tuple(keys)))
        return read(self, index, keys)

    monkeypatch.setattr(CalvinSplit, "frame", watch)
    samples = list_samples(split.annotations, T, stride=4)
    evaluate(split, Recorder(perfect, cameras=CAMERAS[:1]), samples, batch_size=2)
    assert max(Counter(index for index, _ in opened).values()) == 1
    starts = {sample.start for sample in samples}
    assert {index for index, keys in opened if "rgb_static" in keys} == starts
    assert all("rgb_gripper" not in keys for _, keys in opened)
    assert {index for index, _ in opened} == {s.start + k for s in samples for k in range(s.horizon)}


def test_windows_that_share_a_start_frame_are_asked_with_their_own_instructions(split):
    policy = Recorder(perfect)
    a, b = list_samples(split.annotations, T, start_only=True)[:2]
    evaluate(split, policy, [a, offline.Sample(b.task, b.instruction, a.start, 3)], batch_size=1)
    asked = [(o.instruction, int(o.rgb_static[0, 0, 0])) for batch in policy.batches for o in batch]
    assert sorted(asked) == [("lift it", 100), ("pull the drawer", 100)]


def test_a_policy_that_runs_out_of_memory_is_asked_in_smaller_parts():
    asked: list[int] = []

    class Small(ConstantPolicy):
        def act(self, observations):
            asked.append(len(observations))
            if len(observations) > 3:
                raise torch.OutOfMemoryError
            return super().act(observations)

    policy = Small(np.zeros(7), T)
    chunks, size = act_in_parts(policy, [None] * 7, 16, may_shrink=True)
    assert (chunks.shape, size) == ((7, T, 7), 3)
    assert asked == [7, 3, 3, 1]
    with pytest.raises(torch.OutOfMemoryError):
        act_in_parts(policy, [None] * 7, 16, may_shrink=False)


def test_the_mean_action_counts_each_start_frame_once(split):
    samples = list_samples(split.annotations, T)
    frames = sorted(set(range(100, 112)) | set(range(120, 135)))
    assert mean_action(split, [*samples, *samples]) == pytest.approx(
        np.mean([frame_actions(f) for f in frames], axis=0)
    )


def test_a_missing_frame_stops_the_evaluation_and_is_named(split, split_dir):
    (split_dir / "episode_0000111.npz").unlink()
    with pytest.raises(FileNotFoundError, match="episode_0000111"):
        evaluate(split, Recorder(perfect), list_samples(split.annotations, T))


def test_actions_of_unequal_length_are_refused():
    with pytest.raises(ValueError, match=r"\[h, 7\]"):
        Errors().add(np.zeros((3, 7), np.float32), np.zeros((2, 7), np.float32))


def test_progress_gets_every_sample(split):
    heard: list[int] = []
    evaluate(split, Recorder(perfect), list_samples(split.annotations, T), batch_size=5, progress=heard.append)
    assert sum(heard) == 28
    assert len(heard) == 6
