"""The interface of a robot: three methods, observations and commands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class RobotObservation:
    """Images, measured pose and state at one time.

    `rgb_static`, `rgb_gripper`: uint8 [H, W, 3], RGB (OpenCV's images are BGR). `taken_at`: time of the older image, in
    seconds of `time.monotonic()`; needed to detect a camera that hangs. `pose`: the measured pose of the hand, x y z in
    metres and roll pitch yaw in radians, in the frame of the actions; None if it is not measured (then there is no
    workspace limit). `state`: the robot's state as in the training data ([S], CALVIN's `robot_obs` or the column of
    `process_lerobot.py --state-key`), in their order and units; needed by models that read it
    (`model.vla.proprioception=pose`).
    """

    rgb_static: NDArray[np.uint8]
    taken_at: float
    rgb_gripper: NDArray[np.uint8] | None = None
    pose: NDArray[np.float64] | None = None
    state: NDArray[np.floating[Any]] | None = None


@dataclass(frozen=True)
class Command:
    """Target of the hand for the next control step: an absolute pose, after all safety limits.

    `pose`: x y z in metres, roll pitch yaw in radians (relative to the start if `RobotObservation.pose` is None).
    `step`: difference to the last target, for robots with velocity control. `gripper`: +1 open, -1 closed.
    A robot of N arms has `pose` and `step` [N, 6] and `gripper` [N].
    """

    pose: NDArray[np.float64]
    step: NDArray[np.float64]
    gripper: float | NDArray[np.float64]


class Robot(Protocol):
    """A robot. All methods are called from the thread of the control loop, `act` or `stop` once per control step.

    They should return quickly (pass the target to the controller, do not wait until it is reached).
    """

    def observe(self) -> RobotObservation | None:
        """Return the newest images; None ends the run."""
        ...

    def act(self, command: Command) -> None:
        """Move to the target."""
        ...

    def stop(self) -> None:
        """Stop and hold the current pose. Called repeatedly while no safe action is available, and at the end of every
        run."""
        ...


@dataclass(frozen=True)
class Callbacks:
    """A robot made of three existing functions."""

    camera: Callable[[], RobotObservation | None]
    move: Callable[[Command], Any]
    halt: Callable[[], Any]

    def observe(self) -> RobotObservation | None:
        return self.camera()

    def act(self, command: Command) -> None:
        self.move(command)

    def stop(self) -> None:
        self.halt()
