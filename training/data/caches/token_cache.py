"""The token cache: MagVITv2's codes of every frame of a data set, computed by ``preprocess_data/tokenize_images.py``.

A cache is a folder of shards (``training/data/formats/shards.py``) with int16 codes [V, n] a row, and ``frames.index``,
which maps frames to rows: frames that several windows share are one row. It records what it was computed from (data
set, tokenizer weights, resolution, image preparation) and is refused for anything else.

Shape letters: F distinct frames, N frames of a processed split, V views, n codes of a view, T actions, A action size.
"""

from __future__ import annotations

import hashlib
import os
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from common.files import expand_home, read_object, reason_of
from config.schema import Augment, Job
from models.processing.image_file import READING
from models.vision.magvitv2 import MagVITv2
from training.data.calvin import CalvinSplit
from training.data.episode_index import INDEX_NAME, ProcessedIndex, read_index
from training.data.formats import zip_reader
from training.data.formats.column_file import IndexFile
from training.data.formats.shards import FRAMES, WHOLE, Plan, Rows, is_whole, read_plan
from training.data.readers import IMAGE_SUFFIXES

KEY = "dataset.params.token_cache"
FOLDER = "token_cache"
"""Folder of caches inside a data set."""
FIT = "short side bicubic (PIL), centre crop"
"""How ``models.processing.image.fit`` resizes images; another rule needs another name."""
COMMAND = "python preprocess_data/tokenize_images.py"
PROBES = 64
"""Frames whose files are compared with those at the time of the cache, to detect replaced images."""
PROBED = 1 << 18
"""Bytes compared at the start and the end of a file (an archive has checksums at its end)."""

Codes = npt.NDArray[np.int16]


@dataclass(frozen=True)
class CacheKey:
    """What a cache has to be computed from."""

    data: str  # ``processed_digest`` or ``raw_digest`` of the data set
    tokenizer: str  # hash of its weights
    resolution: int
    views: int
    reading: int | None = None  # ``reading_version`` of the data set

    def mismatch(self, about: Mapping[str, Any]) -> str | None:
        """Return what differs in a cache, None if it fits."""
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
        """Number of views in a row."""
        return int(self.plan.about["views"])

    @cached_property
    def _row_of(self) -> npt.NDArray[np.int64]:
        """Row of each frame of a processed split, int64 [N]; 8 bytes a frame in memory."""
        return np.asarray(self._frames.column("row_of"), dtype=np.int64)

    @cached_property
    def _ids(self) -> npt.NDArray[np.int64]:
        """Frame id of each row of a raw split, [F], ascending."""
        return np.asarray(self._frames.column("ids"))

    def codes(self, frames: npt.NDArray[np.integer[Any]], views: int) -> Codes:
        """Return the codes of a processed split's frames (by number): int16 [len(frames), views, n]."""
        gathered: Codes = self.rows.gather("codes", self._row_of[frames])[:, :views]
        return gathered

    def row_of_id(self, frame_id: int) -> int:
        """Return the row of a raw split's frame. Raises ValueError if the cache does not have it."""
        row = int(np.searchsorted(self._ids, frame_id))
        if row >= len(self._ids) or self._ids[row] != frame_id:
            raise ValueError(
                f"{self.folder} has no frame {frame_id}: it was made of the annotated windows alone; "
                f"{COMMAND} --all-frames makes one of every frame"
            )
        return row

    def raw(self, column: str, frame_id: int) -> npt.NDArray[Any]:
        """Return ``codes`` int16 [V, n], ``rel_actions`` or ``actions`` float64 [A] of a raw split's frame."""
        return self.rows.row(column, self.row_of_id(frame_id))

    def describe(self) -> str:
        """Return a line for the log."""
        size = self.plan.rows * self.plan.row_bytes / 1e6
        return f"codes of {self.plan.rows} frames x {self.views} views, {size:.1f} MB, from {self.folder}"


def token_cache(job: Job, root: str, vq: MagVITv2) -> TokenCache | None:
    """Return the token cache that ``dataset.params.token_cache`` selects for the data set ``root`` and the tokenizer
    ``vq``; None if images are read.

    ``auto`` uses a cache inside the data set, if there is one. Raises ValueError if no cache fits this data, tokenizer
    and resolution, or if images are augmented, which codes cannot be.
    """
    choice = job.dataset.params.token_cache
    places, given = select_places(KEY, choice, Path(root) / FOLDER)
    if not places:
        return None
    if job.dataset.augment != Augment():
        raise ValueError(
            f"dataset.augment changes images, and {KEY}={choice} reads the codes of unchanged ones; "
            f"set {KEY}=false, or all of dataset.augment to 0"
        )
    model, resolution, views = job.model.vq_model, job.dataset.preprocessing.resolution, job.model.vla.num_view
    index = read_index(root, images=False)
    key = CacheKey(
        data=processed_digest(index),
        tokenizer=vq.weights_hash,
        resolution=resolution,
        views=views,
        reading=reading_version(index),
    )
    weights = None if model.pretrained_model_path is None else str(model.pretrained_model_path)
    remake = remake_command(Path(root), str(model.vq_model_name), weights, resolution, views, given)
    try:
        return find(places, key, remake, Path(root))
    except ValueError as error:
        raise ValueError(f"{error} (or encode images in every step: {KEY}=false)") from None


def find(places: Sequence[Path], key: CacheKey, remake: str, data: Path) -> TokenCache:
    """Return the cache of the data set ``data`` that fits ``key``: one of ``places``, or a folder in one of them.

    Raises ValueError with the mismatch of each cache and the command ``remake``.
    """
    found = first_fit(
        ((folder, read_plan(folder)) for folder in candidates(places)), "tokens", key.mismatch, data, _made_with_tf32
    )
    if isinstance(found, str):
        names = " and ".join(map(str, places))
        raise ValueError(f"{names}: no token cache for this data and tokenizer ({found}). Make it: {remake}")
    return TokenCache(*found)


def _made_with_tf32(folder: Path) -> str | None:
    """Return why a complete cache is refused whose codes were made with TF32, in which some of them are others."""
    if any(made.get("tf32") for made in read_object(folder / WHOLE).get("made", [])):
        return f"{folder} was made with TF32, in which codes differ from those of training and acting; delete it first"
    return None


def select_places(key: str, choice: bool | str, inside: Path) -> tuple[list[Path], Path | None]:
    """Return the folders that a cache setting selects, none if images are read, and the folder that it names.

    ``inside``: folder of caches in the data set. Raises ValueError if the named folder does not exist.
    """
    if choice is False or (choice == "auto" and not inside.is_dir()):
        return [], None
    given = None if choice == "auto" else expand_home(str(choice))
    if given is not None and not given.is_dir():
        raise ValueError(f"{key}={choice}: there is no such folder; allowed: auto, false, or a folder of caches")
    # A named folder may hold the cache of the training data only, and validation data have theirs inside them.
    return [place for place in (given, inside) if place is not None and place.is_dir()], given


def candidates(places: Sequence[Path]) -> Iterator[Path]:
    """Yield the folders that may be a cache: each place and its subfolders."""
    for place in places:
        yield place
        if place.is_dir():
            yield from sorted(folder for folder in place.iterdir() if folder.is_dir())


def first_fit(
    plans: Iterable[tuple[Path, Plan | None]],
    kind: str,
    mismatch: Callable[[Mapping[str, Any]], str | None],
    root: Path,
    flaw: Callable[[Path], str | None] = lambda folder: None,
) -> tuple[Path, Plan] | str:
    """Return the first complete cache of ``kind`` without a mismatch, or the mismatches of all.

    ``root``: folder of the images, which must not have been replaced since (``probes``); ``flaw``: what is wrong with
    the content of a complete cache, None if nothing.
    """
    mismatches: list[str] = []
    for folder, plan in plans:
        if plan is None or plan.about.get("kind") != kind:
            continue
        reason = (mismatch(plan.about) or flaw(folder)) if is_whole(folder, plan) else "not finished"
        if reason is None and (other := find_replaced(plan.about.get("probes", {}), root)) is not None:
            reason = f"made of other images than those there now (such as {other})"
        if reason is None:
            return folder, plan
        mismatches.append(f"{folder.name} is {reason}")
    return "; ".join(mismatches) or "it is empty"


def remake_command(
    data: Path, tokenizer: str, weights: str | None, resolution: int, views: int, output: Path | None
) -> str:
    """Return the command that computes this cache."""
    words = [*COMMAND.split(), "--data", str(data), "--tokenizer", tokenizer]
    words += [] if weights is None else ["--tokenizer-weights", weights]
    words += ["--resolution", str(resolution), "--views", str(views)]
    return shlex.join(words + ([] if output is None else ["--output", str(output)]))


def processed_digest(index: ProcessedIndex) -> str:
    """Return a digest of ``dataset_info.json``: the frames and their order."""
    return f"{INDEX_NAME} {index.file.about['source']['blake2b']} {len(index)}"


def reading_version(index: ProcessedIndex) -> int | None:
    """Return the version of how image files are read; None for a split whose frames are arrays."""
    places = np.unique(np.linspace(0, len(index) - 1, PROBES).astype(int)).tolist()
    images = any(index.frames[place].lower().endswith(IMAGE_SUFFIXES) for place in places)
    return READING if images else None


def raw_digest(split: CalvinSplit, all_frames: bool = False) -> str:
    """Return a digest of a raw split's annotations, or (``all_frames``) of its stretches of play."""
    path = split.path / "ep_start_end_ids.npy" if all_frames else split.annotation_path
    if not zip_reader.is_file(path):
        raise FileNotFoundError(f"{path} does not exist; it says which frames the split has")
    with zip_reader.open_binary(path) as file:
        return f"{path.name} {hashlib.blake2b(file.read(), digest_size=16).hexdigest()}"


def probes(paths: Sequence[Path], root: Path) -> dict[str, list[int | str]]:
    """Return size and digest of some of the files (of the archive, if files are in a zip), evenly spaced.

    Names of files inside the data set ``root`` (or around it) are relative to it, so that they hold for a copy too.
    """
    root = root.absolute()
    places = np.unique(np.linspace(0, len(paths) - 1, PROBES).astype(int))
    files = list(dict.fromkeys(zip_reader.container(paths[place]).absolute() for place in places))
    inside = {file for file in files if file.is_relative_to(root) or root.is_relative_to(file)}
    return {os.path.relpath(file, root) if file in inside else str(file): _fingerprint(file) for file in files}


def find_replaced(known: Mapping[str, list[int | str] | int], root: Path) -> str | None:
    """Return a probed file whose content changed, or None. Missing files are ignored."""
    for name, recorded in known.items():
        content = recorded if isinstance(recorded, list) else [recorded]  # the first caches recorded only the size
        path = Path(os.path.normpath(root.absolute() / name))
        if path.is_file() and _fingerprint(path)[: len(content)] != content:
            return str(path)
    return None


def _fingerprint(path: Path) -> list[int | str]:
    """Return [size, digest of start and end]."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        digest = hashlib.blake2b(digest_size=8)
        for place in (0, max(size - PROBED, PROBED)):
            file.seek(place)
            digest.update(file.read(PROBED))
    return [size, digest.hexdigest()]
