"""The memory estimate is near what a step takes, and the presets fit their cards."""

from __future__ import annotations

import dataclasses
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import CLIPVisionConfig

from config.cli_help import presets
from config.loading import load_job
from models.objectives import text_objective
from models.pretrained.model_io import build
from models.processing.image import ClipImageSpec
from models.vision.clip_encoder import ClipTower
from models.vision.magvitv2 import RELEASED_DECODER, RELEASED_ENCODER, MagVITv2
from scripts.estimate_memory import GIB, USABLE, main
from tests.models.test_run_configs_build import given as real_sizes  # noqa: F401 (a fixture)
from tests.tiny import llm_config, write_language_model
from tests.training.runs import forget_processes
from tests.training.world import argv, load
from training.batch_to_tasks import COUNTED
from training.build import Components, setup
from training.memory import BUCKETS, Sharding, build_shapes, count_state, estimate, longest_rows
from training.optim import lora
from training.run import open_run

TOLERANCE = 0.1


def parts_of(world: Path, tmp_path: Path, **overrides: Any) -> Components:
    """A network large enough that its activations are more than the small change around them."""
    llm = write_language_model(tmp_path / "phi")
    llm_config("phi", hidden=128, layers=4).save_pretrained(str(llm))
    forget_processes()
    sizes = {"model__showo__llm_model_path": llm, "training__batch_size_pre": 4, "training__batch_size_mmu": 4}
    job = load(world, tmp_path / "out", **{**sizes, **overrides})
    with open_run(job) as run:
        return setup(run)


@pytest.mark.parametrize("large", [True, False])
def test_freed_memory_is_returned_in_training_of_large_models_only(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, large: bool
) -> None:
    calls: list[bool] = []
    module = sys.modules[setup.__module__]
    monkeypatch.setattr(module, "LARGE", 0 if large else 1 << 30)
    monkeypatch.setattr(module, "return_freed_memory", lambda: calls.append(True))
    parts_of(world, tmp_path)
    assert calls == [True] * large


def measured(parts: Components) -> int:
    """Bytes that torch's allocator hands out, at most at once, in two real steps of the longest rows, beyond what was
    there before (weights, frozen networks): gradients, optimizer, activations."""
    tasks = longest_rows(parts)
    half = {"bf16": torch.bfloat16}.get(parts.job.training.mixed_precision)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        for _ in range(2):
            for _ in range(2):  # micro-batches
                with torch.autocast("cpu", half, enabled=half is not None):
                    losses = parts.model(tasks.future, tasks.text)
                torch.stack([getattr(losses, name).sum for name in COUNTED]).sum().backward()
                del losses
            parts.optimizer.step()
            parts.optimizer.zero_grad(set_to_none=True)
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]  # type: ignore[union-attr]
    now = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def coming(parts: Components) -> int:
    found = estimate(parts)
    return found.gradients + found.optimizer + found.activations


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"model__gradient_checkpointing": "true"},
        {
            "training__mixed_precision": "bf16",
            "model__gradient_checkpointing": "true",
            "training__gradient_accumulation_steps": "2",
        },
        {"lora__rank": 4},
    ],
    ids=lambda settings: ", ".join(settings) or "plain",
)
def test_the_estimate_is_within_a_tenth_of_what_the_allocator_hands_out(
    world: Path, tmp_path: Path, settings: dict[str, str]
) -> None:
    parts = parts_of(world, tmp_path, **settings)
    assert coming(parts) == pytest.approx(measured(parts), rel=TOLERANCE)


def test_gradient_checkpointing_lets_activations_go(world: Path, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    plain = parts_of(world, tmp_path / "a")
    saving = parts_of(world, tmp_path / "b", model__gradient_checkpointing="true")
    static = coming(plain) - estimate(plain).activations
    assert measured(saving) - static < 0.7 * (measured(plain) - static)


def test_each_part_of_the_estimate_is_counted(world: Path, tmp_path: Path) -> None:
    parts = parts_of(world, tmp_path, training__ema_decay=0.9)
    found, numbers = count_state(parts, Sharding()), sum(p.numel() for p in parts.model.parameters())
    assert found.weights == pytest.approx(4 * numbers, rel=0.01)
    assert (found.gradients, found.optimizer, found.average) == (4 * numbers, 8 * numbers, 4 * numbers)
    assert found.total == sum(getattr(found, f.name) for f in dataclasses.fields(found))


def test_zero_shards_what_its_stage_shards(world: Path, tmp_path: Path) -> None:
    parts = parts_of(world, tmp_path)
    numbers = sum(p.numel() for p in parts.model.parameters())
    alone, two, three = (count_state(parts, Sharding(4, stage, half_weights=True)) for stage in (1, 2, 3))
    assert two.weights == alone.weights == pytest.approx(2 * numbers, rel=0.01)
    assert two.optimizer == alone.optimizer == 16 * numbers // 4  # moments, and 32-bit weights and gradients
    assert alone.gradients == 6 * numbers + BUCKETS  # 16 bits of a micro-batch, and its 32-bit sum
    assert two.gradients == 2 * numbers // 4 + BUCKETS
    assert three.optimizer == two.optimizer
    ddp = count_state(parts, Sharding(4))
    assert ddp.gradients == 2 * 4 * numbers  # and the copy that is exchanged


def test_the_command_prints_the_estimate_and_returns_1_if_it_will_not_fit(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = argv(world, tmp_path / "out")
    assert main([*job, "--device-gb", "24"]) == 0
    assert re.search(
        r"^weights +\d+ MB$.*^total +\d+ MB per process", capsys.readouterr().out, re.MULTILINE | re.DOTALL
    )
    assert main([*job, "--device-gb", "0.001"]) == 1
    out = capsys.readouterr().out
    assert "not fit into 0.001 GB. Smaller: model.gradient_checkpointing=true, training.mixed_precision=bf16" in out
    assert "preset=24gb" in out


def test_the_estimate_without_weights_is_that_of_the_run(world: Path, tmp_path: Path) -> None:
    parts = parts_of(world, tmp_path)
    assert estimate(build_shapes(parts.job)) == estimate(parts)


def test_the_command_reads_the_sharding_of_a_launch_file(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*argv(world, tmp_path / "out"), "--launch", "accelerate_configs/8_gpus_deepspeed_zero2.yaml"]) == 0
    assert "gradients       1.0 GB" in capsys.readouterr().out  # DeepSpeed's buffers
    assert main([*argv(world, tmp_path / "out"), "--launch", str(world / "tiny.yaml")]) == 2
    assert "not a launch file of accelerate" in capsys.readouterr().err


@pytest.mark.parametrize("preset", presets())
@pytest.mark.parametrize("config", ["upvla_action_tuning", "mdmvla_action_tuning", "bdvla_action_tuning"])
def test_every_preset_goes_with_every_recipe(preset: str, config: str) -> None:
    data = [f"dataset.params.train_{flow}_shards_path_or_url=/data" for flow in ("pre", "mmu")]
    job = load_job([f"config=config/{config}.yaml", f"preset={preset}", *data], paths=False)
    training = job.training
    assert training.batch_size_pre * training.gradient_accumulation_steps == 16
    assert training.batch_size_mmu * training.gradient_accumulation_steps == 16
    assert (job.lora.rank > 0, training.ema_decay is not None) == (preset == "24gb", preset == "80gb")


@pytest.mark.slow
@pytest.mark.parametrize("preset", presets())
def test_a_preset_fits_its_card_at_real_size(preset: str, real_sizes: Path) -> None:  # noqa: F811
    """Phi-1.5, MagVITv2 at 512 pixels and CLIP ViT-L/14-336 on the meta device, with the text objective that takes the
    most; seven hundredths of the card are left to the driver."""
    found = estimate(at_real_size(preset, "bdvla_action_tuning", real_sizes))
    card = int(preset.removesuffix("gb")) * GIB
    assert 0.5 * card < found.total < USABLE * card, found


def at_real_size(preset: str, config: str, root: Path) -> Components:
    folders = {"showo.llm_model_path": "phi", "showo.clip_model_path": "clip", "showo.pretrained_model_path": "showo"}
    job = load_job(
        [
            f"config=config/{config}.yaml",
            f"preset={preset}",
            *(f"model.{key}={root / folder}" for key, folder in folders.items()),
            f"model.vq_model.vq_model_name={root / 'magvit'}",
            f"dataset.params.train_pre_shards_path_or_url={root / 'robot'}",
            f"dataset.params.train_mmu_shards_path_or_url={root / 'mmu'}",
        ]
    )
    built = build(job, device="meta")
    lora.attach(built.model, job)
    if job.model.gradient_checkpointing:
        built.model.backbone.enable_gradient_checkpointing()
    sizes = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    tower = CLIPVisionConfig(**sizes, image_size=336, patch_size=14)
    pixels = ClipImageSpec(336, (336, 336), 3, 1 / 255, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    with torch.device("meta"):
        vq, clip = MagVITv2(RELEASED_ENCODER, RELEASED_DECODER), ClipTower(tower, pixels)
    nothing: Any = None
    return Components(
        job, torch.device("cpu"), built.model, built.prompter, vq, clip, text_objective(job), nothing, nothing, nothing
    )


def test_random_scenes_and_states_are_counted(tmp_path: Path) -> None:
    """The recipe of all tasks reads states; random scenes are further rows of a step. Data are not read."""
    (tmp_path / "dataset_info.json").write_text("{}")
    recipe = ["config=config/tiny_desk_all.yaml", f"dataset.params.train_pre_shards_path_or_url={tmp_path}"]
    with_scenes = f"dataset.params.ground_shards_path={tmp_path}"

    def activations(*overrides: str) -> int:
        return estimate(build_shapes(load_job([*recipe, *overrides]))).activations

    scenes = activations(with_scenes)
    assert scenes > 1.5 * activations()
    assert activations(with_scenes, "training.batch_size_ground=12") < scenes
