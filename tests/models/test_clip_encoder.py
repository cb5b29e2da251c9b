from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig, CLIPVisionModel

from models.pretrained.weights_io import read_weights, write_safetensors
from models.processing.image import ClipImageSpec
from models.vision.clip_encoder import PREFIX, load_clip, tower_shapes

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 24,
    "patch_size": 6,
}
PROCESSOR = {"size": 24, "crop_size": 24, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}


def write_tower(folder: Path, whole_clip: bool) -> CLIPVisionModel:
    """A random CLIP in a directory; returns its vision tower, whole, as transformers has it."""
    torch.manual_seed(0)
    if whole_clip:
        text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        model = CLIPModel(CLIPConfig(vision_config=SIZES, text_config=text))
        tower, config = model.vision_model, model.config
        state = dict(model.state_dict())
    else:
        tower = CLIPVisionModel(CLIPVisionConfig(**SIZES))
        config = tower.config
        state = {PREFIX + name.removeprefix(PREFIX): tensor for name, tensor in tower.state_dict().items()}
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(config.to_json_string())
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    state["vision_model.embeddings.position_ids"] = torch.arange(17)[None]  # as older transformers saved it
    write_safetensors(folder / "model.safetensors", state)
    return tower.eval()


def pixels(count: int = 2) -> Tensor:
    return torch.randn(count, 3, 24, 24, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("whole_clip", [False, True])
def test_features_are_the_second_to_last_hidden_state_without_the_class_token(tmp_path: Path, whole_clip: bool) -> None:
    theirs = write_tower(tmp_path / "clip", whole_clip)
    tower = load_clip(tmp_path / "clip")
    with torch.no_grad():
        hidden = theirs(pixels(), output_hidden_states=True).hidden_states
    features = tower.features(pixels())
    assert torch.equal(features, hidden[-2][:, 1:])
    assert features.shape == (2, tower.num_patches, tower.width) == (2, 16, 32)
    assert tower.image_spec == ClipImageSpec.from_fields(PROCESSOR)


def test_a_tower_saved_by_transformers_itself_loads_whatever_its_version_calls_the_keys(tmp_path: Path) -> None:
    theirs = write_tower(tmp_path / "ours", whole_clip=False)
    theirs.save_pretrained(str(tmp_path / "theirs"))
    (tmp_path / "theirs" / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    saved = load_clip(tmp_path / "theirs")
    assert torch.equal(saved.features(pixels()), load_clip(tmp_path / "ours").features(pixels()))


def test_the_last_layer_and_the_final_norm_do_not_exist(tmp_path: Path) -> None:
    write_tower(tmp_path / "clip", whole_clip=False)
    tower = load_clip(tmp_path / "clip")
    names = list(tower.state_dict())
    assert not any("layers.2." in name or "post_layernorm" in name for name in names)
    assert all(name.startswith(PREFIX) for name in names)
    assert not any(tensor.is_meta for tensor in [*tower.parameters(), *tower.buffers()])


def test_the_tower_stays_frozen_and_keeps_its_dtype(tmp_path: Path) -> None:
    write_tower(tmp_path / "clip", whole_clip=False)
    tower = load_clip(tmp_path / "clip").train()
    assert not tower.training
    assert not any(p.requires_grad for p in tower.parameters())
    reference = tower.features(pixels())
    assert not reference.requires_grad
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(tower.features(pixels()), reference)
    assert tower.to(torch.bfloat16).features(pixels()).dtype == torch.bfloat16


def test_a_file_without_the_unused_last_layer_is_refused_like_any_other_missing_key(tmp_path: Path) -> None:
    write_tower(tmp_path / "clip", whole_clip=False)
    file = tmp_path / "clip" / "model.safetensors"
    state = {name: tensor for name, tensor in read_weights(file).items() if ".layers.2." not in name}
    write_safetensors(file, state)
    with pytest.raises(ValueError, match=r"16 missing: vision_model\.encoder\.layers\.2\."):
        load_clip(tmp_path / "clip")
    write_safetensors(file, {**state, "vision_model.head.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"1 unexpected: vision_model\.head\.weight"):
        load_clip(tmp_path / "clip")


def test_directories_that_are_no_clip_are_errors_naming_the_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model\.showo\.clip_model_path: /no/where does not exist"):
        load_clip("/no/where")
    folder = tmp_path / "clip"
    write_tower(folder, whole_clip=False)
    processor = folder / "preprocessor_config.json"
    processor.write_text(json.dumps({**PROCESSOR, "crop_size": 20}))
    with pytest.raises(ValueError, match="24 x 24 pixels"):
        load_clip(folder)
    processor.unlink()
    with pytest.raises(FileNotFoundError, match=r"preprocessor_config\.json"):
        load_clip(folder)
    (folder / "config.json").write_text('{"model_type": "siglip"}')
    with pytest.raises(ValueError, match=r"config\.json describes a model of type 'siglip'"):
        load_clip(folder)


def test_the_released_tower_has_the_released_parameter_count() -> None:
    large = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    shapes = tower_shapes(CLIPVisionConfig(**large, image_size=336, patch_size=14))
    assert len(shapes) == 391
    assert sum(shape.numel() for shape in shapes.values()) == 303_507_456
