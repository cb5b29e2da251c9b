"""Options of memory and speed: each has the effect it promises, and a run that uses it goes on exactly."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from config.loading import ConfigError
from config.schema import Job
from models.pretrained.model_io import load_folder
from tests.training.runs import Outcome, same
from training import run as training_run
from training.distributed.launch import start_processes
from training.optim.compile import CACHE, compile_backbone
from training.trainer import Trainer

Start = Callable[..., Outcome]


@pytest.fixture
def optimizers(monkeypatch: pytest.MonkeyPatch) -> list[torch.optim.Optimizer]:
    """The optimizers of the runs of a test, as they are when the runs end."""
    kept: list[torch.optim.Optimizer] = []
    finish = Trainer._finish

    def keeping(self: Trainer) -> None:
        kept.append(self.components.optimizer)
        finish(self)

    monkeypatch.setattr(Trainer, "_finish", keeping)
    return kept


def moments(optimizer: torch.optim.Optimizer) -> int:
    """Numbers in first moments."""
    names = ("exp_avg", "state1")
    return sum(s[n].numel() for s in optimizer.state.values() for n in names if n in s)


def continued(run: Start, **settings: Any) -> tuple[Outcome, Outcome]:
    """(a run of four steps, the same one stopped after the second and started again)."""
    settings = {"training__max_train_steps": 4, "experiment__save_every": 2, **settings}
    whole = run("whole", **settings)
    folder = whole.folder.parent / "resumed"
    folder.mkdir()
    shutil.copytree(whole.folder / "checkpoint-2", folder / "checkpoint-2")
    shutil.copy(whole.folder / "metrics.jsonl", folder / "metrics.jsonl")
    return whole, run("resumed", **settings, experiment__resume_from_checkpoint="latest")


def assert_same_run(whole: Outcome, resumed: Outcome) -> None:
    assert resumed.curve("total/loss") == whole.curve("total/loss")
    assert same(resumed.weights(), whole.weights())
    assert same(resumed.weights(4), whole.weights(4))


# --- freezing ---------------------------------------------------------------------------------------------------------


def test_what_is_frozen_stays_as_it_was_and_takes_no_optimizer_memory(
    run: Start, optimizers: list[torch.optim.Optimizer]
) -> None:
    before = run("before", training__max_train_steps=1, optimizer__params__learning_rate=1e-12).weights()
    after = run("after", training__freeze="[backbone.lm.model.layers.0.*, *embed_tokens*]").weights()
    moved = {name for name, tensor in after.items() if not torch.allclose(tensor, before[name], rtol=0, atol=1e-7)}
    resting = {n for n in after if "layers.0." in n or "embed_tokens" in n}
    assert len(resting) > 5
    assert not moved & resting
    assert "showo.model.layers.1.mlp.fc1.weight" in moved
    assert moments(optimizers[0]) - moments(optimizers[1]) == sum(after[name].numel() for name in resting)


def test_a_pattern_that_names_nothing_is_an_error_with_what_there_is(run: Start) -> None:
    with pytest.raises(ConfigError) as error:
        run(training__freeze="[backbone.model.*]")
    line = str(error.value)
    assert line.startswith("training.freeze=[backbone.model.*]: backbone.model.* fits no parameter")
    for there in ("backbone.lm.model.embed_tokens.*", "backbone.lm.model.layers.*", "projector.*", "action_head.out.*"):
        assert there in line


def test_a_run_that_would_train_nothing_is_refused(run: Start) -> None:
    with pytest.raises(ConfigError, match="nothing is left to train"):
        run(training__freeze="['*']")


def test_a_run_with_frozen_parts_goes_on_exactly_and_not_with_others(run: Start) -> None:
    whole, resumed = continued(run, training__freeze="[action_head.*]")
    assert_same_run(whole, resumed)
    with pytest.raises(ConfigError, match="trained other parameters"):
        run("resumed", training__max_train_steps=6, experiment__resume_from_checkpoint="latest")


# --- an average of the weights ----------------------------------------------------------------------------------------


def test_what_is_saved_and_acts_is_the_average_of_the_steps(run: Start) -> None:
    steps = [run(f"after-{n}", training__max_train_steps=n, lr_scheduler__scheduler="constant") for n in (1, 2)]
    start = run("start", training__max_train_steps=1, optimizer__params__learning_rate=1e-30).weights()
    done = run("average", training__ema_decay=0.999, lr_scheduler__scheduler="constant")
    first, second = (outcome.weights() for outcome in steps)
    # By hand: d = 2/11 after the first step, 3/12 after the second.
    expected = {}
    for name, tensor in start.items():
        after_first = 2 / 11 * tensor + 9 / 11 * first[name]
        expected[name] = 3 / 12 * after_first + 9 / 12 * second[name]
    assert same(done.weights(), expected, tolerance=1e-6)
    assert not same(done.weights(), second, tolerance=1e-4)
    assert load_folder(done.folder).spec.weights == "average, decay 0.999"
    assert load_folder(steps[0].folder).spec.weights == "trained"
    assert done.curve("total/loss") == steps[1].curve("total/loss")  # what learns is not the average


def test_evaluation_looks_at_the_average(run: Start, world: Path) -> None:
    settings = {
        "training__max_train_steps": 3,
        "experiment__eval_every": 3,
        "dataset__params__validation_pre_shards_path_or_url": world / "robot_validation",
    }
    plain, averaged = run("plain", **settings), run("averaged", **settings, training__ema_decay=0.9)
    assert averaged.curve("validation/action/mae") != plain.curve("validation/action/mae")
    # The saved average, evaluated as a run that trains nothing, gives the same number.
    again = run(
        "again",
        **{**settings, "training__max_train_steps": 1, "experiment__eval_every": 1},
        model__showo__pretrained_model_path=averaged.folder,
        optimizer__params__learning_rate=1e-30,
        optimizer__params__weight_decay=0,
    )
    assert again.curve("validation/action/mae") == pytest.approx(averaged.curve("validation/action/mae"), rel=1e-6)


def test_a_run_with_an_average_goes_on_exactly(run: Start) -> None:
    assert_same_run(*continued(run, training__ema_decay=0.5))


@pytest.mark.slow
def test_an_average_may_begin_or_end_in_the_middle_of_a_run(run: Start, capfd: pytest.CaptureFixture[str]) -> None:
    plain, averaged = continued(run, training__ema_decay=0.5)
    assert_same_run(plain, averaged)
    shutil.rmtree(averaged.folder / "checkpoint-4")
    capfd.readouterr()
    dropped = run("resumed", training__max_train_steps=4, experiment__resume_from_checkpoint="latest")
    without = run("without", training__max_train_steps=4)
    assert same(dropped.weights(), without.weights())  # goes on from what learned, not from the average
    run("without", training__max_train_steps=5, training__ema_decay=0.5, experiment__resume_from_checkpoint="latest")
    assert "has no average yet" in capfd.readouterr().out


# --- adapters ---------------------------------------------------------------------------------------------------------


def test_adapters_leave_the_backbone_and_are_merged_for_acting(
    run: Start, optimizers: list[torch.optim.Optimizer]
) -> None:
    pytest.importorskip("peft")
    start = run("start", training__max_train_steps=1, optimizer__params__learning_rate=1e-30).weights()
    done = run("adapters", lora__rank=2, lora__targets="[q_proj, fc1]", optimizer__params__weight_decay=0)
    merged = done.weights()
    moved = {n for n in merged if not torch.allclose(merged[n], start[n], rtol=0, atol=1e-7)}
    of_backbone = {n for n in moved if n.startswith("showo.")}
    assert of_backbone == {
        f"showo.model.layers.{layer}.{part}.weight" for layer in (0, 1) for part in ("self_attn.q_proj", "mlp.fc1")
    }
    assert [n for n in moved if n.startswith("mm_projector")]
    assert [n for n in moved if n.startswith("to_logits")]
    for name in of_backbone:
        assert torch.linalg.matrix_rank(merged[name] - start[name], atol=1e-6) <= 2
    assert moments(optimizers[1]) < 0.5 * moments(optimizers[0])
    assert not [n for n in merged if "lora" in n]


def test_the_adapter_folder_is_peft_own_and_gives_the_merged_network(run: Start) -> None:
    peft = pytest.importorskip("peft")
    start = run("start", training__max_train_steps=1, optimizer__params__learning_rate=1e-30)
    done = run("adapters", lora__rank=2, optimizer__params__weight_decay=0)
    embeds, positions = torch.randn(1, 5, 32, generator=torch.manual_seed(0)), torch.arange(5)[None]
    mask = torch.ones(1, 1, 5, 5, dtype=torch.bool).tril()
    merged = load_folder(done.folder).model.backbone(embeds, mask, positions)
    base = load_folder(start.folder).model.backbone
    before = base(embeds, mask, positions)
    base.lm = peft.PeftModel.from_pretrained(base.lm, str(done.folder / "adapter"))
    with torch.no_grad():
        after = base.lm.get_base_model().model(
            inputs_embeds=embeds, attention_mask=mask, position_ids=positions, use_cache=False
        )
    assert torch.allclose(after.last_hidden_state, merged, atol=1e-5)
    assert not torch.allclose(before, merged, atol=1e-5)


def test_a_run_with_adapters_and_an_average_goes_on_exactly(run: Start) -> None:
    pytest.importorskip("peft")
    assert_same_run(*continued(run, lora__rank=2, training__ema_decay=0.5))


def test_adapters_go_on_with_their_own_settings_and_weights_alone(run: Start) -> None:
    pytest.importorskip("peft")
    settings = {"training__max_train_steps": 1, "experiment__save_every": 1}
    run("adapters", **settings, lora__rank=2)
    run("plain", **settings)
    on = {"experiment__resume_from_checkpoint": "latest", "training__max_train_steps": 2}
    with pytest.raises(ConfigError, match=r"trained other parameters.*its lora.rank was 2"):
        run("adapters", **on, lora__rank=4)
    with pytest.raises(ConfigError, match=r"trained other parameters"):
        run("adapters", **on)
    with pytest.raises(ConfigError, match="trained without adapters"):
        run("plain", **on, lora__rank=2)
    with pytest.raises(ConfigError, match=r"act_step is 3.*trained with 4"):
        run("adapters", **on, lora__rank=2, act_step=3)
    with pytest.raises(ConfigError, match="adapters to other weights"):
        run("adapters", **on, lora__rank=2, training__seed=5)


def test_a_layer_that_cannot_have_an_adapter_is_an_error_with_those_that_can(run: Start) -> None:
    pytest.importorskip("peft")
    with pytest.raises(ConfigError, match=r"lora\.targets=\[lm_head\].* it has dense, fc1, fc2, k_proj, q_proj"):
        run(lora__rank=2, lora__targets="[lm_head]")
    with pytest.raises(ConfigError, match=r"lora\.train_fully=\[heads\.\*\]: heads\.\* fits no parameter"):
        run(lora__rank=2, lora__train_fully="[heads.*]")


def test_without_peft_adapters_are_refused_in_one_line(run: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    _hide(monkeypatch, "peft")
    with pytest.raises(ConfigError, match=r"lora\.rank=2 needs the package peft \(pip install peft\)"):
        run(lora__rank=2)


# --- optimizers -------------------------------------------------------------------------------------------------------


def test_adamw_is_torch_fused_one(run: Start, optimizers: list[torch.optim.Optimizer]) -> None:
    run()
    assert all(group["fused"] for group in optimizers[0].param_groups)


def test_moments_in_8_bits_take_a_quarter_of_the_memory_and_go_on_exactly(
    run: Start, optimizers: list[torch.optim.Optimizer]
) -> None:
    pytest.importorskip("bitsandbytes")
    whole, resumed = continued(run, optimizer__name="adamw_8bit")
    assert_same_run(whole, resumed)
    few = [state for state in optimizers[0].state.values() if state["state1"].dtype == torch.uint8]
    names = ("state1", "state2", "absmax1", "absmax2")
    small = sum(state[name].numel() * state[name].element_size() for state in few for name in names)
    assert few
    assert small == pytest.approx(sum(8 * state["state1"].numel() for state in few) / 4, rel=0.02)


def test_without_bitsandbytes_8_bits_are_refused_in_one_line(run: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    _hide(monkeypatch, "bitsandbytes")
    with pytest.raises(ConfigError, match=r"optimizer\.name=adamw_8bit needs the package bitsandbytes"):
        run(optimizer__name="adamw_8bit")


def _hide(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == package else find(name, *a))


# --- compilation ------------------------------------------------------------------------------------------------------


def test_compiling_on_a_cpu_never_reads_what_a_killed_run_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that was being linked is cut short, and every later start would stumble over it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    layer: Any = torch.nn.Linear(1, 1)
    shared = Path(tempfile.gettempdir()) / "torchinductor_somebody"  # as torch sets it
    found = []
    for given in (shared, shared, tmp_path):
        monkeypatch.setenv(CACHE, str(given))
        compile_backbone(layer)
        found.append(os.environ[CACHE])
    assert len({str(shared), *found}) == 4
    assert Path(found[0]).is_dir()
    assert found[2] == str(tmp_path)


@pytest.mark.slow
def test_a_compiled_backbone_computes_the_same_and_is_saved_under_the_same_names(
    run: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._dynamo.utils import counters

    monkeypatch.setattr(sys, "path", [*sys.path])  # the compiler appends to it
    monkeypatch.setattr("torch._inductor.config.compile_threads", 1)  # its pool of threads stays for ever
    plain = run("plain", training__max_train_steps=1)
    counters.clear()
    compiled = run("compiled", training__max_train_steps=1, training__compile="true")
    assert counters["stats"]["unique_graphs"] > 0
    assert compiled.curve("total/loss") == pytest.approx(plain.curve("total/loss"), rel=1e-5)
    assert compiled.curve("grad_norm") == pytest.approx(plain.curve("grad_norm"), rel=1e-4)
    assert compiled.weights().keys() == plain.weights().keys()
    assert load_folder(compiled.folder).spec == load_folder(plain.folder).spec


def test_a_model_description_without_the_word_weights_is_an_older_one(run: Start) -> None:
    done = run(training__max_train_steps=1)
    description = json.loads((done.folder / "config.json").read_text())
    del description["blockdiff_vla"]["weights"]
    (done.folder / "config.json").write_text(json.dumps(description))
    assert load_folder(done.folder).spec.weights == "trained"


# --- 16-bit floats with a scaled loss ---------------------------------------------------------------------------------


@pytest.fixture
def fp16(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Accelerate supports fp16 on GPUs only. This sets on a CPU what its constructor sets there, so that its code for
    scaled losses runs (torch has both the arithmetic and the scaler for the CPU)."""

    def switch_on(scale: float) -> None:
        def starting(job: Job) -> Accelerator:
            accelerator = start_processes(job)
            accelerator.state._mixed_precision, accelerator.native_amp = "fp16", True
            accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
            return accelerator

        monkeypatch.setattr(training_run, "start_processes", starting)

    return switch_on


@pytest.mark.slow
def test_a_scaled_loss_takes_the_step_of_an_unscaled_one_clipped_or_not(
    run: Start, fp16: Callable[[float], None]
) -> None:
    settings = {"optimizer__params__epsilon": 1e-3, "training__gradient_accumulation_steps": 2}
    plain = run("plain", **settings)
    clipped = run("clipped", **settings, training__max_grad_norm=0.1)
    fp16(2.0**10)
    assert run("fp16", **settings).curve("grad_norm") == pytest.approx(plain.curve("grad_norm"), rel=0.05)
    assert same(Outcome(plain.folder.parent / "fp16").weights(), plain.weights(), tolerance=5e-4)
    scaled = run("fp16-clipped", **settings, training__max_grad_norm=0.1)
    assert same(scaled.weights(), clipped.weights(), tolerance=5e-4)
    assert not same(scaled.weights(), plain.weights(), tolerance=5e-4)


def test_steps_with_an_overflow_are_left_out_and_the_scale_comes_down(
    run: Start, fp16: Callable[[float], None]
) -> None:
    start = run("start", training__max_train_steps=1, optimizer__params__learning_rate=1e-30).weights()
    fp16(2.0**60)
    first = run("first", training__max_train_steps=1)
    assert same(first.weights(), start, tolerance=1e-9)
    fp16(2.0**17)
    more = run("more", training__max_train_steps=8)
    assert not same(more.weights(), start, tolerance=1e-4)


def test_a_run_with_a_scaled_loss_goes_on_exactly(run: Start, fp16: Callable[[float], None]) -> None:
    fp16(2.0**17)  # it comes down in the first steps, which the second half has to know
    assert_same_run(*continued(run))
