"""Make each image of the gallery from the bundled models and data, or from runs that are given."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from common.files import PROJECT_DIR, atomic_path, write_bytes
from common.image_grid import GREEN, RED, RgbImage, add_caption, resize_to_height, side_by_side
from common.video import write_gif
from config.loading import load_job
from config.schema import MMU_INDEX
from models.decoding import generate
from models.mask_drawing import Sizes, build_layout, draw_masks
from models.rng import SampleRng
from policy_rollout.benchmarks.vqa.questions import read_questions
from policy_rollout.desk.task_sets import DOORS
from policy_rollout.policies.upvla import UPVLAPolicy
from policy_rollout.text_generation.loading import load_answering_model
from policy_rollout.text_generation.trace import Recorder
from policy_rollout.text_generation.trace_animation import Panel, draw_frames
from scripts.objective_comparison.plan import Budget, Plan
from scripts.quickstart_report.evidence import futures
from scripts.quickstart_report.page import sheet
from scripts.show_mask import job_of
from training.data.calvin import CalvinSplit

OBJECTIVES = ("ar", "mdm", "bd")
MODEL = PROJECT_DIR / "assets/desk_policy"
RECORDING = PROJECT_DIR / "dummy_data/calvin/validation"
FILM_HEIGHT = 240
ANSWERS_WIDTH = 760
LAST_REPEATS = 8
"""How often the last frame of the answers is repeated."""
MAX_TOKENS = 40
CANDIDATES = 60
"""Held-out questions among which the one with the longest answer is asked."""


def masks(path: Path) -> None:
    """Draw the attention masks of the three objectives side by side."""
    sizes = Sizes(patches=3, answers=(4,))
    layouts = {}
    for name in OBJECTIVES:
        _, job, _ = job_of([name])
        layouts[name] = build_layout(name, job, sizes, SampleRng(0, 0))
    with atomic_path(path) as partial:
        draw_masks(layouts).savefig(partial, format="png")
    _reduce_colours(path)


def train_text_models(folder: Path) -> dict[str, Path]:
    """Train a small text model for each objective, if it is not there; return their folders.

    Raises ``RuntimeError`` if a run fails.
    """
    from scripts.objective_comparison.train import train_all

    only_text = ("training.pre_coeff=0", "training.act_coeff=0")
    plan = Plan(folder.resolve(), OBJECTIVES, (0,), False, Budget(batch_size_pre=1, overrides=only_text))
    plan.write_or_check()
    train_all(plan, 1)
    return {run.objective: run.folder for run in plan.runs}


def answers(path: Path, models: Mapping[str, Path], questions: Path | None) -> None:
    """Animate how each model fills in its answer to the same question of a folder of held-out conversations.

    ``questions``: None for the validation data of the first model. Raises ``ValueError`` if it has none.
    """
    folder = questions or _validation_questions(next(iter(models.values())))
    found = read_questions("conversations", [folder / MMU_INDEX])[:CANDIDATES]
    question = max(found, key=lambda one: len(one.truths[0]))
    image = folder / question.image
    films = []
    for objective, checkpoint in models.items():
        model = load_answering_model(str(checkpoint), None, None, True, torch.device("cpu"), "float32")
        recorder = Recorder(model.prompter, 1)
        patches = model.patches([image])
        generate(model.model, model.prompter, [question.text], patches, MAX_TOKENS, on_step=recorder)
        frames = draw_frames([Panel(image, question.text)], recorder.steps, f"{objective}, data: {question.truths[0]}")
        films.append([np.asarray(frame) for frame in frames])
    count = max(map(len, films)) + LAST_REPEATS
    rows = [[film[min(i, len(film) - 1)] for film in films] for i in range(count)]
    write_gif(path, [_to_width(np.concatenate(row), ANSWERS_WIDTH) for row in rows], fps=3.0, colours=64)


def _validation_questions(run: Path) -> Path:
    found = load_job([f"config={run / 'config.yaml'}"]).dataset.params.validation_mmu_shards_path_or_url
    if found is None:
        raise ValueError(f"--questions: the configuration of {run} names no held-out conversations; give some")
    return Path(found)


def frames(path: Path) -> None:
    """Draw frames that the shipped model predicts for bundled recordings: now, predicted, true, with both errors."""
    policy = UPVLAPolicy.from_config(None, "cpu", str(MODEL))
    split = CalvinSplit(RECORDING)
    known = {window.instruction for window in split.annotations if window.task in DOORS.tasks}  # that it has learned
    found = [future for future in futures(policy, split) if future.instruction in known]
    write_jpeg(path, sheet(found[:: max(1, len(found) // 3)][:3], policy.act_step))


def rollouts(path: Path) -> None:
    """Animate the shipped model on one task, and from the same start with the instruction of another task."""
    policy = UPVLAPolicy.from_config(None, "cpu", str(MODEL))
    tasks = DOORS.with_cameras(policy.spec.data.cameras)
    right = tasks.make_episodes(1)[0]
    episodes = [right, replace(right, instruction=tasks.other_instruction(0, right.task))]
    films = []
    for episode in episodes:
        rollout = tasks.run_policy_episodes(policy, [episode], film=(0,))
        record, recorded = rollout.records[0], rollout.frames[0]
        done = f"{right.task}: done in {record.steps} steps"
        ending = (done, GREEN) if record.success else (f"{right.task}: not done in {record.steps} steps", RED)
        shown = [resize_to_height(image, FILM_HEIGHT) for image in recorded]
        films.append([add_caption(image, f"instruction: {episode.instruction}", *ending) for image in shown])
    count = max(map(len, films))
    rows = [[film[min(i, len(film) - 1)] for film in films] for i in range(count)]
    write_gif(path, [side_by_side(_of_one_height(row), max(i.shape[0] for i in row)) for row in rows], colours=96)


def evaluation_page(folder: Path) -> Path:
    """Play three tasks with the shipped model, as `python -m policy_rollout.demo` does, and return the report."""
    from rich.console import Console

    from policy_rollout.demo.__main__ import play_several
    from policy_rollout.demo.session import Session

    policy = UPVLAPolicy.from_config(None, "cpu", str(MODEL))
    session = Session(policy, DOORS.with_cameras(policy.spec.data.cameras), 0, folder, Console())
    play_several(session, 3)
    session.write()
    return folder / "report.html"


def data_page(folder: Path) -> Path:
    """Write the page of the bundled recording, and return it."""
    from scripts import inspect_data

    page = folder / "data.html"
    training = os.path.relpath(RECORDING.with_name("training"))  # a page shows the path as it is given
    inspect_data.main([training, "--output", str(page), "--count", "4"])
    return page


def newest_decoding(results: Path) -> Path | None:
    """Return the newest committed result of `scripts.compare_decoding`; None if there is none."""
    return max((file.parent for file in results.rglob("decoding.png")), default=None)


def write_jpeg(path: Path, image: RgbImage, width: int | None = None) -> None:
    """Write an image as JPEG, at most ``width`` pixels wide."""
    content = io.BytesIO()
    if width is not None and image.shape[1] > width:
        image = _to_width(image, width)
    Image.fromarray(image).save(content, "JPEG", quality=82, optimize=True)
    write_bytes(path, content.getvalue())


def read_figure(decoding: Path) -> RgbImage:
    """Return the figure of a result of `scripts.compare_decoding`. Raises ``FileNotFoundError`` without one."""
    figure = decoding / "decoding.png"
    if not figure.is_file():
        raise FileNotFoundError(
            f"--decoding {decoding} has no decoding.png; name the output folder of compare_decoding"
        )
    with Image.open(figure) as found:
        return np.asarray(found.convert("RGB"))


def _to_width(image: RgbImage, width: int) -> RgbImage:
    return resize_to_height(image, round(image.shape[0] * width / image.shape[1]))


def _of_one_height(images: Sequence[RgbImage]) -> list[RgbImage]:
    height = max(image.shape[0] for image in images)
    return [np.pad(image, ((0, height - image.shape[0]), (0, 0), (0, 0)), mode="edge") for image in images]


def _reduce_colours(path: Path) -> None:
    with Image.open(path) as found:
        reduced = found.convert("RGB").quantize(128)
    with atomic_path(path) as partial:
        reduced.save(partial, format="PNG", optimize=True)
