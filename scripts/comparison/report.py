"""Write the results of a comparison: ``summary.md`` from summary.md.j2, ``summary.json`` and the figure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.files import write_text
from common.tables import markdown_table, percent, points, probability
from policy_rollout.calvin.sequences import success_rates
from policy_rollout.intervals import Interval
from preprocess_data.tiny_assets.questions import blind_floor
from scripts import desk_trial
from scripts.comparison.figure import Bars, draw_figure
from scripts.comparison.judge import HeldOut, Judged, Speed
from scripts.comparison.plan import Plan, read_curve
from scripts.comparison.verdicts import (
    ACTION,
    EXACT,
    LENGTH,
    NATS,
    SHUFFLED,
    TOKENS,
    FirstStep,
    Verdict,
    by_kind,
    compared,
    drawing_error,
    interval,
    needs_image,
    questions_of,
    verdicts,
)

TEMPLATE = Path(__file__).with_name("summary.md.j2")
FIGURE = "curves.png"
CLEARLY = 0.25
"""A model clearly needs the image if the interval of its lead over a model without the image stays above this."""


@dataclass(frozen=True)
class Findings:
    """Everything that was measured.

    ``judged``, ``blind``: objective -> its runs, by seed; ``kinds``: of every question; ``mean_action``: metrics
    of the best constant action; ``notes``: what else a reader has to know; ``command``, ``machine``: for the record.
    """

    plan: Plan
    asked: HeldOut
    kinds: Sequence[str]
    judged: Mapping[str, Sequence[Judged]]
    blind: Mapping[str, Sequence[Judged]]
    speeds: Mapping[str, Speed]
    first: Sequence[FirstStep]
    mean_action: Mapping[str, float]
    notes: Sequence[str]
    command: str
    machine: str
    date: str

    @property
    def floor(self) -> float:
        return blind_floor(questions_of(self.asked))


def write_report(found: Findings) -> list[Path]:
    """``summary.md``, ``summary.json`` and the figure, in the plan's folder."""
    folder = found.plan.folder
    answers = verdicts(found.judged)
    paths = [folder / "summary.md", folder / "summary.json", folder / FIGURE]
    draw(found, paths[2])
    write_text(paths[1], json.dumps(as_json(found, answers), indent=1) + "\n")
    write_text(paths[0], as_markdown(found, answers))
    return paths


# --- to read ---------------------------------------------------------------------------------------------------------


def as_markdown(found: Findings, answers: Sequence[Verdict]) -> str:
    from common.html import render

    first = next(iter(found.judged.values()))[0]
    start = "model.showo.pretrained_model_path="
    earlier = [word.removeprefix(start) for word in found.plan.budget.overrides if word.startswith(start)]
    return render(
        TEMPLATE,
        found=found,
        figure=FIGURE,
        text_table=_text_table(found),
        image_lines=_image_lines(found),
        clearly=CLEARLY,
        kind_table=_kind_table(found),
        action_table=_action_table(found),
        action_stretches=len(first.actions.errors),
        chain_table=_chain_table(found) if LENGTH in compared(found.judged) else "",
        chains=len(first.chains),
        trial=desk_trial,
        answers=answers,
        answer_table=_answer_table(answers),
        same_first_step=all(first.identical for first in found.first),
        first_step_table=_first_step_table(found),
        initial_weights=earlier[-1] if earlier else "",
    )


def _text_table(found: Findings) -> str:
    rows = []
    for name, runs in found.judged.items():
        nats, error, speed = interval(NATS, runs), drawing_error(runs), found.speeds[name]
        rows.append(
            [
                name,
                ("" if name == "ar" else "≤ ") + f"{nats:.3f}" + (f" (± {error:.3f} by drawing)" if error else ""),
                percent(interval(EXACT, runs)),
                percent(interval(TOKENS, runs)),
                percent(interval(SHUFFLED, runs)),
                *([percent(interval(EXACT, found.blind[name]))] if found.blind else []),
                f"{cut_answers(runs)} of {sum(len(judged.words.cut) for judged in runs)}",
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
    rates = {name: by_kind(found.kinds, EXACT, runs) for name, runs in found.judged.items()}
    rates["best blind guess"] = {kind: _floor_of(found, kind) for kind in kinds}
    rows = [[name, *(f"{100 * of_kinds[kind]:.0f}" for kind in kinds)] for name, of_kinds in rates.items()]
    return markdown_table(["", *kinds], rows)


def _image_lines(found: Findings) -> list[str]:
    """Return whether each objective needs the image, compared with wrong and with blank ones."""
    lines = []
    for name, runs in found.judged.items():
        others: list[tuple[str, Sequence[Judged] | None]] = [("another question's image", None)]
        others += [("one trained and asked with blank images", found.blind[name])] if found.blind else []
        for what, blind in others:
            gap = needs_image(runs, blind)
            clear = "clearly needs" if gap.interval.low > CLEARLY else "needs" if gap.clear else "does not show to need"
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
    for name, runs in found.judged.items():
        means = [float(np.mean([judged.actions.overall[key] for judged in runs])) for key in columns.values()]
        rows.append([name, f"{interval(ACTION, runs):.3f}", *(f"{mean:.3f}" for mean in means[1:])])
    rows.append(["mean action", *(f"{found.mean_action[key]:.3f}" for key in columns.values())])
    return markdown_table(["objective", *columns], rows)


def _chain_table(found: Findings) -> str:
    length = desk_trial.CHAIN_LENGTH
    rows = []
    for name, runs in found.judged.items():
        rates = success_rates([completed for judged in runs for completed in judged.chains], length)
        rows.append([name, f"{interval(LENGTH, runs):.2f}", *(f"{100 * rate:.0f} %" for rate in rates)])
    return markdown_table(
        ["objective", "tasks in a row [95 %]", *(f"{k + 1} of {length}" for k in range(length))], rows
    )


def _answer_table(answers: Sequence[Verdict]) -> str:
    rows = []
    for verdict in answers:
        apart = verdict.difference.interval
        shown = f"{points(apart)} points" if verdict.measure.unit == "share" else f"{apart:+.3f}"
        pair = f"{verdict.first} − {verdict.second}"
        rows.append([pair, verdict.measure.name, shown, probability(verdict.probability_better), verdict.words])
    return markdown_table(["", "in", "difference", "P(first is better)", "answer"], rows)


def _first_step_table(found: Findings) -> str:
    rows = []
    for first in found.first:
        for loss, of_runs in first.losses.items():
            values = sorted(set(of_runs.values()))
            spread = "identical to the last digit" if len(values) == 1 else f"differ by {values[-1] - values[0]:.3g}"
            rows.append([str(first.seed), loss, f"{values[0]:.9g}", f"{spread} in {', '.join(of_runs)}"])
    return markdown_table(["seed", "loss", "value", ""], rows)


# --- to compute with -------------------------------------------------------------------------------------------------


def as_json(found: Findings, answers: Sequence[Verdict]) -> dict[str, Any]:
    return {
        "command": found.command,
        "date": found.date,
        "machine": found.machine,
        "steps": found.plan.budget.steps,
        "seeds": list(found.plan.seeds),
        "notes": list(found.notes),
        "overrides": list(found.plan.budget.overrides),
        "questions": len(found.asked.questions),
        "blind_floor": found.floor,
        "objectives": {name: _objective_json(found, name, runs) for name, runs in found.judged.items()},
        "mean_action": dict(found.mean_action),
        "pairs": [
            {
                "first": v.first,
                "second": v.second,
                "measure": v.measure.name,
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


def _objective_json(found: Findings, name: str, runs: Sequence[Judged]) -> dict[str, Any]:
    speed = found.speeds[name]
    measures = {m.name.replace(" ", "_").replace(",", ""): m for m in (*compared(found.judged), SHUFFLED)}
    told: dict[str, Any] = {key: asdict(interval(m, runs)) for key, m in measures.items()}
    told["nats_per_token"]["error_of_drawing"] = drawing_error(runs)
    told["cut_answers"] = cut_answers(runs)
    told["exact_match_by_kind"] = by_kind(found.kinds, EXACT, runs)
    told["picture_gap"] = asdict(needs_image(runs).interval)
    if found.blind:
        told["exact_trained_blind"] = asdict(interval(EXACT, found.blind[name]))
        told["blind_gap"] = asdict(needs_image(runs, found.blind[name]).interval)
    told["actions"] = [dict(judged.actions.overall) for judged in runs]
    told["latency_s"] = {
        "median": float(np.median(speed.seconds)),
        "first_token_median": float(np.median(speed.first_token_seconds)),
        "answers": len(speed.seconds),
    }
    told["tokens_per_second"], told["tokens_per_forward"] = speed.tokens_per_second, speed.tokens_per_forward
    return told


# --- to look at ------------------------------------------------------------------------------------------------------


def draw(found: Findings, path: Path) -> None:
    runs = {name: [r for r in found.plan.runs if r.objective == name and not r.blind] for name in found.judged}
    baselines: dict[str, Mapping[str, float]] = {
        "shuffled images": {name: interval(SHUFFLED, judged).point for name, judged in found.judged.items()}
    }
    if found.blind:
        baselines["trained blind"] = {name: interval(EXACT, judged).point for name, judged in found.blind.items()}
    rates = {name: Interval(s.tokens_per_second, *[s.tokens_per_second] * 2) for name, s in found.speeds.items()}
    bars = [
        Bars(
            "exact match on held-out questions (%)",
            {name: interval(EXACT, judged) for name, judged in found.judged.items()},
            baselines,
            found.floor,
            "best blind guess",
            percent=True,
        ),
        Bars(
            "mean absolute action error",
            {name: interval(ACTION, judged) for name, judged in found.judged.items()},
            {},
            found.mean_action["mae_all"],
            "constant mean action",
        ),
        Bars("answer tokens per second", rates, {}),
    ]
    if LENGTH in compared(found.judged):
        lengths = {name: interval(LENGTH, judged) for name, judged in found.judged.items()}
        bars.append(Bars(f"closed loop: tasks in a row of {desk_trial.CHAIN_LENGTH}", lengths, {}))
    seeds = f"seed {found.plan.seeds[0]}" if len(found.plan.seeds) == 1 else f"{len(found.plan.seeds)} seeds"
    draw_figure(
        path,
        {name: [read_curve(run) for run in of_name] for name, of_name in runs.items()},
        {name: interval(NATS, judged) for name, judged in found.judged.items()},
        bars,
        f"Text objectives side by side: {found.plan.budget.steps} steps, {seeds}, the same data in the same order",
        f"{found.date}, {found.machine}; bars with 95 % intervals; nats of mdm and bd are upper bounds",
    )


# --- pieces ----------------------------------------------------------------------------------------------------------


def cut_answers(runs: Sequence[Judged]) -> int:
    """Return how many answers did not end by themselves within ``max_new_tokens``."""
    return sum(sum(judged.words.cut) for judged in runs)


def _floor_of(found: Findings, kind: str) -> float:
    pairs = [p for p, k in zip(questions_of(found.asked), found.kinds, strict=True) if k == kind]
    return blind_floor(pairs)
