"""Train and measure the runs of a plan, several at a time and on several machines; a killed command resumes.

Ranks share the runs: a rank has all runs of some pairs of words, objective and seed, so that a run of stage 2 and the
run that it starts from are on one rank. Nothing but the folder of the study has to be common to them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from common.command import progress_bar
from config.identity import difference, settings_in, settings_of
from config.loading import load_job
from scripts.objective_comparison.plan import read_metrics, sample_rate
from scripts.objective_comparison.processes import Work, run_works
from scripts.study.measure import read_measured
from scripts.study.plan import Data, Plan, Run, command, folder_of

MEASURE = "measure "


@dataclass(frozen=True)
class Study:
    """A plan with its folders. ``sizes``: how its sizes were changed, as ``plan_of`` reads it."""

    plan: Plan
    data: Data
    folder: Path
    sizes: str = ""

    def trained(self, run: Run) -> bool:
        return (folder_of(run, self.folder) / "model.safetensors").is_file()

    def measured(self, run: Run) -> bool:
        return read_measured(run, self.plan, self.folder) is not None

    def no_longer_needs_training(self, run: Run) -> bool:
        """Return True if a run is trained, or if it and all runs that start from it are measured."""
        followers = (other for other in self.plan.runs if other.start == run)
        return self.trained(run) or (self.measured(run) and all(map(self.no_longer_needs_training, followers)))

    def require_same_settings(self) -> None:
        """Raise ``ValueError`` if a run in the folder was trained with other settings than the plan's."""
        for run in self.plan.runs:
            stored = settings_in(folder_of(run, self.folder) / "config.yaml")
            if stored is None:
                continue
            job = load_job(command(run, self.plan, self.data, self.folder)[2:], None)
            if other := difference(stored, settings_of(job)):
                where = folder_of(run, self.folder)
                raise ValueError(f"{where} was trained with {other}; give another --output-dir, or delete that folder")

    def works(self, rank: int, world: int) -> list[Work]:
        """Return the training and the measurement of every run of a rank."""
        found = []
        for run in self.of_rank(rank, world):
            log, start = folder_of(run, self.folder), run.start
            after = () if start is None else (start.name,)
            train = command(run, self.plan, self.data, self.folder)
            found.append(Work(run.name, train, log / "train.log", _bind(self.no_longer_needs_training, run), after))
            given = ["--plan", self.plan.name, "--run", run.name, "--data", str(self.data.root)]
            given += ["--sizes", self.sizes] if self.sizes else []
            measure = [sys.executable, "-m", "scripts.study.measure", *given, "--output-dir", str(self.folder)]
            done = _bind(self.measured, run)
            found.append(Work(MEASURE + run.name, measure, log / "measure.log", done, (run.name,)))
        return sorted(found, key=lambda work: not work.name.startswith(MEASURE))  # results as early as possible

    def of_rank(self, rank: int, world: int) -> list[Run]:
        groups = list(dict.fromkeys((run.words, run.objective, run.seed) for run in self.plan.runs))
        own = set(groups[rank::world])
        return [run for run in self.plan.runs if (run.words, run.objective, run.seed) in own]

    def work(self, rank: int, world: int, processes: int, report: Callable[[], object]) -> list[str]:
        """Do the work of a rank; call ``report`` after every measurement. Returns the failures."""
        works, failures = self.works(rank, world), list[str]()
        total, done = len(works), sum(work.finished() for work in works)
        with (
            progress_bar(total=total, initial=done, desc="study", unit="work") as bar,
            closing(run_works(works, processes)) as ended,
        ):
            for work, failure in ended:
                if failure is not None:
                    failures.append(failure)
                    bar.write(f"failed: {failure}", file=sys.stderr)
                    continue
                done += 1
                bar.update()
                bar.write(f"{done}/{total} {work.name}")
                if work.name.startswith(MEASURE):
                    report()
        return failures


def _bind(question: Callable[[Run], bool], run: Run) -> Callable[[], bool]:
    return lambda: question(run)


# --- cost ------------------------------------------------------------------------------------------------------------

STEP_SECONDS = {"ar": 0.32, "mdm": 0.45, "bd": 0.45, "joint": 0.48}
"""Assumed seconds of a step of stage 1 on one core, until a similar run has begun; those of the first study
(benchmarks/results/2026-12-01_study)."""
ACT_SECONDS, TEXT_SECONDS, IMAGE_FACTOR = 0.22, 0.15, 1.5
"""The same of stage 2, of its text, and the image loss's factor."""
MEASURE_SECONDS = {1: 10.0, 2: 60.0}


def estimate(run: Run, study: Study) -> float:
    """Return the seconds of one core that a run still needs, from similar runs as far as there are some."""
    if study.measured(run):
        return 0.0
    sizes, alike = study.plan.sizes, [other for other in study.plan.runs if _is_like(other, run)]
    seconds = [found.seconds for other in alike if (found := read_measured(other, study.plan, study.folder))]
    measure = median(seconds) if seconds else MEASURE_SECONDS[run.stage] * min(1.0, sizes.tried / 68)
    if study.trained(run):
        return measure
    lines = read_metrics(folder_of(run, study.folder) / "metrics.jsonl")
    steps = sizes.steps_words if run.stage == 1 else sizes.steps_act
    left = steps - (int(lines[-1]["step"]) if lines else 0)
    taken = [step for other in alike if (step := _step_seconds(other, study)) is not None]
    return measure + left * (median(taken) if taken else _assumed_step_seconds(run, study.plan))


def _is_like(run: Run, other: Run) -> bool:
    """Return True if steps of both cost the same."""

    def kind(one: Run) -> tuple[object, ...]:
        return one.stage, one.objective if one.text else "", one.tasks, one.image, one.text > 0, one.insulated

    return kind(run) == kind(other)


def _step_seconds(run: Run, study: Study) -> float | None:
    """Return the seconds of a step that a run has logged; None without any."""
    lines, sizes = read_metrics(folder_of(run, study.folder) / "metrics.jsonl"), study.plan.sizes
    rate = sample_rate(lines)
    if rate is None:
        return None
    words = sizes.batch_words if run.stage == 1 else sizes.batch_words_act * (run.speaks and run.text > 0)
    return ((sizes.batch_images if run.stage == 1 else sizes.batch_act) + words) / rate


def _assumed_step_seconds(run: Run, plan: Plan) -> float:
    sizes = plan.sizes
    if run.stage == 1:
        return STEP_SECONDS[run.objective] * sizes.batch_words / 16
    text = TEXT_SECONDS * sizes.batch_words_act / 8 if run.speaks and run.text > 0 else 0.0
    return ACT_SECONDS * sizes.batch_act / 32 * (IMAGE_FACTOR if run.image else 1) + text
