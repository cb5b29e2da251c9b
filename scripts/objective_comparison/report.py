"""Write the comparison as ``summary.md``, ``summary.json`` and a figure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.atomic_file import replace_text
from policy_rollout.calvin.sequences import success_rates
from policy_rollout.desk.doors_and_lights import CHAIN_LENGTH, MAX_STEPS, REPLAN_EVERY, SCENE
from policy_rollout.intervals import Interval
from policy_rollout.paired import markdown_table, percent, points, probability
from preprocess_data.embedded.questions import blind_floor
from scripts.objective_comparison.evaluate import HeldOut, RunResult, Speed
from scripts.objective_comparison.figure import Bars, draw_figure
from scripts.objective_comparison.pairwise import (
    ACTION,
    EXACT,
    LENGTH,
    NATS,
    SHUFFLED,
    TOKENS,
    FirstStep,
    PairResult,
    by_kind,
    compare_pairs,
    drawing_error,
    image_gain,
    interval,
    metrics_of,
    questions_and_answers,
)
from scripts.objective_comparison.plan import Plan, read_curve

FIGURE = "curves.png"
CLEAR_GAIN = 0.25
"""Gain in exact match from the right image above which a model clearly needs the image."""


@dataclass(frozen=True)
class Findings:
    """All results of a comparison.

    ``results``, ``blind``: objective -> its runs, by seed; ``kinds``: kind of each question; ``mean_action``: metrics
    of the best constant action; ``notes``: further remarks for the reader.
    """

    plan: Plan
    held_out: HeldOut
    kinds: Sequence[str]
    results: Mapping[str, Sequence[RunResult]]
    blind: Mapping[str, Sequence[RunResult]]
    speeds: Mapping[str, Speed]
    first: Sequence[FirstStep]
    mean_action: Mapping[str, float]
    notes: Sequence[str]
    command: str
    machine: str
    date: str

    @property
    def floor(self) -> float:
        return blind_floor(questions_and_answers(self.held_out))


def write_report(found: Findings) -> list[Path]:
    """Write ``summary.md``, ``summary.json`` and the figure to the plan's folder; return their paths."""
    folder = found.plan.folder
    answers = compare_pairs(found.results)
    paths = [folder / "summary.md", folder / "summary.json", folder / FIGURE]
    draw(found, paths[2])
    replace_text(paths[1], json.dumps(as_json(found, answers), indent=1) + "\n")
    replace_text(paths[0], as_markdown(found, answers))
    return paths


# --- markdown ---------------------------------------------------------------------------------------------------------


def as_markdown(found: Findings, answers: Sequence[PairResult]) -> str:
    parts = [
        _opening(found),
        f"![Curves and held-out figures]({FIGURE})",
        _text_section(found),
        _action_section(found),
        *([_closed_loop_section(found)] if LENGTH in metrics_of(found.results) else []),
        _answers_section(found, answers),
        _first_step_section(found),
        _caution(found),
    ]
    return "\n\n".join(parts) + "\n"


def _opening(found: Findings) -> str:
    plan, budget = found.plan, found.plan.budget
    seeds = ", ".join(map(str, plan.seeds))
    extra = f" Overrides: `{' '.join(budget.overrides)}`." if budget.overrides else ""
    return (
        f"# Text objectives side by side\n\n`{found.command}`, {found.date}, {found.machine}.\n\n"
        f"Each objective: {budget.steps} steps of {budget.batch_size_pre} robot samples and {budget.batch_size_mmu} "
        f"conversations, learning rate {budget.learning_rate:g}, "
        f"seed{'s' if len(plan.seeds) > 1 else ''} {seeds}, same data order, same starting weights, "
        f"all three losses.{extra} Evaluated on {len(found.held_out.questions)} held-out questions and "
        f"{int(found.mean_action['samples'])} held-out frames. Brackets are 95 % intervals."
        + "".join(f" {note}" for note in found.notes)
    )


def _text_section(found: Findings) -> str:
    rows = []
    for name, runs in found.results.items():
        nats, error, speed = interval(NATS, runs), drawing_error(runs), found.speeds[name]
        rows.append(
            [
                name,
                ("" if name == "ar" else "≤ ") + f"{nats:.3f}" + (f" (± {error:.3f} by drawing)" if error else ""),
                percent(interval(EXACT, runs)),
                percent(interval(TOKENS, runs)),
                percent(interval(SHUFFLED, runs)),
                *([percent(interval(EXACT, found.blind[name]))] if found.blind else []),
                f"{cut_answers(runs)} of {sum(len(results.words.cut) for results in runs)}",
                f"{1000 * float(np.median(speed.seconds)):.0f}",
                f"{speed.tokens_per_second:.0f}",
                f"{speed.tokens_per_forward:.2f}",
            ]
        )
    head = ["objective", "nats per token", "exact match", "token accuracy", "exact, shuffled images"]
    head += ["exact, trained blind"] if found.blind else []
    head += ["cut answers", "ms per answer", "tokens/s", "tokens per forward"]
    kinds = list(dict.fromkeys(found.kinds))
    by_name = {name: by_kind(found.kinds, EXACT, runs) for name, runs in found.results.items()}
    floors = {kind: _floor_of(found, kind) for kind in kinds}
    kind_rows = [[name, *(f"{100 * of_kinds[k]:.0f}" for k in kinds)] for name, of_kinds in by_name.items()]
    kind_rows.append(["best blind guess", *(f"{100 * floors[k]:.0f}" for k in kinds)])
    text = (
        "## Text\n\n"
        + markdown_table(head, rows)
        + "\n\nThe likelihood of `ar` is exact; that of `mdm` and `bd` is a bound, "
        "drawn several times for each question. Answers that did not end within max_new_tokens "
        "are cut. Times are of one answer at a time, the objectives alternating. "
        f"The best fixed answer to each question is right in {100 * found.floor:.0f} %.\n\n" + _image_section(found)
    )
    return text + "\n\nExact match by kind of question, in %:\n\n" + markdown_table(["", *kinds], kind_rows)


def _image_section(found: Findings) -> str:
    """Report whether each objective's answers depend on the image."""
    lines = []
    for name, runs in found.results.items():
        others: list[tuple[str, Sequence[RunResult] | None]] = [("another question's image", None)]
        others += [("a model trained and evaluated with blank images", found.blind[name])] if found.blind else []
        for what, blind in others:
            gap = image_gain(runs, blind)
            clear = (
                "clearly needs" if gap.interval.low > CLEAR_GAIN else "needs" if gap.clear else "is not shown to need"
            )
            lines.append(f"* `{name}` {clear} the image: {points(gap.interval)} points above {what}.")
    return "\n".join(lines) + "\n\n(Clearly: the interval stays above 25 points.)"


def _action_section(found: Findings) -> str:
    columns = {
        "MAE": "mae_all",
        "RMSE": "rmse_all",
        "MAE position": "mae_pos",
        "MAE rotation": "mae_rot",
        "MAE gripper": "mae_gripper",
        "gripper sign": "gripper_sign_acc",
    }
    rows = []
    for name, runs in found.results.items():
        means = {key: float(np.mean([results.actions.overall[key] for results in runs])) for key in columns.values()}
        error = interval(ACTION, runs)
        rows.append([name, f"{error:.3f}", *(f"{means[key]:.3f}" for title, key in columns.items() if title != "MAE")])
    rows.append(["mean action", *(f"{found.mean_action[key]:.3f}" for key in columns.values())])
    count = len(next(iter(found.results.values()))[0].actions.errors)
    return (
        "## ActionResult\n\n"
        + markdown_table(["objective", *columns], rows)
        + "\n\nErrors on recorded actions, not success; "
        f"intervals over {count} stretches of consecutive frames. A policy that is not below `mean action` has not "
        "learned from the images yet."
    )


def _closed_loop_section(found: Findings) -> str:
    rows = []
    for name, runs in found.results.items():
        chains = [length for results in runs for length in results.chains]
        rates = success_rates(chains, CHAIN_LENGTH)
        rows.append([name, f"{interval(LENGTH, runs):.2f}", *(f"{100 * rate:.0f} %" for rate in rates)])
    head = ["objective", "tasks in a row [95 %]", *(f"{k + 1} of {CHAIN_LENGTH}" for k in range(CHAIN_LENGTH))]
    return (
        "## Closed loop\n\n"
        + markdown_table(head, rows)
        + f"\n\n{len(next(iter(found.results.values()))[0].chains)} chains of "
        f"{CHAIN_LENGTH} doors and lights on the desk (scene {SCENE}, {MAX_STEPS} control steps for a task, replanned "
        f"every {REPLAN_EVERY}), the same ones for all."
    )


def _answers_section(found: Findings, answers: Sequence[PairResult]) -> str:
    rows = []
    for pair in answers:
        apart = pair.difference.interval
        shown = f"{points(apart)} points" if pair.metric.unit == "share" else f"{apart:+.3f}"
        rows.append(
            [
                f"{pair.first} − {pair.second}",
                pair.metric.name,
                shown,
                probability(pair.probability_better),
                pair.words,
            ]
        )
    seeds = len(found.plan.seeds)
    reach = (
        "One seed: the intervals cover other questions and frames, not another training run."
        if seeds == 1
        else f"Questions and the {seeds} seeds are resampled together; {seeds} seeds are few."
    )
    return (
        "## Is one better?\n\nThe same held-out items for both, difference by item, 10,000 bootstrap resamples. "
        f"{reach} {len(answers)} comparisons at 95 %: about one in twenty appears clear by chance. Nats of `ar` are "
        "exact and those of the others are a bound, so nats can be unfair to `mdm` and `bd`, not to `ar`.\n\n"
        + markdown_table(["", "in", "difference", "P(first is better)", "answer"], rows)
    )


def _first_step_section(found: Findings) -> str:
    rows = []
    for first in found.first:
        for loss, of_runs in first.losses.items():
            values = sorted(set(of_runs.values()))
            difference = (
                "identical to the last digit" if len(values) == 1 else f"differ by {values[-1] - values[0]:.3g}"
            )
            rows.append([str(first.seed), loss, f"{values[0]:.9g}", f"{difference} in {', '.join(of_runs)}"])
    pair = (
        "The objective changes only the text loss: before the first update image and action losses are identical."
        if all(first.identical for first in found.first)
        else "**Image or action losses of the first step differ: the objective changed more than the text loss.**"
    )
    return f"## First step\n\n{pair}\n\n" + markdown_table(["seed", "loss", "value", ""], rows)


def _caution(found: Findings) -> str:
    start = "model.showo.pretrained_model_path="
    earlier = [word.removeprefix(start) for word in found.plan.budget.overrides if word.startswith(start)]
    start_text = f"that start from `{earlier[-1]}`" if earlier else "from random weights"
    return (
        f"## Limits\n\nEmbedded models of a few million parameters {start_text}, generated "
        f"images and {found.plan.budget.steps} steps: the figures compare the objectives in this setting only. "
        "`--steps` trains longer, and `--seeds 0,1,2` shows how much a run depends on its seed."
    )


# --- json -------------------------------------------------------------------------------------------------


def as_json(found: Findings, answers: Sequence[PairResult]) -> dict[str, Any]:
    return {
        "command": found.command,
        "date": found.date,
        "machine": found.machine,
        "steps": found.plan.budget.steps,
        "seeds": list(found.plan.seeds),
        "notes": list(found.notes),
        "overrides": list(found.plan.budget.overrides),
        "questions": len(found.held_out.questions),
        "blind_floor": found.floor,
        "objectives": {name: _objective_json(found, name, runs) for name, runs in found.results.items()},
        "mean_action": dict(found.mean_action),
        "pairs": [
            {
                "first": v.first,
                "second": v.second,
                "measure": v.metric.name,
                "difference": _interval_json(v.difference.interval),
                "probability_first_better": v.probability_better,
                "clear": v.pair.clear,
                "answer": v.words,
            }
            for v in answers
        ],
        "first_step": [
            {"seed": first.seed, "identical": first.identical, "losses": first.losses} for first in found.first
        ],
    }


def _objective_json(found: Findings, name: str, runs: Sequence[RunResult]) -> dict[str, Any]:
    speed = found.speeds[name]
    metrics = {m.name.replace(" ", "_").replace(",", ""): m for m in (*metrics_of(found.results), SHUFFLED)}
    content: dict[str, Any] = {key: _interval_json(interval(m, runs)) for key, m in metrics.items()}
    content["nats_per_token"]["error_of_drawing"] = drawing_error(runs)
    content["cut_answers"] = cut_answers(runs)
    content["exact_match_by_kind"] = by_kind(found.kinds, EXACT, runs)
    content["picture_gap"] = _interval_json(image_gain(runs).interval)
    if found.blind:
        content["exact_trained_blind"] = _interval_json(interval(EXACT, found.blind[name]))
        content["blind_gap"] = _interval_json(image_gain(runs, found.blind[name]).interval)
    content["actions"] = [dict(results.actions.overall) for results in runs]
    content["latency_s"] = {
        "median": float(np.median(speed.seconds)),
        "first_token_median": float(np.median(speed.first_token_seconds)),
        "answers": len(speed.seconds),
    }
    content["tokens_per_second"], content["tokens_per_forward"] = speed.tokens_per_second, speed.tokens_per_forward
    return content


def _interval_json(value: Interval) -> dict[str, float]:
    return {"point": value.point, "low": value.low, "high": value.high}


# --- figure ------------------------------------------------------------------------------------------------------


def draw(found: Findings, path: Path) -> None:
    runs = {name: [r for r in found.plan.runs if r.objective == name and not r.blind] for name in found.results}
    baselines: dict[str, Mapping[str, float]] = {
        "shuffled images": {name: interval(SHUFFLED, results).point for name, results in found.results.items()}
    }
    if found.blind:
        baselines["trained blind"] = {name: interval(EXACT, results).point for name, results in found.blind.items()}
    rates = {name: Interval(s.tokens_per_second, *[s.tokens_per_second] * 2) for name, s in found.speeds.items()}
    bars = [
        Bars(
            "exact match on held-out questions (%)",
            {name: interval(EXACT, results) for name, results in found.results.items()},
            baselines,
            found.floor,
            "best blind guess",
            percent=True,
        ),
        Bars(
            "mean absolute action error",
            {name: interval(ACTION, results) for name, results in found.results.items()},
            {},
            found.mean_action["mae_all"],
            "constant mean action",
        ),
        Bars("answer tokens per second", rates, {}),
    ]
    if LENGTH in metrics_of(found.results):
        lengths = {name: interval(LENGTH, results) for name, results in found.results.items()}
        bars.append(Bars(f"closed loop: tasks in a row of {CHAIN_LENGTH}", lengths, {}))
    seeds = f"seed {found.plan.seeds[0]}" if len(found.plan.seeds) == 1 else f"{len(found.plan.seeds)} seeds"
    draw_figure(
        path,
        {name: [read_curve(run) for run in of_name] for name, of_name in runs.items()},
        {name: interval(NATS, results) for name, results in found.results.items()},
        bars,
        f"Text objectives side by side: {found.plan.budget.steps} steps, {seeds}, the same data in the same order",
        f"{found.date}, {found.machine}; bars with 95 % intervals; nats of mdm and bd are upper bounds",
    )


# --- helpers ----------------------------------------------------------------------------------------------------------


def cut_answers(runs: Sequence[RunResult]) -> int:
    """Return how many answers did not end by themselves within ``max_new_tokens``."""
    return sum(sum(results.words.cut) for results in runs)


def _floor_of(found: Findings, kind: str) -> float:
    pairs = [p for p, k in zip(questions_and_answers(found.held_out), found.kinds, strict=True) if k == kind]
    return blind_floor(pairs)
