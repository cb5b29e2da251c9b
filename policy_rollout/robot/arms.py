"""Safety limits of robots with one or several arms: one ``SafetyGuard`` for each arm.

Shape letters: N arms, A action size.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy_rollout.policies.interface import ActionConvention
from policy_rollout.robot.interface import Command
from policy_rollout.robot.safety import SafetyGuard, SafetyLimits, Vector


def make_guard(convention: ActionConvention, limits: SafetyLimits) -> SafetyGuard | ArmsGuard:
    """Return the guard of a robot whose actions have three position numbers, three rotation numbers and one gripper for
    each arm.

    Raises `ValueError` for other actions, which cannot be turned into targets here.
    """
    layout = convention.layout
    arms = len(layout.gripper)
    if not arms or layout.dim != 7 * arms or not len(layout.position) == len(layout.rotation) == 3 * arms:
        raise ValueError(
            f"actions of {layout.dim} numbers with action.groups {convention.groups}: this client drives arms of three "
            "position numbers, three rotation numbers and one gripper each; name them in action.groups of "
            "dataset_contract.json before training, or call act() of the policy or of RemotePolicy yourself"
        )
    if arms == 1 and layout.gripper == (6,):
        return SafetyGuard(convention, limits)
    return ArmsGuard(convention, limits)


class ArmsGuard:
    """Turns actions [A] into targets of N arms, in the order of the indices in ``action.groups``.

    The pose and step of a `Command` are [N, 6], its ``gripper`` is [N]. Limits hold for each arm.
    """

    def __init__(self, convention: ActionConvention, limits: SafetyLimits) -> None:
        layout = convention.layout
        each = replace(convention, dim=7, groups=None)
        self._arms = [SafetyGuard(each, limits) for _ in layout.gripper]
        self._columns = [
            [*layout.position[3 * arm : 3 * arm + 3], *layout.rotation[3 * arm : 3 * arm + 3], gripper]
            for arm, gripper in enumerate(layout.gripper)
        ]
        self.max_step_m, self.max_step_rad = self._arms[0].max_step_m, self._arms[0].max_step_rad

    @property
    def hits(self) -> Counter[str]:
        """How often a limit changed an action, over all arms."""
        return sum((arm.hits for arm in self._arms), Counter())

    def start_at(self, pose: Vector | None) -> None:
        """Count targets from where the arms are, ``pose`` [N, 6]; as `SafetyGuard.start_at`."""
        for arm, measured in zip(self._arms, self._poses(pose), strict=True):
            arm.start_at(measured)

    def command(self, action: NDArray[Any], pose: Vector | None) -> Command:
        """Return the next targets; as `SafetyGuard.command`."""
        poses = self._poses(pose)
        return _joined(
            [
                arm.command(action[columns], measured)
                for arm, columns, measured in zip(self._arms, self._columns, poses, strict=True)
            ]
        )

    def hold(self) -> Command | None:
        """Return the last targets again; None before the first."""
        commands = [command for arm in self._arms if (command := arm.hold()) is not None]
        return _joined(commands) if len(commands) == len(self._arms) else None

    def _poses(self, pose: Vector | None) -> list[Vector | None]:
        if pose is None:
            return [None] * len(self._arms)
        if np.shape(pose) != (len(self._arms), 6):
            raise ValueError(f"poses of {len(self._arms)} arms are [{len(self._arms)}, 6], got {list(np.shape(pose))}")
        return list(pose)


def _joined(commands: Sequence[Command]) -> Command:
    return Command(
        np.stack([command.pose for command in commands]),
        np.stack([command.step for command in commands]),
        np.array([command.gripper for command in commands]),
    )
