"""What ``generate_text.py`` does: questions to a model, its answers as they come, and what they cost."""

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

from common.os_errors import reason_of
from models.decoding import Generation, Sampling, generate
from models.processing.text import questions_in
from policy_rollout.policies.upvla import pick_device
from scripts.answer_trace import Recorder, Step, lines_of, printable
from scripts.answering import Answerer, answerer, decoding, image_files, way_to_decode
from scripts.trace_picture import Panel, save_animation


@dataclass(frozen=True)
class Asked:
    """One row of the batch."""

    image: Path | None
    question: str


def require_used(options: argparse.Namespace) -> None:
    """Raises ``ValueError`` for what would be ignored, or is out of range."""
    for name, given in (("--top-k", options.top_k), ("--top-p", options.top_p)):
        if given and not options.temperature > 0:
            raise ValueError(f"{name} has no effect with --temperature 0; leave it out")
    if options.max_new_tokens < 1:
        raise ValueError(f"--max-new-tokens is {options.max_new_tokens}; it must be 1 or more")


def asked_of(options: argparse.Namespace) -> list[Asked]:
    """Every question of every image. Raises ``ValueError`` where there is nothing to ask."""
    questions = questions_in(options.question)
    if not questions:
        raise ValueError("--question is empty")
    if any("\ud800" <= letter <= "\udfff" for letter in options.question):  # how Python keeps bytes that are no letter
        raise ValueError("--question is not valid UTF-8")
    if options.no_picture and options.picture:
        raise ValueError("--no-picture and --picture exclude each other")
    if options.no_picture and options.clip:
        raise ValueError("--clip has no effect with --no-picture; leave it out")
    if options.json and options.trace:
        raise ValueError("--json prints nothing else: --trace has no effect with it; leave it out")
    if options.no_picture:
        return [Asked(None, question) for question in questions]
    files = image_files(options.picture or [])
    return [Asked(file, question) for file in files for question in questions]


class StreamingPrinter:
    """Prints while the answer comes: every forward's words (``--trace``), or one answer as it grows."""

    def __init__(self, console: Console, trace: bool, rows: int) -> None:
        self.console, self.trace, self.rows = console, trace, rows
        self.spoken = ""
        self._before: Step | None = None

    def watch(self, step: Step) -> None:
        if self.trace:
            for line in lines_of(step, self.console.is_terminal, self._before):
                self.console.print(line, soft_wrap=not self.console.is_terminal)
            self._before = step
        elif self.rows == 1:
            self._grow(step)

    def _grow(self, step: Step) -> None:
        """Print what has settled behind what was printed; a cut letter of several bytes waits for its rest."""
        said = step.said[0].rstrip("\ufffd")
        if said.startswith(self.spoken):
            self.console.file.write(said[len(self.spoken) :])
            self.console.file.flush()
            self.spoken = said

    def close(self, answers: list[str]) -> None:
        """The answers, or the rest of one that was printed as it grew."""
        if not self.trace and self.rows == 1:
            (answer,) = answers
            rest = answer[len(self.spoken) :] if answer.startswith(self.spoken) else f"\r{answer}"
            self.console.file.write(rest + "\n")
            return
        for number, text in enumerate(answers, start=1):
            self.console.print(f"#{number} " * (self.rows > 1) + text, markup=False, highlight=False, soft_wrap=True)


def told(stats: Generation, rows: int) -> str:
    """The cost in one line."""
    s = stats.stats
    return (
        f"{s.tokens} tokens in {s.forwards} forwards ({s.tokens_per_forward:.2f} tokens per forward"
        + (f" of {rows} rows" if rows > 1 else "")
        + f"), {s.seconds:.2f} s, {s.tokens_per_second:.1f} tokens/s, first word after {s.first_token_seconds:.2f} s"
    )


def record(
    options: argparse.Namespace, who: Answerer, way: str, asked: list[Asked], made: Generation
) -> dict[str, Any]:
    """Everything that was said, and how to get it again."""
    settings = {name: str(v) if isinstance(v, Path) else v for name, v in vars(options).items() if name != "picture"}
    answers = [
        {
            "picture": None if a.image is None else str(a.image),
            "question": a.question,
            "answer": text,
            "ids": ids,
            "cut": is_cut,
        }
        for a, text, ids, is_cut in zip(asked, made.texts, made.ids, made.cut, strict=True)
    ]
    cost = {"tokens_per_forward": made.stats.tokens_per_forward, "tokens_per_second": made.stats.tokens_per_second}
    return {
        "answers": answers,
        "stats": asdict(made.stats) | cost,
        "model": {"source": who.source, "trained": who.model.spec.decoding.text_objective, "decoded": way},
        "settings": settings,
    }


def ask(options: argparse.Namespace, console: Console) -> None:
    asked = asked_of(options)
    if options.trace_gif is not None:
        require_writable(options.trace_gif)
    device = pick_device(options.device)
    who = answerer(
        options.checkpoint, options.model_config, options.clip, not options.no_picture, device, options.dtype
    )
    way, warning = way_to_decode(who.model.spec.decoding.text_objective, options.objective, options.anyway)
    how = decoding(options, way)
    require_used(options)
    sampling = Sampling(options.temperature, options.top_k, options.top_p)
    for note in [*who.notes, *([warning] if warning else [])]:
        print(f"note: {note}", file=sys.stderr)
    if not options.json:
        for number, row in enumerate(asked, start=1):
            about = "" if row.image is None else f"  ({row.picture.name})"
            head = f"#{number} " * (len(asked) > 1) + row.question + about
            console.print(head, style="bold", markup=False, highlight=False, soft_wrap=True)
    speaker = StreamingPrinter(console, options.trace, len(asked))
    recorder = Recorder(who.prompter, len(asked), None if options.json else speaker.watch)
    patches = None if options.no_picture else who.patches([row.image for row in asked if row.image is not None])
    made = generate(
        who.model,
        who.prompter,
        [row.question for row in asked],
        patches,
        options.max_new_tokens,
        sampling,
        torch.Generator(device).manual_seed(options.seed),
        objective=way,
        decoding=how,
        on_step=recorder,
    )
    if any(made.cut):
        print(
            f"note: {sum(made.cut)} of {len(made.cut)} answers were cut at --max-new-tokens {options.max_new_tokens}",
            file=sys.stderr,
        )
    if options.json:
        print(json.dumps(record(options, who, way, asked, made), indent=2, ensure_ascii=False))
    else:
        speaker.close([printable(text) for text in made.texts])
        console.print(told(made, len(asked)), style="dim", highlight=False, soft_wrap=True)
    if options.trace_gif is not None:
        panels = [Panel(row.image, row.question) for row in asked]
        rule = options.accept or "threshold:0.9"
        name = "bd, speculative" if options.speculative else way if way == "ar" else f"{way}, {rule}"
        save_animation(options.trace_gif, panels, recorder.steps, name)
        print(f"written to {options.trace_gif}", file=sys.stderr if options.json else sys.stdout)


def require_writable(path: Path) -> None:
    """Before the model is asked."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--trace-gif {path}: the folder cannot be made ({reason_of(error)})") from error
    if path.suffix.lower() != ".gif" or path.is_dir() or not os.access(path.parent, os.W_OK | os.X_OK):
        raise ValueError(f"--trace-gif {path}: expected the name of a .gif file in a folder of yours")
