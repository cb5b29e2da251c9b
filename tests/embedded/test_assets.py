"""The models and data the project brings along: they can be made again, are small, and need to be looked at."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models.images import ClipImageSpec, clip_pixels, fit, normalise, to_uint8
from models.magvit import load_magvit
from models.vision import load_clip
from preprocess_data.embedded.questions import BULB, DRAWER, KINDS, LED, SLIDER, balanced
from preprocess_data.embedded.scenes import random_scenes
from preprocess_data.embedded.tokenizer_training import train_magvit
from scripts import make_assets
from training.data.calvin import CalvinSplit

ROOT = Path(__file__).resolve().parents[2]
MEGABYTE = 1_000_000


def test_the_quick_assets_and_the_demonstrations_can_be_made_again() -> None:
    assert make_assets.check() == []


def test_everything_that_is_shipped_is_small() -> None:
    files = [file for folder in ("assets", "dummy_data") for file in (ROOT / folder).rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 10 * MEGABYTE


def test_the_bundled_recording_has_both_splits_several_instructions_and_annotations() -> None:
    for split in ("training", "validation"):
        raw = CalvinSplit(ROOT / "dummy_data/calvin" / split)
        assert len({annotation.instruction for annotation in raw.annotations}) >= 3
        index = json.loads((ROOT / f"dummy_data/calvin_processed_{split}/dataset_info.json").read_text())
        assert [episode["instruction"] for episode in index] == [a.instruction for a in raw.annotations]


def test_the_image_tokenizer_shows_what_it_was_given() -> None:
    """Held-out frames of the quickstart's scene come back closer to themselves than the scene's average is, and much
    closer than to another frame."""
    vq = load_magvit(ROOT / "assets/tiny_magvit")
    frames = torch.stack([torch.from_numpy(fit(scene.static, 96)) for scene in random_scenes(12, 77, ("D",))])
    pixels = normalise(frames)
    codes = vq.encode(pixels)
    decoded = vq.decode(codes)
    own = float((decoded - pixels).abs().mean())
    assert codes.unique().numel() > 100
    assert own < 0.85 * float((pixels - pixels.mean(dim=0)).abs().mean())
    assert own < 0.6 * float((decoded - pixels.roll(1, dims=0)).abs().mean())
    assert to_uint8(decoded).shape == frames.shape


def test_training_the_tokenizer_lowers_its_error_and_repeats() -> None:
    frames = torch.stack([torch.from_numpy(fit(scene.static, 32)) for scene in random_scenes(4, seed=5)])
    groups = torch.tensor([0, 0, 1, -1])
    model, errors = train_magvit(frames, groups, steps=8, batch_size=2)
    again, same = train_magvit(frames, groups, steps=8, batch_size=2)
    assert errors == same
    assert np.mean(errors[-3:]) < 0.8 * np.mean(errors[:3])
    assert model.weights_hash == again.weights_hash


def test_pictures_of_different_colours_have_different_clip_features() -> None:
    clip = load_clip(ROOT / "assets/tiny_clip")
    spec = ClipImageSpec.from_dir(ROOT / "assets/tiny_clip")
    red, blue = (Image.new("RGB", (112, 112), colour) for colour in ("red", "blue"))
    features = clip.features(torch.stack([torch.as_tensor(clip_pixels(picture, spec)) for picture in (red, blue)]))
    assert features.shape == (2, 64, 64)
    assert float((features[0] - features[1]).abs().mean()) > 0.05


@pytest.mark.parametrize("folder", ["llava", "llava_validation"])
def test_every_kind_of_question_has_its_answers_in_equal_shares(folder: str) -> None:
    records = json.loads((ROOT / "dummy_data" / folder / "llava_v1_5_mix665k.json").read_text())
    kinds = {phrasing: kind for kind in KINDS for phrasing in kind.phrasings}
    counts: dict[str, Counter[str]] = {kind.name: Counter() for kind in KINDS}
    for record in records:
        turns = record["conversations"]
        for question, answer in zip(turns[::2], turns[1::2], strict=True):
            kind = kinds[question["value"].replace("<image>\n", "")]
            counts[kind.name][answer["value"]] += 1
    for kind in KINDS:
        assert set(counts[kind.name]) == set(kind.answers), kind.name
        assert len(set(counts[kind.name].values())) == 1, (kind.name, counts[kind.name])


def test_pictures_of_the_two_splits_differ() -> None:
    pictures = [
        {file.read_bytes() for file in (ROOT / "dummy_data" / f / "images").iterdir()}
        for f in ("llava", "llava_validation")
    ]
    assert not pictures[0] & pictures[1]


def test_answers_are_read_from_the_state_of_the_scene() -> None:
    scene = np.zeros(24)
    scene[6:9], scene[12:15], scene[18:21] = (-0.2, -0.1, 0.46), (0.2, -0.1, 0.46), (0.1, 0.09, 0.46)
    read = {kind.name: kind.read(scene) for kind in KINDS}
    assert read["leftmost"] == "red"
    assert read["rightmost"] == "blue"  # pink is in the cabinet: only blocks on the table are asked about
    assert read["where_pink"] == "in the cabinet"
    assert (read["count"], read["drawer"], read["slider"]) == ("two", "closed", "on the right")
    scene[DRAWER], scene[SLIDER], scene[BULB], scene[LED] = 0.2, 0.28, 1, 1
    read = {kind.name: kind.read(scene) for kind in KINDS}
    assert (read["drawer"], read["slider"]) == ("open", "on the left")
    assert (read["bulb"], read["led"]) == ("the bulb is on", "the LED is on")


def test_a_balanced_set_never_asks_what_has_no_clear_answer() -> None:
    scenes = [scene.scene_obs for scene in random_scenes(30, seed=9)]
    for index, kind, answer in balanced(scenes, per_kind=8, rng=np.random.default_rng(0)):
        assert kind.read(scenes[index]) == answer
