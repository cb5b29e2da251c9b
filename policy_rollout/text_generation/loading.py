"""Load a model that answers questions about images: a saved one with its CLIP tower, or the embedded one."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from common.files import PROJECT_DIR
from config.loading import load_job
from models.decoding import Decoding, Threshold, acceptance
from models.device import keep_freed_memory
from models.pretrained.model_io import Built, build, load_folder, model_folder
from models.pretrained.weights_io import resolve_model_dir
from models.processing.image import clip_pixels
from models.processing.text import Prompter
from models.upvla import UPVLA
from models.vision.clip_encoder import ClipTower, load_clip
from policy_rollout.benchmarks.vqa.questions import read_questions
from policy_rollout.policies.model_yaml import CHECKPOINT_KEY, load_model_yaml, local_checkpoint, located, run_config
from training.data.readers import LLAVA_NAME, images_in, read_image

CLIP_KEY = "model.showo.clip_model_path"
EMBEDDED_CONFIG = PROJECT_DIR / "config" / "tiny_bdvla.yaml"
EMBEDDED_CLIP = PROJECT_DIR / "assets" / "tiny_clip"
EMBEDDED_QUESTIONS = PROJECT_DIR / "dummy_data" / "llava_validation"
EMBEDDED_IMAGES = EMBEDDED_QUESTIONS / "images"
TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
"""By the names in ``cli_options.TYPE_NAMES``."""

UNTRAINED: dict[str, tuple[str, ...]] = {"ar": ("mdm", "bd"), "mdm": (), "bd": ()}
"""Trained objective -> ways to decode that it was not trained for: a next-token model has never read a mask."""
PARTLY_TRAINED = {("mdm", "ar"): "an mdm model is not trained to continue a clean answer",
             ("bd", "ar"): "a bd model is trained on next tokens at the starts of blocks, and elsewhere only with "
                           "text_diffusion.ar_aux_weight"}  # fmt: skip


@dataclass(frozen=True)
class AnsweringModel:
    """A model that answers questions about images.

    ``clip``: None for a model without image input, or if no image is given; ``source``: origin of the weights;
    ``notes``: remarks for the user; ``checkpoint``, ``clip_folder``: paths of the weights (a checkpoint of None: random
    weights).
    """

    model: UPVLA
    prompter: Prompter
    clip: ClipTower | None
    source: str
    notes: tuple[str, ...]
    checkpoint: Path | None = None
    clip_folder: Path | None = None

    def patches(self, images: Sequence[Path]) -> Tensor | None:
        """Return CLIP features [B, P, C] of image files, or None without a tower.

        Raises ``ValueError`` or ``FileNotFoundError`` with the name of a file that cannot be read.
        """
        if self.clip is None:
            return None
        pixels = torch.stack([clip_pixels(read_image(file), self.clip.image_spec) for file in images])
        return self.clip.features(pixels.to(self.model.device)).to(self.model.action_head.out.weight.dtype)


def load_answering_model(
    checkpoint: str | None, model_yaml: str | None, clip: str | None, images: bool, device: torch.device, dtype: str
) -> AnsweringModel:
    """Load the model and its CLIP tower.

    ``clip``: folder or hub id of the tower (None: the one that the run or the yaml names, or else one of the width that
    the model needs); ``images``: whether questions come with images. Raises ``ValueError`` or ``FileNotFoundError``.
    """
    named: str | None
    notes: tuple[str, ...]
    if checkpoint is None and model_yaml is None:
        built = build(load_job([f"config={EMBEDDED_CONFIG}"]))
        source, named = "the embedded model", str(EMBEDDED_CLIP)
        notes = (
            "no --checkpoint and no --model-config: the embedded model with random weights answers, at "
            "random; train one with python train_blockdiff_vla.py config=./config/tiny_bdvla.yaml",
        )
    else:
        built, source, named = _saved(checkpoint, model_yaml)
        notes = built.notes
    tower, clip_folder = None, None
    if images:
        if built.spec.clip_width is None:
            raise ValueError("this model has no image input (model.showo.w_clip_vit=false); use --no-picture")
        tower, clip_folder = _tower(built, clip or named)
    if device.type == "cpu":
        keep_freed_memory()
    model = built.model.to(device=device, dtype=TYPES[dtype]).eval().requires_grad_(False)
    tower = None if tower is None else tower.to(device)
    weights = None if checkpoint is None and model_yaml is None else Path(source)
    return AnsweringModel(model, built.prompter, tower, source, notes, weights, clip_folder)


def _weights_of(path: Path) -> Path:
    """Return the weights file or the model folder that a path names."""
    return path if path.is_file() else model_folder(path)


def _saved(checkpoint: str | None, model_yaml: str | None) -> tuple[Built, str, str | None]:
    """Return (model, its path, the CLIP tower that its yaml names)."""
    if model_yaml is not None:
        config = load_model_yaml(model_yaml, checkpoint)
        path = _weights_of(resolve_model_dir(config.checkpoint, key=CHECKPOINT_KEY))
        trust = config.job.model.showo.trust_remote_code
        built = load_folder(path, upstream=config.upstream, trust_remote_code=trust)
        config.require_agreement(built.spec, model_folder(path))
    else:
        assert checkpoint is not None
        path = _weights_of(local_checkpoint(checkpoint))
        built = load_folder(path)
        own = run_config(path)
        if own is None:
            return built, str(path), None
        config = load_model_yaml(own, path)
    named = config.job.model.showo.clip_model_path if CLIP_KEY in config.given else None
    return built, str(path), None if named is None else located(named)


def _tower(built: Built, named: str | None) -> tuple[ClipTower, Path]:
    """Return the CLIP tower and its folder."""
    if named is None:
        embedded = built.spec.clip_width == load_clip(EMBEDDED_CLIP).width
        named = str(EMBEDDED_CLIP) if embedded else "openai/clip-vit-large-patch14-336"
    folder = resolve_model_dir(located(named), key="--clip", needs=("config.json", "preprocessor_config.json"))
    tower = load_clip(folder, key="--clip")
    if tower.width != built.spec.clip_width:
        raise ValueError(
            f"--clip {named}: its features have {tower.width} channels, but the model needs {built.spec.clip_width}"
        )
    return tower, folder


def decoding_objective(trained: str, wanted: str | None, anyway: bool) -> tuple[str, str | None]:
    """Return (objective to decode with, a warning). Raises ``ValueError`` for one that the model is not trained for."""
    way = wanted or trained
    if way in UNTRAINED[trained] and not anyway:
        raise ValueError(
            f"--objective {way}: this model is trained with {trained} and has never read a masked token; "
            f"use --objective {trained}, or --anyway to decode nevertheless"
        )
    caution = PARTLY_TRAINED.get((trained, way))
    return way, None if caution is None else f"--objective {way}: {caution}; the answer may be poor"


def decoding(options: argparse.Namespace, way: str) -> Decoding:
    """Return the selected decoding. Raises ``ValueError`` for an option that has no effect."""
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
    """Return the files, and the images in folders; a bundled one if none is given. Raises ``ValueError``."""
    if not given:
        return image_files([EMBEDDED_IMAGES])[:1]
    return [file for path in given for file in (images_in(path) if path.is_dir() else [path])]


def sample_questions(count: int) -> list[tuple[Path, str, str]]:
    """Return (image, question, reference answer) of the first ``count`` bundled validation images."""
    questions = read_questions("conversations", [EMBEDDED_QUESTIONS / LLAVA_NAME])
    of_image = {question.image: question for question in reversed(questions)}  # the first one of each image
    chosen = [of_image[name] for name in dict.fromkeys(question.image for question in questions)][:count]
    return [(EMBEDDED_QUESTIONS / question.image, question.text, question.truths[0]) for question in chosen]
