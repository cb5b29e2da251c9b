"""ControlSettings a robot: the beat, plans that take time, and every reason to stand still."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import policy_rollout.policy_upvla as client
from policy_rollout.policies.interface import Observation
from policy_rollout.policy_upvla import ControlSettings, control
from policy_rollout.robot.async_planner import Plan, Planner
from policy_rollout.robot.camera import LatestImage
from policy_rollout.robot.interface import Callbacks, Command, RobotObservation
from policy_rollout.robot.rate import RateLimiter
from policy_rollout.robot.recorded import RecordedRobot, open_recording
from policy_rollout.robot.remote import RemotePolicy
from policy_rollout.robot.safety import SafetyLimits
from tests.serving.served import EchoPolicy, T, image, serving

RATE = 10.0


class FakeClock:
    """Time passes in `sleep` only."""

    def __init__(self) -> None:
        self.time = 0.0

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += seconds


class FakeRobot:
    """Its images are as bright as the step is late; ``stale_from``: from that step on the camera hangs."""

    def __init__(self, clock: FakeClock, steps: int = 1000) -> None:
        self.clock, self.left, self.observations = clock, steps, 0
        self.stale: set[int] = set()
        self.commands: list[Command | None] = []
        self.pose: np.ndarray | None = np.zeros(6)
        self.slow = 0.0

    def observe(self) -> RobotObservation | None:
        if self.observations == self.left:
            return None
        age = 5.0 if self.observations in self.stale else 0.0
        self.clock.sleep(self.slow)
        observation = RobotObservation(image(self.observations % 256), self.clock.now() - age, pose=self.pose)
        self.observations += 1
        return observation

    def act(self, command: Command) -> None:
        self.commands.append(command)

    def stop(self) -> None:
        self.commands.append(None)


class CountingPolicy(EchoPolicy):
    """Action t of the chunk for an image of brightness b moves by (b + t) / 100 units in x."""

    def act(self, observations):
        chunks = np.zeros((len(observations), T, 7), dtype=np.float32)
        for chunk, observation in zip(chunks, observations, strict=True):
            chunk[:, 0] = (observation.rgb_static[0, 0, 0] + np.arange(T)) / 100
        return chunks


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def plans_take(monkeypatch, clock):
    """Makes plans take that many control steps of the fake clock."""

    def set_delay(steps: float, error: Exception | None = None) -> None:
        class Slow(Planner):
            def start(self, observation, executed, taken_at):
                self._answer = Plan(self._policy.act([observation])[0], executed, taken_at, steps / RATE)
                self._ready = clock.now() + steps / RATE - 1e-6
                self._pending = object()
                self._cancelled = False

            def result(self):
                if self._pending is None or clock.now() < self._ready:
                    return None
                self._pending = None
                if error is not None:
                    raise error
                self._recent.append(self._answer.seconds)
                return None if self._cancelled else self._answer

        monkeypatch.setattr(client, "Planner", Slow)

    return set_delay


def drive(robot: FakeRobot, clock: FakeClock, policy=None, **driving):
    limits = driving.pop("limits", SafetyLimits(max_plan_age_s=100))
    settings = ControlSettings("go", rate_hz=RATE, limits=limits, **driving)
    return control(policy or CountingPolicy(), robot, settings, clock=clock)


def moments(robot: FakeRobot) -> list[int | None]:
    """For each command the moment (step) it was planned for; None: a stop, -1: standing at the last target."""
    return [
        None if command is None else -1 if not command.step.any() else round(float(command.step[0]) / 0.02 * 100)
        for command in robot.commands
    ]


def test_a_synchronous_model_acts_at_every_step_for_the_step_it_was_planned_for(clock):
    robot = FakeRobot(clock, 9)
    report = drive(robot, clock, synchronous=True)
    assert moments(robot)[1:] == [1, 2, 3, 4, 5, 6, 7, 8, None]
    assert (report.actions, report.plans, report.steps) == (9, 3, 9)


def test_while_a_model_plans_the_old_chunk_is_executed_and_outdated_actions_are_skipped(clock, plans_take):
    plans_take(2)
    robot = FakeRobot(clock, 14)
    report = drive(robot, clock)
    played = moments(robot)[:-1]
    assert played[:2] == [None, None], "no plan is ready yet"
    assert -1 not in played[3:], "every later plan is ready before the chunk ends"
    assert report.idle == {"waiting for a plan": 2}
    assert report.skipped > 0
    assert report.hits["plan too late"] == 0


def test_after_the_first_plan_every_command_is_for_the_step_of_its_execution(clock, plans_take):
    plans_take(2)
    robot = FakeRobot(clock, 30)
    drive(robot, clock)
    wrong = [(step, moment) for step, moment in enumerate(moments(robot)[:-1]) if step > 6 and moment != step]
    assert wrong == []


def test_a_model_slower_than_its_chunk_plans_while_the_robot_stands_still(clock, plans_take):
    plans_take(T + 3)
    robot = FakeRobot(clock, 40)
    report = drive(robot, clock)
    assert report.hits["plan too late"] <= 1
    assert report.actions >= 3 * T
    assert report.skipped == 0
    assert report.idle["waiting for a plan"] == 40 - report.actions


def test_replanning_early_takes_over_from_the_chunk_in_execution(clock, plans_take):
    plans_take(1)
    robot = FakeRobot(clock, 20)
    report = drive(robot, clock, replan_every=2)
    assert report.plans >= 8


def test_old_plans_are_thrown_away(clock, plans_take):
    plans_take(15)
    robot = FakeRobot(clock, 40)
    report = drive(robot, clock, limits=SafetyLimits(max_plan_age_s=1.0))
    assert report.actions == 0
    assert report.hits["plan too old"] == 2
    assert all(command is None for command in robot.commands)


def test_a_stale_image_stops_the_robot_and_discards_the_plan(clock):
    robot = FakeRobot(clock, 12)
    robot.stale = {2, 3}
    report = drive(robot, clock, synchronous=True)
    assert moments(robot)[1:-1] == [1, None, None, 4, 5, 6, 7, 8, 9, 10, 11], "a new plan is made on the fresh image"
    assert report.idle == {"stale image": 2}
    assert report.safe


def test_targets_are_counted_from_where_a_stopped_robot_rests(clock):
    robot = FakeRobot(clock, 4)
    robot.stale = {2}
    control_pose = np.array([0.5, 0, 0, 0, 0, 0])
    observe = robot.observe

    def moved_by_hand():
        if robot.observations == 3:
            robot.pose = control_pose
        return observe()

    robot.observe = moved_by_hand
    drive(robot, clock, synchronous=True)
    assert robot.commands[3].pose[0] == pytest.approx(0.5 + robot.commands[3].step[0])


def test_a_camera_that_hangs_ends_the_run_with_a_stop(clock):
    robot = FakeRobot(clock)
    robot.stale = set(range(3, 1000))
    report = drive(robot, clock, synchronous=True, limits=SafetyLimits(patience_s=1.0))
    assert not report.safe
    assert "stale image for more than 1 s" in report.outcome
    assert robot.commands[-1] is None
    assert report.steps < 20


@pytest.mark.parametrize("taken_at", [1.7e9, float("nan")])
def test_an_image_of_another_clock_is_refused_as_it_would_never_grow_old(clock, taken_at):
    robot = FakeRobot(clock)
    robot.observe = lambda: RobotObservation(image(0), taken_at)
    report = drive(robot, clock, synchronous=True)
    assert not report.safe
    assert "time.monotonic()" in report.outcome
    assert robot.commands == [None]


def test_numbers_that_are_not_finite_stop_the_robot_at_once(clock):
    robot = FakeRobot(clock)
    policy = EchoPolicy()
    policy.act = lambda seen: np.full((1, T, 7), np.nan, dtype=np.float32)
    report = drive(robot, clock, policy, synchronous=True)
    assert not report.safe
    assert robot.commands == [None]
    assert "not finite: 1" in report.line() or "1 x not finite" in report.line()


def test_a_policy_out_of_reach_stops_the_robot_until_it_is_back_or_patience_ends(clock, plans_take):
    plans_take(1, ConnectionError("gone"))
    robot = FakeRobot(clock)
    report = drive(robot, clock, limits=SafetyLimits(patience_s=1.0))
    assert not report.safe
    assert "out of reach (gone)" in report.outcome
    assert all(command is None for command in robot.commands)


def test_a_robot_that_raises_is_stopped_and_the_error_is_its_owners(clock):
    robot = FakeRobot(clock)

    def broken(command):
        raise RuntimeError("motor 3")

    robot.act = broken
    with pytest.raises(RuntimeError, match="motor 3"):
        drive(robot, clock, synchronous=True)
    assert robot.commands == [None]


def test_ctrl_c_stops_the_robot(clock):
    robot = FakeRobot(clock)

    def interrupted():
        raise KeyboardInterrupt

    robot.observe = interrupted
    assert "from outside" in drive(robot, clock).outcome
    assert robot.commands == [None]


def test_the_last_line_counts_every_limit_that_was_hit(clock):
    robot = FakeRobot(clock, 8)
    report = drive(robot, clock, synchronous=True, limits=SafetyLimits(max_step_m=0.0001, max_plan_age_s=9))
    assert report.hits["position step"] == 8 - 1, "the first image asks for no motion at first"
    assert "7 x position step" in report.line()


def test_the_beat_does_not_drift_and_what_has_passed_is_left_out(clock):
    pace = RateLimiter(10, clock)
    beats = []
    for work in (0.03, 0.08, 0.0, 0.25, 0.01):
        clock.sleep(work)
        pace.wait()
        beats.append(round(clock.now(), 6))
    assert beats == [0.1, 0.2, 0.3, 0.6, 0.7]
    assert pace.overruns == 1
    assert pace.worst == pytest.approx(0.15)


def test_overruns_are_reported(clock):
    robot = FakeRobot(clock, 5)
    robot.slow = 0.15
    report = drive(robot, clock, synchronous=True)
    assert report.overruns >= 3
    assert "overruns: " + str(report.overruns) in report.line()


def test_three_functions_are_a_robot(clock):
    inner = FakeRobot(clock, 3)
    report = drive(Callbacks(inner.observe, inner.act, inner.stop), clock, synchronous=True)
    assert report.actions == 3
    assert inner.commands[-1] is None


def test_a_camera_is_read_aside_and_its_image_grows_old_when_it_hangs():
    shots, hang = [image(2), image(1)], threading.Event()

    def read():
        if not shots:
            hang.wait()
        return shots.pop() if shots else image(2)

    camera = LatestImage(read)
    time.sleep(0.1)
    shown, taken = camera.get()
    assert shown[0, 0, 0] == 2
    assert time.monotonic() - taken >= 0.05


def test_what_a_camera_raises_is_raised_where_its_image_is_used():
    shots = [image(1)]

    def read():
        return shots.pop()

    camera = LatestImage(read)
    time.sleep(0.1)
    with pytest.raises(OSError, match=r"the camera failed: IndexError\("):
        camera.get()
    with pytest.raises(OSError, match="the camera failed"):
        LatestImage(read)


def test_a_recording_is_shown_in_real_time(clock, tmp_path):
    for number in range(6):
        Image.fromarray(image(number * 10)).save(tmp_path / f"{number:03}.png")
    told: list[Command | None] = []
    robot = RecordedRobot(open_recording(tmp_path), RATE, clock, on_command=told.append)
    report = drive(robot, clock, synchronous=True)
    assert report.steps == 6
    assert len(told) == 7
    assert told[-1] is None


@pytest.mark.parametrize("views", [("rgb_static",), ("rgb_static", "rgb_gripper")])
def test_recordings_are_splits_images_and_folders_of_them(tmp_path, views):
    split = open_recording(Path(__file__).parents[2] / "dummy_data" / "calvin" / "validation", views, window=1)
    frame = split.frame(0)
    assert set(frame) == {*views, "pose", "state"}
    assert split.instruction
    assert len(split) == 48
    for camera in views:
        (tmp_path / camera).mkdir()
        Image.fromarray(image(7)).save(tmp_path / camera / "a.png")
    assert set(open_recording(tmp_path, views).frame(0)) == set(views)


def test_a_video_is_a_recording(tmp_path):
    av = pytest.importorskip("av")
    file = tmp_path / "table.mp4"
    with av.open(str(file), "w") as video:
        stream = video.add_stream("mpeg4", rate=30)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for number in range(5):
            for packet in stream.encode(av.VideoFrame.from_ndarray(image(number * 40, (32, 32)), format="rgb24")):
                video.mux(packet)
        for packet in stream.encode():
            video.mux(packet)
    recording = open_recording(file)
    assert len(recording) == 5
    assert abs(int(recording.frame(4)["rgb_static"].mean()) - 160) < 12


@pytest.mark.parametrize(
    ("name", "words"), [("none", "no such file"), ("a.txt", "not a supported video"), ("empty", "at least one")]
)
def test_a_recording_that_is_none_is_reported(tmp_path, name, words):
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        open_recording(tmp_path / name)


def test_a_remote_policy_is_a_policy():
    with serving(EchoPolicy(cameras=("rgb_static", "rgb_gripper")), token="t") as served:
        with pytest.raises(ConnectionError, match="401: a token is needed"):
            RemotePolicy(served.url())
        policy = RemotePolicy(served.url(), token="t")
        assert policy.cameras == ("rgb_static", "rgb_gripper")
        assert policy.act_step == T
        sights = [Observation(image(10 * n), "go", image(0)) for n in (1, 2)]
        np.testing.assert_allclose(policy.act(sights)[:, 0, 0], [0.01, 0.02])
        with pytest.raises(ValueError, match="no rgb_gripper"):
            policy.act([Observation(image(1), "go")])
        with pytest.raises(RuntimeError, match="refused"):
            policy.act([Observation(image(1), "refuse me", image(0))])
        assert policy.act(sights).shape == (2, T, 7), "a new connection is made"
    with pytest.raises(ConnectionError):
        policy.act(sights)
    with serving(EchoPolicy(cameras=("rgb_static", "rgb_gripper")), token="t", port=served.port):
        assert policy.act(sights).shape == (2, T, 7), "a server that is back is used again"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--server", "http://x"], "ws://127.0.0.1:8000"),
        (["--server", "ws://"], "ws://127.0.0.1:8000"),
        (["--server", "ws://127.0.0.1:9"], "cannot be reached"),
        (["--server", "ws://127.0.0.1:9", "--gripper-hysteresis", "3"], "gripper_hysteresis"),
        (["--model-config", "none.yaml"], "none.yaml"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(capsys, arguments, words):
    assert client.main(arguments) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--rate", "-5"], "rate must lie in"),
        (["--rate", "0"], "rate must lie in"),
        (["--steps", "-1"], "steps must be at least 0"),
        (["--replan-every", "99"], "replan_every must lie in"),
        (["--ensemble", "nan"], "ensemble must be"),
    ],
)
def test_what_the_model_cannot_be_driven_with_is_one_line_and_exit_code_2(capsys, arguments, words):
    with serving() as served:
        assert client.main(["--server", served.url(), *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_a_dry_run_against_a_server_writes_every_step_down(tmp_path, capsys):
    output = tmp_path / "runs" / "dry.jsonl"
    with serving() as served:
        code = client.main(["--server", served.url(), "--output", str(output), "--steps", "20", "--rate", "60"])
    said = capsys.readouterr().out
    assert code == 0
    assert "nothing moves" in said
    assert said.splitlines()[-1].endswith(str(output))
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(20))
    assert any("target" in line and "why" not in line for line in lines)
    assert not list(output.parent.glob(".*"))


ROBOT = """
import time, numpy as np
from policy_rollout.robot.interface import RobotObservation

class Robot:
    def observe(self):
        return RobotObservation(np.zeros((24, 24, 3), np.uint8), time.monotonic())
    def act(self, command):
        pass
    def stop(self):
        print("robot stops", flush=True)

def connect():
    return Robot()

def half():
    return object()
"""


def test_ones_own_robot_is_named_on_the_command_line(tmp_path):
    (tmp_path / "my_robot.py").write_text(ROBOT)
    root = Path(__file__).parents[2]
    with serving() as served:

        def run(*arguments: str) -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-m", "policy_rollout.policy_upvla", "--server", served.url(), *arguments]
            return subprocess.run(
                command, cwd=tmp_path, env={"PYTHONPATH": str(root)}, capture_output=True, text=True, timeout=60
            )

        done = run("--robot", "my_robot:connect", "--instruction", "go", "--steps", "10")
        assert done.returncode == 0, done.stderr
        assert "robot stops" in done.stdout
        assert "all steps done: 10 steps" in done.stdout.splitlines()[-1]
        assert "torch" not in done.stderr
        endless = [sys.executable, "-m", "policy_rollout.policy_upvla", "--server", served.url()]
        endless += ["--robot", "my_robot:connect", "--instruction", "go"]
        with subprocess.Popen(
            endless, cwd=tmp_path, env={"PYTHONPATH": str(root)}, stdout=subprocess.PIPE, text=True
        ) as driving:
            assert driving.stdout is not None
            driving.stdout.readline()
            time.sleep(1)
            driving.terminate()
            said = driving.stdout.read()
        assert "stopped from outside" in said.splitlines()[-1]
        assert said.splitlines()[-2] == "robot stops"
        half = run("--robot", "my_robot:half", "--instruction", "go")
        assert half.returncode == 2
        assert "without observe, act, stop()" in half.stderr
