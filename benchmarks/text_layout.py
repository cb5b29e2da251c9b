"""Compare the layout of the text step with a pass per noisy copy and full logits.

In the package's layout all noisy copies share the prefix and the clean answer, and only scored slots have logits. Runs
forward and backward of the text loss in two ways: the package's one sequence [P | x0 | v1 | v2] with logits of the
scored slots, and the reference's pass per copy ([P x0 | P v1], [P x0 | P v2]) with logits of every slot. Times are
ratios of alternating runs; memory is the peak of a fresh process for each. Losses and gradients are compared first. The
reference is tests/benchmarks/naive_text.py.

Examples:
  the figures of the documentation (about three minutes on one core):
    python -m benchmarks.text_layout --out benchmarks/results/text_layout.json
  what the layout costs the host, in microseconds per conversation, and its share of an estimated GPU step:
    python -m benchmarks.text_layout --host --batch 16 --answer 256 --block-size 32 --rounds 30
  small sizes, in seconds:
    python -m benchmarks.text_layout --prefix 60 --patches 20 --answer 20 --hidden 64 --words 500 --rounds 3
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PhiConfig

from benchmarks.harness.memory import compare_peaks
from benchmarks.harness.problems import SYSTEM_WORDS
from benchmarks.harness.record import Parser, write
from benchmarks.harness.timing import Spread, alternate
from common.command import run_command
from config.schema import Job, Objective
from models.objectives import TextTask, text_objective
from models.pretrained.model_config import ModelConfig
from models.rng import SampleRng
from models.sequence import TextTurn
from models.upvla import UPVLA
from models.vocabulary import Vocabulary
from tests.benchmarks.naive_text import Passes, loss, passes
from training.metrics.throughput import PEAK_TFLOPS

CLIP_WIDTH = 1024
FRAME_WORDS = 3  # <|mmu|>, <|soi|>, <|eoi|>
SAME_LOSS, SAME_GRADIENT = 1e-5, 1e-3
"""Largest relative differences that float32 sums of different order explain."""
STEP_TFLOP = {"ar": 16.6, "mdm": 18.8, "bd": 20.7}
"""Operations of a training step of one robot sample and one conversation of 300 ids, from the token cache, Phi-1.5
(``benchmarks/results/2026-11-22_original_step_phi_counted.json``)."""
GPU_TFLOPS = 0.45 * PEAK_TFLOPS["H200"]
"""An H200 in bf16 at 45 % of its peak."""


@dataclass(frozen=True)
class Size:
    """Sizes of the problem; by default Phi-1.5's vocabulary with Show-o's codes (58,498 ids) and 576 patches."""

    prefix: int = 620
    answer: int = 100
    hidden: int = 256
    layers: int = 4
    batch: int = 1
    block_size: int = 20
    patches: int = 576
    words: int = 50295
    codes: int = 8192

    def __post_init__(self) -> None:
        if self.question < 1:
            fixed = self.prefix - self.question
            raise ValueError(f"--prefix {self.prefix}: patches and system prompt alone take {fixed}; make it larger")

    @property
    def question(self) -> int:
        return self.prefix - FRAME_WORDS - SYSTEM_WORDS - self.patches


@dataclass(frozen=True)
class Problem:
    """A model, a task, and the same task as separate passes."""

    model: UPVLA
    task: TextTask
    naive: Passes

    def losses(self) -> dict[str, Callable[[], Tensor]]:
        """Return the two ways to compute the loss."""
        return {
            "naive": lambda: loss(self.model, self.naive),
            "package": lambda: self.model.text_loss(self.task)[0].mean,
        }

    def steps(self) -> dict[str, Callable[[], None]]:
        """Return forward and backward of the two ways; gradients are allocated anew, as by the trainer."""

        def step(value: Callable[[], Tensor]) -> Callable[[], None]:
            def run() -> None:
                self.model.zero_grad(set_to_none=True)
                torch.autograd.backward(value())

            return run

        return {name: step(value) for name, value in self.losses().items()}


def problem(size: Size, objective: Objective, device: torch.device) -> Problem:
    """Build a problem with random tokens and a random image, the same for the same size and objective."""
    torch.manual_seed(0)
    llm = PhiConfig(
        hidden_size=size.hidden,
        intermediate_size=4 * size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=max(size.hidden // 64, 1),
        partial_rotary_factor=0.5,
    )
    spec = ModelConfig(
        llm=llm.to_dict(),
        words=size.words,
        bos=0,
        eos=0,
        act_step=10,
        num_view=1,
        num_vq_tokens=256,
        clip_width=CLIP_WIDTH,
        codebook_size=size.codes,
    )
    model = UPVLA(spec)
    ids = torch.randint(1, size.words, (size.batch, size.question + size.answer))
    ids[:, -1] = spec.eos
    answer = torch.arange(ids.shape[1]) >= size.question
    turn = TextTurn(ids, answer.expand_as(ids), torch.randn(size.batch, size.patches, CLIP_WIDTH))
    job = Job()
    job.block_diffusion.block_size = job.text_mdm.canvas_multiple = size.block_size
    job.training.text_objective = objective
    system = list(range(1, 1 + SYSTEM_WORDS))
    task = text_objective(job).prepare(model.vocab, system, turn, SampleRng(seed=0))
    naive = passes(model, system, turn, task)
    return Problem(model.to(device), task.to(device), naive.to(device))


def host_cost(size: Size, objective: Objective, rounds: int) -> dict[str, Any]:
    """Time what the training process does for the text of a micro-batch before the device gets it.

    That is padding, noise and masks, layout, and the list of scored slots. Returns microseconds of CPU time per
    conversation, and that as a fraction of the time which a GPU takes for a sample of the step (``STEP_TFLOP``).
    """
    job = Job()
    job.block_diffusion.block_size = job.text_mdm.canvas_multiple = size.block_size
    job.training.text_objective = objective
    vocab = Vocabulary(words=size.words, bos=0, eos=0, codebook_size=size.codes)
    draws = torch.Generator().manual_seed(0)
    rows = torch.randint(1, size.words, (size.batch, size.question + size.answer), generator=draws).tolist()
    answers = [[at >= size.question for at in range(len(row))] for row in rows]
    patches, indices = torch.empty(size.batch, size.patches, CLIP_WIDTH, device="meta"), torch.arange(size.batch)
    prepare, system = text_objective(job).prepare, list(range(1, 1 + SYSTEM_WORDS))
    laps = []
    for step in range(rounds + 1):
        began = time.process_time()
        prepare(vocab, system, TextTurn.of_rows(rows, answers, vocab.pad, patches, indices), SampleRng(0, step))
        laps.append((time.process_time() - began) / size.batch * 1e6)
    microseconds = Spread.of(laps[1:])  # the first one warms up
    return {
        "host_us": microseconds,
        "share_of_gpu_step": microseconds.median / (STEP_TFLOP[objective] / GPU_TFLOPS * 1e6),
    }


def memory_step(settings: Mapping[str, Any], device: torch.device) -> Callable[[], None]:
    """Return the work of ``peak_of``."""
    return problem(Size(**settings["size"]), settings["objective"], device).steps()[settings["variant"]]


def differences(made: Problem) -> dict[str, float]:
    """Return the relative differences of the losses and of the gradients (the largest over all parameters)."""
    losses, gradients = [], []
    for name, step in made.steps().items():
        step()
        gradients.append({n: p.grad.clone() for n, p in made.model.named_parameters() if p.grad is not None})
        losses.append(float(made.losses()[name]().detach()))
    made.model.zero_grad(set_to_none=True)
    theirs, ours = gradients
    assert ours.keys() == theirs.keys(), "both ways reach the same parameters"
    worst = max(float((ours[name] - theirs[name]).norm() / theirs[name].norm().clamp_min(1e-6)) for name in ours)
    return {"loss": losses[1], "loss_difference": abs(losses[1] / losses[0] - 1), "gradient_difference": worst}


def compare(size: Size, objective: Objective, args: argparse.Namespace) -> dict[str, Any]:
    """Check that both ways are equal, then measure times and memory of one objective."""
    made = problem(size, objective, args.device)
    same = differences(made)
    if same["loss_difference"] > SAME_LOSS or same["gradient_difference"] > SAME_GRADIENT:
        raise SystemExit(f"{objective}: the two ways do not compute the same: {same}; nothing was timed")
    timings = alternate(made.steps(), args.rounds, args.device, name=objective)
    slots = {"package": made.task.sequence.ids.numel(), "naive": made.naive.ids.numel()}
    found: dict[str, Any] = {
        "same": same,
        "slots": {**slots, "scored": int(made.task.rows.numel())},
        "clock": timings.clock,
        "seconds": {way: timings.seconds(way) for way in ("package", "naive")},
        "times_faster": timings.ratio("naive", "package"),
    }
    settings = {"size": vars(size), "objective": objective}
    memory = compare_peaks("benchmarks.text_layout:memory_step", ("naive", "package"), settings, args)
    return found | memory | {"memory_share": memory["memory_share"]["package"]}


def summary(objective: str, found: Mapping[str, Any]) -> str:
    """Return the results of one objective in one line."""
    seconds, memory, share = found["seconds"], found["memory_mb"], found["memory_share"]
    return (
        f"{objective}: {found['slots']['package']} slots instead of {found['slots']['naive']}; "
        f"{seconds['package'].median:.3g} s instead of {seconds['naive'].median:.3g} s, "
        f"{found['times_faster']} times faster; "
        f"{memory['package']['above']:.0f} MB instead of {memory['naive']['above']:.0f} MB above the model "
        f"({share['above']:.2f}), {memory['package']['peak']:.0f} instead of {memory['naive']['peak']:.0f} MB "
        f"in total ({share['peak']:.2f})"
    )


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = Parser("text_layout", __doc__, objectives="bd,mdm,ar")
    for field, meaning in (
        ("prefix", "slots before the answer, including patches and system prompt"),
        ("answer", "tokens of the answer"),
        ("hidden", "width of the backbone, a Phi"),
        ("layers", "layers of the backbone"),
        ("batch", "conversations"),
        ("block_size", "tokens per block; the answer is padded to a multiple"),
        ("patches", "patches of the image"),
        ("words", "size of the tokenizer; 8192 image codes and 11 more ids are added"),
    ):
        default = getattr(Size, field)
        parser.add_argument(f"--{field.replace('_', '-')}", type=int, default=default, help=f"{meaning} ({default})")
    parser.add_argument("--host", action="store_true", help="only the time on the host, no network")
    args = parser.parse(argv)
    try:
        size = Size(**{field: getattr(args, field) for field in vars(Size()) if hasattr(args, field)})
    except ValueError as error:
        parser.error(str(error))
    if args.host:
        results = {name: host_cost(size, name, args.rounds) for name in args.objectives}
        for name, found in results.items():
            print(f"{name}: {found['host_us']} us a conversation, {found['share_of_gpu_step']:.2%} of a GPU step")
    else:
        results = {name: compare(size, name, args) for name in args.objectives}
        for name, found in results.items():
            print(summary(name, found))
    content = {"settings": {"size": size, "rounds": args.rounds}, "results": results}
    write(args, content)
    return content


if __name__ == "__main__":
    run_command(main)
