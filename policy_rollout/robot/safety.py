"""Safety limits between policy and robot: `SafetyGuard` turns every action into a target, or refuses it.

These limits reduce the effect of errors. They do not replace the robot's own limits, its collision detection, or a
person at the emergency stop.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy_rollout.policies.action_units import gripper_values, in_metres
from policy_rollout.policies.interface import ActionConvention, StateLayout
from policy_rollout.robot.interface import Command, RobotObservation

Vector = NDArray[np.float64]


class Unsafe(RuntimeError):
    """No safe action is available: the run ends and the robot stops."""


@dataclass(frozen=True)
class SafetyLimits:
    """Limits of targets. None: not limited; for steps: the full step of the action convention."""

    workspace: tuple[tuple[float, float, float], tuple[float, float, float]] | None = None
    """Lowest and highest x y z of a target, metres."""
    max_step_m: float | None = None
    """Largest translation of one control step, as a distance."""
    max_step_rad: float | None = None
    """Largest rotation of one control step, as the norm of the vector of angles."""
    max_lead_m: float | None = None
    """Largest distance of the target from the measured hand, so that a blocked robot does not push ever harder."""
    max_age_s: float = 0.2
    """Largest age of an image when it is used. Older: the robot stops, and plans are discarded."""
    max_plan_age_s: float = 1.0
    """Largest time from an image to the first action planned for it. Older plans are discarded."""
    patience_s: float = 2.0
    """Longest time with too old images or without a reachable policy before the run ends."""
    gripper_hysteresis: float = 0.0
    """The gripper ignores commands closer than this to the middle, as a fraction of half its range (0..1)."""

    def __post_init__(self) -> None:
        if self.workspace is not None and not all(a < b for a, b in zip(*self.workspace, strict=True)):
            raise ValueError(f"workspace {self.workspace}: every lowest x, y, z must be below its highest")
        for name in ("max_step_m", "max_step_rad", "max_lead_m", "max_age_s", "max_plan_age_s", "patience_s"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"{name} must be above 0, got {value}")
        if not 0 <= self.gripper_hysteresis < 1:
            raise ValueError(f"gripper_hysteresis must lie in 0..1 (1 excluded), got {self.gripper_hysteresis}")


def checked_state(layout: StateLayout | None, observation: RobotObservation) -> NDArray[Any] | None:
    """Return the state that the policy reads; None if it reads none. Raises `Unsafe` without one, for another size, and
    for numbers that are not finite."""
    if layout is None:
        return None
    try:
        measured = observation.state
        return layout.check(None if measured is None else np.asarray(measured), "RobotObservation.state")
    except ValueError as error:
        raise Unsafe(str(error)) from None


class SafetyGuard:
    """Turns actions into targets. `hits` counts how often each limit changed one."""

    def __init__(self, convention: ActionConvention, limits: SafetyLimits) -> None:
        """Raise `ValueError` for a convention whose actions this client cannot turn into targets."""
        if convention.frame != "world" or convention.rotation != "euler_xyz":
            raise ValueError(
                f"actions in the {convention.frame} frame with {convention.rotation} rotations: this client can turn "
                "only world-frame euler_xyz actions into targets"
            )
        self._closed, self._open = gripper_values(convention)
        full = np.sqrt(3)  # all three axes at 1.0
        self.max_step_m = limits.max_step_m or full * convention.position_m_per_unit
        self.max_step_rad = limits.max_step_rad or full * convention.rotation_rad_per_unit
        self.hits: Counter[str] = Counter()
        self._convention, self._limits = convention, limits
        self._target: Vector | None = None
        self._gripper: float | None = None

    def start_at(self, pose: Vector | None) -> None:
        """Set the pose from which targets start. Call it at the start and after every stop.

        Raises `Unsafe` if the hand is outside the workspace, and for limits that need a pose if there is none.
        """
        limits = self._limits
        if pose is None:
            dependent = [name for name in ("workspace", "max_lead_m") if getattr(limits, name) is not None]
            if dependent or self._convention.kind != "relative":
                what = dependent[0] if dependent else f"an action convention of kind {self._convention.kind}"
                raise Unsafe(
                    f"{what} needs the measured pose of the hand (RobotObservation.pose), which the robot does not give"
                )
            self._target = np.zeros(6) if self._target is None else self._target
            return
        self._target = _pose(pose)
        if limits.workspace is not None:
            excess = self._target[:3] - np.clip(self._target[:3], *limits.workspace)
            if np.linalg.norm(excess) > self.max_step_m:
                raise Unsafe(f"the hand is outside the workspace, at {np.round(self._target[:3], 3).tolist()}")

    def command(self, action: NDArray[Any], pose: Vector | None) -> Command:
        """Return the target for an action [7] of the policy. Raises `Unsafe` for numbers that are not finite."""
        if not np.isfinite(action).all() or (pose is not None and not np.isfinite(pose).all()):
            self.hits["not finite"] += 1
            raise Unsafe("an action or a measured pose is not finite")
        assert self._target is not None, "call start_at() first"
        last = self._target
        metric = in_metres(action, self._convention).astype(np.float64)
        base = {"relative": last, "relative_to_measured": last if pose is None else _pose(pose)}
        goal = base.get(self._convention.kind, np.zeros(6)) + metric[:6]  # kind absolute: the pose itself
        step = np.concatenate([goal[:3] - last[:3], _wrapped(goal[3:] - last[3:])])
        step[:3] = self._limit_norm(step[:3], self.max_step_m, "position step")
        step[3:] = self._limit_norm(step[3:], self.max_step_rad, "rotation step")
        target = last + step
        target[:3] = self._limit_position(target[:3], pose)
        target[3:] = _wrapped(target[3:])
        self._target = target
        moved = np.concatenate([target[:3] - last[:3], step[3:]])
        return Command(target.copy(), moved, self._gripper_for(float(action[6]), float(metric[6])))

    def hold(self) -> Command | None:
        """Return the last target again, for a step without an action; None before the first."""
        if self._target is None or self._gripper is None:
            return None
        return Command(self._target.copy(), np.zeros(6), self._gripper)

    def _limit_norm(self, step: Vector, longest: float, name: str) -> Vector:
        """Return a step in the same direction with at most that length."""
        length = float(np.linalg.norm(step))
        if length <= longest * (1 + 1e-6):
            return step
        self.hits[name] += 1
        return np.asarray(step * (longest / length))

    def _limit_position(self, position: Vector, pose: Vector | None) -> Vector:
        limits = self._limits
        if limits.max_lead_m is not None and pose is not None:
            ahead = position - pose[:3]
            position = np.asarray(pose[:3] + self._limit_norm(ahead, limits.max_lead_m, "lead"))
        if limits.workspace is not None:
            clipped = np.clip(position, *limits.workspace)
            self.hits["workspace"] += bool((clipped != position).any())
            position = clipped
        return position

    def _gripper_for(self, value: float, binary: float) -> float:
        """Return the gripper's value; between the thresholds of the hysteresis it does not change."""
        middle, half = (self._closed + self._open) / 2, abs(self._open - self._closed) / 2
        decided = abs(value - middle) >= self._limits.gripper_hysteresis * half
        if self._gripper is not None and not decided and binary != self._gripper:
            self.hits["gripper held"] += 1
            return self._gripper
        self._gripper = binary
        return binary


def _pose(pose: Vector) -> Vector:
    if np.shape(pose) != (6,):
        raise ValueError(f"a pose has 6 numbers (x y z, roll pitch yaw), got shape {np.shape(pose)}")
    return np.array(pose, dtype=np.float64)


def _wrapped(angles: Vector) -> Vector:
    return np.asarray((angles + np.pi) % (2 * np.pi) - np.pi)
