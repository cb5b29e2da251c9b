"""The closed loop on a world of one number: the hand moves along x, the task is to pass a line."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

from common.video import write_gif
from policy_rollout.closed_loop.interface import binary_gripper
from policy_rollout.closed_loop.single_task import Episode, run_episodes
from policy_rollout.policies.baselines import RandomPolicy
from policy_rollout.policies.upvla import CAMERAS, ActionConvention
from tests.policy.recorded_play import Recorder

T = 4


class Line:
    """One step of 1.0 moves the hand by 1. Renders its position as a grey value, and only when asked."""

    made: ClassVar[list[Line]] = []

    def __init__(self) -> None:
        self.x, self.renders, self.closed = 0.0, 0, False
        Line.made.append(self)

    def reset(self, robot_obs=None, scene_obs=None):
        self.x = 0.0 if robot_obs is None else float(robot_obs[0])
        return self.get_obs(render=False)

    def step(self, action, render=True):
        assert action[6] in (-1.0, 1.0)
        self.x += float(action[0])
        return self.get_obs(render), 0, False, self.get_info()

    def get_obs(self, render=True):
        self.renders += bool(render)
        image = np.full((8, 8, 3), int(self.x) % 256, dtype=np.uint8)
        return {"rgb_obs": dict.fromkeys(CAMERAS, image) if render else None, "robot_obs": np.zeros(15)}

    def get_info(self):
        return {"x": self.x}

    def close(self):
        self.closed = True


class PastTheLine:
    """The task "n" is done when the hand has moved by n since the start."""

    def tasks_done(self, start_info, end_info, among=None):
        return {task for task in among if end_info["x"] - start_info["x"] >= float(task)}


def forward(observation):
    """Moves by one each step, unless told to stay."""
    return np.tile([0.0 if observation.instruction == "stay" else 1.0, 0, 0, 0, 0, 0, 0.2], (T, 1))


def episodes(*wanted: tuple[str, str]) -> list[Episode]:
    return [
        Episode(index, task, instruction, robot_obs=np.full(15, 10.0 * index))
        for index, (task, instruction) in enumerate(wanted)
    ]


MIXED = episodes(("3", "go"), ("9", "stay"), ("6", "go"), ("99", "go"), ("1", "go"))


@pytest.fixture(autouse=True)
def forget_envs():
    Line.made.clear()


@pytest.mark.parametrize("parallel", [1, 2, 5, 8])
def test_outcomes_and_steps_do_not_depend_on_how_many_run_side_by_side(parallel):
    result = run_episodes(Line, Recorder(forward, T), MIXED, PastTheLine(), max_steps=10, parallel=parallel)
    assert [(r.index, r.success, r.steps) for r in result.records] == [
        (0, True, 3),
        (1, False, 10),
        (2, True, 6),
        (3, False, 10),
        (4, True, 1),
    ]
    assert len(Line.made) == min(parallel, len(MIXED))


def test_the_policy_is_asked_about_all_running_episodes_at_once():
    policy = Recorder(forward, T)
    run_episodes(Line, policy, MIXED, PastTheLine(), max_steps=10, parallel=2)
    sizes = [len(batch) for batch in policy.batches]
    assert sizes[0] == 2
    # 3 rounds of four steps for each of the long ones, 1 and 2 for the others; never more rounds than one by one.
    assert sum(sizes) == 1 + 3 + 2 + 3 + 1
    assert len(sizes) < sum(sizes)


def test_cameras_are_rendered_only_when_the_policy_needs_an_observation():
    run_episodes(Line, Recorder(forward, T), episodes(("8", "go")), PastTheLine())
    assert Line.made[0].renders == 2  # 8 steps are two chunks of four


def test_only_the_cameras_the_policy_has_are_drawn():
    asked = []

    class Noting(Line):
        def get_obs(self, render=True):
            asked.append(render)
            return super().get_obs(render)

    run_episodes(Noting, Recorder(forward, T, cameras=CAMERAS[:1]), episodes(("6", "go")), PastTheLine(), record={0})
    assert [cameras for cameras in asked if cameras] == [
        ("static",)
    ] * 6  # looks twice, films three of six steps and the last
    asked.clear()
    run_episodes(Noting, Recorder(forward, T), episodes(("4", "go")), PastTheLine())
    assert [cameras for cameras in asked if cameras] == [("static", "gripper")]


def test_replanning_more_often_observes_more_often():
    policy = Recorder(forward, T)
    run_episodes(Line, policy, episodes(("8", "go")), PastTheLine(), replan_every=1)
    assert [int(batch[0].rgb_static[0, 0, 0]) for batch in policy.batches] == list(range(8))


def test_a_new_episode_starts_with_a_new_plan_and_its_own_start_state():
    policy = Recorder(forward, T)
    run_episodes(Line, policy, episodes(("1", "go"), ("9", "stay")), PastTheLine(), max_steps=4, parallel=1)
    seen = [(batch[0].instruction, int(batch[0].rgb_static[0, 0, 0])) for batch in policy.batches]
    assert seen == [("go", 0), ("stay", 10)]


def test_success_is_counted_with_its_interval_overall_and_per_task():
    result = run_episodes(Line, Recorder(forward, T), MIXED, PastTheLine(), max_steps=10)
    assert result.success().point == 3 / 5
    assert result.per_task()["99"].point == 0
    assert list(result.per_task()) == ["1", "3", "6", "9", "99"]


def test_only_filmed_episodes_keep_frames_and_they_make_an_animation(tmp_path):
    result = run_episodes(Line, Recorder(forward, T), MIXED, PastTheLine(), max_steps=10, record={2}, frame_interval=2)
    assert list(result.frames) == [2]
    assert [int(frame[0, 0, 0]) for frame in result.frames[2]] == [21, 23, 25, 26], "the last one is filmed in any case"
    # Far enough apart for one palette: frames that become the same are merged into one.
    write_gif(tmp_path / "clips" / "2.gif", [(frame - 20) * 40 for frame in result.frames[2]])
    assert Image.open(tmp_path / "clips" / "2.gif").n_frames == 4  # type: ignore[attr-defined]
    assert [path.name for path in (tmp_path / "clips").iterdir()] == ["2.gif"]


def test_every_record_is_announced_as_it_is_made():
    heard = []
    result = run_episodes(Line, Recorder(forward, T), MIXED, PastTheLine(), max_steps=10, progress=heard.append)
    assert sorted(heard, key=lambda r: r.index) == result.records


def test_environments_are_closed_even_when_the_policy_fails():
    def fail(observation):
        raise FloatingPointError

    with pytest.raises(FloatingPointError):
        run_episodes(Line, Recorder(fail, T), MIXED, PastTheLine(), parallel=2)
    assert [env.closed for env in Line.made] == [True, True]


def test_a_policy_of_another_scale_is_refused_before_anything_moves():
    policy = Recorder(forward, T)
    with pytest.raises(ValueError, match=r"position_m_per_unit 0\.02 \(policy\) vs 0\.05"):
        run_episodes(Line, policy, MIXED, PastTheLine(), convention=ActionConvention(position_m_per_unit=0.05))
    assert not Line.made


def test_no_episodes_give_no_records():
    assert run_episodes(Line, Recorder(forward, T), [], PastTheLine()).records == []


@pytest.mark.parametrize(("proposed", "executed"), [(0.3, 1.0), (0.0, -1.0), (-0.01, -1.0)])
def test_the_gripper_opens_above_zero_and_closes_otherwise(proposed, executed):
    assert binary_gripper(np.array([0, 0, 0, 0, 0, 0, proposed], dtype=np.float32))[6] == executed


def test_the_embedded_desk_and_the_task_oracle_fit_the_loop():
    from policy_rollout.calvin.oracle import TaskOracle
    from policy_rollout.desk import DeskEnv

    tasks = ("open_drawer", "turn_on_led")
    todo = [Episode(index, task, task.replace("_", " ")) for index, task in enumerate(tasks)]
    result = run_episodes(
        lambda: DeskEnv(static_size=24, gripper_size=16), RandomPolicy(5), todo, TaskOracle(), max_steps=10, record={1}
    )
    assert [(record.task, record.steps) for record in result.records] == [(task, 10) for task in tasks]
    assert [frame.shape for frame in result.frames[1]] == [(24, 24, 3)] * 6
