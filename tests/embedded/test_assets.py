"""The models and data the project brings along: they can be made again, are small, and need to be looked at."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models.processing.image import fit, normalise, to_uint8
from models.vision.clip_encoder import load_clip
from models.vision.magvitv2 import load_magvit
from preprocess_data.tiny_assets import __main__ as make_assets
from preprocess_data.tiny_assets import clip, conversations, recorded_frames, tokenizer_training
from preprocess_data.tiny_assets.questions import KINDS, LIST, NAMES, balanced, blind_floor, kind_of
from preprocess_data.tiny_assets.tokenizer_training import random_scenes
from preprocess_data.tiny_assets.toys import COLOURS, SIDE, Toy, draw
from preprocess_data.tiny_assets.toys import random_scenes as random_toys
from training.data.calvin import CalvinSplit

ROOT = Path(__file__).resolve().parents[2]
MEGABYTE = 1_000_000


def test_the_quick_assets_and_the_demonstrations_can_be_made_again() -> None:
    assert make_assets.check() == []


def test_everything_that_is_shipped_is_small() -> None:
    files = [file for folder in ("assets", "dummy_data") for file in (ROOT / folder).rglob("*") if file.is_file()]
    sizes = {file: file.stat().st_size for file in files}
    policy = sum(size for file, size in sizes.items() if file.is_relative_to(ROOT / "assets/desk_policy"))
    assert policy < 10 * MEGABYTE
    assert sum(sizes.values()) - policy < 11.5 * MEGABYTE


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


def test_training_the_tokenizer_lowers_errors_repeats_and_lets_the_encoder_rest_while_the_decoder_learns() -> None:
    images = tokenizer_training.random_images(14, seed=5)
    assert set(images.groups.tolist()) == {-1, 0, 1, 2, 3}
    assert images.known.tolist() == [g == 3 for g in images.groups.tolist()]
    model, errors = tokenizer_training.train_encoder(images, steps=10, batch_size=6)
    again, same = tokenizer_training.train_encoder(images, steps=10, batch_size=6)
    assert errors == same
    assert np.mean(errors[-3:]) < np.mean(errors[:3])
    assert model.weights_hash == again.weights_hash
    codes = model.encode(normalise(images.frames))
    drawn = tokenizer_training.train_decoder(model, images, steps=8, batch_size=2)
    assert np.mean(drawn[-3:]) < 0.9 * np.mean(drawn[:3])
    assert torch.equal(model.encode(normalise(images.frames)), codes)
    assert model.weights_hash != again.weights_hash


def test_the_tokenizer_is_trained_further_on_recorded_frames(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    split, out = tmp_path / "training", tmp_path / "out"
    split.mkdir()
    for index, scene in enumerate(random_scenes(30, 3, ("D",))):
        np.savez(
            split / f"episode_{index:07d}.npz",
            rgb_static=scene.static,
            rgb_gripper=scene.gripper,
            robot_obs=scene.robot_obs,
            scene_obs=scene.scene_obs,
        )
    images, held_out = recorded_frames.read_images([split], 30)
    assert (len(images.frames), len(held_out.frames)) == (27, 3)
    assert (images.groups.tolist().count(-1), held_out.known.tolist()) == (3, [True] * 3)
    command = ["magvit", "--frames", str(split), "--output-dir", str(out), "--steps", "2", "4", "--count", "30"]
    assert make_assets.main(command) == 0
    before, after = (line for line in capsys.readouterr().out.splitlines() if "error" in line)
    assert before.startswith("before: ")
    assert after.startswith("after: ")
    assert load_magvit(out).weights_hash != load_magvit(ROOT / "assets/tiny_magvit").weights_hash
    assert (out / "reconstruction.png").is_file()


@pytest.mark.parametrize("options", [["--frames", "x"], ["phi", "--frames", "x", "--output-dir", "y"]])
def test_frames_need_the_tokenizer_and_a_folder(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        make_assets.main(options)
    assert "belong together" in capsys.readouterr().err


def test_training_the_clip_tower_lowers_its_loss_and_repeats() -> None:
    pixels, labels = clip.images(24, seed=5)
    tower, losses = clip.train_tower(pixels, labels, steps=12)
    again, same = clip.train_tower(pixels, labels, steps=12)
    assert losses == same
    assert np.mean(losses[-4:]) < 0.8 * np.mean(losses[:4])
    assert all(torch.equal(a, b) for a, b in zip(tower.parameters(), again.parameters(), strict=True))


def test_the_clip_features_of_a_patch_tell_what_lies_in_its_corner() -> None:
    """A linear reading, fitted on some images, is right about arrangements that the tower was never trained on."""
    tower = load_clip(ROOT / "assets/tiny_clip")
    assert (tower.num_patches, tower.width) == (16, 64)
    assert clip.corner_of_patch().tolist() == [0, 0, 1, 1, 0, 0, 1, 1, 2, 2, 3, 3, 2, 2, 3, 3]

    def read(seed: int, count: int, held_out: bool) -> tuple[torch.Tensor, torch.Tensor]:
        pixels, labels = clip.images(count, seed, held_out)
        seen = tower.features(pixels).flatten(0, 1)
        return torch.cat([seen, torch.ones(len(seen), 1)], dim=1), labels[:, clip.corner_of_patch()].flatten(0, 1)

    seen, truth = read(3, 200, held_out=False)
    new, new_truth = read(4, 100, held_out=True)
    for what, name in enumerate(("colour", "shape")):
        wanted = torch.nn.functional.one_hot(truth[:, what]).float()
        right = (new @ torch.linalg.lstsq(seen, wanted).solution).argmax(dim=1) == new_truth[:, what]
        assert float(right.float().mean()) > 0.9, name


def pairs(folder: str) -> list[tuple[str, str]]:
    """All bundled questions with their answers."""
    found = []
    for record in json.loads((ROOT / "dummy_data" / folder / "llava_v1_5_mix665k.json").read_text()):
        turns = [turn["value"].removeprefix("<image>\n") for turn in record["conversations"]]
        found += list(zip(turns[::2], turns[1::2], strict=True))
    return found


@pytest.mark.parametrize("folder", ["llava", "llava_validation"])
def test_every_question_has_its_answers_in_equal_shares(folder: str) -> None:
    asked = pairs(folder)
    for kind in KINDS:
        for subject in kind.subjects:
            answers = Counter(answer for question, answer in asked if question == kind.question_about(subject))
            assert set(answers) == {kind.answer_sentence(subject, answer) for answer in kind.answers}
            assert len(set(answers.values())) == 1, (kind.name, subject, answers)
    assert {kind_of(question) for question, _ in asked} == set(NAMES)


def test_a_model_that_does_not_look_is_right_in_a_fifth_of_the_held_out_questions() -> None:
    assert 0.15 < blind_floor(pairs("llava_validation")) < 0.2


def test_held_out_questions_come_one_by_one_and_training_questions_share_images() -> None:
    for folder, split in conversations.SPLITS.items():
        records = json.loads((ROOT / "dummy_data" / folder / "llava_v1_5_mix665k.json").read_text())
        assert max(len(record["conversations"]) for record in records) == 2 * split.turns
        assert all((ROOT / "dummy_data" / folder / record["image"]).is_file() for record in records)


def test_the_two_splits_share_no_image() -> None:
    shown = [{f.read_bytes() for f in (ROOT / "dummy_data" / n / "images").iterdir()} for n in conversations.SPLITS]
    assert not shown[0] & shown[1]
    rng = np.random.default_rng(0)
    assert not set(random_toys(200, rng, held_out=False)) & set(random_toys(200, rng, held_out=True))


SCENE = (Toy("red", "ball"), None, Toy("blue", "star"), Toy("green", "box"))


def test_answers_are_read_from_the_scene() -> None:
    read = {(k.name, s): k.read(SCENE, s) for k in (*KINDS, LIST) for s in k.subjects}
    assert (read["colour", "star"], read["colour", "ring"], read["shape", "green"]) == ("blue", None, "box")
    assert (read["place", "red"], read["place", "yellow"]) == ("top left", None)
    assert (read["corner", "bottom left"], read["corner", "top right"]) == ("a blue star", None)
    assert (read["count", "table"], read["list", "table"]) == ("three", "red ball, blue star, green box")
    place = next(kind for kind in KINDS if kind.name == "place")
    assert place.question_about("red") == "Where is the red toy?"
    assert place.answer_sentence("red", "top left") == "The red toy is in the top left corner."


def test_a_drawn_scene_shows_its_toys_where_they_lie() -> None:
    pixels = np.asarray(draw(SCENE, np.random.default_rng(0)), dtype=int)
    half = SIDE // 2
    for (y, x), colour in {(0, 0): "red", (half, 0): "blue", (half, half): "green"}.items():
        quarter = pixels[y : y + half, x : x + half]
        assert (np.abs(quarter - COLOURS[colour]).sum(axis=-1) < 30).sum() > 150, colour
    empty = pixels[:half, half:]
    assert (empty == empty[0, -1]).all()


def test_asking_for_more_questions_than_the_scenes_hold_is_refused() -> None:
    with pytest.raises(ValueError, match="give more scenes"):
        balanced([SCENE], per_kind=16, rng=np.random.default_rng(0))


def test_a_changed_image_or_question_is_noticed_by_the_check(tmp_path: Path) -> None:
    few = {"few": conversations.Split(images=200, per_kind=64, seed=1, turns=2, held_out=False)}
    conversations.write_all(tmp_path / "there", few)
    assert conversations.differences(tmp_path / "there", tmp_path / "again", few) == []
    picture = next((tmp_path / "there/few/images").iterdir())
    Image.new("RGB", (SIDE, SIDE), "white").save(picture)
    index = tmp_path / "there/few/llava_v1_5_mix665k.json"
    index.write_text(index.read_text().replace("blue", "pink", 1))
    assert len(conversations.differences(tmp_path / "there", tmp_path / "again", few)) == 2
