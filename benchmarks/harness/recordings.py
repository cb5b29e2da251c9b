"""Write made-up recordings in CALVIN's format."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.command import progress_bar

WINDOW = 64  # frames of an annotated window
STATIC, GRIPPER = 200, 84  # pixels


def write_raw_split(folder: Path, frames: int, sentences: Sequence[str], overlap: int = 0) -> list[tuple[int, int]]:
    """Write a raw split with annotated windows of 64 frames; return the windows (first and last frame).

    Frames have two cameras, depth, tactile images and states, and deflate about as well as CALVIN's. ``sentences`` are
    the instructions in turn; ``overlap``: frames that neighboring windows share.
    """
    (folder / "lang_annotations").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in progress_bar(range(frames), desc="writing frames", unit="frame"):
        np.savez_compressed(
            folder / f"episode_{number:07d}.npz",
            rgb_static=_image(rng, STATIC),
            rgb_gripper=_image(rng, GRIPPER),
            rgb_tactile=rng.integers(0, 256, (160, 120, 6), dtype=np.uint8) // 64,
            depth_static=rng.normal(4, 0.1, (STATIC, STATIC)).astype(np.float32),
            depth_gripper=rng.normal(0.2, 0.1, (GRIPPER, GRIPPER)).astype(np.float32),
            actions=rng.uniform(-1, 1, 7),
            rel_actions=rng.uniform(-1, 1, 7),
            robot_obs=rng.uniform(-1, 1, 15),
            scene_obs=rng.uniform(-1, 1, 24),
        )
    windows = [(start, min(start + WINDOW, frames) - 1) for start in range(0, frames, WINDOW - overlap)]
    texts = [sentences[number % len(sentences)] for number in range(len(windows))]
    tasks = [f"task_{number}" for number in range(len(windows))]
    annotations = {"language": {"ann": texts, "task": tasks}, "info": {"indx": windows}}
    np.save(folder / "lang_annotations" / "auto_lang_ann.npy", np.array(annotations, dtype=object), allow_pickle=True)
    np.save(folder / "ep_start_end_ids.npy", np.array([[0, frames - 1]]))
    return windows


def _image(rng: np.random.Generator, side: int) -> NDArray[np.uint8]:
    """Return uint8 [side, side, 3]: patches of color with a little noise."""
    patches = rng.integers(0, 256, (side // 20 + 1, side // 20 + 1, 3))
    smooth = np.kron(patches, np.ones((20, 20, 1), dtype=np.int64))[:side, :side]
    noisy: NDArray[np.uint8] = np.clip(smooth + rng.integers(-6, 7, smooth.shape), 0, 255).astype(np.uint8)
    return noisy
