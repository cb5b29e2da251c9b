"""Write the results of a comparison: ``summary.md`` from summary.md.j2, ``summary.json`` and the figure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.files import write_text
from common.statistics import Interval
from common.tables import markdown_table, percent, points, probability
from policy_rollout.calvin.sequences import success_rates
from policy_rollout.desk.task_sets import DOORS
from preprocess_data.tiny_assets.questions import blind_floor
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

TEMPLATE = Path(__file__).with_name("summary.md.j2")
FIGURE = "curves.png"
CLEAR_GAIN = 0.25
"""A model clearly needs the image if the interval of its lead over a model without the image stays above this."""


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
    write_text(paths[1], json.dumps(as_json(found, answers), indent=1) + "\n")
    write_text(paths[0], as_markdown(found, answers))
    return paths


# --- markdown ---------------------------------------------------------------------------------------------------------


def as_markdown(found: Findings, answers: Sequence[PairResult]) -> str:
    from common.html import render

    first = next(iter(found.results.values()))[0]
    start = "model.showo.pretrained_model_path="
    earlier = [word.removeprefix(start) for word in found.plan.budget.overrides if word.startswith(start)]
    return render(
        TEMPLATE,
        found=found,
        figure=FIGURE,
        text_table=text_table(found),
        image_lines=_image_lines(found),
        clearly=CLEAR_GAIN,
        kind_table=_kind_table(found),
        action_table=_action_table(found),
        action_stretches=len(first.actions.errors),
        chain_table=_chain_table(found) if LENGTH in metrics_of(found.results) else "",
        chains=len(first.chains),
        trial=DOORS,
        answers=answers,
        answer_table=_answer_table(answers),
        same_first_step=all(first.identical for first in found.first),
        first_step_table=_first_step_table(found),
        initial_weights=earlier[-1] if earlier else "",
    )


def text_table(found: Findings) -> str:
    """Return the results of text as a Markdown table."""
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
                f"{cut_answers(runs)} of {sum(len(result.words.cut) for result in runs)}",
                f"{1000 * float(np.median(speed.seconds)):.0f}",
                f"{speed.tokens_per_second:.0f}",
                f"{speed.tokens_per_forward:.2f}",
            ]
        )
    head = ["objective", "nats per token", "exact match", "token accuracy", "exact, shuffled images"]
    head += ["exact, trained blind"] if found.blind else []
    return markdown_table([*head, "cut answers", "ms per answer", "tokens/s", "tokens per forward"], rows)


def _kind_table(found: Findings) -> str:
    kinds = list(dict.fromkeys(found.kinds))
    rates = {name: by_kind(found.kinds, EXACT, runs) for name, runs in found.results.items()}
    rates["best blind guess"] = {kind: _floor_of(found, kind) for kind in kinds}
    rows = [[name, *(f"{100 * of_kinds[kind]:.0f}" for kind in kinds)] for name, of_kinds in rates.items()]
    return markdown_table(["", *kinds], rows)


def _image_lines(found: Findings) -> list[str]:
    """Return whether each objective needs the image, measured with wrong and with blank ones."""
    lines = []
    for name, runs in found.results.items():
        others: list[tuple[str, Sequence[RunResult] | None]] = [("another question's image", None)]
        others += [("a model trained and evaluated with blank images", found.blind[name])] if found.blind else []
        for what, blind in others:
            gap = image_gain(runs, blind)
            clear = (
                "clearly needs" if gap.interval.low > CLEAR_GAIN else "needs" if gap.clear else "is not shown to need"
            )
            lines.append(f"`{name}` {clear} the image: {points(gap.interval)} points above {what}.")
    return lines


def _action_table(found: Findings) -> str:
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
        means = [float(np.mean([result.actions.overall[key] for result in runs])) for key in columns.values()]
        rows.append([name, f"{interval(ACTION, runs):.3f}", *(f"{mean:.3f}" for mean in means[1:])])
    rows.append(["mean action", *(f"{found.mean_action[key]:.3f}" for key in columns.values())])
    return markdown_table(["objective", *columns], rows)


def _chain_table(found: Findings) -> str:
    length = DOORS.chain_length
    rows = []
    for name, runs in found.results.items():
        rates = success_rates([completed for result in runs for completed in result.chains], length)
        rows.append([name, f"{interval(LENGTH, runs):.2f}", *(f"{100 * rate:.0f} %" for rate in rates)])
    return markdown_table(
        ["objective", "tasks in a row [95 %]", *(f"{k + 1} of {length}" for k in range(length))], rows
    )


def _answer_table(answers: Sequence[PairResult]) -> str:
    rows = []
    for pair in answers:
        apart = pair.difference.interval
        shown = f"{points(apart)} points" if pair.metric.unit == "share" else f"{apart:+.3f}"
        rows.append(
            [f"{pair.first} − {pair.second}", pair.metric.name, shown, probability(pair.probability_better), pair.words]
        )
    return markdown_table(["", "in", "difference", "P(first is better)", "answer"], rows)


def _first_step_table(found: Findings) -> str:
    rows = []
    for first in found.first:
        for loss, of_runs in first.losses.items():
            values = sorted(set(of_runs.values()))
            spread = "identical to the last digit" if len(values) == 1 else f"differ by {values[-1] - values[0]:.3g}"
            rows.append([str(first.seed), loss, f"{values[0]:.9g}", f"{spread} in {', '.join(of_runs)}"])
    return markdown_table(["seed", "loss", "value", ""], rows)


# --- json ------------------------------------------------------------------------------------------------------------


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
                "difference": asdict(v.difference.interval),
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
    content: dict[str, Any] = {key: asdict(interval(m, runs)) for key, m in metrics.items()}
    content["nats_per_token"]["error_of_drawing"] = drawing_error(runs)
    content["cut_answers"] = cut_answers(runs)
    content["exact_match_by_kind"] = by_kind(found.kinds, EXACT, runs)
    content["picture_gap"] = asdict(image_gain(runs).interval)
    if found.blind:
        content["exact_trained_blind"] = asdict(interval(EXACT, found.blind[name]))
        content["blind_gap"] = asdict(image_gain(runs, found.blind[name]).interval)
    content["actions"] = [dict(result.actions.overall) for result in runs]
    content["latency_s"] = {
        "median": float(np.median(speed.seconds)),
        "first_token_median": float(np.median(speed.first_token_seconds)),
        "answers": len(speed.seconds),
    }
    content["tokens_per_second"], content["tokens_per_forward"] = speed.tokens_per_second, speed.tokens_per_forward
    return content


# --- figure ----------------------------------------------------------------------------------------------------------


def draw(found: Findings, path: Path) -> None:
    runs = {name: [r for r in found.plan.runs if r.objective == name and not r.blind] for name in found.results}
    baselines: dict[str, Mapping[str, float]] = {
        "shuffled images": {name: interval(SHUFFLED, result).point for name, result in found.results.items()}
    }
    if found.blind:
        baselines["trained blind"] = {name: interval(EXACT, result).point for name, result in found.blind.items()}
    rates = {name: Interval(s.tokens_per_second, *[s.tokens_per_second] * 2) for name, s in found.speeds.items()}
    bars = [
        Bars(
            "exact match on held-out questions (%)",
            {name: interval(EXACT, result) for name, result in found.results.items()},
            baselines,
            found.floor,
            "best blind guess",
            percent=True,
        ),
        Bars(
            "mean absolute action error",
            {name: interval(ACTION, result) for name, result in found.results.items()},
            {},
            found.mean_action["mae_all"],
            "constant mean action",
        ),
        Bars("answer tokens per second", rates, {}),
    ]
    if LENGTH in metrics_of(found.results):
        lengths = {name: interval(LENGTH, result) for name, result in found.results.items()}
        bars.append(Bars(f"closed loop: tasks in a row of {DOORS.chain_length}", lengths, {}))
    seeds = f"seed {found.plan.seeds[0]}" if len(found.plan.seeds) == 1 else f"{len(found.plan.seeds)} seeds"
    draw_figure(
        path,
        {name: [read_curve(run) for run in of_name] for name, of_name in runs.items()},
        {name: interval(NATS, result) for name, result in found.results.items()},
        bars,
        f"Text objectives side by side: {found.plan.budget.steps} steps, {seeds}, the same data in the same order",
        f"{found.date}, {found.machine}; bars with 95 % intervals; nats of mdm and bd are upper bounds",
    )


# --- helpers ---------------------------------------------------------------------------------------------------------


def cut_answers(runs: Sequence[RunResult]) -> int:
    """Return how many answers did not end by themselves within ``max_new_tokens``."""
    return sum(sum(result.words.cut) for result in runs)


def _floor_of(found: Findings, kind: str) -> float:
    pairs = [p for p, k in zip(questions_and_answers(found.held_out), found.kinds, strict=True) if k == kind]
    return blind_floor(pairs)
