"""The reference client for one's own robot: images in, motions out, at a steady rate, within limits.

    python -m policy_rollout.policy_upvla --model-config my_model.yaml                  # dry run on bundled frames
    python -m policy_rollout.policy_upvla --server ws://gpu:8000 --robot my_robot:connect \\
        --instruction "open the drawer"

To be read from top to bottom. `control` is all there is to driving a robot with a model; what it uses is small:

    robot/seam.py      Robot: observe(), act(command), stop(); these three are yours to write
    robot/safety.py    Guard: an action becomes a target, within limits, or the run ends
    robot/planning.py  Planner: the model thinks while the last chunk is still being played
    robot/pace.py      Pace: the beat, without drift
    chunking.py        ChunkPlayer: which action of which chunk comes now

Shape letters: T actions per chunk, A action size.
"""

from __future__ import annotations

import signal
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

if __package__ in (None, ""):  # started as a file: the repository's root is not on the path yet
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.command import run_command
from policy_rollout.policies.action_chunking import ChunkPlayer
from policy_rollout.policies.interface import Observation, Policy
from policy_rollout.robot.arms import make_guard
from policy_rollout.robot.async_planner import Planner
from policy_rollout.robot.cli import StepLog, announcement, limits_of, make_policy, make_robot, parser
from policy_rollout.robot.interface import Command, Robot, Sight
from policy_rollout.robot.rate import Clock, RateLimiter, RealClock
from policy_rollout.robot.safety import SafetyLimits, Unsafe


@dataclass(frozen=True)
class Driving:
    """How to drive. ``rate_hz`` None: as the model's action convention says. ``steps`` None: until the robot has no
    more images. ``synchronous``: stand still while the model thinks."""

    instruction: str
    rate_hz: float | None = None
    steps: int | None = None
    synchronous: bool = False
    replan_every: int | None = None
    ensemble: float | None = None
    limits: SafetyLimits = field(default_factory=SafetyLimits)

    def require_possible(self, policy: Policy) -> None:
        """Raises `ValueError` naming what this policy cannot be driven with."""
        if self.steps is not None and self.steps < 0:
            raise ValueError(f"steps must be at least 0, got {self.steps}")
        RateLimiter(policy.convention.rate_hz if self.rate_hz is None else self.rate_hz, RealClock())
        ChunkPlayer(policy.act_step, self.replan_every, self.ensemble)


@dataclass
class Report:
    """What became of a run. ``held``: control steps without an action, by reason. ``hits``: limits that bit."""

    outcome: str = "running"
    safe: bool = True
    """False where the run ended because nothing safe could be done."""
    steps: int = 0
    actions: int = 0
    plans: int = 0
    skipped: int = 0
    """Actions of plans whose moment had passed when the plan was there."""
    held: Counter[str] = field(default_factory=Counter)
    hits: Counter[str] = field(default_factory=Counter)
    overruns: int = 0
    worst_late_s: float = 0.0
    thinking_s: list[float] = field(default_factory=list)

    def line(self) -> str:
        """The last line of a run: everything that was not as it should be."""
        times = np.percentile(self.thinking_s or [0.0], [50, 95]) * 1000
        held = ", ".join(f"{count} {reason}" for reason, count in sorted(self.held.items())) or "none"
        hits = ", ".join(f"{count} x {name}" for name, count in sorted(self.hits.items()) if count) or "none"
        late = f" (at most {self.worst_late_s * 1000:.0f} ms late)" if self.overruns else ""
        return (
            f"{self.outcome}: {self.steps} steps, {self.actions} actions from {self.plans} plans "
            f"(thinking {times[0]:.0f} ms median, {times[1]:.0f} ms 95 %; {self.skipped} actions skipped as passed); "
            f"steps without an action: {held}; limits hit: {hits}; overruns: {self.overruns}{late}"
        )


Listener = Callable[[int, Sight | None, Command | None, str], None]
"""Hears of every step: its number, what was seen, the command (None: stop), and why no action was played."""


def control(
    policy: Policy, robot: Robot, driving: Driving, *, clock: Clock | None = None, listen: Listener | None = None
) -> Report:
    """Drives until there are no more images, ``driving.steps`` are done, Ctrl-C (``main``: SIGTERM too), or nothing
    safe can be done.

    However it ends, also by an error of the robot's own methods (which it raises), the last thing the robot hears is
    `stop`. Raises `ValueError` for impossible settings before anything moves.
    """
    driving.require_possible(policy)
    loop = _Loop(policy, robot, driving, clock or RealClock(), listen or (lambda *_: None))
    try:
        loop.run()
    except KeyboardInterrupt:
        loop.report.outcome = "stopped from outside"
    except Unsafe as reason:
        loop.report.outcome, loop.report.safe = f"stopped, {reason}", False
    finally:
        robot.stop()
        loop.planner.close()
    loop.report.hits.update(loop.guard.hits)
    loop.report.overruns, loop.report.worst_late_s = loop.pace.overruns, loop.pace.worst
    return loop.report


class _Loop:
    """The state of one run."""

    def __init__(self, policy: Policy, robot: Robot, driving: Driving, clock: Clock, listen: Listener) -> None:
        self.policy, self.robot, self.driving, self.clock, self.listen = policy, robot, driving, clock, listen
        self.guard = make_guard(policy.convention, driving.limits)
        self.pace = RateLimiter(driving.rate_hz or policy.convention.rate_hz, clock)
        self.planner = Planner(policy, self.pace.period, driving.synchronous)
        every = ChunkPlayer(policy.act_step, driving.replan_every, driving.ensemble).replan_every  # checked there
        self.replan_every = every
        self.player = ChunkPlayer(policy.act_step, ensemble=driving.ensemble)  # when to look again is decided here
        self.report = Report()
        self.asked_at = 0  # actions played when the newest plan was asked for
        self.settled = False  # do targets begin where the hand is?
        self.trouble_since: float | None = None

    def run(self) -> None:
        report = self.report
        self.policy.reset()
        self.pace.restart()
        while report.steps != self.driving.steps:
            sight = self.robot.observe()
            if sight is None:
                report.outcome = "the images ended"
                return
            self.step(sight)
            report.steps += 1
            self.pace.wait()
        report.outcome = "all steps done"

    def step(self, sight: Sight) -> None:
        """One beat: look, take a plan that is ready, ask for the next, and act or stand still."""
        # 1. What is seen has to be now. On old images nothing is done, and what was planned on them is forgotten.
        age = self.clock.now() - sight.taken_at
        if not age >= -self.driving.limits.max_age_s:  # by another clock no image ever grows old
            raise Unsafe(f"an image was taken {-age:g} s from now; Sight.taken_at is of time.monotonic()")
        if age > self.driving.limits.max_age_s:
            self.stop(sight, "stale image")
            return
        if not self.settled:
            self.guard.settle(sight.pose)
            self.settled = True
        # 2. A plan that is ready is taken, without the actions whose moment has passed.
        if not self.take_plan(sight):
            return
        # 3. The next plan is asked for early enough to be there when this one is played out.
        if not self.planner.busy and self.should_ask():
            self.asked_at = self.report.actions
            self.planner.ask(self.observation(sight), self.report.actions, sight.taken_at)
            if self.planner.synchronous:
                self.pace.restart()  # standing still to think is no overrun
                if not self.take_plan(sight):
                    return
        # 4. Act; or, without an action, stay at the last target.
        if self.player.wants_plan:
            self.wait(sight)
            return
        command = self.guard.command(self.player.next_action(), sight.pose)
        self.robot.act(command)
        self.report.actions += 1
        self.trouble_since = None
        self.listen(self.report.steps, sight, command, "")

    def observation(self, sight: Sight) -> Observation:
        return Observation(sight.rgb_static, self.driving.instruction, sight.rgb_gripper)

    def should_ask(self) -> bool:
        """When the chunk is played out, or so early that the answer comes just in time. A model that thinks longer than
        a chunk lasts is asked when the robot stands still: asked before, its whole answer would be about the past."""
        if self.player.wants_plan:
            return True
        in_time = self.policy.act_step - self.planner.periods
        return in_time >= 1 and self.report.actions - self.asked_at >= min(self.replan_every, in_time)

    def take_plan(self, sight: Sight) -> bool:
        """False where the policy is out of reach, and the robot was stopped for it."""
        try:
            plan = self.planner.take()
        except OSError as error:  # the server: it may come back
            self.stop(sight, f"policy out of reach ({error})"[:200])
            return False
        except (ValueError, RuntimeError) as error:
            raise Unsafe(f"the policy refuses: {error}") from None
        if plan is None:
            return True
        self.report.plans += 1
        self.report.thinking_s.append(plan.seconds)
        passed = (
            self.report.actions - plan.played
        )  # the robot stood still for the rest of the time: nothing passed then
        if self.clock.now() - plan.taken_at > self.driving.limits.max_plan_age_s:
            self.guard.hits["plan too old"] += 1
        elif passed >= self.policy.act_step:
            self.guard.hits["plan too late"] += 1
        else:
            self.report.skipped += passed
            self.player.plan(plan.chunk, age=passed)
        return True

    def wait(self, sight: Sight) -> None:
        """No action for this moment: the target stays what it is."""
        command = self.guard.hold()
        if command is None:
            self.robot.stop()
        else:
            self.robot.act(command)
        self.report.held["waiting for a plan"] += 1
        self.listen(self.report.steps, sight, command, "waiting for a plan")

    def stop(self, sight: Sight, reason: str) -> None:
        """Stand still, forget every plan; give up when that lasts. Raises `Unsafe` then."""
        self.robot.stop()
        self.player.reset()
        self.planner.forget()
        self.settled = False  # wherever the robot came to rest, the next target is counted from there
        name = reason.partition(" (")[0]
        self.report.held[name] += 1
        self.listen(self.report.steps, sight, None, reason)
        self.trouble_since = self.clock.now() if self.trouble_since is None else self.trouble_since
        if self.clock.now() - self.trouble_since > self.driving.limits.patience_s:
            raise Unsafe(f"{reason} for more than {self.driving.limits.patience_s:g} s")


def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    try:
        limits = limits_of(options)  # a wrong one shows before a model is loaded
        policy = make_policy(options)
        robot, instruction = make_robot(options, policy)
        driving = Driving(
            instruction,
            options.rate,
            options.steps,
            options.synchronous,
            options.replan_every,
            options.ensemble,
            limits,
        )
        driving.require_possible(policy)
        print(announcement(options, instruction, policy.convention), flush=True)
        diary = StepLog(options.output)
    except ImportError as error:
        if error.name not in ("websockets", "msgpack"):
            raise
        print(f"policy_upvla: {error.name} is not installed; pip install -r requirements_minimal.txt", file=sys.stderr)
        return 2
    except (ValueError, OSError) as error:
        print(f"policy_upvla: {error}", file=sys.stderr)
        return 2
    stops = (signal.SIGTERM, signal.SIGHUP)  # a robot is stopped also where its terminal is closed
    before = {number: signal.signal(number, signal.default_int_handler) for number in stops}
    try:
        report = control(policy, robot, driving, listen=diary)
    finally:
        diary.close()
        for number, handler in before.items():
            signal.signal(number, handler)
    print(report.line() + (f"; every step is in {options.output}" if options.output else ""))
    return 0 if report.safe else 1


if __name__ == "__main__":
    run_command(main)
