"""The reference client for a robot: images in, motions out, at a fixed rate, within safety limits.

    python -m policy_rollout.policy_upvla --checkpoint assets/desk_policy               # dry run on bundled frames
    python -m policy_rollout.policy_upvla --server ws://gpu:8000 --robot my_robot:connect \\
        --instruction "open the drawer"

`control` is the whole control loop. It uses:

    robot/interface.py         Robot: observe(), act(command), stop(); these three are for you to write
    robot/safety.py            SafetyGuard: an action becomes a target within limits, or the run ends
    robot/async_planner.py     Planner: computes the next chunk while the previous one is executed
    robot/rate.py              RateLimiter: a fixed rate without drift
    policies/action_chunking.py   ChunkPlayer: which action of which chunk comes next

Shape letters: T actions per chunk, A action size.
"""

from __future__ import annotations

import signal
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from common.command import run_command
from policy_rollout.policies.action_chunking import ChunkPlayer
from policy_rollout.policies.interface import Observation, Policy, state_read_by
from policy_rollout.robot.arms import make_guard
from policy_rollout.robot.async_planner import Planner
from policy_rollout.robot.cli import StepLog, announcement, limits_of, make_policy, make_robot, parser
from policy_rollout.robot.interface import Command, Robot, RobotObservation
from policy_rollout.robot.rate import Clock, RateLimiter, RealClock
from policy_rollout.robot.safety import SafetyLimits, Unsafe, checked_state


@dataclass(frozen=True)
class ControlSettings:
    """Settings of a run. ``rate_hz`` None: that of the model's action convention. ``steps`` None: until the robot has
    no more images. ``synchronous``: stand still while the model computes."""

    instruction: str
    rate_hz: float | None = None
    steps: int | None = None
    synchronous: bool = False
    replan_every: int | None = None
    ensemble: float | None = None
    limits: SafetyLimits = field(default_factory=SafetyLimits)

    def require_possible(self, policy: Policy) -> None:
        """Raise `ValueError` naming a setting that is impossible with this policy."""
        if self.steps is not None and self.steps < 0:
            raise ValueError(f"steps must be at least 0, got {self.steps}")
        RateLimiter(policy.convention.rate_hz if self.rate_hz is None else self.rate_hz, RealClock())
        ChunkPlayer(policy.act_step, self.replan_every, self.ensemble)


@dataclass
class Report:
    """Outcome of a run. ``idle``: control steps without an action, by reason. ``hits``: how often limits applied."""

    outcome: str = "running"
    safe: bool = True
    """False if the run ended because no safe action was available."""
    steps: int = 0
    actions: int = 0
    plans: int = 0
    skipped: int = 0
    """Actions of plans that were outdated when the plan was ready."""
    idle: Counter[str] = field(default_factory=Counter)
    hits: Counter[str] = field(default_factory=Counter)
    overruns: int = 0
    worst_late_s: float = 0.0
    planning_s: list[float] = field(default_factory=list)

    def line(self) -> str:
        """Return a summary of the run in one line."""
        times = np.percentile(self.planning_s or [0.0], [50, 95]) * 1000
        idle = ", ".join(f"{count} {reason}" for reason, count in sorted(self.idle.items())) or "none"
        hits = ", ".join(f"{count} x {name}" for name, count in sorted(self.hits.items()) if count) or "none"
        late = f" (at most {self.worst_late_s * 1000:.0f} ms late)" if self.overruns else ""
        return (
            f"{self.outcome}: {self.steps} steps, {self.actions} actions from {self.plans} plans "
            f"(planning {times[0]:.0f} ms median, {times[1]:.0f} ms 95 %; {self.skipped} outdated actions skipped); "
            f"steps without an action: {idle}; limits hit: {hits}; overruns: {self.overruns}{late}"
        )


OnStep = Callable[[int, RobotObservation | None, Command | None, str], None]
"""Called after every step: its number, the observation, the command (None: stop), and why there was no action."""


def control(
    policy: Policy,
    robot: Robot,
    settings: ControlSettings,
    *,
    clock: Clock | None = None,
    on_step: OnStep | None = None,
) -> Report:
    """Control the robot until there are no more images, ``settings.steps`` are done, Ctrl-C (``main``: SIGTERM too), or
    no safe action is available.

    However the run ends, also by an error of the robot's own methods (which is raised), `stop` is the last call to the
    robot. Raises `ValueError` for impossible settings before anything moves.
    """
    settings.require_possible(policy)
    loop = _Loop(policy, robot, settings, clock or RealClock(), on_step or (lambda *_: None))
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
    loop.report.overruns, loop.report.worst_late_s = loop.rate.overruns, loop.rate.worst
    return loop.report


class _Loop:
    """The state of one run."""

    def __init__(self, policy: Policy, robot: Robot, settings: ControlSettings, clock: Clock, on_step: OnStep) -> None:
        self.policy, self.robot, self.settings, self.clock, self.on_step = policy, robot, settings, clock, on_step
        self.guard = make_guard(policy.convention, settings.limits)
        self.state = state_read_by(policy)
        self.rate = RateLimiter(settings.rate_hz or policy.convention.rate_hz, clock)
        self.planner = Planner(policy, self.rate.period, settings.synchronous)
        self.replan_every = ChunkPlayer(policy.act_step, settings.replan_every).replan_every  # with its default
        self.player = ChunkPlayer(policy.act_step, ensemble=settings.ensemble)  # `should_plan` decides when to replan
        self.report = Report()
        self.planned_at = 0  # number of executed actions when the newest plan was started
        self.has_start = False  # whether targets start at the measured pose
        self.trouble_since: float | None = None

    def run(self) -> None:
        report = self.report
        self.policy.reset()
        self.rate.restart()
        while report.steps != self.settings.steps:
            observation = self.robot.observe()
            if observation is None:
                report.outcome = "the images ended"
                return
            self.step(observation)
            report.steps += 1
            self.rate.wait()
        report.outcome = "all steps done"

    def step(self, observation: RobotObservation) -> None:
        """Run one control step: check the images, take a ready plan, start the next one, and act or stand still."""
        # 1. Images must be recent. On old images nothing is executed, and the plans made on them are discarded.
        age = self.clock.now() - observation.taken_at
        if not age >= -self.settings.limits.max_age_s:  # with another clock, images would never become too old
            raise Unsafe(f"an image was taken {-age:g} s from now; RobotObservation.taken_at is of time.monotonic()")
        if age > self.settings.limits.max_age_s:
            self.stop(observation, "stale image")
            return
        if not self.has_start:
            self.guard.start_at(observation.pose)
            self.has_start = True
        state = checked_state(self.state, observation)
        # 2. Take a ready plan, without its outdated actions.
        if not self.take_plan(observation):
            return
        # 3. Start the next plan early enough to be ready when the current chunk ends.
        if not self.planner.busy and self.should_plan():
            self.planned_at = self.report.actions
            inputs = Observation(observation.rgb_static, self.settings.instruction, observation.rgb_gripper, state)
            self.planner.start(inputs, self.report.actions, observation.taken_at)
            if self.planner.synchronous:
                self.rate.restart()  # standing still for planning is no overrun
                if not self.take_plan(observation):
                    return
        # 4. Act; without an action, hold the last target.
        if self.player.needs_chunk:
            self.hold(observation)
            return
        command = self.guard.command(self.player.next_action(), observation.pose)
        self.robot.act(command)
        self.report.actions += 1
        self.trouble_since = None
        self.on_step(self.report.steps, observation, command, "")

    def should_plan(self) -> bool:
        """Return whether to start the next plan: the chunk has ended, or the plan will be ready when it ends.

        If planning takes longer than a chunk, a plan is started only while the robot stands still: started earlier, all
        its actions would be outdated.
        """
        if self.player.needs_chunk:
            return True
        in_time = self.policy.act_step - self.planner.periods
        return in_time >= 1 and self.report.actions - self.planned_at >= min(self.replan_every, in_time)

    def take_plan(self, observation: RobotObservation) -> bool:
        """Add the plan's chunk if it is ready. Return False if the policy is unreachable; the robot is then stopped."""
        try:
            plan = self.planner.result()
        except OSError as error:  # the server may become reachable again
            self.stop(observation, f"policy out of reach ({error})"[:200])
            return False
        except (ValueError, RuntimeError) as error:
            raise Unsafe(f"the policy refuses: {error}") from None
        if plan is None:
            return True
        self.report.plans += 1
        self.report.planning_s.append(plan.seconds)
        outdated = self.report.actions - plan.executed  # while the robot stood still, no action became outdated
        if self.clock.now() - plan.taken_at > self.settings.limits.max_plan_age_s:
            self.guard.hits["plan too old"] += 1
        elif outdated >= self.policy.act_step:
            self.guard.hits["plan too late"] += 1
        else:
            self.report.skipped += outdated
            self.player.add_chunk(plan.chunk, age=outdated)
        return True

    def hold(self, observation: RobotObservation) -> None:
        """Hold the last target, as no action is available."""
        command = self.guard.hold()
        if command is None:
            self.robot.stop()
        else:
            self.robot.act(command)
        self.report.idle["waiting for a plan"] += 1
        self.on_step(self.report.steps, observation, command, "waiting for a plan")

    def stop(self, observation: RobotObservation, reason: str) -> None:
        """Stop the robot and discard all plans. Raises `Unsafe` if this lasts too long."""
        self.robot.stop()
        self.player.reset()
        self.planner.cancel()
        self.has_start = False  # the next target starts at the pose where the robot has stopped
        self.report.idle[reason.partition(" (")[0]] += 1
        self.on_step(self.report.steps, observation, None, reason)
        self.trouble_since = self.clock.now() if self.trouble_since is None else self.trouble_since
        if self.clock.now() - self.trouble_since > self.settings.limits.patience_s:
            raise Unsafe(f"{reason} for more than {self.settings.limits.patience_s:g} s")


def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    try:
        limits = limits_of(options)  # raises before a model is loaded
        policy = make_policy(options)
        robot, instruction = make_robot(options, policy)
        settings = ControlSettings(
            instruction,
            options.rate,
            options.steps,
            options.synchronous,
            options.replan_every,
            options.ensemble,
            limits,
        )
        settings.require_possible(policy)
        print(announcement(options, instruction, policy.convention), flush=True)
        step_log = StepLog(options.output)
    except ImportError as error:
        if error.name not in ("websockets", "msgpack"):
            raise
        print(f"policy_upvla: {error.name} is not installed; pip install -r requirements_minimal.txt", file=sys.stderr)
        return 2
    except (ValueError, OSError) as error:
        print(f"policy_upvla: {error}", file=sys.stderr)
        return 2
    stops = (signal.SIGTERM, signal.SIGHUP)  # also stop the robot when the terminal is closed
    before = {number: signal.signal(number, signal.default_int_handler) for number in stops}
    try:
        report = control(policy, robot, settings, on_step=step_log)
    finally:
        step_log.close()
        for number, handler in before.items():
            signal.signal(number, handler)
    print(report.line() + (f"; log of all steps: {options.output}" if options.output else ""))
    return 0 if report.safe else 1


if __name__ == "__main__":
    run_command(main)
