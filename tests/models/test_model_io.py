"""Models from configurations and folders: what loads, what is refused and in which words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from config.schema import Job
from models.pretrained.folders import SPEC_FIELD
from models.pretrained.model_io import (
    build,
    from_disk_names,
    load_folder,
    model_folder,
    save_folder,
    to_disk_names,
)
from models.pretrained.weights_io import write_safetensors
from tests.tiny import tiny_model, write_language_model


def clip_folder(folder: Path, width: int = 8) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"hidden_size": width, "model_type": "clip_vision_model"}))
    return folder


def job(tmp_path: Path, kind: str = "phi") -> Job:
    job = Job()
    job.model.showo.load_from_showo = False
    job.model.showo.llm_model_path = str(write_language_model(tmp_path / "llm", kind))
    job.model.showo.clip_model_path = str(clip_folder(tmp_path / "clip"))
    job.model.showo.auto_set_llm_vocab_size = True
    job.model.showo.num_vq_tokens = 4
    return job


def states_equal(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return set(left) == set(right) and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("kind", ["phi", "qwen3"])
def test_a_saved_folder_gives_back_the_model_and_its_prompter(tmp_path: Path, kind: str) -> None:
    model, prompter = tiny_model(tmp_path / "llm", kind)
    save_folder(model, prompter, tmp_path / "saved")
    again = load_folder(tmp_path / "saved")
    assert states_equal(model, again.model)
    assert again.prompter.instruction("open the drawer") == prompter.instruction("open the drawer")
    assert again.notes == ()
    assert not list((tmp_path / "saved").glob("*.tmp"))


def test_a_folder_is_found_from_the_run_the_step_and_the_file(tmp_path: Path) -> None:
    model, prompter = tiny_model(tmp_path / "llm")
    for step in (5, 40):
        save_folder(model, prompter, tmp_path / f"run/checkpoint-{step}/unwrapped_model")
        (tmp_path / f"run/checkpoint-{step}/metadata.json").write_text("{}")
    newest = tmp_path / "run/checkpoint-40/unwrapped_model"
    assert model_folder(tmp_path / "run") == newest
    assert model_folder(tmp_path / "run/checkpoint-5") == tmp_path / "run/checkpoint-5/unwrapped_model"
    assert model_folder(newest) == newest
    assert model_folder(newest / "model.safetensors") == newest


@pytest.mark.parametrize(("final_step", "newest"), [(40, "."), (41, "."), (39, "checkpoint-40/unwrapped_model")])
def test_the_newer_of_final_model_and_checkpoint_is_the_folders_model(
    tmp_path: Path, final_step: int, newest: str
) -> None:
    model, prompter = tiny_model(tmp_path / "llm")
    save_folder(model, prompter, tmp_path / "run/checkpoint-40/unwrapped_model", global_step=40)
    (tmp_path / "run/checkpoint-40/metadata.json").write_text("{}")
    save_folder(model, prompter, tmp_path / "run", global_step=final_step)
    assert model_folder(tmp_path / "run") == tmp_path / "run" / newest


def test_a_final_model_of_unknown_step_is_taken_if_it_is_the_newest_checkpoints_and_refused_if_not(
    tmp_path: Path,
) -> None:
    model, prompter = tiny_model(tmp_path / "llm")
    run = tmp_path / "run"
    for folder in (run, run / "checkpoint-9" / "unwrapped_model"):
        save_folder(model, prompter, folder)
    (run / "checkpoint-9" / "metadata.json").write_text("{}")
    assert model_folder(run) == run
    with torch.no_grad():
        model.action_head.out.bias += 1
    save_folder(model, prompter, run)
    with pytest.raises(ValueError, match="unknown which of them is newer") as refused:
        model_folder(run)
    assert str(run / "model.safetensors") in str(refused.value)
    assert str(run / "checkpoint-9") in str(refused.value)
    assert model_folder(run / "model.safetensors") == run  # what the message advises
    assert model_folder(run / "checkpoint-9") == run / "checkpoint-9" / "unwrapped_model"


def test_key_names_on_disk_are_the_originals_and_come_back(tmp_path: Path) -> None:
    model, _ = tiny_model(tmp_path)
    names = to_disk_names(model.state_dict())
    assert {"showo.lm_head.weight", "mm_projector.0.weight", "token_learner.latents", "to_logits.0.bias"} <= set(names)
    assert {name.split(".")[0] for name in names} == {"showo", "mm_projector", "token_learner", "to_logits"}
    assert set(from_disk_names(names)) == set(model.state_dict())


def test_a_base_showo_checkpoint_starts_with_a_random_action_head_and_says_so(tmp_path: Path) -> None:
    start = job(tmp_path)
    reference = build(start).model
    base = {k: v for k, v in to_disk_names(reference.state_dict()).items() if not k.startswith(("token", "to_logits"))}
    base["showo.model.final_layernorm.weight"] = torch.full_like(base["showo.model.final_layernorm.weight"], 0.5)
    (tmp_path / "showo").mkdir()
    write_safetensors(tmp_path / "showo/model.safetensors", base)
    (tmp_path / "showo/config.json").write_text("{}")
    start.model.showo.load_from_showo = True
    start.model.showo.pretrained_model_path = str(tmp_path / "showo")
    built = build(start)
    assert any("action head" in note for note in built.notes)
    assert (built.model.backbone.lm.model.final_layernorm.weight == 0.5).all()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s: s.pop("mm_projector.0.weight"), r"1 missing: mm_projector\.0\.weight"),
        (lambda s: s.pop("token_learner.latents"), r"1 missing: token_learner\.latents"),
        (lambda s: s.update({"surprise": torch.zeros(1)}), r"1 unexpected: surprise"),
        (lambda s: s.update({"to_logits.0.bias": torch.zeros(3)}), r"to_logits\.0\.bias is \[3\], not \[28\]"),
    ],
)
def test_wrong_keys_are_named(tmp_path: Path, spoil, message: str) -> None:  # type: ignore[no-untyped-def]
    model, prompter = tiny_model(tmp_path / "llm")
    save_folder(model, prompter, tmp_path / "saved")
    state = to_disk_names({k: v.clone() for k, v in model.state_dict().items()})
    spoil(state)
    write_safetensors(tmp_path / "saved/model.safetensors", state)
    with pytest.raises(ValueError, match=message):
        load_folder(tmp_path / "saved")


def test_a_language_model_keeps_its_rows_and_the_new_tokens_are_random(tmp_path: Path) -> None:
    start = job(tmp_path)
    lm = build(start).model.backbone.lm
    weights = {
        name: tensor.clone() for name, tensor in lm.state_dict().items() if "layernorm" not in name.split(".")[-2][1:]
    }
    weights["model.embed_tokens.weight"] = torch.full((300, 32), 0.25)
    write_safetensors(Path(start.model.showo.llm_model_path) / "model.safetensors", {**lm.state_dict(), **weights})
    built = build(start)
    rows = built.model.backbone.lm.get_input_embeddings().weight
    assert (rows[:300] == 0.25).all()
    assert not (rows[300:] == 0.25).any()
    assert any("rows of the special tokens" in note for note in built.notes)


def test_a_phi_without_query_and_key_norms_loads_and_says_so(tmp_path: Path) -> None:
    """As Phi-1.5 is released: Show-o's norms per head are not in it."""
    start = job(tmp_path)
    state = build(start).model.backbone.lm.state_dict()
    weights = {
        name: w.clone() for name, w in state.items() if ".q_layernorm" not in name and ".k_layernorm" not in name
    }
    file = Path(start.model.showo.llm_model_path) / "model.safetensors"
    write_safetensors(file, weights)
    assert any("query/key norms" in note for note in build(start).notes)
    weights.pop("model.layers.0.mlp.fc1.weight")
    write_safetensors(file, weights)
    with pytest.raises(ValueError, match=r"model\.layers\.0\.mlp\.fc1\.weight"):
        build(start)


def test_building_does_not_touch_the_global_generator_and_repeats_with_its_seed(tmp_path: Path) -> None:
    start = job(tmp_path)
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first = build(start)
    assert torch.equal(torch.rand(3), expected)
    assert states_equal(first.model, build(start).model)
    start.training.seed += 1
    assert not states_equal(first.model, build(start).model)


def test_sizes_that_do_not_fit_the_tokenizer_are_refused_with_the_right_number(tmp_path: Path) -> None:
    start = job(tmp_path)
    start.model.showo.auto_set_llm_vocab_size = False
    with pytest.raises(ValueError, match=r"model\.showo\.llm_vocab_size is 50295, but .* makes it 320"):
        build(start)


def test_the_named_backbone_must_be_the_one_in_the_folder(tmp_path: Path) -> None:
    start = job(tmp_path, "qwen3")
    start.model.showo.llm_backbone = "phi"
    with pytest.raises(ValueError, match=r"llm_backbone is 'phi', but .* holds a 'qwen3'"):
        build(start)
    start.model.showo.llm_backbone = "qwen3"
    assert type(build(start, "meta").model.backbone.lm).__name__ == "Qwen3ForCausalLM"


def test_the_meta_device_builds_shapes_without_reading_weights(tmp_path: Path) -> None:
    built = build(job(tmp_path), "meta")
    assert all(parameter.is_meta for parameter in built.model.parameters())


def test_a_missing_checkpoint_and_a_broken_description_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        load_folder(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no config\.json with weights"):
        load_folder(tmp_path / "empty")
    model, prompter = tiny_model(tmp_path / "llm")
    save_folder(model, prompter, tmp_path / "saved")
    file = tmp_path / "saved/config.json"
    description = json.loads(file.read_text())
    description[SPEC_FIELD]["wings"] = 2
    file.write_text(json.dumps(description))
    with pytest.raises(ValueError, match=r"config\.json: unknown model fields: wings"):
        load_folder(tmp_path / "saved")
    file.write_text("{")
    with pytest.raises(ValueError, match="not readable JSON"):
        load_folder(tmp_path / "saved")
