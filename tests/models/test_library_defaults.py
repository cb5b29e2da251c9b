"""What files of a model and the process ask of the libraries does not change what is computed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from models.pretrained.model_io import Built, build, load_folder, save_folder
from models.processing.text import load_tokenizer
from models.vision.clip_encoder import load_clip
from models.vision.magvitv2 import load_magvit
from tests.tiny import write_tokenizer
from tests.training.world import build_world, load


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def described(world: Path) -> Iterator[Path]:
    """The language model's config.json, put back afterwards."""
    file = world / "phi/config.json"
    before = file.read_text(encoding="utf-8")
    yield file
    file.write_text(before, encoding="utf-8")


def edit(file: Path, **settings: object) -> None:
    held = json.loads(file.read_text(encoding="utf-8"))
    held.pop("dtype", None)
    file.write_text(json.dumps(held | settings), encoding="utf-8")


def built_of(world: Path, tmp_path: Path) -> Built:
    return build(load(world, tmp_path / "out"))


@pytest.mark.parametrize("name", ["torch_dtype", "dtype"])
@pytest.mark.parametrize("kind", ["bfloat16", "float16", "float64"])
def test_weights_are_float32_whatever_the_file_says(
    world: Path, described: Path, tmp_path: Path, name: str, kind: str
) -> None:
    edit(described, **{name: kind})
    built = built_of(world, tmp_path)
    assert {p.dtype for p in built.model.parameters()} == {torch.float32}
    save_folder(built.model, built.prompter, tmp_path / "saved")
    again = load_folder(tmp_path / "saved").model
    assert {p.dtype for p in again.parameters()} == {torch.float32}
    ours, theirs = built.model.state_dict(), again.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_type_that_does_not_exist_is_refused_by_the_files_name(world: Path, described: Path, tmp_path: Path) -> None:
    edit(described, torch_dtype="float12")
    with pytest.raises(ValueError, match=r"phi: no usable language model config\.json .*float12"):
        built_of(world, tmp_path)


def test_weights_are_float32_whatever_torchs_default_is(world: Path, tmp_path: Path) -> None:
    torch.set_default_dtype(torch.bfloat16)
    try:
        networks = [built_of(world, tmp_path).model, load_clip(str(world / "clip")), load_magvit(world / "magvit")]
    finally:
        torch.set_default_dtype(torch.float32)
    assert {p.dtype for network in networks for p in network.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    "settings",
    [
        {"attn_implementation": "flash_attention_2"},
        {"_attn_implementation": "eager"},
        {"use_cache": True, "return_dict": False},
        {"output_attentions": False, "output_hidden_states": True},
        {"attention_dropout": 0.5, "resid_pdrop": 0.5, "embd_pdrop": 0.5},
        {"gradient_checkpointing": True},
    ],
    ids=lambda settings: "-".join(settings),
)
def test_settings_of_the_file_that_are_not_the_networks_shape_change_nothing(
    world: Path, described: Path, tmp_path: Path, settings: dict[str, object]
) -> None:
    ids, mask = torch.tensor([[5, 6, 7]]), torch.ones(1, 1, 3, 3, dtype=torch.bool).tril()

    def hidden() -> torch.Tensor:
        backbone = built_of(world, tmp_path).model.train().backbone
        assert backbone.config._attn_implementation == "sdpa"
        result: torch.Tensor = backbone(backbone.embed(ids), mask, torch.arange(3)[None])
        return result

    expected = hidden()
    edit(described, **settings)
    assert torch.equal(hidden(), expected)


def test_quantized_weights_are_refused_by_name(world: Path, described: Path, tmp_path: Path) -> None:
    edit(described, quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(ValueError, match=r"phi/config\.json has a quantization_config"):
        built_of(world, tmp_path)


def test_a_clip_tower_runs_with_this_machines_kernel_in_float32(world: Path) -> None:
    file = world / "clip/config.json"
    before = file.read_text(encoding="utf-8")
    pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = load_clip(str(world / "clip")).features(pixels)
    try:
        edit(file, torch_dtype="float16", attn_implementation="flash_attention_2", attention_dropout=0.5)
        found = load_clip(str(world / "clip")).features(pixels)
    finally:
        file.write_text(before, encoding="utf-8")
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


def test_a_tokenizers_own_cutting_and_padding_are_not_used(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    plain, _ = load_tokenizer(tmp_path)
    words = "open the drawer and put the red block inside " * 3
    expected = plain(words, add_special_tokens=False, truncation=False)["input_ids"]
    file = tmp_path / "tokenizer.json"
    held = json.loads(file.read_text(encoding="utf-8"))
    held["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    held["padding"] = {
        "strategy": {"Fixed": 64},
        "direction": "Left",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "<|endoftext|>",
    }
    file.write_text(json.dumps(held), encoding="utf-8")
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    settings = tmp_path / "tokenizer_config.json"
    edit(settings, model_max_length=4, padding_side="right", add_bos_token=True, add_eos_token=True)
    cutting, _ = load_tokenizer(tmp_path)
    assert cutting(words, add_special_tokens=False, truncation=False)["input_ids"] == expected
