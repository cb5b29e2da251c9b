"""The CLIP cache: patches of conversation images, computed by ``preprocess_data/clip_features.py``.

A folder of shards (``training/data/formats/shards.py``) with one row [P, C] for each distinct image, and the paths of
the images as the json names them. It records which tower computed it and how images were prepared, and is refused for
any other. It is optional, and large.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from config.schema import Job
from models.processing.image_file import READING
from models.vision.clip_encoder import ClipTower
from training.data.caches.token_cache import candidates, first_fit, select_places
from training.data.formats.column_file import IndexFile
from training.data.formats.shards import FRAMES, WHOLE, Plan, Rows, read_plan

FOLDER = "clip_cache"
"""Folder of caches next to the json."""
KIND = "clip"
COMMAND = "python preprocess_data/clip_features.py"
KEY = "dataset.params.clip_cache"


class ImageFeatures:
    """The patches of images, by their paths. Opens no image.

    Raises ValueError naming the file when a part of it is missing or damaged.
    """

    def __init__(self, folder: Path, plan: Plan, remake: str = COMMAND) -> None:
        self.folder, self.plan, self.remake = folder, plan, remake
        self.rows = Rows(folder, plan)
        names = IndexFile(folder / FRAMES).texts("names")
        self._row_of = {names[row]: row for row in range(len(names))}

    def __contains__(self, name: str) -> bool:
        return name in self._row_of

    def __getitem__(self, name: str) -> Tensor:
        """Return the patches [P, C] of an image. Raises ValueError for an image that could not be decoded."""
        row = self._row_of[name]
        if not int(self.rows.row("decoded", row)):
            raise ValueError(f"{name} could not be decoded as an image when {self.folder} was made")
        return torch.from_numpy(np.array(self.rows.row("patches", row)))

    def describe(self) -> str:
        """Return a line for the log."""
        size = self.plan.rows * self.plan.row_bytes / 1e9
        return f"patches of {self.plan.rows} images, {size:.2f} GB, from {self.folder}"


def about(tower: ClipTower, name: str) -> dict[str, Any]:
    """Return what identifies the cache of a tower."""
    spec = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(tower.image_spec).items()}
    made = {"tower": tower.weights_hash, "name": Path(name).name, "spec": spec, "reading": READING}
    return {"kind": KIND, "version": 1, **made}


def clip_cache(job: Job, root: str, image_root: str | None, tower: ClipTower) -> ImageFeatures | None:
    """Return the cache that ``dataset.params.clip_cache`` selects for the conversations ``root`` (a folder or a json)
    and the tower; None if images are read.

    Raises ValueError, with the command that computes it, if no cache is of this tower.
    """
    data = Path(root)
    inside = (data if data.is_dir() else data.parent) / FOLDER
    places, given = select_places(KEY, job.dataset.params.clip_cache, inside)
    if not places:
        return None
    words = [*COMMAND.split(), "--data", root, "--clip", str(job.model.showo.clip_model_path)]
    words += [] if image_root is None else ["--image-root", image_root]
    remake = shlex.join(words + ([] if given is None else ["--output", str(given)]))
    try:
        return find(places, tower, remake, data.name, inside.parent if image_root is None else Path(image_root))
    except ValueError as error:
        raise ValueError(f"{error} (or encode images in every step: {KEY}=false)") from None


def find(places: Sequence[Path], tower: ClipTower, remake: str, json: str, image_root: Path) -> ImageFeatures:
    """Return the cache of this tower in one of these folders.

    Of several, the newest one computed for a json of this name is preferred.
    """
    wanted = about(tower, "")
    plans = [(folder, read_plan(folder)) for folder in candidates(places)]
    plans.sort(key=lambda entry: (entry[1] is None or entry[1].about.get("json") != json, -_finished(entry[0])))
    found = first_fit(plans, KIND, lambda cached: _mismatch(cached, wanted), image_root)
    if isinstance(found, str):
        names = " and ".join(map(str, places))
        raise ValueError(f"{names}: no patches by this CLIP tower ({found}). Make them: {remake}")
    return ImageFeatures(*found, remake)


def _finished(folder: Path) -> float:
    """Return the time at which a cache was finished, 0 if it was not."""
    file = folder / WHOLE
    return file.stat().st_mtime if file.is_file() else 0.0


def _mismatch(cached: Mapping[str, Any], wanted: Mapping[str, Any]) -> str | None:
    if cached["tower"] != wanted["tower"]:
        return f"made by other weights ({cached['name']})"
    if cached.get("reading", 1) != wanted["reading"]:
        return "of images as an earlier version read them (EXIF orientation, 16 bits, transparency)"
    return None if cached["spec"] == wanted["spec"] else "of images that were prepared otherwise"
