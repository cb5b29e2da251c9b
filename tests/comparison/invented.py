"""An invented comparison: runs on disk and results with known answers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from scripts.objective_comparison.evaluate import ActionResult, HeldOut, Question, RunResult, Speed, TextResult
from scripts.objective_comparison.pairwise import first_steps
from scripts.objective_comparison.plan import Budget, Plan
from scripts.objective_comparison.report import Findings

QUESTIONS = 60
STEPS = 40


def held_out() -> HeldOut:
    """Half "What colour is the ball?", half "Where is the red toy?"; two answers each, in equal shares."""
    held_out = [
        ("What colour is the ball?", "The ball is red."),
        ("What colour is the ball?", "The ball is blue."),
        ("Where is the red toy?", "The red toy is in the top left corner."),
        ("Where is the red toy?", "The red toy is in the top right corner."),
    ]
    questions = tuple(Question(*held_out[i % 4], image=i % 3) for i in range(QUESTIONS))
    return HeldOut(questions, torch.arange(3.0)[:, None, None].expand(3, 4, 2))


def results(share_right: float, nats: float, mae: float, seed: int = 0) -> RunResult:
    """Right in the first ``share_right`` of the questions; guessing with another image."""
    rng = np.random.default_rng(seed)
    right = [i < share_right * QUESTIONS for i in range(QUESTIONS)]
    words = TextResult(
        exact=right,
        answers=["so"] * QUESTIONS,
        right_tokens=[8 if r else 4 for r in right],
        tokens=[8] * QUESTIONS,
        nats=list(8 * nats + 0.1 * rng.normal(size=QUESTIONS)),
        nats_variance=[0.01] * QUESTIONS,
        exact_shuffled=[i % 5 == 0 for i in range(QUESTIONS)],
        cut=[i < 3 for i in range(QUESTIONS)],
    )
    keys = ("mae_all", "rmse_all", "mae_pos", "mae_rot", "mae_gripper", "gripper_sign_acc")
    overall = {"samples": 20, "steps": 200, **dict.fromkeys(keys, mae)}
    return RunResult(words, ActionResult(overall, list(mae + 0.01 * rng.normal(size=12)), [10] * 12))


def write_curves(plan: Plan, image_loss_of_bd: float = 8.5) -> None:
    for number, run in enumerate(plan.runs):
        run.folder.mkdir(parents=True, exist_ok=True)
        lines = []
        for step in range(1, STEPS + 1):
            fall = np.exp(-step / (10 + 3 * number))
            first = step == 1 and run.objective == "bd"
            lines.append(
                {
                    "step": step,
                    "image/loss": image_loss_of_bd if first else 8.5 if step == 1 else 1 + 7 * fall,
                    "action/loss": 0.3 if step == 1 else 0.1 + 0.2 * fall,
                    "text/nats_per_token": 0.1 + 8 * fall,
                }
            )
        run.metrics_file.write_text("".join(json.dumps(line) + "\n" for line in lines))


def findings(
    folder: Path, image_loss_of_bd: float = 8.5, seeds: tuple[int, ...] = (0,), blind: bool = False
) -> Findings:
    """``bd`` answers clearly better than ``ar``, ``mdm`` like ``ar``; all act alike."""
    plan = Plan(folder, ("ar", "mdm", "bd"), seeds, blind, Budget(steps=STEPS))
    write_curves(plan, image_loss_of_bd)
    worth = {"ar": (0.6, 0.5), "mdm": (0.6, 0.5), "bd": (0.9, 0.3)}
    speed = Speed([0.1, 0.2, 0.3], [0.05] * 3, tokens=30, forwards=15)
    return Findings(
        plan=plan,
        held_out=held_out(),
        kinds=["colour" if i % 4 < 2 else "place" for i in range(QUESTIONS)],
        results={name: [results(*of, 0.2, seed) for seed in seeds] for name, of in worth.items()},
        blind={name: [results(0.2, 2.0, 0.2, seed) for seed in seeds] for name in worth} if blind else {},
        speeds=dict.fromkeys(worth, speed),
        first=first_steps(plan.runs),
        mean_action={"samples": 20, "steps": 200, **results(0, 0, 0.25).actions.overall},
        notes=["`bd` has help."],
        command="python -m scripts.compare_objectives",
        machine="a test",
        date="2026-11-22",
    )
