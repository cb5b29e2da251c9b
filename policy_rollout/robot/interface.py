"""The three methods to write for one's own robot, and what goes through them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Sight:
    """What the robot sees and feels at one moment.

    `rgb_static`, `rgb_gripper`: uint8 [H, W, 3], red first (OpenCV's images are blue first). `taken_at`: when the
    older of them was taken, in seconds of `time.monotonic()`; without it nothing can tell a camera that hangs. `pose`:
    the measured hand, x y z in metres and roll pitch yaw in radians, in the frame that actions are in; None where it is
    not measured (then there is no workspace to stay in).
    """

    rgb_static: NDArray[np.uint8]
    taken_at: float
    rgb_gripper: NDArray[np.uint8] | None = None
    pose: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class Command:
    """Where the hand shall be by the next control step: an absolute target, after every safety limit.

    `pose`: x y z in metres, roll pitch yaw in radians (counted from the start where `Sight.pose` is None). `step`: how
    far that is from the last target, for robots that are driven by velocity. `gripper`: +1 open, -1 closed.
    A robot of N arms has `pose` and `step` [N, 6] and `gripper` [N].
    """

    pose: NDArray[np.float64]
    step: NDArray[np.float64]
    gripper: float | NDArray[np.float64]


class Robot(Protocol):
    """One's own robot. All three are called from the control loop's thread, `act` or `stop` once per control step; they
    should return quickly (hand the target to the controller, do not wait until it is reached)."""

    def observe(self) -> Sight | None:
        """The newest images. None: there will be no more, the run ends."""
        ...

    def act(self, command: Command) -> None:
        """Go there."""
        ...

    def stop(self) -> None:
        """Stand still where you are, and stay there. Called whenever nothing safe is to be done, again and again, and
        at the end of every run."""
        ...


@dataclass(frozen=True)
class Callbacks:
    """A robot from three functions that exist already."""

    camera: Callable[[], Sight | None]
    move: Callable[[Command], Any]
    halt: Callable[[], Any]

    def observe(self) -> Sight | None:
        return self.camera()

    def act(self, command: Command) -> None:
        self.move(command)

    def stop(self) -> None:
        self.halt()
