"""A language model that brings its own code (``model.showo.trust_remote_code``)."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from config.loading import load_job
from models.action.inference import ActionPredictor
from models.pretrained.model_io import build, load_folder, save_folder
from models.pretrained.weights_io import write_safetensors
from policy_rollout.policies.upvla import UPVLAPolicy
from tests.tiny import write_tokenizer
from tests.training.runs import train
from tests.training.world import CONFIG, build_world, write_clip

CONFIGURATION = """
from transformers import LlamaConfig

class BrickConfig(LlamaConfig):
    model_type = "brick"
"""
MODEL = """
from transformers import LlamaForCausalLM
from .configuration_brick import BrickConfig

class BrickForCausalLM(LlamaForCausalLM):
    config_class = BrickConfig
"""
TRUST = "model.showo.trust_remote_code=true"


def write_brick(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "configuration_brick.py").write_text(CONFIGURATION, encoding="utf-8")
    (folder / "modeling_brick.py").write_text(MODEL, encoding="utf-8")
    described = {
        "model_type": "brick",
        "architectures": ["BrickForCausalLM"],
        "auto_map": {
            "AutoConfig": "configuration_brick.BrickConfig",
            "AutoModelForCausalLM": "modeling_brick.BrickForCausalLM",
        },
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 300,
        "torch_dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(described), encoding="utf-8")


@pytest.fixture(autouse=True)
def _forget_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """transformers copies code into a folder of its own and imports it from there."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    path, modules = [*sys.path], {*sys.modules}
    yield
    sys.path[:] = path
    for name in {*sys.modules} - modules:
        if name.startswith("transformers_modules"):
            del sys.modules[name]


@pytest.fixture
def world(tmp_path: Path) -> Path:
    root = tmp_path / "world"
    write_brick(root / "phi")
    write_tokenizer(root / "phi")
    write_clip(root / "clip")
    (root / "tiny.yaml").write_text(CONFIG.format(root=root), encoding="utf-8")
    return root


def job(world: Path, *overrides: str):
    return load_job([f"config={world / 'tiny.yaml'}", *overrides], paths=False)


def test_without_trust_it_is_refused_in_one_line_that_names_the_key(world: Path) -> None:
    with pytest.raises(ValueError, match=r"phi: .*set model\.showo\.trust_remote_code=true") as refused:
        build(job(world))
    assert "\n" not in str(refused.value)


def test_with_trust_it_is_built_loaded_saved_and_read_again(world: Path, tmp_path: Path) -> None:
    lm = build(job(world, TRUST)).model.backbone.lm
    assert type(lm).__name__ == "BrickForCausalLM"
    weights = {name: torch.full_like(tensor, 0.01) for name, tensor in lm.state_dict().items()}
    write_safetensors(world / "phi/model.safetensors", weights)
    built = build(job(world, TRUST))
    assert {p.dtype for p in built.model.parameters()} == {torch.float32}
    assert (built.model.backbone.lm.model.norm.weight == 0.01).all()

    save_folder(built.model, built.prompter, tmp_path / "saved")
    with pytest.raises(ValueError, match=r"trust_remote_code=true"):
        load_folder(tmp_path / "saved")
    again = load_folder(tmp_path / "saved", trust_remote_code=True)
    assert type(again.model.backbone.lm).__name__ == "BrickForCausalLM"
    codes = torch.zeros(1, 4, dtype=torch.long)
    first, second = (ActionPredictor(b.model.eval()).predict([[5, 6, 7]], codes) for b in (built, again))
    assert torch.equal(first.actions, second.actions)
    save_folder(again.model, again.prompter, tmp_path / "saved_again")
    assert load_folder(tmp_path / "saved_again", trust_remote_code=True).spec == again.spec


def test_a_run_with_its_own_code_trains_is_resumed_and_acts(tmp_path: Path) -> None:
    world = build_world(tmp_path / "all")
    write_brick(world / "phi")
    asked = {"model__showo__trust_remote_code": "true", "experiment__save_every": 1}
    train(world, tmp_path / "run", training__max_train_steps=1, **asked)
    train(world, tmp_path / "run", training__max_train_steps=2, experiment__resume_from_checkpoint="latest", **asked)
    policy = UPVLAPolicy.from_config(tmp_path / "run/config.yaml", "cpu", checkpoint=tmp_path / "run")
    assert type(policy.model.backbone.lm).__name__ == "BrickForCausalLM"
