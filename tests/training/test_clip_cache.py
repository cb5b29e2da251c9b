"""Training on patches that were made before: images of conversations are not opened, the numbers stay."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from config.loading import ConfigError
from models.processing.image import clip_pixels
from models.processing.image_file import READING
from models.vision.clip_encoder import load_clip
from preprocess_data import clip_features
from tests.data.builders import forget
from tests.training.runs import Outcome, train
from tests.training.world import build_world
from training.data.caches.clip_cache import find
from training.data.readers import read_image

SETTINGS = {
    "training__max_train_steps": 3,
    "experiment__eval_every": 3,
    "experiment__generate_every": 3,
    "experiment__tracker": "tensorboard",
}


@pytest.fixture
def world(tmp_path: Path) -> Path:
    return build_world(tmp_path / "world")


def make(world: Path, *words: str) -> int:
    return clip_features.main(
        ["--data", str(world / "chat"), "--clip", str(world / "clip"), "--device", "cpu", "--batch-size", "4", *words]
    )


def run(world: Path, folder: Path, **settings: object) -> Outcome:
    return train(
        world, folder, **SETTINGS, dataset__params__validation_mmu_shards_path_or_url=world / "chat", **settings
    )


def losses(outcome: Outcome) -> list[float]:
    return [value for name in ("text/loss", "total/loss", "validation/text/loss") for value in outcome.curve(name)]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("float16", 2e-3)])
def test_without_any_image_losses_are_those_of_a_run_that_sees_them(
    world: Path, tmp_path: Path, dtype: str, tolerance: float
) -> None:
    seeing = run(world, tmp_path / "seeing")
    assert make(world, "--yes", "--dtype", dtype) == 0
    for picture in (world / "chat").glob("*.png"):
        picture.unlink()
    kept = run(world, tmp_path / "kept")
    assert len(losses(seeing)) == 7
    assert losses(kept) == pytest.approx(losses(seeing), rel=tolerance)
    assert kept.metrics[-1].keys() == seeing.metrics[-1].keys()  # answers were asked for, too


def test_patches_are_the_towers(world: Path) -> None:
    assert make(world, "--yes") == 0
    tower = load_clip(world / "clip")
    kept = find([world / "chat" / "clip_cache"], tower, "MAKE", "chat", world / "chat")
    pixels = clip_pixels(read_image(world / "chat" / "pink.png"), tower.image_spec)
    expected = tower.features(pixels[None])[0]
    assert kept["pink.png"].dtype == torch.float16
    assert torch.allclose(kept["pink.png"].float(), expected, rtol=1e-3, atol=1e-3)


def test_the_size_is_shown_first_and_nothing_is_written_without_a_yes(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert make(world) == 2
    message = capsys.readouterr()
    assert "6 images x 4 patches x 16 numbers in float16: 0.00 GB" in message.out
    assert "nothing was written; --yes" in message.err
    assert not list((world / "chat").rglob("*.shard"))


def test_another_tower_or_a_new_image_is_refused_with_the_command_that_mends_it(world: Path, tmp_path: Path) -> None:
    assert make(world, "--yes") == 0
    weights = load_file(world / "clip" / "model.safetensors")
    name = "vision_model.embeddings.patch_embedding.weight"
    save_file({**weights, name: weights[name] + 1}, str(world / "clip" / "model.safetensors"))
    with pytest.raises(ConfigError, match="made by other weights") as error:
        run(world, tmp_path / "refused")
    command = shlex.split(str(error.value).partition("Make them: ")[2].partition(" (or encode")[0])
    assert command[:2] == ["python", "preprocess_data/clip_features.py"]
    assert clip_features.main([*command[2:], "--yes"]) == 0
    run(world, tmp_path / "mended")
    shutil.copy(world / "chat" / "red.png", world / "chat" / "more.png")
    path = world / "chat" / "llava_v1_5_mix665k.json"
    path.write_text(path.read_text().replace("black.png", "more.png"))
    with pytest.raises(ConfigError, match=r"more\.png is not among the patches.*Make them: python preprocess_data"):
        run(world, tmp_path / "refused")
    run(world, tmp_path / "seen", dataset__params__clip_cache="false")


def test_a_cache_of_images_that_were_read_otherwise_is_refused(world: Path) -> None:
    assert make(world, "--yes") == 0
    cache, tower = world / "chat" / "clip_cache", load_clip(world / "clip")
    assert forget(cache, "reading") == READING
    with pytest.raises(ValueError, match="images as an earlier version read them"):
        find([cache], tower, "MAKE", "chat", world / "chat")


def test_made_again_of_as_many_other_images_it_holds_those(world: Path, tmp_path: Path) -> None:
    assert make(world, "--yes") == 0
    path, tower = world / "chat" / "llava_v1_5_mix665k.json", load_clip(world / "clip")
    shutil.copy(world / "chat" / "pink.png", world / "chat" / "more.png")
    path.write_text(path.read_text().replace("black.png", "more.png"))
    assert make(world, "--yes", "--dtype", "float16") == 0
    folders = [folder for folder in (world / "chat" / "clip_cache").iterdir() if folder.is_dir()]
    held = [find([folder], tower, "MAKE", "chat", world / "chat") for folder in folders]
    assert len(held) == 2
    (new,) = [cache for cache in held if "more.png" in cache]
    assert torch.equal(new["more.png"], new["pink.png"])
    run(world, tmp_path / "run")  # takes the one that was made last


def test_of_several_sources_all_have_patches_or_none(world: Path, tmp_path: Path) -> None:
    shutil.copytree(world / "chat", world / "more")
    assert make(world, "--yes") == 0
    sources = {"dataset__params__train_mmu_sources": f"[{world / 'chat'}, {world / 'more'}]"}
    with pytest.raises(ConfigError, match=r"more.*has no cached CLIP patches.*clip_cache=false"):
        run(world, tmp_path / "refused", **sources)
    run(world, tmp_path / "seen", **sources, dataset__params__clip_cache="false")
    path = world / "more" / "llava_v1_5_mix665k.json"
    words = [{"from": "human", "value": "What is red?"}, {"from": "gpt", "value": "A colour."}]
    path.write_text(json.dumps([{"conversations": words}] * 3))
    run(world, tmp_path / "kept", **sources, dataset__params__text_only="use")


def test_an_image_that_was_replaced_is_noticed(world: Path, tmp_path: Path) -> None:
    assert make(world, "--yes") == 0
    shutil.copy(world / "chat" / "red.png", world / "chat" / "pink.png")
    with pytest.raises(ConfigError, match=r"made of other images than those there now \(such as .*pink\.png"):
        run(world, tmp_path / "refused")


def test_an_image_that_could_not_be_decoded_is_left_out_when_its_turn_comes(
    world: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (world / "chat" / "red.png").write_bytes(b"no image")
    assert make(world, "--yes") == 0
    run(world, tmp_path / "run")
    assert "red.png could not be decoded as an image when" in caplog.text
