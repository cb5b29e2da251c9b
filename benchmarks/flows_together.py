"""One forward over both flows, padded to the longer, or one for each: which is faster?

    python -m benchmarks.flows_together [--size cpu|phi|qwen3] [--rows 2]

The rows are those of the ``ar`` step: a robot flow and a conversation about an image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.record import arguments, parser, write
from benchmarks.sizes import SIZES, bearable
from benchmarks.step_problem import Problem, problem
from benchmarks.timing import Spread, alternate, clock_of, ratio
from common.arguments import whole
from common.command import run_command
from models.rng import SampleRng
from models.sequence import TokenSequence
from training.batch_to_tasks import bundle, encode_image, encode_views, robot_task, text_task

NAME = "flows_together"
DESCRIPTION = """\
Forward and backward of the backbone over both flows of a step: in two calls of their own lengths, as the package does,
and in one call with the shorter rows padded to the longer. Hidden states are compared first."""
EPILOG = """\
example:
  python -m benchmarks.flows_together --out benchmarks/results/flows_together.json"""


def flows(made: Problem) -> list[TokenSequence]:
    parts = made.parts
    future = robot_task(parts, encode_views(parts, made.robot), 0)
    text = text_task(parts, encode_image(parts, made.text), SampleRng(0, 0))
    tasks = bundle(parts, future, text)
    assert tasks.future is not None
    assert tasks.text is not None
    return [tasks.future.sequence, tasks.text.sequence]


def together(made: Problem, sequences: Sequence[TokenSequence]) -> list[Tensor]:
    """Hidden states of each sequence, by one call."""
    model = made.parts.model
    length = max(one.ids.shape[1] for one in sequences)
    longer = [one.padded(length, made.parts.prompter.vocab.pad) for one in sequences]
    hidden = model.backbone(
        torch.cat([model.embed(one) for one in longer]),
        torch.cat([one.rule.dense(one.slots) for one in longer]),
        torch.cat([one.slots.pos for one in longer]),
    )
    parts = hidden.split([len(one.ids) for one in longer])
    return [part[:, : one.ids.shape[1]] for part, one in zip(parts, sequences, strict=True)]


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    made = parser(NAME, DESCRIPTION, EPILOG)
    made.add_argument("--size", choices=sorted(SIZES), default="cpu", help="which networks (default cpu)")
    made.add_argument("--rows", type=whole(1), default=2, help="robot samples, and conversations (default 2)")
    made.add_argument("--anyway", action="store_true", help="run a real size on a CPU")
    args = made.parse_args(argv)
    bearable(SIZES[args.size], args.device, args.anyway)
    torch.set_num_threads(args.threads)
    posed = problem(SIZES[args.size], "ar", args.device, args.rows)
    model, sequences = posed.parts.model, flows(posed)

    def step(hidden: Callable[[], list[Tensor]]) -> Callable[[], None]:
        def run() -> None:
            model.zero_grad(set_to_none=True)
            torch.autograd.backward(torch.stack([one.square().sum() for one in hidden()]).sum())

        return run

    ways: dict[str, Callable[[], list[Tensor]]] = {
        "one call": lambda: together(posed, sequences),
        "two calls": lambda: [model.hidden_states(one) for one in sequences],
    }
    with torch.no_grad():
        for ours, theirs, one in zip(*(way() for way in ways.values()), sequences, strict=True):
            torch.testing.assert_close(ours[one.slots.valid], theirs[one.slots.valid], rtol=1e-3, atol=1e-4)
    laps = alternate({name: step(way) for name, way in ways.items()}, args.rounds, args.device)
    clock = clock_of(args.device)
    found = {
        "slots": [one.ids.shape[1] for one in sequences],
        "seconds": {name: Spread.of([lap.of(clock) for lap in done]) for name, done in laps.items()},
        "two_calls_times_faster": ratio(laps["one call"], laps["two calls"], clock),
    }
    print(f"rows of {found['slots']} slots: two calls are {found['two_calls_times_faster']} times faster than one")
    write(args.out, NAME, arguments(argv), args.device, args.threads, {"results": found})
    return found


if __name__ == "__main__":
    run_command(main)
