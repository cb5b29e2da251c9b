"""Training on cached codes: the same numbers, no image opened, and never the codes of other data."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from config.loading import ConfigError
from models.vision.magvitv2 import load_magvit
from preprocess_data import tokenize_images
from tests.training.runs import Outcome, same, train
from tests.training.world import build_world, load, write_robot_data
from training.data.caches.token_cache import token_cache
from training.data.dataloader import robot_dataset

Start = Callable[..., Outcome]
SETTINGS = {
    "training__max_train_steps": 4,
    "experiment__eval_every": 2,
    "experiment__generate_every": 4,
    "experiment__tracker": "tensorboard",
    "model__vla__num_view": 2,
}


@pytest.fixture(scope="module")
def coded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The world, with token caches in both robot data sets."""
    world = build_world(tmp_path_factory.mktemp("coded"))
    held_out = f"dataset.params.validation_pre_shards_path_or_url={world / 'robot_validation'}"
    config = ["--config", str(world / "tiny.yaml"), held_out, "model.vla.num_view=2"]
    assert tokenize_images.main([*config, "--device", "cpu", "--batch-size", "4"]) == 0
    return world


def held_out(world: Path) -> dict[str, str]:
    return {"dataset__params__validation_pre_shards_path_or_url": str(world / "robot_validation")}


def numbers(outcome: Outcome) -> list[dict[str, float]]:
    """Everything that a run measured but the time it took."""
    return [
        {name: value for name, value in record.items() if not name.startswith(("speed/", "answers"))}
        for record in outcome.metrics
    ]


def test_without_any_image_a_run_is_the_one_that_encodes_them_in_every_step(coded: Path, tmp_path: Path) -> None:
    settings = {**SETTINGS, **held_out(coded)}
    encoding = train(coded, tmp_path / "encoding", **settings, dataset__params__token_cache="false")
    without = tmp_path / "without"
    shutil.copytree(coded, without)
    for name in ("robot", "robot_validation"):
        shutil.rmtree(without / name / "frames")
    (without / "tiny.yaml").write_text((without / "tiny.yaml").read_text().replace(str(coded), str(without)))
    cached = train(without, tmp_path / "cached", **SETTINGS, **held_out(without))
    assert numbers(cached) == numbers(encoding)
    assert any("validation/image/loss" in record for record in cached.metrics)
    assert same(cached.weights(), encoding.weights())


def test_held_out_data_may_have_none(coded: Path, tmp_path: Path) -> None:
    half = tmp_path / "half"
    shutil.copytree(coded, half)
    shutil.rmtree(half / "robot_validation" / "token_cache")
    (half / "tiny.yaml").write_text((half / "tiny.yaml").read_text().replace(str(coded), str(half)))
    both, one = (train(w, tmp_path / w.name / "run", **SETTINGS, **held_out(w)) for w in (coded, half))
    assert numbers(one) == numbers(both)


def test_the_image_of_a_run_shows_what_the_tokenizer_keeps(
    coded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from training.metrics.logger import MetricsLogger

    shown: list[torch.Tensor] = []
    monkeypatch.setattr(MetricsLogger, "image", lambda self, tag, image, step: shown.append(image))
    monkeypatch.setattr(Image, "open", lambda *given: pytest.fail("an image was opened"))
    train(coded, tmp_path / "run", **{**SETTINGS, **held_out(coded)}, dataset__und_type="null")
    assert shown[-1].shape[2] == 3 * 128 + 2 * 4 + 2 * 8  # now, predicted, true, with gaps and margins


def test_a_resumed_run_on_codes_is_the_uninterrupted_one(coded: Path, tmp_path: Path) -> None:
    settings = {"training__max_train_steps": 5, "experiment__save_every": 2}
    whole = train(coded, tmp_path / "whole", **settings)
    (tmp_path / "resumed").mkdir()
    shutil.copytree(whole.folder / "checkpoint-2", tmp_path / "resumed" / "checkpoint-2")
    resumed = train(coded, tmp_path / "resumed", **settings, experiment__resume_from_checkpoint="latest")
    assert same(whole.weights(), resumed.weights())


def test_the_start_of_a_run_logs_which_codes_it_reads(
    coded: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    train(coded, tmp_path / "run", training__max_train_steps=1)
    assert f"codes of 16 frames x 2 views, 0.0 MB, from {coded / 'robot' / 'token_cache'}" in capfd.readouterr().out


def test_codes_need_no_data_workers(coded: Path, tmp_path: Path) -> None:
    from models.pretrained.model_io import build
    from training.data.dataloader import cotrain_loader

    job = load(coded, tmp_path, dataset__params__num_workers=2, dataset__und_type="null")
    vq = load_magvit(job.model.vq_model.vq_model_name)
    loader = cotrain_loader(job, build(job).prompter, None, vq=vq)
    assert loader.robot is not None
    assert loader.robot.workers == 0
    assert next(iter(loader)).robot.coded


def refused(world: Path, tmp_path: Path, **settings: object) -> str:
    with pytest.raises(ConfigError) as error:
        train(world, tmp_path / "refused", **settings)
    message = str(error.value)
    assert "\n" not in message
    return message


def test_images_cannot_be_augmented_that_are_not_read(coded: Path, tmp_path: Path) -> None:
    message = refused(coded, tmp_path, dataset__augment__crop=0.1)
    assert "dataset.augment" in message
    assert "dataset.params.token_cache=false" in message
    train(coded, tmp_path / "fine", dataset__augment__crop=0.1, dataset__params__token_cache="false")


@pytest.fixture
def stale(coded: Path, tmp_path: Path) -> Path:
    """A copy of the world whose training data have changed since."""
    world = tmp_path / "stale"
    shutil.copytree(coded, world)
    (world / "tiny.yaml").write_text((world / "tiny.yaml").read_text().replace(str(coded), str(world)))
    shutil.rmtree(world / "robot" / "frames")
    write_robot_data(world / "fresh", seed=7)
    shutil.move(world / "fresh" / "frames", world / "robot" / "frames")
    shutil.move(world / "fresh" / "dataset_info.json", world / "robot" / "dataset_info.json")
    return world


def test_a_stale_cache_is_refused_with_the_command_that_renews_it(stale: Path, tmp_path: Path) -> None:
    message = refused(stale, tmp_path)
    assert "made of other data" in message
    command = shlex.split(message.partition("Make it: ")[2].partition(" (or encode")[0])
    assert command[:2] == ["python", "preprocess_data/tokenize_images.py"]
    assert tokenize_images.main(command[2:]) == 0
    train(stale, tmp_path / "mended", training__max_train_steps=1)


def test_a_foreign_cache_is_refused_also_where_it_is_named(coded: Path, tmp_path: Path) -> None:
    magvit = tmp_path / "magvit"
    shutil.copytree(coded / "magvit", magvit)
    from safetensors.torch import load_file, save_file

    weights = load_file(magvit / "pytorch_model.safetensors")
    weights["encoder.conv_in.bias"] = weights["encoder.conv_in.bias"] + 1
    save_file(weights, str(magvit / "pytorch_model.safetensors"))
    message = refused(coded, tmp_path, model__vq_model__vq_model_name=magvit)
    assert "by a tokenizer of other weights" in message
    assert f"--tokenizer {magvit}" in message
    inside = coded / "robot_validation" / "token_cache"
    job = load(coded, tmp_path, dataset__params__token_cache=inside)
    vq = load_magvit(job.model.vq_model.vq_model_name)
    named = replace(job.dataset.params, train_pre_shards_path_or_url=str(coded / "robot_validation"))
    job = replace(job, dataset=replace(job.dataset, params=named))
    found = token_cache(job, str(coded / "robot_validation"), vq)
    assert found is not None
    assert found.folder.parent == inside
    job = load(coded, tmp_path, dataset__params__token_cache=tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"token_cache=.*there is no such folder; allowed: auto, false"):
        robot_dataset(job, str(coded / "robot"), vq)


def test_data_without_a_cache_are_read_as_images(world: Path, tmp_path: Path) -> None:
    job = load(world, tmp_path)
    assert token_cache(job, str(world / "robot"), load_magvit(job.model.vq_model.vq_model_name)) is None
