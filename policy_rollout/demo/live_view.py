"""Rollouts in the terminal while they run: camera image, control step and state of the scene."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.style import Style
from rich.table import Table
from rich.text import Text

from policy_rollout.closed_loop.interface import ChainJob, ChainRecord, PolicyCall, Recorder
from policy_rollout.reports.rollout_video import RATE

MAX_IMAGE, MIN_IMAGE = 56, 24
"""Width of the camera image in characters; one character is one pixel wide and two high."""
FIGURES_WIDTH, FRAME_HEIGHT = 50, 4
"""Characters that the window needs next to the image, and lines above and below it."""
INTERVAL = 2
"""Control steps between two updates of the window."""


@dataclass
class LiveView:
    """A ``Recorder`` that shows each chain in a window of ``console`` and forwards all calls to ``recorder``.

    Args:
        state: Returns the present state of the scene, as names and texts.
        max_steps: Largest number of control steps of a task.

    Without a terminal nothing is shown.
    """

    recorder: Recorder
    console: Console
    state: Callable[[], Mapping[str, str]]
    max_steps: int
    _live: Live | None = None
    _next_frame: float = 0.0

    @property
    def frame_interval(self) -> int:
        return self.recorder.frame_interval

    @property
    def wants_codes(self) -> bool:
        return self.recorder.wants_codes

    def selects(self, job: ChainJob) -> bool:
        return self.recorder.selects(job)

    def start_chain(self, job: ChainJob) -> None:
        self.recorder.start_chain(job)
        self.close()
        if self.console.is_terminal:
            self._live = Live(console=self.console, auto_refresh=False, transient=True)
            self._live.start()
            self._next_frame = time.monotonic()

    def add_call(self, job: ChainJob, call: PolicyCall) -> None:
        self.recorder.add_call(job, call)
        if call.step == 0:
            self._show(job, call.task_index, call.step, call.observation.rgb_static)

    def add_frame(self, job: ChainJob, task_index: int, step: int, image: NDArray[np.uint8]) -> None:
        self.recorder.add_frame(job, task_index, step, image)
        if step % INTERVAL == 0:
            self._show(job, task_index, step + 1, image)

    def finish_chain(self, job: ChainJob, record: ChainRecord) -> None:
        self.close()
        self.recorder.finish_chain(job, record)

    def close(self) -> None:
        """Remove the window. Called after an interrupted chain, too."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _show(self, job: ChainJob, task_index: int, step: int, image: NDArray[np.uint8]) -> None:
        """Update the window, not faster than the robot moves."""
        if self._live is None:
            return
        time.sleep(max(0.0, self._next_frame - time.monotonic()))
        self._next_frame = time.monotonic() + INTERVAL / RATE
        self._live.update(self._window(job, task_index, step, image), refresh=True)

    def _window(self, job: ChainJob, task_index: int, step: int, image: NDArray[np.uint8]) -> Panel:
        figures = Table.grid(padding=(0, 2))
        figures.add_row("step", Text(f"{step} of at most {self.max_steps}", style="bold"))
        figures.add_row("", ProgressBar(total=self.max_steps, completed=step, width=30))
        figures.add_row()
        for name, text in self.state().items():
            figures.add_row(name, Text(text, style="bold"))
        body = Table.grid(padding=(0, 2))
        columns = self._image_columns()
        body.add_row(*([image_text(image, columns)] if columns >= MIN_IMAGE else []), figures)
        title = Text(f" {job.index + 1}. {job.instructions[task_index]} ", style="bold")
        return Panel(body, title=title, title_align="left", expand=False)

    def _image_columns(self) -> int:
        """Return the width of an image that fits into the terminal; 0 if it cannot show colours."""
        if self.console.color_system not in ("256", "truecolor"):
            return 0
        return min(MAX_IMAGE, self.console.width - FIGURES_WIDTH, 2 * (self.console.height - FRAME_HEIGHT))


def image_text(image: NDArray[np.uint8], columns: int) -> Text:
    """Return an image as coloured half blocks, ``columns`` characters wide, in square pixels."""
    rows = max(2, round(columns * image.shape[0] / image.shape[1] / 2) * 2)
    pixels = np.asarray(Image.fromarray(image).resize((columns, rows), Image.Resampling.BOX)).tolist()
    text = Text()
    for top, bottom in zip(pixels[::2], pixels[1::2], strict=True):
        for above, below in zip(top, bottom, strict=True):
            text.append("▀", Style(color=_rgb(above), bgcolor=_rgb(below)))
        text.append("\n")
    text.rstrip()
    return text


def _rgb(pixel: list[int]) -> str:
    return "rgb({},{},{})".format(*pixel)
