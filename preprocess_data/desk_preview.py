"""A contact sheet and a clip of a raw CALVIN split: what was recorded, with what was said."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from policy_rollout.pictures import beside, captioned, sheet, write_gif, write_png
from training.data.calvin import Annotation, CalvinSplit

Frame = npt.NDArray[np.uint8]

SHOWN = 16  # windows on the sheet
MOMENTS = 4  # pictures of each, from its first frame to its last
CLIPPED = 4  # windows in the clip


def write_preview(split: Path, out: Path) -> tuple[Path, ...]:
    """Write `out`/<split>_sheet.png and `out`/<split>_clip.gif; nothing for a split without annotations."""
    reader = CalvinSplit(split)
    if not reader.annotations:
        return ()
    files = out / f"{split.name}_sheet.png", out / f"{split.name}_clip.gif"
    write_png(files[0], contact_sheet(reader))
    write_gif(files[1], clip(reader), fps=15)
    return files


def contact_sheet(split: CalvinSplit) -> Frame:
    """Windows of different tasks, four moments each: the static camera, with the last wrist picture beside them."""
    return sheet([_strip(split, window) for window in _varied(split.annotations, SHOWN)], columns=2)


def _varied(windows: Sequence[Annotation], count: int) -> list[Annotation]:
    """`count` windows: of every task its first, then every task's second, and so on; shown in the split's order."""
    seen: dict[str | None, int] = {}
    ranked = []
    for position, window in enumerate(windows):
        ranked.append((seen.get(window.task, 0), position))
        seen[window.task] = seen.get(window.task, 0) + 1
    return [windows[position] for _, position in sorted(sorted(ranked)[:count], key=lambda pair: pair[1])]


def _strip(split: CalvinSplit, window: Annotation) -> Frame:
    moments = np.linspace(window.start, window.end, MOMENTS).astype(int).tolist()
    pictures: list[Any] = [split.frame(i, ["rgb_static"])["rgb_static"] for i in moments]
    pictures.append(split.frame(window.end, ["rgb_gripper"])["rgb_gripper"])
    row = beside(pictures, height=120)
    return captioned(row, window.instruction, f"{window.task}, frames {window.start} to {window.end}")


def clip(split: CalvinSplit) -> list[Frame]:
    """Some windows one after the other, every second frame, both cameras with the instruction below."""
    frames: list[Frame] = []
    for window in split.annotations[:CLIPPED]:
        for i in window.frames[::2]:
            held = split.frame(i, ["rgb_static", "rgb_gripper"])
            row = beside([held["rgb_static"], held["rgb_gripper"]], height=200)
            frames.append(captioned(row, window.instruction, window.task or ""))
    return frames
