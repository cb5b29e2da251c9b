"""A camera whose `read` waits for the next picture, as most do, for a control loop that must not wait."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]


class LatestPicture:
    """Reads in a thread; `get` gives the newest picture and when it came, at once. A camera that hangs is thereby a
    picture that grows old, which stops the robot, and not a loop that hangs too."""

    def __init__(self, read: Callable[[], Pixels], first_within: float = 10.0) -> None:
        """`read() -> uint8 [H, W, 3]`, red first. Raises `TimeoutError` where no first picture comes."""
        self._read = read
        self._newest: tuple[Pixels, float] | None = None
        self._first = threading.Event()
        threading.Thread(target=self._keep_reading, name="camera", daemon=True).start()
        if not self._first.wait(first_within):
            raise TimeoutError(f"the camera gave no picture within {first_within:g} s")

    def get(self) -> tuple[Pixels, float]:
        """The picture and its time, for `Sight`."""
        assert self._newest is not None
        return self._newest

    def _keep_reading(self) -> None:
        while True:
            picture = self._read()
            self._newest = (picture, time.monotonic())
            self._first.set()
