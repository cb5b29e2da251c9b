"""Check a processed split against its contract: actions, statistics, cameras, instructions, ends of recordings."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from common.constants import CAMERAS, by_view
from training.data.calvin import CalvinSplit, is_within
from training.data.checks.dataset import TOLERANCE, ActionChecks, Finding
from training.data.dataset_spec import CONTRACT_NAME, DataContract, Statistics
from training.data.episode_index import ProcessedIndex
from training.data.formats import zip_reader
from training.data.readers import npz_shapes, read_npz

CHUNK = 1 << 18
"""Frames read at a time."""
EPISODES = 5000
"""Episodes whose ends are compared with the ends of recordings."""
IMAGES = 16
"""Frames of a processed split that are opened."""
ASPECT = 0.02
"""Relative difference of aspect ratios that is tolerated."""
RAW_FRAMES = 64
"""Frames of a raw split that are opened."""
_EPISODE = re.compile(r"episode_(\d+)\.npz")


@dataclass(frozen=True)
class Checked:
    """Result of a check. ``about``: one line for the log on what was checked."""

    findings: list[Finding]
    about: str


def check_processed(
    index: ProcessedIndex,
    contract: DataContract,
    *,
    normalised: bool = False,
    tokens: bool = False,
    images: bool = True,
    states: bool = True,
) -> Checked:
    """Check every action and instruction of a split, and a sample of its images and episodes.

    Args:
        normalised: training normalises actions to [-1, 1] by the contract's statistics.
        tokens: actions are trained on as tokens, which end at -1 and 1.
        images: frames are opened (False: training reads their codes, and the frames may be gone).
        states: the robot's states are read (False: their statistics are not checked).
    """
    contract = contract.for_actions(index.action_dim)
    checks = ActionChecks(contract.action, bounded=not normalised, tokens=tokens)
    for start in range(0, len(index), CHUNK):
        table, episodes = index.actions[start : start + CHUNK], index.episode_of[start : start + CHUNK]
        before = index.episode_of[start - 1] if start else -1
        checks.add(table, partial(_place, index, start), np.diff(episodes, prepend=before) != 0)
    ends, compared = _ends(index)
    findings = [
        *checks.findings(),
        *_statistics(contract, checks, normalised),
        *(_state_statistics(index, contract) if states else ()),
        *_instructions(index),
        *ends,
        *(_sizes(index, contract) if images else ()),
        *(_recorded(index) if images else ()),
    ]
    about = f"{len(index)} frames and {index.episodes} instructions of {index.path.parent} compared with the contract"
    return Checked(findings, f"{about}, ends of {compared} episodes with those of the recordings")


def check_raw(split: CalvinSplit, contract: DataContract, frames: Sequence[int]) -> Checked:
    """Check the relative actions of some frames of a raw split (each frame is a file)."""
    chosen = [frames[at] for at in np.unique(np.linspace(0, len(frames) - 1, RAW_FRAMES).astype(int)).tolist()]
    checks = ActionChecks(contract.action)
    for frame in chosen:  # the frames are not consecutive: each is an episode of its own
        row = split.frame(frame, ("rel_actions",))["rel_actions"]
        checks.add(row[None], partial(_file, split.frame_path(frame)))
    about = f"actions of {len(chosen)} of {len(frames)} frames of {split.path} compared with the contract"
    return Checked(list(checks.findings()), about)


def _file(path: Path, row: int) -> str:
    return str(path)


def _place(index: ProcessedIndex, start: int, row: int) -> str:
    frame = start + row
    episode = int(index.episode_of[frame])
    number = frame - int(index.starts[episode])
    return f"{index.path}: episode {episode}, frame {number} ({index.frames[frame]})"


def _statistics(contract: DataContract, checks: ActionChecks, used: bool) -> Iterator[Finding]:
    """Yield a finding if the statistics were computed from other actions than those of the data set."""
    statistics = contract.statistics
    if statistics is None or not _is_outdated(statistics, checks):
        return
    what = (
        f"its statistics are those of other actions ({statistics.frames} frames) than dataset_info.json has now "
        f"({checks.frames} frames); remove the key 'statistics' from {CONTRACT_NAME} (they are then computed at "
        "start), or convert the data again"
    )
    yield Finding("statistics", str(contract.path), what, used)


def _state_statistics(index: ProcessedIndex, contract: DataContract) -> Iterator[Finding]:
    """Yield a finding if the statistics of states were computed from other states than those of the data set."""
    statistics, column = contract.state_statistics, index.states
    if statistics is None or column is None:
        return
    digest = hashlib.blake2b(digest_size=16)
    low, high = column[0], column[0]
    for start in range(0, len(column), CHUNK):
        rows = column[start : start + CHUNK]
        digest.update(rows.tobytes())
        low, high = np.minimum(low, rows.min(axis=0)), np.maximum(high, rows.max(axis=0))
    same = statistics.digest == digest.hexdigest()
    if not statistics.digest and statistics.frames == len(column) and len(statistics.min) == len(low):
        # Without a digest the ranges are compared.
        same = all(np.allclose(*pair, atol=TOLERANCE) for pair in ((statistics.min, low), (statistics.max, high)))
    if same and statistics.frames == len(column):
        return
    what = (
        f"state.statistics are those of other states ({statistics.frames} frames) than dataset_info.json has now "
        f"({len(column)} frames); remove the key 'statistics' of 'state' from {CONTRACT_NAME} (they are then computed "
        "at start), or convert the data again"
    )
    yield Finding("statistics", str(contract.path), what, True)


def _is_outdated(statistics: Statistics, checks: ActionChecks) -> bool:
    if statistics.digest:
        return statistics.digest != checks.digest
    # Without a digest (older contracts) the ranges are compared.
    pairs = ((statistics.min, checks.low), (statistics.max, checks.high))
    same = all(np.allclose(recorded, found, atol=TOLERANCE) for recorded, found in pairs)
    return statistics.frames != checks.frames or not same


def _instructions(index: ProcessedIndex) -> Iterator[Finding]:
    blank = [number for number in range(len(index.texts)) if not index.texts[number].strip()]
    if not blank:
        return
    for kind, column in (("instruction", index.instruction_of), ("task", index.task_of)):
        empty = np.flatnonzero(np.isin(np.asarray(column), blank))
        if len(empty):
            what = f"has an empty {kind}, as {len(empty)} of {index.episodes} episodes have; give each of them one"
            every = kind == "instruction" and len(empty) == index.episodes
            yield Finding(f"empty {kind}", f"{index.path}: episode {empty[0]}", what, every)


def _ends(index: ProcessedIndex) -> tuple[list[Finding], int]:
    """Return findings for episodes that mix two recordings, and the number of episodes compared with recordings."""
    known: dict[Path, npt.NDArray[np.int64] | None] = {}
    findings: list[Finding] = []
    compared = 0
    for episode in np.unique(np.linspace(0, index.episodes - 1, min(EPISODES, index.episodes)).astype(int)).tolist():
        first, last = int(index.starts[episode]), int(index.starts[episode + 1]) - 1
        paths = index.frame_path(first), index.frame_path(last)
        names = [_EPISODE.fullmatch(path.name) for path in paths]
        if names[0] is None or names[1] is None:
            continue
        begin, end = int(names[0][1]), int(names[1][1])
        for folder in {path.parent for path in paths} - set(known):
            known[folder] = _recordings(folder)
        ranges = known[paths[0].parent]
        compared += ranges is not None
        where = f"{index.path}: episode {episode}, frames {begin} to {end}"
        if ranges is not None and not is_within(ranges, begin, end):
            what = f"goes over the end of a recording in {paths[0].parent / 'ep_start_end_ids.npy'}; leave it out"
            findings.append(Finding("crosses recordings", where, what, True))
        elif ranges is None and end - begin != last - first:
            what = f"names {last - first + 1} frames, so that it skips some or goes from one recording into another"
            findings.append(Finding("crosses recordings", where, what, False))
    return findings, compared


def _recordings(folder: Path) -> npt.NDArray[np.int64] | None:
    """Return the stretches of uninterrupted play in a folder of raw frames, None if they are unknown."""
    with suppress(ValueError, FileNotFoundError):
        return CalvinSplit(folder).ranges
    return None


def _sizes(index: ProcessedIndex, contract: DataContract) -> Iterator[Finding]:
    """Yield a finding for each camera whose images have another size than declared."""
    declared = by_view(contract.cameras)
    seen: set[str] = set()
    for frame in _spread(len(index)):
        for view, path, size in _images(index, frame):
            wanted = declared.get(view)
            if wanted is None or size == wanted or view in seen:
                continue
            seen.add(view)
            gross = abs(size[0] * wanted[1] - size[1] * wanted[0]) > ASPECT * size[0] * wanted[1]
            what = (
                f"{view} is {size[0]} x {size[1]} (height x width), but {contract.path} declares {wanted[0]} x "
                f"{wanted[1]}; declare the size that the images have"
            )
            yield Finding("image size", str(path), what, gross)


def _recorded(index: ProcessedIndex) -> Iterator[Finding]:
    """Yield a finding if the file of a frame holds another action than the split (recorded again, or edited)."""
    for frame in _spread(len(index)):
        path = index.frame_path(frame)
        recorded = None
        with suppress(ValueError, FileNotFoundError):
            recorded = read_npz(path, (index.action_key,))[index.action_key] if path.suffix == ".npz" else None
        action = index.actions[frame]
        if recorded is None or (recorded.shape == action.shape and np.allclose(recorded, action, atol=1e-3)):
            continue
        what = f"holds the action {np.array2string(recorded, precision=3)}, another one than {index.path} has for it"
        yield Finding(
            "other recording", str(path), f"{what}; convert the data again if they were recorded again", False
        )
        return


def _spread(length: int) -> list[int]:
    """Return up to ``IMAGES`` frames, evenly spaced."""
    return list(np.unique(np.linspace(0, length - 1, min(IMAGES, length)).astype(int)).tolist())


def _images(index: ProcessedIndex, frame: int) -> Iterator[tuple[str, Path, tuple[int, int]]]:
    """Yield (view, file, (height, width)) of a frame. Unreadable files are skipped; reading the frame reports them."""
    path, second = index.frame_path(frame), index.gripper_path(frame)
    with suppress(ValueError, FileNotFoundError, OSError, SyntaxError):
        if path.suffix == ".npz":
            for view, (shape, _) in npz_shapes(path).items():
                if view in CAMERAS and len(shape) == 3:
                    yield view, path, (shape[0], shape[1])
            return
        for view, file in zip(CAMERAS, (path, second), strict=True):
            if file is not None:
                with zip_reader.open_binary(file) as opened, Image.open(opened) as image:
                    yield view, file, (image.height, image.width)
