"""A LLaVA json about images of toys: text that can only be learned by looking."""

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
from preprocess_data.tiny_assets.questions import Asked, balanced
from preprocess_data.tiny_assets.toys import draw, random_scenes


@dataclass(frozen=True)
class Split:
    """`turns`: most questions about one image in one conversation. Several share the cost of an image and a prompt;
    held-out questions come one by one, so that no earlier answer helps."""

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
COLOURS_KEPT = 24
"""Of an image; edges are mixed colours. An image is about 600 bytes then."""
PIXEL_TOLERANCE = 2.0
"""Mean absolute difference of an image, in grey levels: another Pillow may mix edges or choose colours differently."""


def write_conversations(folder: Path, split: Split) -> int:
    """`folder/llava_v1_5_mix665k.json` with `folder/images/*.png`; returns the number of questions.

    Images that no question is about are not written.
    """
    rng = np.random.default_rng(split.seed)
    scenes = random_scenes(split.images, rng, split.held_out)
    drawn = [draw(scene, rng) for scene in scenes]
    asked = balanced(scenes, split.per_kind, rng)
    images = folder / "images"
    shutil.rmtree(images, ignore_errors=True)
    images.mkdir(parents=True)
    for index in sorted({question.scene for question in asked}):
        few = drawn[index].quantize(COLOURS_KEPT, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        few.save(folder / _image(index), optimize=True)
    talks = _conversations([asked[i] for i in rng.permutation(len(asked))], split.turns)
    records = [json.dumps(_record(number, talks[i])) for number, i in enumerate(rng.permutation(len(talks)))]
    write_text(folder / MMU_INDEX, "[\n" + ",\n".join(records) + "\n]\n")
    return len(asked)


def _image(scene: int) -> str:
    return f"images/{scene:04d}.png"


def _conversations(asked: Sequence[Asked], turns: int) -> list[list[Asked]]:
    """Questions about one image, at most `turns` together, in the order given."""
    by_scene: dict[int, list[Asked]] = {}
    for question in asked:
        by_scene.setdefault(question.scene, []).append(question)
    return [some[i : i + turns] for some in by_scene.values() for i in range(0, len(some), turns)]


def _record(number: int, asked: Sequence[Asked]) -> dict[str, object]:
    turns: list[dict[str, str]] = []
    for question in asked:
        mark = "" if turns else "<image>\n"
        turns.append({"from": "human", "value": mark + question.question})
        turns.append({"from": "gpt", "value": question.answer})
    return {"id": number, "image": _image(asked[0].scene), "conversations": turns}


def write_all(data: Path, splits: Mapping[str, Split] = MappingProxyType(SPLITS)) -> dict[str, int]:
    """Both splits under `data`; questions in each."""
    return {folder: write_conversations(data / folder, split) for folder, split in splits.items()}


def differences(committed: Path, scratch: Path, splits: Mapping[str, Split] = MappingProxyType(SPLITS)) -> list[str]:
    """Makes the splits again in `scratch` and compares: words to the letter, images to a tolerance."""
    problems = []
    for folder in write_all(scratch, splits):
        new, old = scratch / folder, committed / folder
        if (old / MMU_INDEX).read_text(encoding="utf-8") != (new / MMU_INDEX).read_text(encoding="utf-8"):
            problems.append(f"{committed.name}/{folder}/{MMU_INDEX} differs")
        names = [sorted(file.name for file in (where / "images").iterdir()) for where in (new, old)]
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
