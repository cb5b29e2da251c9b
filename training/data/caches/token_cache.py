"""The token cache: MagVITv2's codes of every frame of a data set, made once by ``preprocess_data/tokenize_images.py``.

A cache is a folder of shards (``shards.py``) with int16 codes [V, n] a row, beside ``frames.index``, which says which
row belongs to which frame: frames that several windows share are one row. It knows what it was made of (the data set,
the tokenizer's weights, the resolution and how images are brought to it), and is refused for anything else.

Shape letters: F distinct frames, N frames of a processed split, V views, n codes of a view, T actions, A action size.
"""

from __future__ import annotations

import hashlib
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from common.files import reason_of
from models.processing.image_file import READING
from training.data.calvin import CalvinSplit
from training.data.episode_index import INDEX_NAME, ProcessedIndex
from training.data.formats import zip_reader
from training.data.formats.column_file import IndexFile
from training.data.formats.shards import FRAMES, Plan, Rows, is_whole, read_plan
from training.data.readers import IMAGE_SUFFIXES

FOLDER = "token_cache"  # in a data set, where caches are looked for
FIT = "short side bicubic (PIL), centre crop"
"""How ``models.processing.image.fit`` brings images to the resolution; another rule needs another name."""
COMMAND = "python preprocess_data/tokenize_images.py"
PROBES = 64  # frames whose files are known again, to notice images that were replaced
PROBED = 1 << 18  # bytes of a file's beginning, and of its end, where an archive has its members' checksums

Codes = npt.NDArray[np.int16]


@dataclass(frozen=True)
class Wanted:
    """What a cache has to be of."""

    data: str  # digest of the data set, as ``processed_digest`` or ``raw_digest`` give it
    tokenizer: str  # hash of its weights
    resolution: int
    views: int
    reading: int | None = None  # version of how image files are read, as ``reading_version`` gives it

    def against(self, about: Mapping[str, Any]) -> str | None:
        """What is different in a cache, in words; None: it is the one."""
        if about["data"] != self.data:
            return "made of other data (or these were changed)"
        if about["tokenizer"] != self.tokenizer:
            return f"made by a tokenizer of other weights ({about['name']})"
        if (about["resolution"], about["fit"]) != (self.resolution, FIT):
            return f"of images of {about['resolution']} pixels ({about['fit']}), not {self.resolution}"
        if self.reading is not None and about.get("reading", 1) != self.reading:
            return "of image files as an earlier version read them (EXIF orientation, 16 bits, transparency)"
        if about["views"] < self.views:
            return f"of {about['views']} view, not {self.views}"
        return None


class TokenCache:
    """The codes of a data set, by frame. Opens no image.

    Raises ValueError naming the file when a part of it is missing or damaged.
    """

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.folder, self.plan = folder, plan
        self.rows = Rows(folder, plan)
        try:
            self._frames = IndexFile(folder / FRAMES)
        except OSError as error:
            raise ValueError(f"{folder / FRAMES} cannot be read ({reason_of(error)}); run {COMMAND} again") from None

    def __reduce__(self) -> tuple[Any, ...]:  # a spawned worker maps the files again
        return TokenCache, (self.folder, self.plan)

    @property
    def views(self) -> int:
        return int(self.plan.about["views"])

    @cached_property
    def _row_of(self) -> npt.NDArray[np.int64]:
        """Processed split: [N] the row of each frame. Read once, as numbers: 8 bytes a frame."""
        return np.asarray(self._frames.column("row_of"), dtype=np.int64)

    @cached_property
    def _ids(self) -> npt.NDArray[np.int64]:
        """Raw split: [F] the frame id of each row, ascending."""
        return np.asarray(self._frames.column("ids"))

    def codes(self, frames: npt.NDArray[np.integer[Any]], views: int) -> Codes:
        """int16 [len(frames), views, n] of a processed split's frames, by number."""
        gathered: Codes = self.rows.gather("codes", self._row_of[frames])[:, :views]
        return gathered

    def row_of_id(self, frame_id: int) -> int:
        """The row of a raw split's frame. Raises ValueError when the cache does not have it."""
        row = int(np.searchsorted(self._ids, frame_id))
        if row >= len(self._ids) or self._ids[row] != frame_id:
            raise ValueError(
                f"{self.folder} has no frame {frame_id}: it was made of the annotated windows alone; "
                f"{COMMAND} --all-frames makes one of every frame"
            )
        return row

    def raw(self, column: str, frame_id: int) -> npt.NDArray[Any]:
        """A raw split's ``codes`` int16 [V, n], ``rel_actions`` or ``actions`` float64 [A], of the frame of this id."""
        return self.rows.row(column, self.row_of_id(frame_id))

    def describe(self) -> str:
        size = self.plan.rows * self.plan.row_bytes / 1e6
        return f"codes of {self.plan.rows} frames x {self.views} views, {size:.1f} MB, from {self.folder}"


def find(places: Sequence[Path], wanted: Wanted, remake: str, data: Path) -> TokenCache:
    """The cache that ``wanted`` describes of the data set ``data``: one of ``places``, or a folder in one of them.

    Raises ValueError that says what there is instead and names the command ``remake``.
    """
    seen: list[str] = []
    for folder in (folder for place in places for folder in _candidates(place)):
        plan = read_plan(folder)
        if plan is None or plan.about.get("kind") != "tokens":
            continue
        why = wanted.against(plan.about) if is_whole(folder, plan) else "not finished"
        if why is None and (other := replaced(plan.about["probes"], data)) is not None:
            why = f"made of other images than lie there now (such as {other})"
        if why is None:
            return TokenCache(folder, plan)
        seen.append(f"{folder.name} is {why}")
    found = "; ".join(seen) or "it is empty"
    raise ValueError(
        f"{' and '.join(map(str, places))}: no token cache for this data and tokenizer ({found}). Make it: {remake}"
    )


def _candidates(caches: Path) -> Iterator[Path]:
    yield caches
    if caches.is_dir():
        yield from sorted(folder for folder in caches.iterdir() if folder.is_dir())


def remake_command(
    data: Path, tokenizer: str, weights: str | None, resolution: int, views: int, output: Path | None
) -> str:
    """The command that makes the cache of these."""
    words = [*COMMAND.split(), "--data", str(data), "--tokenizer", tokenizer]
    words += [] if weights is None else ["--tokenizer-weights", weights]
    words += ["--resolution", str(resolution), "--views", str(views)]
    return shlex.join(words + ([] if output is None else ["--output", str(output)]))


# ------------------------------------------------------------------------------------------ what a data set is known by
def processed_digest(index: ProcessedIndex) -> str:
    """Of ``dataset_info.json``'s content: which frames, in which order."""
    return f"{INDEX_NAME} {index.file.about['source']['blake2b']} {len(index)}"


def reading_version(index: ProcessedIndex) -> int | None:
    """Return the version of how image files are read; None for a split whose frames are arrays, which have no such."""
    places = np.unique(np.linspace(0, len(index) - 1, PROBES).astype(int)).tolist()
    images = any(index.frames[place].lower().endswith(IMAGE_SUFFIXES) for place in places)
    return READING if images else None


def raw_digest(split: CalvinSplit, all_frames: bool = False) -> str:
    """Of a raw split's annotations, or (``all_frames``) of its stretches of play."""
    path = split.path / "ep_start_end_ids.npy" if all_frames else split.annotation_path
    if not zip_reader.is_file(path):
        raise FileNotFoundError(f"{path} does not exist; it says which frames the split has")
    with zip_reader.open_binary(path) as file:
        return f"{path.name} {hashlib.blake2b(file.read(), digest_size=16).hexdigest()}"


def probes(paths: Sequence[Path], root: Path) -> dict[str, list[int | str]]:
    """What some of the files (of a zip: the archive), evenly spread, are known by: size and digest. Names begin at the
    data set ``root`` where files lie in it (or it in them), so that those of a copy are the copy's own."""
    root = root.absolute()
    places = np.unique(np.linspace(0, len(paths) - 1, PROBES).astype(int))
    files = list(dict.fromkeys(zip_reader.container(paths[place]).absolute() for place in places))
    own = {file for file in files if file.is_relative_to(root) or root.is_relative_to(file)}
    return {os.path.relpath(file, root) if file in own else str(file): _known_by(file) for file in files}


def replaced(known: Mapping[str, list[int | str] | int], root: Path) -> str | None:
    """A file of ``probes`` that is another now. Files that are not there any more (or not here) are no news."""
    for name, held in known.items():
        content = held if isinstance(held, list) else [held]  # the first caches knew the size alone
        path = Path(os.path.normpath(root.absolute() / name))
        if path.is_file() and _known_by(path)[: len(content)] != content:
            return str(path)
    return None


def _known_by(path: Path) -> list[int | str]:
    """[size, digest of beginning and end]."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        digest = hashlib.blake2b(digest_size=8)
        for place in (0, max(size - PROBED, PROBED)):
            file.seek(place)
            digest.update(file.read(PROBED))
    return [size, digest.hexdigest()]
