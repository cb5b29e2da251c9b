"""Checkpoints of adapters without their frozen weights (``experiment.save_adapters_only``)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from config.loading import ConfigError
from models.pretrained.model_io import load_folder
from tests.training.launches import complaint, launch, sharded, start
from tests.training.runs import Outcome, same

Start = Callable[..., Outcome]
FOUR_STEPS: dict[str, Any] = {"training__max_train_steps": 4, "experiment__save_every": 2, "lora__rank": 2}
LATEST = {"experiment__resume_from_checkpoint": "latest"}
FILE = "unwrapped_model/adapters.safetensors"

pytest.importorskip("peft")


def interrupted(whole: Outcome) -> Path:
    """Return the output folder of the same run, stopped after its first checkpoint."""
    folder = whole.folder.parent / "resumed"
    shutil.copytree(whole.folder / "checkpoint-2", folder / "checkpoint-2")
    shutil.copy(whole.folder / "metrics.jsonl", folder / "metrics.jsonl")
    return folder


def num_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_folder(folder).model.state_dict())


@pytest.mark.parametrize("options", [{}, {"training__ema_decay": 0.5, "training__freeze": "[projector.*, *lora_A*]"}])
def test_a_checkpoint_of_adapters_acts_as_a_merged_one_and_resumes_exactly(run: Start, options: dict[str, Any]) -> None:
    merged = run("merged", **FOUR_STEPS, **options)
    whole = run("whole", **FOUR_STEPS, **options, experiment__save_adapters_only="true")
    saved, full = (outcome.folder / "checkpoint-2" for outcome in (whole, merged))
    assert {file.name for file in saved.rglob("*.safetensors")} == {"adapters.safetensors", "weights.safetensors"}
    with safe_open(saved / FILE, framework="pt") as file:
        names = [name for name in file.keys() if ".lora_" not in name]  # noqa: SIM118, it is not a dict
    parts = {name.split(".")[0] for name in names}
    assert parts == {"token_learner", "to_logits"} | ({"mm_projector"} if not options else set())
    assert num_bytes(saved) < num_bytes(full)
    assert same(weights(saved), weights(full))
    assert same(whole.weights(4), merged.weights(4))  # the last checkpoint and the final model are whole
    assert same(whole.weights(), merged.weights())
    folder = interrupted(whole)
    assert same(weights(folder), weights(full))  # an output folder acts from its newest checkpoint
    resumed = run(folder.name, **FOUR_STEPS, **options, **LATEST, experiment__save_adapters_only="true")
    assert resumed.curve("total/loss") == whole.curve("total/loss")
    assert same(resumed.weights(), whole.weights())
    before, after = (load_file(o.folder / "checkpoint-4/training_state/weights.safetensors") for o in (whole, resumed))
    assert same(after, before)


def test_other_base_weights_are_refused_in_one_line(run: Start) -> None:
    base = run("base", training__max_train_steps=1)
    start = {"model__showo__load_from_showo": "true", "model__showo__pretrained_model_path": base.folder}
    whole = run("whole", **FOUR_STEPS, **start, experiment__save_adapters_only="true")
    folder, file = interrupted(whole), base.folder / "model.safetensors"
    original = load_file(file)
    name = next(name for name in original if name.endswith("q_proj.weight"))
    save_file({**original, name: torch.flip(original[name], [0])}, file)
    with pytest.raises(
        ConfigError, match="holds adapters to other weights than those that this configuration"
    ) as error:
        run(folder.name, **FOUR_STEPS, **start, **LATEST)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=rf"adapters to other weights than.*pretrained_model_path={base.folder}\)"):
        load_folder(folder)
    shutil.rmtree(base.folder)
    with pytest.raises(ValueError, match=r"adapters alone, and their base cannot be loaded: .* does not exist"):
        load_folder(folder)


def test_what_needs_a_whole_model_names_those_that_are(run: Start) -> None:
    whole = run("whole", **FOUR_STEPS, experiment__save_adapters_only="true")
    start = {"model__showo__load_from_showo": "true", "model__showo__pretrained_model_path": interrupted(whole)}
    with pytest.raises(ConfigError, match=r"adapters\.safetensors holds adapters alone.*name the final model"):
        run("next", **start)


def test_a_file_of_adapters_without_its_header_is_refused_by_name(run: Start) -> None:
    whole = run("whole", **FOUR_STEPS, experiment__save_adapters_only="true")
    file = whole.folder / "checkpoint-2" / FILE
    save_file(load_file(file), file)
    with pytest.raises(ValueError, match=r"adapters\.safetensors is damaged: its header names no base"):
        load_folder(file.parent)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "zero1", "zero2"])
def test_two_processes_save_adapters_alone_and_resume_exactly(world: Path, tmp_path: Path, kind: str) -> None:
    if kind.startswith("zero"):
        pytest.importorskip("deepspeed")
    options = ("lora.rank=2", "training.ema_decay=0.5", "training.max_train_steps=4", "experiment.save_every=2")
    merged = launch(world, tmp_path / "merged", *sharded(kind), options)
    options = (*options, "experiment.save_adapters_only=true")
    whole = launch(world, tmp_path / "whole", *sharded(kind), options)
    saved, full = (outcome.folder / "checkpoint-2" for outcome in (whole, merged))
    frozen = sum(t.numel() * t.element_size() for name, t in merged.weights().items() if name.startswith("showo."))
    assert num_bytes(full) - num_bytes(saved) > 0.9 * frozen * (2 if kind.startswith("zero") else 1)
    assert same(weights(saved), weights(full))
    folder = interrupted(whole)
    resumed = launch(world, folder, *sharded(kind), (*options, "experiment.resume_from_checkpoint=latest"))
    assert resumed.curve("total/loss") == whole.curve("total/loss")
    assert same(resumed.weights(), whole.weights())
    log = json.loads((folder / "status.json").read_text(encoding="utf-8"))
    assert log["state"] == "finished"


@pytest.mark.slow
def test_a_launch_that_shards_all_weights_is_refused(world: Path, tmp_path: Path) -> None:
    options = ("lora.rank=2", "experiment.save_adapters_only=true")
    done = start(world, tmp_path / "out", *sharded("fsdp2"), options)
    assert "save_adapters_only=true: FSDP2 writes shards of all weights" in complaint(done)
