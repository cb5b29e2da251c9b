"""The text step: prefix and clean answer shared by all views and logits of scored slots only, against a pass per view
with full logits.

    python -m benchmarks.text_layout [--objectives bd,mdm,ar] [--prefix 620] [--answer 100] [--hidden 256]

Both compute the same loss and the same gradients, which is checked before anything is timed. The reference is
``tests/benchmarks/naive_text.py``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PhiConfig

from benchmarks.memory import Peak, peak_of
from benchmarks.record import arguments, chosen_objectives, parser, write
from benchmarks.timing import Spread, alternate, clock_of, ratio
from common.command import run_command
from config.schema import Job, Objective
from models.objectives import TextTask, text_objective
from models.pretrained.model_config import ModelConfig
from models.rng import SampleRng
from models.sequence import TextTurn
from models.upvla import UPVLA
from tests.benchmarks.naive_text import Passes, loss, passes

NAME = "text_layout"
DESCRIPTION = """\
Forward and backward of the text loss, two ways: the package's one sequence [P | x0 | v1 | v2] with logits of the
scored slots, and the reference's pass per view ([P x0 | P v1], [P x0 | P v2]) with logits of every slot. Times are
ratios of alternating runs; memory is the peak of a fresh process for each. Losses and gradients are compared first."""
EPILOG = """\
examples:
  the figures of the documentation (about three minutes on one core):
    python -m benchmarks.text_layout --out benchmarks/results/text_layout.json
  a look, in seconds:
    python -m benchmarks.text_layout --prefix 60 --patches 20 --answer 20 --hidden 64 --words 500 --rounds 3"""

SYSTEM_WORDS = 28  # LLaVA's system prompt in Phi-1.5's tokenizer
CLIP_WIDTH = 1024
FRAME_WORDS = 3  # <|mmu|>, <|soi|>, <|eoi|>
SAME_LOSS, SAME_GRADIENT = 1e-5, 1e-3
"""Largest relative differences that float32 sums of different order explain."""


@dataclass(frozen=True)
class Size:
    """One problem. Defaults: Phi-1.5's vocabulary with Show-o's codes (58,498 ids), an image of 576 patches."""

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
        if self.prefix <= self.fixed:
            raise ValueError(f"--prefix {self.prefix}: image and system prompt alone take {self.fixed}; make it more")

    @property
    def fixed(self) -> int:
        """Prefix slots that are no question."""
        return FRAME_WORDS + SYSTEM_WORDS + self.patches


@dataclass(frozen=True)
class Problem:
    """A model, a task for it, and the same as separate passes."""

    model: UPVLA
    task: TextTask
    naive: Passes

    def package_loss(self) -> Tensor:
        total, _ = self.model.text_loss(self.task)
        return total.mean

    def naive_loss(self) -> Tensor:
        return loss(self.model, self.naive)

    def step(self, which: str) -> Callable[[], None]:
        """Forward and backward; gradients are made anew, as the trainer does."""
        value = {"package": self.package_loss, "naive": self.naive_loss}[which]

        def run() -> None:
            self.model.zero_grad(set_to_none=True)
            torch.autograd.backward(value())

        return run


def problem(size: Size, objective: Objective, device: torch.device) -> Problem:
    """Random words about a random image; the same for the same size and objective."""
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
    asked = size.prefix - size.fixed
    ids = torch.randint(1, size.words, (size.batch, asked + size.answer))
    ids[:, -1] = spec.eos
    answer = torch.arange(ids.shape[1]) >= asked
    turn = TextTurn(ids, answer.expand_as(ids), torch.randn(size.batch, size.patches, CLIP_WIDTH))
    job = Job()
    job.block_diffusion.block_size = job.text_mdm.canvas_multiple = size.block_size
    job.training.text_objective = objective
    system = list(range(1, 1 + SYSTEM_WORDS))
    task = text_objective(job).prepare(model.vocab, system, turn, SampleRng(seed=0))
    naive = passes(model, system, turn, task)
    return Problem(model.to(device), task.to(device), naive.to(device))


def memory_step(settings: Mapping[str, Any], device: torch.device) -> Callable[[], None]:
    """What a child of ``peak_of`` measures."""
    made = problem(Size(**settings["size"]), settings["objective"], device)
    return made.step(settings["variant"])


def differences(made: Problem) -> dict[str, float]:
    """Relative difference of the losses, and of the gradients as one vector (the largest of all parameters)."""
    gradients = []
    losses = []
    for value in (made.package_loss, made.naive_loss):
        made.model.zero_grad(set_to_none=True)
        result = value()
        torch.autograd.backward(result)
        losses.append(float(result.detach()))
        gradients.append({n: p.grad.clone() for n, p in made.model.named_parameters() if p.grad is not None})
    made.model.zero_grad(set_to_none=True)
    ours, theirs = gradients
    assert ours.keys() == theirs.keys(), "both ways reach the same parameters"
    worst = max(float((ours[name] - theirs[name]).norm() / theirs[name].norm().clamp_min(1e-6)) for name in ours)
    return {"loss": losses[0], "loss_difference": abs(losses[0] / losses[1] - 1), "gradient_difference": worst}


def compare(size: Size, objective: Objective, args: argparse.Namespace, bar: tqdm[None]) -> dict[str, Any]:
    """One objective: equality, times, memory."""
    made = problem(size, objective, args.device)
    same = differences(made)
    bar.update()
    if same["loss_difference"] > SAME_LOSS or same["gradient_difference"] > SAME_GRADIENT:
        raise SystemExit(f"{objective}: the two ways do not compute the same: {same}; nothing was timed")
    steps = {which: made.step(which) for which in ("package", "naive")}
    laps = alternate(steps, args.rounds, args.device, tick=bar.update)
    clock = clock_of(args.device)
    found: dict[str, Any] = {
        "same": same,
        "slots": {
            "package": made.task.sequence.ids.numel(),
            "naive": made.naive.ids.numel(),
            "scored": int(made.task.rows.numel()),
        },
        "clock": clock,
        "seconds": {which: Spread.of([lap.of(clock) for lap in done]) for which, done in laps.items()},
        "times_faster": ratio(laps["naive"], laps["package"], clock),
    }
    del made, steps
    peaks: dict[str, Peak] = {}
    for which in ("package", "naive"):
        settings = {"size": vars(size), "objective": objective, "variant": which}
        circumstances = {"device": str(args.device), "threads": args.threads}
        peaks[which] = peak_of("benchmarks.text_layout:memory_step", {**settings, **circumstances})
        bar.update()
    return {
        **found,
        "memory_mb": {which: {"before": p.before, "above": p.above, "peak": p.peak} for which, p in peaks.items()},
        "memory_share": {
            "above": peaks["package"].above / peaks["naive"].above,
            "peak": peaks["package"].peak / peaks["naive"].peak,
        },
    }


def line(objective: str, found: Mapping[str, Any]) -> str:
    """One objective, for people."""
    seconds, memory, share = found["seconds"], found["memory_mb"], found["memory_share"]
    return (
        f"{objective}: {found['slots']['package']} slots instead of {found['slots']['naive']}; "
        f"{seconds['package'].median:.3g} s instead of {seconds['naive'].median:.3g} s, "
        f"{found['times_faster']} times faster; "
        f"{memory['package']['above']:.0f} MB instead of {memory['naive']['above']:.0f} MB above the model "
        f"({share['above']:.2f}), {memory['package']['peak']:.0f} instead of {memory['naive']['peak']:.0f} MB "
        f"in all ({share['peak']:.2f})"
    )


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    made = parser(NAME, DESCRIPTION, EPILOG)
    made.add_argument("--objectives", default="bd,mdm,ar", help="which, by commas (default bd,mdm,ar)")
    for field, meaning in (
        ("prefix", "slots before the answer, image and system prompt among them"),
        ("answer", "words of the answer"),
        ("hidden", "width of the backbone, a Phi"),
        ("layers", "its layers"),
        ("batch", "conversations"),
        ("block_size", "words per block; the answer is continued to a multiple"),
        ("patches", "of the image"),
        ("words", "of the tokenizer; 8192 image codes and 11 more ids come on top"),
    ):
        default = getattr(Size, field)
        made.add_argument(f"--{field.replace('_', '-')}", type=int, default=default, help=f"{meaning} ({default})")
    args = made.parse_args(argv)
    names = chosen_objectives(made, args.objectives)
    try:
        size = Size(**{field: getattr(args, field) for field in vars(Size()) if hasattr(args, field)})
    except ValueError as error:
        made.error(str(error))
    torch.set_num_threads(args.threads)
    with tqdm(total=len(names) * (3 + 2 * args.rounds), desc=NAME, unit="run") as bar:
        results = {name: compare(size, name, args, bar) for name in names}
    for name, found in results.items():
        print(line(name, found))
    content = {"settings": {"size": size, "rounds": args.rounds}, "results": results}
    write(args.out, NAME, arguments(argv), args.device, args.threads, content)
    return content


if __name__ == "__main__":
    run_command(main)
