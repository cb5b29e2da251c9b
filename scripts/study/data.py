"""Make the data of a study, by the project's own commands; each of them resumes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator

from common.command import as_parts
from common.files import write_text
from config.loading import load_job
from policy_rollout.desk.task_sets import ALL_TASKS
from scripts.objective_comparison.plan import CONFIGS, ROOT
from scripts.study.plan import PLACES, SENTENCES, Data, Plan

MADE = ".study_data.json"
"""Commands that are done, in the folder of the data."""
DOORS_ONLY = ("--tasks", "doors_and_lights")
IMAGES = ("--static-size", "128", "--gripper-size", "64")


def commands(plan: Plan, data: Data) -> Iterator[tuple[list[str], str]]:
    """Yield (a command of Python, its option for processes, empty without one) in order, for what the plan needs."""
    sizes, words, tasks = plan.sizes, {run.words for run in plan.runs}, {run.tasks for run in plan.runs}
    for split, scenes, episodes, moments, places, doors, turns in (
        ("training", sizes.scenes, sizes.episodes, sizes.moments, data.places, data.doors, "3"),
        (
            "validation",
            sizes.held_out_scenes,
            sizes.held_out_episodes,
            sizes.held_out_moments,
            data.held_out_places,
            data.held_out_doors,
            "1",
        ),
    ):
        of_split, root = ("--split", split), data.root
        if PLACES in words:
            out, count = str(root / "scenes"), str(scenes)
            made = ["preprocess_data/make_desk_scenes.py", "--out", out, "--count", count, *of_split, *IMAGES]
            yield made, "--processes"
            source = str(root / "scenes" / split)
            yield (
                ["-m", "preprocess_data.place_questions", "--data", source, "--out", str(places), "--turns", turns],
                "",
            )
        out, count = str(data.doors_recording), str(episodes)
        made = ["preprocess_data/make_desk_demos.py", "--out", out, "--episodes", count, *DOORS_ONLY]
        yield [*made, *of_split, *IMAGES], "--workers"
        source = str(data.doors_recording / split)
        yield ["preprocess_data/process_calvin.py", "--source-split-dir", source, "--output-dir", str(doors)], ""
        if ALL_TASKS.name in tasks:
            out, count = str(data.moments.parent), str(moments)
            yield (
                ["-m", "preprocess_data.desk_moments", "--out", out, "--count", count, *of_split, *IMAGES],
                "--processes",
            )
    for folder in (data.doors, *([data.moments] if ALL_TASKS.name in tasks else [])):
        tokenizer = plan.setting("model.vq_model.vq_model_name", "assets/tiny_magvit")
        side = plan.setting("dataset.preprocessing.resolution", "96")
        cache = ["--data", str(folder), "--tokenizer", tokenizer, "--resolution", side]
        yield ["preprocess_data/tokenize_images.py", *cache], "--processes"
    if SENTENCES in words:
        chunk = str(load_job([f"config=config/{CONFIGS['ar']}.yaml"], None).act_step)
        for processed, folder in zip((data.doors, data.held_out_doors), data.words(SENTENCES), strict=True):
            spoken = ["--split", str(processed), "--output-dir", str(folder), "--act-step", chunk]
            yield ["-m", "preprocess_data.language_actions", *spoken], ""


def make(plan: Plan, data: Data, processes: int) -> None:
    """Run the commands that are not done. Raises ``ValueError`` if one fails or the folder has data of other sizes."""
    done = made(data)
    of_any_size = {_without_numbers(line): line for line in done}
    data.root.mkdir(parents=True, exist_ok=True)
    for command, option in commands(plan, data):
        line = _line(command, data)
        if line in done:
            continue
        if other := of_any_size.get(_without_numbers(line)):
            raise ValueError(f"--data {data.root}: was made by {other}, the plan needs {line}; give another")
        print("data: python", *command, flush=True)
        given = [*command, option, str(processes)] if option else command
        with as_parts():
            code = subprocess.run([sys.executable, *given], cwd=ROOT, check=False).returncode
        if code:
            raise ValueError(
                f"the command ended with code {code}: python {line}; the same command of the study resumes"
            )
        done.append(line)
        write_text(data.root / MADE, json.dumps(done, indent=1) + "\n")


def made(data: Data) -> list[str]:
    """Return the commands that are done."""
    file = data.root / MADE
    return list(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else []


def is_complete(plan: Plan, data: Data) -> bool:
    """Return True if all data of the plan are there."""
    return {_line(command, data) for command, _ in commands(plan, data)} <= {*made(data)}


def _line(command: list[str], data: Data) -> str:
    """Return a command as text that does not depend on the place of the data."""
    return " ".join(command).replace(str(data.root), "DATA")


def _without_numbers(line: str) -> str:
    """Return a command without its sizes: two of them that are equal then write the same folder."""
    return re.sub(r"\b\d+\b", "N", line)


def require(plan: Plan, data: Data) -> None:
    """Raise ``ValueError`` if data are missing, because this process shares the work with others."""
    if not is_complete(plan, data):
        raise ValueError(
            f"--data {data.root}: the data of plan {plan.name} are not complete; make them first, in one process: "
            f"python -m scripts.study --plan {plan.name} --data {data.root} --only-data"
        )
