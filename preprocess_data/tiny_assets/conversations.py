"""Write a LLaVA json about images of toys, whose answers cannot be guessed without the image."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
from PIL import Image

from common.files import write_text
from config.schema import MMU_INDEX
from preprocess_data.tiny_assets.questions import SceneQuestion, balanced
from preprocess_data.tiny_assets.toys import draw, random_scenes


@dataclass(frozen=True)
class Split:
    """Sizes of a split.

    ``turns``: most questions of one conversation, which share an image and a prompt; held-out questions have one, so
    that no earlier answer helps.
    """

    images: int
    per_kind: int
    seed: int
    turns: int
    held_out: bool


SPLITS = {
    "llava": Split(images=720, per_kind=720, seed=11, turns=3, held_out=False),
    "llava_validation": Split(images=240, per_kind=80, seed=12, turns=1, held_out=True),
}
"""By folder."""
PALETTE = 24
"""Colours of an image (edges are mixed colours), which then takes about 600 bytes."""
PIXEL_TOLERANCE = 2.0
"""Mean absolute difference in grey levels: other versions of Pillow mix edges and choose colours differently."""


def write_conversations(folder: Path, split: Split) -> int:
    """Write `folder/llava_v1_5_mix665k.json` and `folder/images/*.png`; return the number of questions.

    Images without a question are not written.
    """
    rng = np.random.default_rng(split.seed)
    scenes = random_scenes(split.images, rng, split.held_out)
    drawn = [draw(scene, rng) for scene in scenes]
    questions = balanced(scenes, split.per_kind, rng)
    images = folder / "images"
    shutil.rmtree(images, ignore_errors=True)
    images.mkdir(parents=True)
    for index in sorted({question.scene for question in questions}):
        image = drawn[index].quantize(PALETTE, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        image.save(folder / _image(index), optimize=True)
    conversations = _conversations([questions[i] for i in rng.permutation(len(questions))], split.turns)
    order = enumerate(rng.permutation(len(conversations)))
    records = [json.dumps(_record(number, conversations[i])) for number, i in order]
    write_text(folder / MMU_INDEX, "[\n" + ",\n".join(records) + "\n]\n")
    return len(questions)


def _image(scene: int) -> str:
    return f"images/{scene:04d}.png"


def _conversations(questions: Sequence[SceneQuestion], turns: int) -> list[list[SceneQuestion]]:
    """Group questions about one image into conversations of at most `turns`, in the given order."""
    by_scene: dict[int, list[SceneQuestion]] = {}
    for question in questions:
        by_scene.setdefault(question.scene, []).append(question)
    return [group[i : i + turns] for group in by_scene.values() for i in range(0, len(group), turns)]


def _record(number: int, questions: Sequence[SceneQuestion]) -> dict[str, object]:
    turns: list[dict[str, str]] = []
    for question in questions:
        mark = "" if turns else "<image>\n"
        turns.append({"from": "human", "value": mark + question.question})
        turns.append({"from": "gpt", "value": question.answer})
    return {"id": number, "image": _image(questions[0].scene), "conversations": turns}


def write_all(data: Path, splits: Mapping[str, Split] = MappingProxyType(SPLITS)) -> dict[str, int]:
    """Write all splits under `data`; return the number of questions of each."""
    return {folder: write_conversations(data / folder, split) for folder, split in splits.items()}


def differences(committed: Path, scratch: Path, splits: Mapping[str, Split] = MappingProxyType(SPLITS)) -> list[str]:
    """Write the splits again in `scratch`, and return differences: of text exactly, of images beyond the tolerance."""
    problems = []
    for folder in write_all(scratch, splits):
        new, old = scratch / folder, committed / folder
        if (old / MMU_INDEX).read_text(encoding="utf-8") != (new / MMU_INDEX).read_text(encoding="utf-8"):
            problems.append(f"{committed.name}/{folder}/{MMU_INDEX} differs")
        names = [sorted(file.name for file in (path / "images").iterdir()) for path in (new, old)]
        if names[0] != names[1]:
            problems.append(f"{committed.name}/{folder}/images holds other images")
            continue
        for name in names[0]:
            if not _alike(new / "images" / name, old / "images" / name):
                problems.append(f"{committed.name}/{folder}/images/{name} differs")
    return problems


def _alike(a: Path, b: Path) -> bool:
    with Image.open(a) as one, Image.open(b) as other:
        left, right = (np.asarray(image.convert("RGB"), dtype=int) for image in (one, other))
    return left.shape == right.shape and float(np.abs(left - right).mean()) <= PIXEL_TOLERANCE
