"""Which token cache a run reads in place of the robot's images: ``dataset.params.token_cache``, judged at start."""

from __future__ import annotations

from pathlib import Path

from common.files import expand_home
from config.schema import Augment, Job
from models.vision.magvitv2 import MagVITv2
from training.data.caches.token_cache import (
    FOLDER,
    TokenCache,
    Wanted,
    find,
    processed_digest,
    reading_version,
    remake_command,
)
from training.data.episode_index import read_index

KEY = "dataset.params.token_cache"


def token_cache(job: Job, root: str, vq: MagVITv2) -> TokenCache | None:
    """The codes of the data set ``root``, as ``vq`` made them; None where images are to be read.

    ``auto`` takes what lies in the data set, if anything does. Raises ValueError where there are caches and none is
    of this data, tokenizer and resolution, and where images are to be augmented, which codes cannot be.
    """
    wish = job.dataset.params.token_cache
    inside = Path(root) / FOLDER
    if wish is False or (wish == "auto" and not inside.is_dir()):
        return None
    named = None if wish == "auto" else expand_home(wish)
    if named is not None and not named.is_dir():
        raise ValueError(f"{KEY}={wish}: there is no such folder; allowed: auto, false, or a folder of token caches")
    # A folder that is named may hold the training data's alone, and held-out data have theirs beside them.
    places = [place for place in (named, inside) if place is not None and place.is_dir()]
    if job.dataset.augment != Augment():
        raise ValueError(
            f"dataset.augment changes images, and {KEY}={wish} reads the codes of unchanged ones; "
            f"set {KEY}=false, or all of dataset.augment to 0"
        )
    model, resolution, views = job.model.vq_model, job.dataset.preprocessing.resolution, job.model.vla.num_view
    index = read_index(root, images=False)
    wanted = Wanted(
        data=processed_digest(index),
        tokenizer=vq.weights_hash,
        resolution=resolution,
        views=views,
        reading=reading_version(index),
    )
    weights = None if model.pretrained_model_path is None else str(model.pretrained_model_path)
    remake = remake_command(Path(root), str(model.vq_model_name), weights, resolution, views, named)
    try:
        return find(places, wanted, remake, Path(root))
    except ValueError as error:
        raise ValueError(f"{error} (or encode images in every step: {KEY}=false)") from None
