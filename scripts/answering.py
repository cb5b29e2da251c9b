"""Who answers questions about images: a saved model with its CLIP tower, or the embedded one with random weights."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from config.files import PROJECT_DIR
from config.load import load_job
from models.decoding import Decoding, Threshold, acceptance
from models.device import keep_freed_memory
from models.pretrained.model_io import Built, build, load_folder, model_folder
from models.pretrained.weights_io import resolve_model_dir
from models.processing.image import clip_pixels
from models.processing.text import Prompter
from models.upvla import UPVLA
from models.vision.clip_encoder import ClipTower, load_clip
from policy_rollout.policies.model_yaml import CHECKPOINT_KEY, load_model_yaml, located
from training.data.readers import images_in, read_image

CLIP_KEY = "model.showo.clip_model_path"
EMBEDDED_CONFIG = PROJECT_DIR / "config" / "tiny_bdvla.yaml"
EMBEDDED_CLIP = PROJECT_DIR / "assets" / "tiny_clip"
EMBEDDED_IMAGES = PROJECT_DIR / "dummy_data" / "llava_validation" / "images"
TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
"""Of ``answering_options.TYPE_NAMES``."""

NEVER_SEEN: dict[str, tuple[str, ...]] = {"ar": ("mdm", "bd"), "mdm": (), "bd": ()}
"""Trained objective -> ways to decode that it cannot know: a model of next tokens has never read a mask."""
HALF_SEEN = {("mdm", "ar"): "an mdm model has not learned to continue a clean answer",
             ("bd", "ar"): "a bd model has learned next words at the starts of blocks, and elsewhere only with "
                           "text_diffusion.ar_aux_weight"}  # fmt: skip


@dataclass(frozen=True)
class Answerer:
    """``clip`` is None for a model without an image path, or where no image is asked about. ``source``: where the
    weights come from; ``notes``: what a user should know. ``checkpoint``, ``clip_folder``: what holds the weights of
    both (a checkpoint of None: random weights)."""

    model: UPVLA
    prompter: Prompter
    clip: ClipTower | None
    source: str
    notes: tuple[str, ...]
    checkpoint: Path | None = None
    clip_folder: Path | None = None

    def patches(self, images: Sequence[Path]) -> Tensor | None:
        """CLIP features [B, P, C] of image files; None without a tower. Raises ``ValueError`` or
        ``FileNotFoundError`` naming a file that cannot be read."""
        if self.clip is None:
            return None
        pixels = torch.stack([clip_pixels(read_image(file), self.clip.image_spec) for file in images])
        return self.clip.features(pixels.to(self.model.device)).to(self.model.action_head.out.weight.dtype)


def answerer(
    checkpoint: str | None, model_yaml: str | None, clip: str | None, images: bool, device: torch.device, dtype: str
) -> Answerer:
    """The model that is asked. ``clip``: folder or hub id of the tower (None: as the run or yaml says, else by the
    width that the model was built for). Raises ``ValueError`` or ``FileNotFoundError`` in one line."""
    named: str | None
    notes: tuple[str, ...]
    if checkpoint is None and model_yaml is None:
        built = build(load_job([f"config={EMBEDDED_CONFIG}"]))
        source, named = "the embedded model", str(EMBEDDED_CLIP)
        notes = (
            "no --checkpoint and no --model-config: asking the embedded model with random weights, which says nothing "
            "of sense; train one with python train_blockdiff_vla.py config=./config/tiny_bdvla.yaml",
        )
    else:
        built, source, named = _saved(checkpoint, model_yaml)
        notes = built.notes
    tower, clip_folder = None, None
    if images:
        if built.spec.clip_width is None:
            raise ValueError("this model reads no images (model.showo.w_clip_vit=false); ask with --no-picture")
        tower, clip_folder = _tower(built, clip or named)
    if device.type == "cpu":
        keep_freed_memory()
    model = built.model.to(device=device, dtype=TYPES[dtype]).eval().requires_grad_(False)
    tower = None if tower is None else tower.to(device)
    weights = None if checkpoint is None and model_yaml is None else Path(source)
    return Answerer(model, built.prompter, tower, source, notes, weights, clip_folder)


def _weights_of(path: Path) -> Path:
    """Return the weights file or the model folder that a path names."""
    return path if path.is_file() else model_folder(path)


def _saved(checkpoint: str | None, model_yaml: str | None) -> tuple[Built, str, str | None]:
    """(model, where it lies, the CLIP tower that its yaml names)."""
    if model_yaml is not None:
        config = load_model_yaml(model_yaml, checkpoint)
        path = _weights_of(resolve_model_dir(config.checkpoint, key=CHECKPOINT_KEY))
        trust = config.job.model.showo.trust_remote_code
        built = load_folder(path, upstream=config.upstream, trust_remote_code=trust)
        config.require_agreement(built.spec, model_folder(path))
    else:
        assert checkpoint is not None
        path = _weights_of(resolve_model_dir(located(checkpoint), key="--checkpoint"))
        built = load_folder(path)
        beside = _run_config(path)
        if beside is None:
            return built, str(path), None
        config = load_model_yaml(beside, path)
    named = config.job.model.showo.clip_model_path if CLIP_KEY in config.given else None
    return built, str(path), None if named is None else located(named)


def _run_config(path: Path) -> Path | None:
    """The ``config.yaml`` that a run left in its output folder, for a path in it."""
    for folder in (path, *path.parents[:2]):
        if (folder / "config.yaml").is_file():
            return folder / "config.yaml"
    return None


def _tower(built: Built, named: str | None) -> tuple[ClipTower, Path]:
    """The tower and where it lies."""
    if named is None:
        embedded = built.spec.clip_width == load_clip(EMBEDDED_CLIP).width
        named = str(EMBEDDED_CLIP) if embedded else "openai/clip-vit-large-patch14-336"
    folder = resolve_model_dir(located(named), key="--clip", needs=("config.json", "preprocessor_config.json"))
    tower = load_clip(folder, key="--clip")
    if tower.width != built.spec.clip_width:
        raise ValueError(
            f"--clip {named}: its features have {tower.width} channels, but the model reads {built.spec.clip_width}"
        )
    return tower, folder


def way_to_decode(trained: str, wanted: str | None, anyway: bool) -> tuple[str, str | None]:
    """(objective to decode with, a warning). Raises ``ValueError`` for one that the model cannot know."""
    way = wanted or trained
    if way in NEVER_SEEN[trained] and not anyway:
        raise ValueError(
            f"--objective {way}: this model learned text with {trained} and has never read a hidden word; "
            f"use --objective {trained}, or --anyway to see what comes of it"
        )
    told = HALF_SEEN.get((trained, way))
    return way, None if told is None else f"--objective {way}: {told}; the answer may be poor"


def decoding(options: argparse.Namespace, way: str) -> Decoding:
    """Of the options of ``add_decoding``. Raises ``ValueError`` for a switch that this way of decoding would ignore."""
    blocks = way != "ar"
    for name, given, fits in (
        ("--accept", options.accept, blocks and not options.speculative),
        ("--block-size", options.block_size, blocks and not (way == "mdm" and options.whole_canvas)),
        ("--whole-canvas", options.whole_canvas, way == "mdm"),
        ("--speculative", options.speculative, way == "bd"),
    ):
        if given and not fits:
            why = f"--objective {way}"
            why += " --speculative" if name == "--accept" and blocks else ""
            why += " --whole-canvas" if name == "--block-size" and blocks else ""
            raise ValueError(f"{name} has no effect with {why}; leave it out")
    if options.block_size is not None and options.block_size < 1:
        raise ValueError(f"--block-size is {options.block_size}; it must be 1 or more")
    rule = Threshold() if options.accept is None else acceptance(options.accept)
    return Decoding(rule, options.block_size, options.whole_canvas, options.speculative)


def image_files(given: Sequence[Path]) -> list[Path]:
    """Files, and the images in folders; a bundled one where none is given. ``ValueError`` for an empty folder."""
    if not given:
        return image_files([EMBEDDED_IMAGES])[:1]
    return [file for path in given for file in (images_in(path) if path.is_dir() else [path])]
