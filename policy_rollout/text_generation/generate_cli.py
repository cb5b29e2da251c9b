"""Implementation of ``generate_text.py``: stream a model's answers to questions about images, and report their cost."""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from common.files import reason_of
from models.decoding import Generation, Sampling, generate
from models.processing.text import questions_in
from policy_rollout.policies.upvla import pick_device
from policy_rollout.text_generation.loading import (
    AnsweringModel,
    decoding,
    decoding_objective,
    image_files,
    load_answering_model,
)
from policy_rollout.text_generation.trace import Recorder, Step, lines_of, printable
from policy_rollout.text_generation.trace_animation import Panel, save_animation


@dataclass(frozen=True)
class Query:
    """One row of the batch: a question about an image."""

    image: Path | None
    question: str


def check_sampling(options: argparse.Namespace) -> None:
    """Raise ``ValueError`` for options without effect or out of range."""
    for name, given in (("--top-k", options.top_k), ("--top-p", options.top_p)):
        if given and not options.temperature > 0:
            raise ValueError(f"{name} has no effect with --temperature 0; leave it out")
    if options.max_new_tokens < 1:
        raise ValueError(f"--max-new-tokens is {options.max_new_tokens}; it must be 1 or more")


def queries_of(options: argparse.Namespace) -> list[Query]:
    """Return every question about every image. Raises ``ValueError`` for options that contradict each other."""
    questions = questions_in(options.question)
    if not questions:
        raise ValueError("--question is empty")
    if any("\ud800" <= letter <= "\udfff" for letter in options.question):  # surrogates: bytes that are not valid UTF-8
        raise ValueError("--question is not valid UTF-8")
    if options.no_picture and options.picture:
        raise ValueError("--no-picture and --picture exclude each other")
    if options.no_picture and options.clip:
        raise ValueError("--clip has no effect with --no-picture; leave it out")
    if options.json and options.trace:
        raise ValueError("--json prints nothing else: --trace has no effect with it; leave it out")
    if options.no_picture:
        return [Query(None, question) for question in questions]
    files = image_files(options.picture or [])
    return [Query(file, question) for file in files for question in questions]


class StreamingPrinter:
    """Print during generation: the tokens of every forward (``--trace``), or one answer as it grows."""

    def __init__(self, console: Console, trace: bool, rows: int) -> None:
        self.console, self.trace, self.rows = console, trace, rows
        self.printed = ""
        self._previous: Step | None = None

    def watch(self, step: Step) -> None:
        if self.trace:
            for line in lines_of(step, self.console.is_terminal, self._previous):
                self.console.print(line, soft_wrap=not self.console.is_terminal)
            self._previous = step
        elif self.rows == 1:
            self._grow(step)

    def _grow(self, step: Step) -> None:
        """Print the new part of the answer; an incomplete letter of several bytes waits for the rest."""
        text = step.prefixes[0].rstrip("\ufffd")
        if text.startswith(self.printed):
            self.console.file.write(text[len(self.printed) :])
            self.console.file.flush()
            self.printed = text

    def close(self, answers: list[str]) -> None:
        """Print the answers, or the rest of one that was printed as it grew."""
        if not self.trace and self.rows == 1:
            (answer,) = answers
            rest = answer[len(self.printed) :] if answer.startswith(self.printed) else f"\r{answer}"
            self.console.file.write(rest + "\n")
            return
        for number, text in enumerate(answers, start=1):
            self.console.print(f"#{number} " * (self.rows > 1) + text, markup=False, highlight=False, soft_wrap=True)


def describe_cost(generation: Generation, rows: int) -> str:
    """Return the cost in one line."""
    s = generation.stats
    return (
        f"{s.tokens} tokens in {s.forwards} forwards ({s.tokens_per_forward:.2f} tokens per forward"
        + (f" of {rows} rows" if rows > 1 else "")
        + f"), {s.seconds:.2f} s, {s.tokens_per_second:.1f} tokens/s, first token after {s.first_token_seconds:.2f} s"
    )


def record(
    options: argparse.Namespace, model: AnsweringModel, objective: str, queries: list[Query], generation: Generation
) -> dict[str, Any]:
    """Return the answers with everything that is needed to reproduce them."""
    settings = {name: str(v) if isinstance(v, Path) else v for name, v in vars(options).items() if name != "picture"}
    answers = [
        {
            "picture": None if query.image is None else str(query.image),
            "question": query.question,
            "answer": text,
            "ids": ids,
            "cut": is_cut,
        }
        for query, text, ids, is_cut in zip(queries, generation.texts, generation.ids, generation.cut, strict=True)
    ]
    stats = generation.stats
    cost = {"tokens_per_forward": stats.tokens_per_forward, "tokens_per_second": stats.tokens_per_second}
    return {
        "answers": answers,
        "stats": asdict(stats) | cost,
        "model": {"source": model.source, "trained": model.model.spec.decoding.text_objective, "decoded": objective},
        "settings": settings,
    }


def run(options: argparse.Namespace, console: Console) -> None:
    """Generate, print and draw the answers. Raises ``ValueError`` or ``OSError``."""
    queries = queries_of(options)
    if options.trace_gif is not None:
        require_writable(options.trace_gif)
    device = pick_device(options.device)
    model = load_answering_model(
        options.checkpoint, options.model_config, options.clip, not options.no_picture, device, options.dtype
    )
    objective, warning = decoding_objective(model.model.spec.decoding.text_objective, options.objective, options.anyway)
    how = decoding(options, objective)
    check_sampling(options)
    sampling = Sampling(options.temperature, options.top_k, options.top_p)
    for note in [*model.notes, *([warning] if warning else [])]:
        print(f"note: {note}", file=sys.stderr)
    if not options.json:
        for number, row in enumerate(queries, start=1):
            about = "" if row.image is None else f"  ({row.image.name})"
            head = f"#{number} " * (len(queries) > 1) + row.question + about
            console.print(head, style="bold", markup=False, highlight=False, soft_wrap=True)
    printer = StreamingPrinter(console, options.trace, len(queries))
    recorder = Recorder(model.prompter, len(queries), None if options.json else printer.watch)
    patches = None if options.no_picture else model.patches([row.image for row in queries if row.image is not None])
    generation = generate(
        model.model,
        model.prompter,
        [row.question for row in queries],
        patches,
        options.max_new_tokens,
        sampling,
        torch.Generator(device).manual_seed(options.seed),
        objective=objective,
        decoding=how,
        on_step=recorder,
    )
    if any(generation.cut):
        cut, limit = f"{sum(generation.cut)} of {len(generation.cut)}", options.max_new_tokens
        print(f"note: {cut} answers were cut at --max-new-tokens {limit}", file=sys.stderr)
    if options.json:
        print(json.dumps(record(options, model, objective, queries, generation), indent=2, ensure_ascii=False))
    else:
        printer.close([printable(text) for text in generation.texts])
        console.print(describe_cost(generation, len(queries)), style="dim", highlight=False, soft_wrap=True)
    if options.trace_gif is not None:
        panels = [Panel(row.image, row.question) for row in queries]
        rule = options.accept or "threshold:0.9"
        name = "bd, speculative" if options.speculative else objective if objective == "ar" else f"{objective}, {rule}"
        save_animation(options.trace_gif, panels, recorder.steps, name)
        print(f"written to {options.trace_gif}", file=sys.stderr if options.json else sys.stdout)


def require_writable(path: Path) -> None:
    """Raise ``ValueError`` if the animation cannot be written there."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--trace-gif {path}: the folder cannot be made ({reason_of(error)})") from error
    if path.suffix.lower() != ".gif" or path.is_dir() or not os.access(path.parent, os.W_OK | os.X_OK):
        raise ValueError(f"--trace-gif {path}: expected the name of a .gif file in a writable folder")
