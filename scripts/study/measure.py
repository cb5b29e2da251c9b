"""Measure a finished run of the study: words, actions, closed loop; results by item, in ``measured.json``.

    python -m scripts.study.measure --plan default --run places_ar_seed0

``python -m scripts.study`` starts it for every run. The items are the same for all runs: questions, held-out episodes,
starts of single tasks, chains.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.arguments import command_parser, path_argument
from common.command import progress_bar, report_errors, run_command
from common.files import read_object, write_text
from config.loading import load_job
from config.schema import MMU_INDEX, Job
from policy_rollout.desk.task_sets import TASK_SETS
from scripts.objective_comparison.pairwise import FIRST_STEP
from scripts.objective_comparison.plan import read_metrics, sample_rate
from scripts.study.plan import PLACES, PLANS, Data, Plan, Run, folder_of, plan_of

if TYPE_CHECKING:
    from scripts.desk_evaluation.evaluation import Evaluation

FILE, VERSION = "measured.json", 2
SPOKEN = "success, spoken"
"""Success of the sentences of a run whose words are actions."""
SPOKEN_LESS = f"{SPOKEN} less regressed"
WAYS = ("spoken", "regressed")
"""Two ways to chunks of actions: ``language`` and the run's own decoder."""
TIMED = 12
"""Answers that are generated one at a time, for latency."""


@dataclass
class Measured:
    """Results of a run: metric -> (values, weights) by item; ``numbers``: single figures, without items.

    ``first_step``: losses of the first training step by name; ``samples_per_s``: of training, if it was logged;
    ``seconds``: CPU time of the measurement.
    """

    values: dict[str, list[float]] = field(default_factory=dict)
    weights: dict[str, list[float]] = field(default_factory=dict)
    numbers: dict[str, float] = field(default_factory=dict)
    first_step: dict[str, float] = field(default_factory=dict)
    samples_per_s: float | None = None
    seconds: float = 0.0

    def add(self, metric: str, values: Sequence[float], weights: Sequence[float] | None = None) -> None:
        self.values[metric] = [float(value) for value in values]
        self.weights[metric] = [1.0] * len(values) if weights is None else [float(weight) for weight in weights]


def read_measured(run: Run, plan: Plan, folder: Path) -> Measured | None:
    """Return the stored results of a run; None if there are none, or of other sizes or another version."""
    file = folder_of(run, folder) / FILE
    if not file.is_file():
        return None
    found = json.loads(file.read_text(encoding="utf-8"))
    return Measured(**found["results"]) if found["made_with"] == _made_with(plan) else None


def _made_with(plan: Plan) -> dict[str, Any]:
    sizes = plan.sizes
    return {"version": VERSION, "sizes": {name: getattr(sizes, name) for name in MEASURED_SIZES}}


MEASURED_SIZES = ("tried", "controls", "chains", "questions", "frames")


def measure(run: Run, plan: Plan, data: Data, folder: Path) -> Measured:
    """Measure a run and store the results."""
    started, found, output = time.process_time(), Measured(), folder_of(run, folder)
    job = load_job([f"config={output / 'config.yaml'}"], None)
    if run.speaks:
        _measure_words(found, run, job, plan, data, output)
    if run.stage == 2:
        _measure_actions(found, run, job, plan, data, output)
        _measure_closed_loop(found, run, plan, output)
    lines = read_metrics(output / "metrics.jsonl")
    if lines and lines[0]["step"] == 1:
        found.first_step = {name: lines[0][name] for name in FIRST_STEP if name in lines[0]}
    found.samples_per_s = sample_rate(lines)
    found.seconds = time.process_time() - started
    content = {"made_with": _made_with(plan), "run": asdict(run), "results": asdict(found)}
    write_text(output / FILE, json.dumps(content) + "\n")
    return found


# --- words ------------------------------------------------------------------------------------------------------------


def _measure_words(found: Measured, run: Run, job: Job, plan: Plan, data: Data, output: Path) -> None:
    from models.pretrained.model_io import load_folder
    from policy_rollout.policies.upvla import pick_device
    from scripts.objective_comparison.evaluate import HeldOut, evaluate_text, read_held_out

    built, held_out = load_folder(output, pick_device()), data.words(run.words)[1]
    everything = read_held_out(job, held_out)
    chosen = evenly(len(everything.questions), plan.sizes.questions)
    asked = HeldOut(tuple(everything.questions[i] for i in chosen), everything.patches)
    with progress_bar(total=3 * len(chosen), desc="words", unit="question") as bar:
        words = evaluate_text(built, job, asked, bar.update)
    tokens = np.array(words.tokens, float)
    found.add("exact match", words.exact)
    found.add("nats per token", np.array(words.nats) / tokens, tokens.tolist())
    found.add("token accuracy", np.array(words.right_tokens) / tokens, tokens.tolist())
    found.add("image use of words", np.array(words.exact, float) - np.array(words.exact_shuffled, float))
    if run.words == PLACES:
        ids = _ids(held_out)
        _measure_places(found, words.answers, [ids[i] for i in chosen], held_out)
    _measure_latency(found, built, asked, job.max_new_tokens)


def _ids(held_out: Path) -> list[str]:
    """Return the ids of the questions, in the order of ``read_held_out``."""
    from policy_rollout.benchmarks.vqa.questions import read_questions

    return [question.id for question in read_questions("conversations", [held_out / MMU_INDEX])]


def _measure_places(found: Measured, answers: Sequence[str], ids: Sequence[str], held_out: Path) -> None:
    """Add the distance between the cell that an answer names and the true place, in mm.

    An answer without a cell counts as the cell that is farthest from the place.
    """
    from preprocess_data.place_questions import grid
    from preprocess_data.place_questions.__main__ import TRUTHS

    truths = read_object(held_out / TRUTHS, "preprocess_data.place_questions writes it")
    pairs = [(text, truths[name]) for text, name in zip(answers, ids, strict=True) if name in truths]
    errors = [grid.error_mm(text, place) for text, place in pairs]
    found.add("place error", [farthest_mm(p) if e is None else e for e, (_, p) in zip(errors, pairs, strict=True)])
    found.numbers["answers without a cell"] = float(np.mean([error is None for error in errors])) if errors else 0.0


def farthest_mm(place: Sequence[float]) -> float:
    """Return the distance in mm between a place and the centre of the cell that is farthest from it."""
    from preprocess_data.place_questions import grid

    corners = [(column, row) for column in (1, grid.COLUMNS) for row in (1, grid.ROWS)]
    centres = [grid.cell_centre(f"column {column}, row {row}") for column, row in corners]
    return max(1000 * math.dist(centre, tuple(place)[:2]) for centre in centres if centre is not None)


def _measure_latency(found: Measured, built: Any, asked: Any, longest: int) -> None:
    """Add the time of an answer (CPU time on a CPU) as the model decodes by default, one at a time."""
    from models.decoding import generate

    clock = time.process_time if built.model.device.type == "cpu" else time.perf_counter
    seconds, tokens, forwards = [], 0, 0
    for number, question in enumerate([asked.questions[0], *asked.questions[:TIMED]]):
        patches = asked.patches_of([question]).to(built.model.device)
        started = clock()
        done = generate(built.model, built.prompter, [question.text], patches, longest)
        if number:  # the first one warms up
            seconds.append(clock() - started)
            tokens, forwards = tokens + done.stats.tokens, forwards + done.stats.forwards
    found.numbers["ms per answer"] = 1000 * float(np.median(seconds))
    found.numbers["tokens per forward"] = tokens / max(forwards, 1)


# --- actions ----------------------------------------------------------------------------------------------------------


def _measure_actions(found: Measured, run: Run, job: Job, plan: Plan, data: Data, output: Path) -> None:
    """Add the mean absolute error of the actions in held-out frames; an item is an episode of the split."""
    from policy_rollout.policies.interface import Observation
    from policy_rollout.policies.upvla import UPVLAPolicy
    from training.future_view_prediction_w_action_dataset import DataProvider

    policy = UPVLAPolicy.from_config(output / "config.yaml", checkpoint=output)
    frames = DataProvider(data.actions(run.tasks)[1], act_step=job.act_step, resolution=1, num_view=2)
    errors: dict[int, list[tuple[float, int]]] = {}
    chosen = evenly(len(frames), plan.sizes.frames)
    for start in range(0, len(chosen), 32):
        rows, observations = chosen[start : start + 32], []
        for row in rows:
            static, gripper = frames.images(row)
            words = frames.data.instruction(int(frames.data.episode_of[row]))
            assert frames.data.states is not None
            observations.append(Observation(static, words, rgb_gripper=gripper, robot_obs=frames.data.states[row]))
        for row, predicted in zip(rows, policy.act(observations), strict=True):
            _, true, is_pad = frames.chunk(row)
            error = np.abs(predicted - true)[~is_pad].mean(axis=1)
            errors.setdefault(int(frames.data.episode_of[row]), []).append((float(error.sum()), len(error)))
    sums = [tuple(map(sum, zip(*of_episode, strict=True))) for of_episode in errors.values()]
    found.add("action MAE", [total / max(steps, 1) for total, steps in sums], [steps for _, steps in sums])


def _measure_closed_loop(found: Measured, run: Run, plan: Plan, output: Path) -> None:
    """Add success, tasks in a row, and what another instruction, colour or image changes."""
    from scripts.desk_evaluation.evaluation import COLOUR, FOREIGN, MODEL, WRONG, Evaluation

    tasks, sizes = TASK_SETS[run.tasks], plan.sizes
    tried = Evaluation(output, "auto", tasks, sizes.tried, sizes.chains, output / "closed_loop")
    controls = replace(tried, episodes=min(sizes.controls, sizes.tried), chains=0, stored=output / "controls")
    model = tried.outcome(MODEL)
    found.add("success", model.done)
    found.add("tasks in a row", model.chains)
    for group, members in groups_of(tasks.tasks).items():
        kept = [done for index, done in model.by_episode.items() if tasks.tasks[index % len(tasks.tasks)] in members]
        found.add(f"success: {group}", kept)
    names = {"follows the task": WRONG, "image use of actions": FOREIGN}
    names |= {"follows the colour": COLOUR} if tasks.colour_tasks else {}
    for metric, control in names.items():
        other = controls.outcome(control).by_episode
        found.add(metric, [model.by_episode[index] - done for index, done in other.items()])
    if run.acts_by_words:
        _measure_spoken(found, tried, controls)
    for part, (change, size) in controls.sensitivity().items():
        found.numbers[f"change of actions: {part}"] = change / max(size, 1e-9)


def _measure_spoken(found: Measured, regressed: Evaluation, controls: Evaluation) -> None:
    """Add the success of spoken sentences in place of the regression head's actions, in the same episodes."""
    from scripts.desk_evaluation.evaluation import MODEL

    spoken = replace(regressed, chains=0, stored=regressed.folder / "spoken", action_decoder="language")
    outcome = spoken.outcome(MODEL)
    found.add(SPOKEN, outcome.done)
    before = regressed.outcome(MODEL).by_episode
    found.add(SPOKEN_LESS, [outcome.by_episode[index] - done for index, done in before.items()])
    frames = [observation for _, observation in controls.frames]
    for name, policy in zip(WAYS, (spoken.trained, regressed.trained), strict=True):
        policy.warm_up()
        started = time.process_time()
        for observation in frames:
            policy.act([observation])
        found.numbers[f"ms per {name} chunk"] = 1000 * (time.process_time() - started) / len(frames)
    assert spoken.trained.speaker is not None
    counts = spoken.trained.speaker.spoken
    found.numbers["forwards per spoken chunk"] = spoken.trained.forwards_per_chunk
    found.numbers["sentences outside the grammar"] = counts.unparsable / counts.sentences


def groups_of(tasks: Sequence[str]) -> Mapping[str, list[str]]:
    """Return the tasks by group."""
    names = {"rotate": "rotate", "push": "push", "lift": "lift", "place": "place", "stack": "stack", "unstack": "stack"}
    found: dict[str, list[str]] = {}
    for task in tasks:
        group = names.get(task.split("_")[0], "doors and lights") if task != "push_into_drawer" else "place"
        found.setdefault(group, []).append(task)
    return found


def evenly(length: int, limit: int) -> list[int]:
    """Return at most ``limit`` numbers, evenly spaced in ``range(length)``."""
    count = min(length, limit)
    return [i * length // count for i in range(count)]


@report_errors("study.measure")
def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    plan = plan_of(args.plan, args.sizes)
    run = next((run for run in plan.runs if run.name == args.run), None)
    if run is None:
        raise ValueError(f"--run {args.run}: plan {plan.name} has no such run; python -m scripts.study --dry-run")
    if not (folder_of(run, args.output_dir) / "model.safetensors").is_file():
        raise FileNotFoundError(f"--run {args.run}: {folder_of(run, args.output_dir)} has no trained model yet")
    found = measure(run, plan, Data(args.data), args.output_dir)
    print(f"done: {folder_of(run, args.output_dir) / FILE}, {found.seconds:.0f} s of CPU")
    return 0


def _parser() -> argparse.ArgumentParser:
    made = command_parser(__doc__, prog="python -m scripts.study.measure")
    add = made.add_argument
    add("--run", required=True, help="name of a run, as --dry-run of the study prints it")
    add("--plan", choices=list(PLANS), default="default", help="plan of the run (default: %(default)s)")
    add("--sizes", default="", metavar="NAME=N,...", help="other sizes than the plan's, as in the study")
    add("--data", type=path_argument, default=Path("data/study"), help="data of the study (default: %(default)s)")
    output = "folder of the study (default: %(default)s)"
    add("--output-dir", type=path_argument, default=Path("results/study"), help=output)
    return made


if __name__ == "__main__":
    run_command(main)
