"""A LLaVA json about pictures of the desk: text that can only be learned by looking."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from config.schema import MMU_INDEX
from preprocess_data.embedded.questions import balanced
from preprocess_data.embedded.scenes import random_scenes

PICTURE_SIDE = 112
"""Pixels: what the small CLIP tower reads, so that nothing is resized twice."""
JPEG_QUALITY = 80
TURNS = 2
"""Most questions in one conversation."""


def write_conversations(folder: Path, pictures: int, per_kind: int, seed: int) -> int:
    """`folder/llava_v1_5_mix665k.json` with `folder/images/*.jpg`; returns the number of questions.

    Of `pictures` random scenes, those that a balanced set of `per_kind` questions of each kind needs are written.
    """
    rng = np.random.default_rng([seed, pictures, per_kind])
    scenes = list(tqdm(random_scenes(pictures, seed), total=pictures, desc="pictures", unit="picture"))
    asked: dict[int, list[tuple[str, str]]] = {}
    triples = balanced([scene.scene_obs for scene in scenes], per_kind, rng)
    for index, kind, answer in triples:
        asked.setdefault(index, []).append((str(rng.choice(list(kind.phrasings))), answer))
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    records = []
    for index in sorted(asked):
        name = f"images/{index:05d}.jpg"
        picture = Image.fromarray(scenes[index].static).resize((PICTURE_SIDE, PICTURE_SIDE), Image.Resampling.BICUBIC)
        picture.save(folder / name, quality=JPEG_QUALITY)
        questions = [asked[index][i] for i in rng.permutation(len(asked[index]))]
        for start in range(0, len(questions), TURNS):
            records.append(_record(f"{index:05d}_{start // TURNS}", name, questions[start : start + TURNS]))
    order = rng.permutation(len(records))
    text = json.dumps([records[i] for i in order], indent=1)
    temporary = folder / f"{MMU_INDEX}.tmp"
    temporary.write_text(text + "\n", encoding="utf-8")
    os.replace(temporary, folder / MMU_INDEX)
    return len(triples)


def _record(name: str, image: str, questions: list[tuple[str, str]]) -> dict[str, object]:
    turns = []
    for number, (question, answer) in enumerate(questions):
        turns.append({"from": "human", "value": f"<image>\n{question}" if number == 0 else question})
        turns.append({"from": "gpt", "value": answer})
    return {"id": name, "image": image, "conversations": turns}
