"""A camera whose `read` waits for the next image, as most do, for a control loop that must not wait."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]


class LatestImage:
    """Reads in a thread; `get` gives the newest image and when it came, at once. A camera that hangs is thereby an
    image that grows old, which stops the robot, and not a loop that hangs too."""

    def __init__(self, read: Callable[[], Pixels], first_within: float = 10.0) -> None:
        """`read() -> uint8 [H, W, 3]`, red first. Raises `TimeoutError` where no first image comes."""
        self._read = read
        self._newest: tuple[Pixels, float] | None = None
        self._error: BaseException | None = None
        self._first = threading.Event()
        threading.Thread(target=self._keep_reading, name="camera", daemon=True).start()
        if not self._first.wait(first_within):
            raise TimeoutError(f"the camera gave no image within {first_within:g} s")
        if self._newest is None:
            self.get()

    def get(self) -> tuple[Pixels, float]:
        """Return the newest image and its time, for `Sight`. Raise ``OSError`` if reading has failed since."""
        if self._error is not None:
            raise OSError(f"the camera failed: {self._error!r}") from self._error
        assert self._newest is not None
        return self._newest

    def _keep_reading(self) -> None:
        while True:
            try:
                image = self._read()
            except BaseException as error:  # a camera driver may raise anything; `get` raises it in the caller's thread
                self._error = error
                self._first.set()
                return
            self._newest = (image, time.monotonic())
            self._first.set()
