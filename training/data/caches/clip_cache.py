"""CLIP's patches of conversation images, made once by ``preprocess_data/clip_features.py``: an option, and large.

A folder of shards (``shards.py``) with one row [P, C] for each distinct image, beside the images' paths as the json
has them. It knows which tower made it and how the images were prepared, and is refused for any other.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.paths import expand_home
from config.schema import Job
from models.processing.image_file import READING
from models.vision.clip_encoder import ClipTower
from training.data.caches.token_cache import find_replaced
from training.data.formats.column_file import IndexFile
from training.data.formats.shards import FRAMES, WHOLE, Plan, Rows, is_whole, read_plan

FOLDER = "clip_cache"  # beside the json, where caches are looked for
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
        """[P, C] in the type they were kept in. Raises ValueError for an image that could not be decoded."""
        row = self._row_of[name]
        if not int(self.rows.row("decoded", row)):
            raise ValueError(f"{name} could not be decoded as an image when {self.folder} was made")
        return torch.from_numpy(np.array(self.rows.row("patches", row)))

    def describe(self) -> str:
        size = self.plan.rows * self.plan.row_bytes / 1e9
        return f"patches of {self.plan.rows} images, {size:.2f} GB, from {self.folder}"


def about(tower: ClipTower, name: str) -> dict[str, Any]:
    """What such a cache is known by."""
    spec = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(tower.image_spec).items()}
    made = {"tower": tower.weights_hash, "name": Path(name).name, "spec": spec, "reading": READING}
    return {"kind": KIND, "version": 1, **made}


def clip_cache(job: Job, root: str, image_root: str | None, tower: ClipTower) -> ImageFeatures | None:
    """The patches of the conversations ``root`` (a folder or a json), as ``tower`` made them; None where images are
    to be read (``dataset.params.clip_cache``).

    Raises ValueError, with the command that makes them, where there are caches and none is this tower's.
    """
    wish = job.dataset.params.clip_cache
    given = Path(root)
    inside = (given if given.is_dir() else given.parent) / FOLDER
    if wish is False or (wish == "auto" and not inside.is_dir()):
        return None
    named = None if wish == "auto" else expand_home(wish)
    if named is not None and not named.is_dir():
        raise ValueError(f"{KEY}={wish}: there is no such folder; allowed: auto, false, or a folder of such caches")
    words = [*COMMAND.split(), "--data", root, "--clip", str(job.model.showo.clip_model_path)]
    words += [] if image_root is None else ["--image-root", image_root]
    remake = shlex.join(words + ([] if named is None else ["--output", str(named)]))
    places = [place for place in (named, inside) if place is not None and place.is_dir()]
    try:
        return find(places, tower, remake, given.name, Path(image_root) if image_root is not None else inside.parent)
    except ValueError as error:
        raise ValueError(f"{error} (or see images in every step: {KEY}=false)") from None


def find(places: Sequence[Path], tower: ClipTower, remake: str, json: str, image_root: Path) -> ImageFeatures:
    """The cache of this tower in one of these folders; of several, the last one that was made of conversations of
    this name."""
    wanted, seen = about(tower, ""), []
    plans = [(folder, read_plan(folder)) for folder in _candidates(places)]
    plans.sort(key=lambda found: (found[1] is None or found[1].about.get("json") != json, -_finished(found[0])))
    for folder, plan in plans:
        if plan is None or plan.about.get("kind") != KIND:
            continue
        why = _other(plan.about, wanted) if is_whole(folder, plan) else "not finished"
        if why is None and (other := find_replaced(plan.about.get("probes", {}), image_root)) is not None:
            why = f"made of other images than lie there now (such as {other})"
        if why is None:
            return ImageFeatures(folder, plan, remake)
        seen.append(f"{folder.name} is {why}")
    found = "; ".join(seen) or "it is empty"
    raise ValueError(f"{' and '.join(map(str, places))}: no patches by this CLIP tower ({found}). Make them: {remake}")


def _finished(folder: Path) -> float:
    """When; 0: not yet."""
    file = folder / WHOLE
    return file.stat().st_mtime if file.is_file() else 0.0


def _candidates(places: Sequence[Path]) -> Iterator[Path]:
    for place in places:
        yield place
        yield from sorted(folder for folder in place.iterdir() if folder.is_dir())


def _other(held: Mapping[str, Any], wanted: Mapping[str, Any]) -> str | None:
    if held["tower"] != wanted["tower"]:
        return f"made by other weights ({held['name']})"
    if held.get("reading", 1) != wanted["reading"]:
        return "of images as an earlier version read them (EXIF orientation, 16 bits, transparency)"
    return None if held["spec"] == wanted["spec"] else "of images that were prepared otherwise"
