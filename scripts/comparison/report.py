"""The comparison in words: ``summary.md`` to read, ``summary.json`` to compute with."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.atomic_file import replace_text
from common.tables import markdown_table, percent, points, probability
from policy_rollout.calvin.sequences import success_rates
from policy_rollout.intervals import Interval
from preprocess_data.embedded.questions import blind_floor
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
    needs_picture,
    questions_of,
    verdicts,
)
from scripts.desk_trial import CHAIN_LENGTH, PATIENCE, REPLAN_EVERY, SCENE

FIGURE = "curves.png"
CLEARLY = 0.25
"""How far a model that sees has to be above one that does not, to call the questions questions about pictures."""


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
    replace_text(paths[1], json.dumps(as_json(found, answers), indent=1) + "\n")
    replace_text(paths[0], as_markdown(found, answers))
    return paths


# --- to read ---------------------------------------------------------------------------------------------------------


def as_markdown(found: Findings, answers: Sequence[Verdict]) -> str:
    parts = [
        _opening(found),
        f"![Curves and held-out figures]({FIGURE})",
        _text_section(found),
        _action_section(found),
        *([_closed_loop_section(found)] if LENGTH in compared(found.judged) else []),
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
        f"all three losses.{extra} Judged on {len(found.asked.questions)} held-out questions and "
        f"{int(found.mean_action['samples'])} held-out frames. Brackets are 95 % intervals."
        + "".join(f" {note}" for note in found.notes)
    )


def _text_section(found: Findings) -> str:
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
    head = ["objective", "nats per token", "exact match", "token accuracy", "exact, shuffled pictures"]
    head += ["exact, trained blind"] if found.blind else []
    head += ["cut answers", "ms per answer", "tokens/s", "tokens per forward"]
    kinds = list(dict.fromkeys(found.kinds))
    by_name = {name: by_kind(found.kinds, EXACT, runs) for name, runs in found.judged.items()}
    floors = {kind: _floor_of(found, kind) for kind in kinds}
    kind_rows = [[name, *(f"{100 * of_kinds[k]:.0f}" for k in kinds)] for name, of_kinds in by_name.items()]
    kind_rows.append(["best blind guess", *(f"{100 * floors[k]:.0f}" for k in kinds)])
    text = (
        "## Text\n\n"
        + markdown_table(head, rows)
        + "\n\nThe likelihood of `ar` is exact; that of `mdm` and `bd` is a bound, "
        "drawn several times for each question. Answers that did not end within max_new_tokens "
        "are cut. Times are of one answer at a time, the objectives in turn. "
        f"The best fixed answer to each question is right in {100 * found.floor:.0f} %.\n\n" + _picture(found)
    )
    return text + "\n\nExact match by kind of question, in %:\n\n" + markdown_table(["", *kinds], kind_rows)


def _picture(found: Findings) -> str:
    """Does a model that does not look fail?"""
    lines = []
    for name, runs in found.judged.items():
        others: list[tuple[str, Sequence[Judged] | None]] = [("another question's picture", None)]
        others += [("one trained and asked with blank pictures", found.blind[name])] if found.blind else []
        for what, blind in others:
            gap = needs_picture(runs, blind)
            clear = "clearly needs" if gap.interval.low > CLEARLY else "needs" if gap.clear else "does not show to need"
            lines.append(f"* `{name}` {clear} the picture: {points(gap.interval)} points above {what}.")
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
    for name, runs in found.judged.items():
        means = {key: float(np.mean([judged.actions.overall[key] for judged in runs])) for key in columns.values()}
        error = interval(ACTION, runs)
        rows.append([name, f"{error:.3f}", *(f"{means[key]:.3f}" for title, key in columns.items() if title != "MAE")])
    rows.append(["mean action", *(f"{found.mean_action[key]:.3f}" for key in columns.values())])
    count = len(next(iter(found.judged.values()))[0].actions.errors)
    return (
        "## Actions\n\n"
        + markdown_table(["objective", *columns], rows)
        + "\n\nErrors on recorded actions, not success; "
        f"intervals over {count} stretches of consecutive frames. A policy that is not below `mean action` has not "
        "learned from the pictures yet."
    )


def _closed_loop_section(found: Findings) -> str:
    rows = []
    for name, runs in found.judged.items():
        chains = [length for judged in runs for length in judged.chains]
        rates = success_rates(chains, CHAIN_LENGTH)
        rows.append([name, f"{interval(LENGTH, runs):.2f}", *(f"{100 * rate:.0f} %" for rate in rates)])
    head = ["objective", "tasks in a row [95 %]", *(f"{k + 1} of {CHAIN_LENGTH}" for k in range(CHAIN_LENGTH))]
    return (
        "## Closed loop\n\n"
        + markdown_table(head, rows)
        + f"\n\n{len(next(iter(found.judged.values()))[0].chains)} chains of "
        f"{CHAIN_LENGTH} doors and lights on the desk (scene {SCENE}, {PATIENCE} control steps for a task, a new look "
        f"every {REPLAN_EVERY}), the same ones for all."
    )


def _answers_section(found: Findings, answers: Sequence[Verdict]) -> str:
    rows = []
    for verdict in answers:
        apart = verdict.difference.interval
        shown = f"{points(apart)} points" if verdict.measure.unit == "share" else f"{apart:+.3f}"
        rows.append(
            [
                f"{verdict.first} − {verdict.second}",
                verdict.measure.name,
                shown,
                probability(verdict.probability_better),
                verdict.words,
            ]
        )
    seeds = len(found.plan.seeds)
    reach = (
        "One seed: the intervals speak of other questions and frames, not of another training run."
        if seeds == 1
        else f"Questions and the {seeds} seeds are resampled together; {seeds} seeds say little about others."
    )
    return (
        "## Is one better?\n\nThe same held-out items for both, difference by item, 10,000 bootstrap resamples. "
        f"{reach} {len(answers)} comparisons at 95 %: about one in twenty would look clear by chance. `ar` pays its "
        "exact likelihood and the others a bound of it, so nats can be unfair to `mdm` and `bd`, not to `ar`.\n\n"
        + markdown_table(["", "in", "difference", "P(first is better)", "answer"], rows)
    )


def _first_step_section(found: Findings) -> str:
    rows = []
    for first in found.first:
        for loss, of_runs in first.losses.items():
            values = sorted(set(of_runs.values()))
            told = "identical to the last digit" if len(values) == 1 else f"differ by {values[-1] - values[0]:.3g}"
            rows.append([str(first.seed), loss, f"{values[0]:.9g}", f"{told} in {', '.join(of_runs)}"])
    verdict = (
        "The switch touches the text loss alone: before the first update image and action losses are identical."
        if all(first.identical for first in found.first)
        else "**Image or action losses of the first step differ: the switch touched more than the text loss.**"
    )
    return f"## First step\n\n{verdict}\n\n" + markdown_table(["seed", "loss", "value", ""], rows)


def _caution(found: Findings) -> str:
    start = "model.showo.pretrained_model_path="
    earlier = [word.removeprefix(start) for word in found.plan.budget.overrides if word.startswith(start)]
    begun = f"that go on from `{earlier[-1]}`" if earlier else "from random weights"
    return (
        f"## How far this carries\n\nEmbedded models of a few million parameters {begun}, generated "
        f"pictures and {found.plan.budget.steps} steps: the figures compare the objectives in this setting and rank "
        "nobody elsewhere. `--steps` trains longer and `--seeds 0,1,2` says how much a run depends on its seed."
    )


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


def _objective_json(found: Findings, name: str, runs: Sequence[Judged]) -> dict[str, Any]:
    speed = found.speeds[name]
    measures = {m.name.replace(" ", "_").replace(",", ""): m for m in (*compared(found.judged), SHUFFLED)}
    told: dict[str, Any] = {key: _interval_json(interval(m, runs)) for key, m in measures.items()}
    told["nats_per_token"]["error_of_drawing"] = drawing_error(runs)
    told["cut_answers"] = cut_answers(runs)
    told["exact_match_by_kind"] = by_kind(found.kinds, EXACT, runs)
    told["picture_gap"] = _interval_json(needs_picture(runs).interval)
    if found.blind:
        told["exact_trained_blind"] = _interval_json(interval(EXACT, found.blind[name]))
        told["blind_gap"] = _interval_json(needs_picture(runs, found.blind[name]).interval)
    told["actions"] = [dict(judged.actions.overall) for judged in runs]
    told["latency_s"] = {
        "median": float(np.median(speed.seconds)),
        "first_token_median": float(np.median(speed.first_token_seconds)),
        "answers": len(speed.seconds),
    }
    told["tokens_per_second"], told["tokens_per_forward"] = speed.tokens_per_second, speed.tokens_per_forward
    return told


def _interval_json(value: Interval) -> dict[str, float]:
    return {"point": value.point, "low": value.low, "high": value.high}


# --- to look at ------------------------------------------------------------------------------------------------------


def draw(found: Findings, path: Path) -> None:
    runs = {name: [r for r in found.plan.runs if r.objective == name and not r.blind] for name in found.judged}
    beside: dict[str, Mapping[str, float]] = {
        "shuffled pictures": {name: interval(SHUFFLED, judged).point for name, judged in found.judged.items()}
    }
    if found.blind:
        beside["trained blind"] = {name: interval(EXACT, judged).point for name, judged in found.blind.items()}
    rates = {name: Interval(s.tokens_per_second, *[s.tokens_per_second] * 2) for name, s in found.speeds.items()}
    bars = [
        Bars(
            "exact match on held-out questions (%)",
            {name: interval(EXACT, judged) for name, judged in found.judged.items()},
            beside,
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
        bars.append(Bars(f"closed loop: tasks in a row of {CHAIN_LENGTH}", lengths, {}))
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
