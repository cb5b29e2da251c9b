"""Evaluate a model on a benchmark of questions about images: accuracy with its interval, and the cost of an answer.

python scripts/eval_vqa.py --checkpoint outputs/tiny_bdvla
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.arguments import command_parser, path_argument
from common.command import print_next, progress_bar, report_errors, run_command
from common.files import write_text
from common.folder_lock import hold
from models.decoding import Decoding, Generation, generate
from models.pretrained.weights_io import files_sha256
from policy_rollout.benchmarks.vqa import results
from policy_rollout.benchmarks.vqa.inference import FILE as ANSWERS
from policy_rollout.benchmarks.vqa.inference import ShownQuestion, answer_questions, order_by_image
from policy_rollout.benchmarks.vqa.questions import FORMATS, Question, digest, read_questions, require_images
from policy_rollout.closed_loop.records import claim
from policy_rollout.policies.upvla import pick_device
from policy_rollout.reports.results import names_of
from policy_rollout.text_generation.cli_options import ACCEPT_HELP, add_decoding, add_model
from policy_rollout.text_generation.loading import (
    EMBEDDED_IMAGES,
    AnsweringModel,
    decoding,
    decoding_objective,
    load_answering_model,
)
from preprocess_data.tiny_assets.questions import kind_of
from training.data.readers import LLAVA_NAME

DESCRIPTION = """\
Asks a model the questions of a benchmark and scores its answers by that benchmark's definition: POPE, TextVQA, GQA,
LLaVA's questions (answered, not scored), or conversations in the training format. Without --benchmark: the bundled
questions about toys, which need no data. Any checkpoint, decoded as it was trained (ar, mdm or bd) or otherwise.
Answers are stored batch by batch: a killed command resumes."""
EPILOG = f"""\
examples:
  python scripts/eval_vqa.py --checkpoint outputs/tiny_bdvla
  whether it uses the image: the same questions about other images, then both compared:
    python scripts/eval_vqa.py --checkpoint outputs/tiny_bdvla --shuffle-pictures
    python scripts/eval_vqa.py --compare results/vqa/embedded_1a2b3c4d results/vqa/embedded_5e6f7a8b
  POPE, all three categories (files coco_pope_random.json, coco_pope_popular.json, coco_pope_adversarial.json):
    python scripts/eval_vqa.py --checkpoint outputs/mine --benchmark pope --questions pope/coco_pope_*.json \\
        --image-root coco/val2014 --device cuda:0 --batch-size 64
  TextVQA and GQA:
    python scripts/eval_vqa.py --checkpoint outputs/mine --benchmark textvqa \\
        --questions TextVQA_0.5.1_val.json --image-root train_images
    python scripts/eval_vqa.py --checkpoint outputs/mine --benchmark gqa \\
        --questions testdev_balanced_questions.json --image-root gqa/images
  one answer at a time, for its latency:
    python scripts/eval_vqa.py --checkpoint outputs/mine --batch-size 1 --max-questions 50

{ACCEPT_HELP}"""
EMBEDDED = "embedded"
EMBEDDED_FOLDER = EMBEDDED_IMAGES.parent
CPU_BATCH, CUDA_BATCH = 16, 64


@dataclass(frozen=True)
class Task:
    """The questions, the model, the way of decoding, and the folder of the answers."""

    format: str
    questions: list[Question]
    asked: list[ShownQuestion]
    root: Path
    model: AnsweringModel
    objective: str
    decoding: Decoding
    settings: dict[str, Any]
    folder: Path


def parser() -> argparse.ArgumentParser:
    made = command_parser(DESCRIPTION, EPILOG)
    add = made.add_argument_group("questions").add_argument
    add("--benchmark", choices=(EMBEDDED, *FORMATS), default=EMBEDDED, help="(default: %(default)s)")
    add("--questions", type=path_argument, nargs="+", metavar="FILE", help="question files of the benchmark")
    add("--image-root", type=path_argument, metavar="DIR", help="folder that the files' image names are relative to")
    add("--max-questions", type=int, default=0, metavar="N", help="the first N only (default: 0, all)")
    add("--suffix", help="text after every question (default: as LLaVA's evaluation of the benchmark)")
    add("--shuffle-pictures", action="store_true", help="ask every question about another image")
    add_model(made)
    how = add_decoding(made)
    how.add_argument("--max-new-tokens", type=int, help="longest answer (default: by benchmark, 16 to 256)")
    how.add_argument("--batch-size", type=int, default=0, help="questions at once (default: 16, on a GPU 64)")
    add = made.add_argument_group("results").add_argument
    add("--log-dir", type=path_argument, help="default: results/vqa/<benchmark>_<digest of all settings>")
    add("--compare", type=path_argument, nargs="+", metavar="RESULT", help="compare finished results, without a model")
    return made


# --- preparation -----------------------------------------------------------------------------------------------------


def prepare(options: argparse.Namespace) -> Task:
    """Check all arguments and load the model. Raises ``ValueError`` or ``FileNotFoundError``."""
    for name in ("max_questions", "batch_size", "max_new_tokens"):
        given = getattr(options, name)
        if given is not None and given < (1 if name == "max_new_tokens" else 0):
            raise ValueError(f"--{name.replace('_', '-')} is {given}; it must be positive")
    name, files, root = sources(options)
    questions = read_questions(name, files, options.max_questions)
    require_images(questions, root)
    suffix = FORMATS[name].suffix if options.suffix is None else options.suffix
    questions = [phrased(question, suffix, options.benchmark) for question in questions]
    asked = order_by_image(questions, options.shuffle_pictures)
    device = pick_device(options.device)
    model = load_answering_model(options.checkpoint, options.model_config, options.clip, True, device, options.dtype)
    objective, warning = decoding_objective(model.model.spec.decoding.text_objective, options.objective, options.anyway)
    how = decoding(options, objective)
    for note in [*model.notes, *([warning] if warning else [])]:
        print(f"note: {note}", file=sys.stderr)
    settings = {
        "benchmark": options.benchmark,
        "questions_sha256": digest(questions),
        "suffix": suffix,
        "max_new_tokens": options.max_new_tokens or FORMATS[name].max_new_tokens,
        results.SHUFFLED: options.shuffle_pictures,
        "checkpoint_sha256": model.source if model.checkpoint is None else files_sha256(model.checkpoint),
        "clip_sha256": None if model.clip_folder is None else files_sha256(model.clip_folder),
        "trained": model.model.spec.decoding.text_objective,
        "objective": objective,
        "accept": None if objective == "ar" or how.speculative else options.accept or "threshold:0.9",
        "block_size": how.block_size,
        "whole_canvas": how.whole_canvas,
        "speculative": how.speculative,
        "dtype": options.dtype,
        "batch_size": options.batch_size or (CUDA_BATCH if device.type == "cuda" else CPU_BATCH),
    }
    folder = options.log_dir or Path("results") / "vqa" / f"{options.benchmark}_{_short(settings)}"
    claim(folder, settings)
    return Task(name, questions, asked, root, model, objective, how, settings, folder)


def sources(options: argparse.Namespace) -> tuple[str, list[Path], Path]:
    """Return (format, question files, image root)."""
    if options.benchmark == EMBEDDED:
        if options.questions or options.image_root:
            raise ValueError(
                f"--questions and --image-root need --benchmark {', '.join(FORMATS)}; {EMBEDDED} has its own"
            )
        return "conversations", [EMBEDDED_FOLDER / LLAVA_NAME], EMBEDDED_FOLDER
    if not options.questions:
        raise ValueError(f"--benchmark {options.benchmark} needs its --questions FILE")
    return options.benchmark, options.questions, options.image_root or options.questions[0].parent


def phrased(question: Question, suffix: str, benchmark: str) -> Question:
    """Return the question with its suffix, unless it has it already; a bundled question gets its kind."""
    text = question.text if question.text.endswith(suffix) else f"{question.text}\n{suffix}"
    kind = kind_of(question.text) if benchmark == EMBEDDED else question.kind
    return Question(question.id, question.image, text, question.truths, kind)


def _short(settings: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]


# --- evaluation ------------------------------------------------------------------------------------------------------


def evaluate(task: Task) -> dict[str, Any]:
    """Generate and score all answers, and write the results to the folder."""
    model, device = task.model, task.model.model.device

    def encode(images: Sequence[str]) -> Tensor:
        features = model.patches([task.root / name for name in images])
        assert features is not None
        return features

    def answer(texts: Sequence[str], patches: Tensor, number: int) -> Generation:
        return generate(
            model.model,
            model.prompter,
            texts,
            patches,
            task.settings["max_new_tokens"],
            generator=torch.Generator(device).manual_seed(number),  # for first-hitting; repeatable
            objective=task.objective,
            decoding=task.decoding,
        )

    with progress_bar(total=len(task.asked), unit="question", desc=task.settings["benchmark"]) as bar:
        size = task.settings["batch_size"]
        batches = answer_questions(
            task.asked, size, encode, answer, task.folder / ANSWERS, lambda count: bar.update(count)
        )
    content = results.figures(task.format, task.questions, task.asked, batches)
    content |= {
        "benchmark": task.settings["benchmark"],
        "settings": task.settings,
        "model": {"source": model.source, "device": str(device)},
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("torch", "transformers", "pillow")},
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    write_text(task.folder / results.FILE, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    return content


def compare(options: argparse.Namespace) -> None:
    if len(options.compare) < 2:
        raise ValueError("--compare takes two results or more")
    files = [path / results.FILE if path.is_dir() else path for path in options.compare]
    found = [results.read_scored(file, name) for file, name in zip(files, names_of(files), strict=True)]
    pairs, notes = results.compare(found, options.anyway)
    print(results.comparison(found, pairs, notes))
    print("; ".join(map(results.verdict, pairs)))


@report_errors("eval_vqa")
def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    if options.compare:
        compare(options)
        return 0
    task = prepare(options)
    with hold(task.folder, "eval_vqa", "--log-dir "):
        content = evaluate(task)
        table = results.markdown(task.folder.name, content)
        write_text(task.folder / "summary.md", table)
    print(table)
    print(f"{results.last_line(content)}; results in {task.folder}")
    print_next("blockdiff-vla vqa --compare {folder} OTHER", folder=task.folder)
    return 0


if __name__ == "__main__":
    run_command(main)
