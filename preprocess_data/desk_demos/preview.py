"""Draw a contact sheet and a clip of a raw CALVIN split, with its instructions."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from common.image_grid import add_caption, image_grid, side_by_side, write_png
from common.video import write_gif
from training.data.calvin import Annotation, CalvinSplit

Frame = npt.NDArray[np.uint8]

SHOWN = 16  # windows on the sheet
MOMENTS = 4  # images of each, from its first frame to its last
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
    """Return windows of different tasks: four frames of the static camera, then the last one of the gripper camera."""
    return image_grid([_strip(split, window) for window in varied(split, SHOWN)], columns=2)


def varied(split: CalvinSplit, count: int) -> list[Annotation]:
    """Return at most `count` windows in order, from runs of play all over the split, of as many tasks as possible."""
    runs = [[w for w in split.annotations if first <= w.start <= last] for first, last in split.ranges.tolist()]
    runs = [run for run in runs if run]
    if len(runs) > count:
        runs = [runs[i] for i in np.linspace(0, len(runs) - 1, count).astype(int)]
    chosen: list[Annotation] = []
    while len(chosen) < count and any(runs):
        shown = Counter(window.task for window in chosen)
        run = max(runs, key=len) if len(chosen) >= len(runs) else runs[len(chosen)]
        chosen.append(run.pop(min(range(len(run)), key=lambda i: shown[run[i].task])))
    return sorted(chosen, key=lambda window: window.start)


def _strip(split: CalvinSplit, window: Annotation) -> Frame:
    moments = np.linspace(window.start, window.end, MOMENTS).astype(int).tolist()
    images: list[Any] = [split.frame(i, ["rgb_static"])["rgb_static"] for i in moments]
    images.append(split.frame(window.end, ["rgb_gripper"])["rgb_gripper"])
    row = side_by_side(images, height=120)
    return add_caption(row, window.instruction, f"{window.task}, frames {window.start} to {window.end}")


def clip(split: CalvinSplit) -> list[Frame]:
    """Return some windows one after the other: every second frame of both cameras above the instruction."""
    frames: list[Frame] = []
    for window in varied(split, CLIPPED):
        for i in window.frames[::2]:
            images = split.frame(i, ["rgb_static", "rgb_gripper"])
            row = side_by_side([images["rgb_static"], images["rgb_gripper"]], height=200)
            frames.append(add_caption(row, window.instruction, window.task or ""))
    return frames
