"""One training step by objective, and where its time goes.

    python -m benchmarks.step [--configs config/tiny_{}vla.yaml] [training.batch_size=4 ...]

The step of ``train_upvla.py``, act by act: read, frames to codes, images to patches, tasks, forward, backward,
optimizer. The objectives take turns on the same data.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.memory import peak_of
from benchmarks.record import arguments, chosen_objectives, parser, write
from benchmarks.timing import Lap, Spread, alternate, clock_of, lap, ratio
from common.command import run_command
from config.load import ConfigError, load_job
from config.schema import Job
from models.rng import SampleRng
from models.upvla import Losses
from training.batch_to_tasks import (
    COUNTED,
    Tasks,
    bundle,
    coefficients,
    encode_image,
    encode_views,
    robot_task,
    text_task,
)
from training.build import Parts, setup
from training.data.batch import CoBatch
from training.run import open_run

NAME = "step"
DESCRIPTION = """\
Takes optimizer steps of each text objective, in turn and on the same samples, and reports the time of a step, the
share of each of its parts, and the peak memory of a fresh process. One process, one micro-batch a step."""
EPILOG = """\
examples:
  the embedded models and data (a minute or two on one core):
    python -m benchmarks.step --out benchmarks/results/step.json
  other sizes, keys as in training:
    python -m benchmarks.step training.batch_size_mmu=8 model.gradient_checkpointing=true

{} in --configs stands for ar, mdm and bd."""

READ, FRAMES, IMAGES, PREPARE, FORWARD, BACKWARD, UPDATE = PARTS = (
    "read the data",
    "frames to codes",
    "images to patches",
    "prepare the tasks",
    "forward",
    "backward",
    "optimizer",
)


def job_of(objective: str, configs: str, overrides: Sequence[str], folder: str) -> Job:
    """The run of an objective; what it writes goes to ``folder``."""
    name = configs.replace("{}", objective)
    given = [
        f"config={name}",
        f"experiment.output_dir={folder}",
        "experiment.tracker=none",
        "experiment.eval_every=0",
        *overrides,
    ]
    return load_job(given, None)


class Stepper:
    """Takes optimizer steps and notes what each part of them took. ``batches``: what they are taken with, without end;
    ``autocast``: what the forward runs in."""

    def __init__(
        self,
        parts: Parts,
        batches: Iterator[CoBatch],
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self.parts = parts
        self.steps = 0
        self.noted: list[dict[str, Lap]] = []
        self._autocast, self._batches = autocast, batches
        self._weights = torch.tensor(coefficients(parts.job)).to(parts.device)

    def step(self, around: Callable[[str], AbstractContextManager[Any]] | None = None) -> None:
        """One step; its parts are added to ``noted``. ``around``: what each part, by its name, is done inside of."""
        parts, took, made = self.parts, dict[str, Lap](), dict[str, Any]()

        def part(name: str, work: Callable[[], Any]) -> Any:
            with nullcontext() if around is None else around(name):
                took[name] = lap(lambda: made.update({name: work()}), parts.device)
            return made[name]

        batch = part(READ, lambda: next(self._batches))
        codes = part(FRAMES, lambda: encode_views(parts, batch.robot))
        turn = part(IMAGES, lambda: encode_image(parts, batch.text))
        draws = SampleRng(parts.job.training.seed, self.steps)

        def prepare() -> Tasks:
            return bundle(parts, robot_task(parts, codes, self.steps), text_task(parts, turn, draws))

        tasks = part(PREPARE, prepare)
        with self._autocast():
            losses = part(FORWARD, lambda: parts.model(tasks.future, tasks.text))
        part(BACKWARD, lambda: torch.autograd.backward(self._total(losses, tasks)))
        part(UPDATE, self._update)
        self.steps += 1
        self.noted.append(took)

    def _total(self, losses: Losses, tasks: Tasks) -> torch.Tensor:
        sums = torch.stack([getattr(losses, name).sum for name in COUNTED])
        return (self._weights * sums / tasks.counts.clamp_min(1.0).to(sums.device)).sum()

    def _update(self) -> None:
        limit = self.parts.job.training.max_grad_norm
        if limit is not None:
            torch.nn.utils.clip_grad_norm_(self.parts.model.parameters(), limit)
        self.parts.optimizer.step()
        self.parts.optimizer.zero_grad(set_to_none=True)


@contextmanager
def steppers(objectives: Sequence[str], configs: str, overrides: Sequence[str]) -> Iterator[dict[str, Stepper]]:
    """One for each objective, in one process."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
        jobs = {name: job_of(name, configs, overrides, folder) for name in objectives}
        run = stack.enter_context(open_run(jobs[objectives[0]]))
        made = {name: setup(job, run) for name, job in jobs.items()}
        yield {name: Stepper(parts, iter(parts.data), run.accelerator.autocast) for name, parts in made.items()}


def memory_step(settings: Mapping[str, Any], device: torch.device) -> Callable[[], None]:
    """What a child of ``peak_of`` measures: two steps, as the optimizer's state comes with the first."""
    stack = ExitStack()
    stepper = stack.enter_context(steppers([settings["objective"]], settings["configs"], settings["overrides"]))

    def run() -> None:
        with stack:
            for _ in range(2):
                stepper[settings["objective"]].step()

    return run


def figures(
    noted: Sequence[Mapping[str, Lap]], laps: Sequence[Lap], first: Sequence[Lap], clock: Any
) -> dict[str, Any]:
    """Of one objective: seconds of a step and of its parts, and how many times the first objective's step it takes."""
    whole = Spread.of([one.of(clock) for one in laps])
    parts = {name: Spread.of([took[name].of(clock) for took in noted]) for name in PARTS}
    return {
        "seconds": whole,
        "parts": parts,
        "shares": {name: part.median / whole.median for name, part in parts.items()},
        "times_the_first": ratio(laps, first, clock),
    }


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Milliseconds by part and objective, for people (and for Markdown)."""
    rows = [["CPU or wall milliseconds", *found], ["---"] * (len(found) + 1)]
    rows += [[name, *(f"{1e3 * f['parts'][name].median:.1f}" for f in found.values())] for name in PARTS]
    rows.append(["**step**", *(f"{1e3 * f['seconds'].median:.0f}" for f in found.values())])
    rows.append(["peak memory above the model, MB", *(f"{f['memory_mb']['above']:.0f}" for f in found.values())])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def measure(args: argparse.Namespace, objectives: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Times of all objectives in turn, then the memory of each alone."""
    with tqdm(total=len(objectives) * (args.rounds + 1), desc=NAME, unit="run") as bar:
        with steppers(objectives, args.configs, args.overrides) as made:
            device = made[objectives[0]].parts.device
            laps = alternate({n: s.step for n, s in made.items()}, args.rounds, device, tick=bar.update)
        clock, first = clock_of(device), laps[objectives[0]]
        found = {n: figures(s.noted[-args.rounds :], laps[n], first, clock) for n, s in made.items()}
        for name in objectives:
            settings = {"objective": name, "configs": args.configs, "overrides": args.overrides}
            peak = peak_of("benchmarks.step:memory_step", {**settings, "device": str(device), "threads": args.threads})
            found[name]["memory_mb"] = {"before": peak.before, "above": peak.above, "peak": peak.peak}
            bar.update()
    return found


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    made = parser(NAME, DESCRIPTION, EPILOG)
    made.add_argument("overrides", nargs="*", metavar="key=value", help="of the configuration, as in training")
    made.add_argument("--configs", default="config/tiny_{}vla.yaml", help="run files (config/tiny_{}vla.yaml)")
    made.add_argument("--objectives", default="ar,mdm,bd", help="which, by commas (ar,mdm,bd); ratios are to the first")
    args = made.parse_args(argv)
    wanted = chosen_objectives(made, args.objectives)
    torch.set_num_threads(args.threads)
    try:
        found = measure(args, wanted)
    except ConfigError as error:
        made.error(str(error))
    print(table(found))
    settings = {"configs": args.configs, "overrides": args.overrides, "rounds": args.rounds}
    write(args.out, NAME, arguments(argv), args.device, args.threads, {"settings": settings, "results": found})
    return found


if __name__ == "__main__":
    run_command(main)
