"""Weights that are not finite are refused by name when they are loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from config.loading import ConfigError
from models.pretrained.model_io import build, load_folder, save_folder
from models.pretrained.weights_io import read_weights, require_finite, write_safetensors
from models.vision.clip_encoder import load_clip
from models.vision.magvitv2 import load_magvit
from tests.models.families import write_family
from tests.training.runs import Outcome
from tests.training.world import build_world, load

Start = Callable[..., Outcome]
NAN, INFINITE = float("nan"), float("inf")


def spoil(file: Path, name: str, value: float = NAN) -> None:
    """Put one number into one tensor of a file, whose metadata stay."""
    with safe_open(str(file), framework="pt") as held:
        about = held.metadata()
    state = {key: tensor.clone() for key, tensor in read_weights(file).items()}
    state[name].view(-1)[-1] = value
    write_safetensors(file, state, about)


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A world of the test's own, as its files are changed."""
    return build_world(tmp_path / "own")


@pytest.mark.parametrize("value", [NAN, INFINITE, -INFINITE])
@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.float8_e5m2])
def test_every_type_of_float_is_checked(value: float, kind: torch.dtype) -> None:
    good = {"a": torch.zeros(3, 2), "empty": torch.zeros(0), "whole": torch.tensor([1 << 60])}
    require_finite(good, "file")
    bad = torch.zeros(5, 7)
    bad[3, 2] = value
    with pytest.raises(ValueError, match=r"file holds numbers that are not finite .* in 1 of 4 tensors: b;"):
        require_finite(good | {"b": bad.to(kind)}, "file")


def test_a_language_model(own: Path, tmp_path: Path) -> None:
    write_family(own / "phi", "gpt_neox")
    spoil(own / "phi/model.safetensors", "gpt_neox.layers.1.attention.dense.bias", INFINITE)
    with pytest.raises(
        ValueError, match=r"phi holds numbers that are not finite.*gpt_neox\.layers\.1\.attention\.dense"
    ):
        build(load(own, tmp_path / "out"))


def test_a_pretrained_and_a_tuned_model(own: Path, tmp_path: Path) -> None:
    built = build(load(own, tmp_path / "out"))
    save_folder(built.model, built.prompter, tmp_path / "saved")
    spoil(tmp_path / "saved/model.safetensors", "showo.lm_head.bias")
    message = r"saved/model\.safetensors holds numbers that are not finite.*: showo\.lm_head\.bias;"
    with pytest.raises(ValueError, match=message):
        load_folder(tmp_path / "saved")
    start = {"model__showo__load_from_showo": "true", "model__showo__pretrained_model_path": tmp_path / "saved"}
    with pytest.raises(ValueError, match=message):
        build(load(own, tmp_path / "out", **start))


def test_an_image_tokenizer_by_its_folder_and_by_a_bare_file(own: Path) -> None:
    file = own / "magvit/pytorch_model.safetensors"
    spoil(file, "decoder.conv_out.bias")
    for given in ((own / "magvit", None), (own / "magvit", file)):
        with pytest.raises(ValueError, match=r"magvit.* not finite.*decoder\.conv_out\.bias"):
            load_magvit(*given)


def test_a_clip_tower(own: Path) -> None:
    name = "vision_model.encoder.layers.0.mlp.fc1.weight"
    spoil(own / "clip/model.safetensors", name)
    with pytest.raises(ValueError, match=r"clip holds numbers that are not finite.*layers\.0\.mlp\.fc1\.weight"):
        load_clip(str(own / "clip"))


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checksums do not see numbers that were not finite when they were written."""
    monkeypatch.setattr("training.checkpointing.manifest._check_files", lambda *_: None)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"training__ema_decay": 0.9}, "average.action_head.out.bias"),
        ({"training__ema_decay": 0.9}, "live.backbone.lm.lm_head.bias"),
        ({"lora__rank": 2}, "live.backbone.lm.model.layers.1.mlp.fc1.lora_B.default.weight"),
    ],
)
def test_trained_weights_that_differ_from_exported_ones(run: Start, settings: dict[str, object], name: str) -> None:
    first = run("run", training__max_train_steps=1, experiment__save_every=1, **settings)
    spoil(first.folder / "checkpoint-1/training_state/weights.safetensors", name)
    with pytest.raises(ConfigError, match=f"weights.safetensors holds numbers that are not finite.*: {name};"):
        resume(run, **settings)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("name", "value"), [("exp_avg", NAN), ("exp_avg_sq", INFINITE)])
def test_an_optimizers_state(run: Start, name: str, value: float) -> None:
    first = run("run", training__max_train_steps=1, experiment__save_every=1)
    file = first.folder / "checkpoint-1/training_state/optimizer.bin"
    state = torch.load(file, weights_only=True)
    state["state"][0][name].view(-1)[0] = value
    torch.save(state, file)
    with pytest.raises(ConfigError, match=rf"training_state holds optimizer state .* as backbone\.lm\.\S+\.{name};"):
        resume(run)


def resume(run: Start, **settings: object) -> Outcome:
    return run("run", training__max_train_steps=2, experiment__resume_from_checkpoint="latest", **settings)
