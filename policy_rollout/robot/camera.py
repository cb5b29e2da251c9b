"""Read a camera in a thread, for a control loop that must not block on the next image."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]


class LatestImage:
    """Reads images in a thread; `get` returns the newest one and its time without blocking.

    If the camera hangs, the image becomes too old, which stops the robot; the control loop does not hang.
    """

    def __init__(self, read: Callable[[], Pixels], timeout: float = 10.0) -> None:
        """Start reading. `read() -> uint8 [H, W, 3]`, RGB. Raises `TimeoutError` without a first image in time."""
        self._read = read
        self._newest: tuple[Pixels, float] | None = None
        self._error: BaseException | None = None
        self._first = threading.Event()
        threading.Thread(target=self._keep_reading, name="camera", daemon=True).start()
        if not self._first.wait(timeout):
            raise TimeoutError(f"the camera returned no image within {timeout:g} s")
        if self._newest is None:
            self.get()

    def get(self) -> tuple[Pixels, float]:
        """Return the newest image and its time, for `RobotObservation`. Raise ``OSError`` if reading has failed."""
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
