"""Ask a model about pictures: the answer, what it cost, and how it filled in.

python scripts/generate_text.py --checkpoint outputs/tiny_bdvla --picture table.jpg --question "Where is the red toy?"
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # started as a file: the repository's root is not on the path yet
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from rich.console import Console

from models.decoding import Generation, Sampling, generate
from models.prompting import questions_in
from policy_rollout.policy import pick_device
from scripts.answering import (
    ACCEPT_HELP,
    Answerer,
    add_decoding,
    add_who,
    answerer,
    decoding,
    picture_files,
    way_to_decode,
)
from scripts.trace import Recorder, Step, lines_of, printable
from scripts.trace_picture import Panel, save_animation

DESCRIPTION = """\
Asks a trained model questions about pictures and prints each answer as it comes, then what it cost: forwards of the
backbone, tokens per forward, tokens per second, time to the first word. Every question is asked of every picture, all
of them in one batch. A model decodes as it was trained (ar, mdm or bd) unless told otherwise."""
EPILOG = (
    """\
examples:
  python scripts/generate_text.py --checkpoint outputs/tiny_bdvla --picture table.jpg \\
      --question "Where is the red toy? *** What colour is the ball?"
  how the answer fills in, in the terminal and as an animated picture:
    python scripts/generate_text.py --checkpoint outputs/tiny_bdvla --trace --trace-gif outputs/answer.gif
  more words per forward, and the same answer as next-token prediction gives:
    python scripts/generate_text.py --checkpoint outputs/tiny_bdvla --accept threshold:0.6
    python scripts/generate_text.py --checkpoint outputs/tiny_bdvla --speculative
  several samples that can be repeated:
    python scripts/generate_text.py --checkpoint outputs/tiny_arvla --temperature 0.8 --top-p 0.95 --seed 7
  for another program:
    python scripts/generate_text.py --checkpoint outputs/tiny_mdmvla --json | jq .answers

"""
    + ACCEPT_HELP
)
QUESTION = "Name the toys on the table."


@dataclass(frozen=True)
class Asked:
    """One row of the batch."""

    picture: Path | None
    question: str


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_who(made)
    what = made.add_argument_group("what is asked")
    what.add_argument("--picture", type=Path, nargs="+", help="files or folders (default: a bundled picture)")
    what.add_argument("--no-picture", action="store_true", help="ask without a picture")
    what.add_argument("--question", default=QUESTION, help="several are split by ' *** ' (default: %(default)s)")
    what.add_argument("--max-new-tokens", type=int, default=64, help="longest answer (default: 64)")
    how = add_decoding(made)
    how.add_argument("--temperature", type=float, default=0.0, help="0 (default): always the most likely word")
    how.add_argument("--top-k", type=int, help="draw from that many words at most")
    how.add_argument("--top-p", type=float, help="draw from the likeliest words that hold this probability")
    how.add_argument("--seed", type=int, default=0, help="of what is drawn (default: 0)")
    show = made.add_argument_group("what is shown")
    show.add_argument("--trace", action="store_true", help="print what every forward filled in")
    show.add_argument("--trace-gif", type=Path, metavar="FILE", help="the same as an animated picture")
    show.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    return made


def require_used(options: argparse.Namespace) -> None:
    """Raises ``ValueError`` for what would be ignored, or is out of range."""
    for name, given in (("--top-k", options.top_k), ("--top-p", options.top_p)):
        if given and not options.temperature > 0:
            raise ValueError(f"{name} has no effect with --temperature 0; leave it out")
    if options.max_new_tokens < 1:
        raise ValueError(f"--max-new-tokens is {options.max_new_tokens}; it must be 1 or more")


def asked_of(options: argparse.Namespace) -> list[Asked]:
    """Every question of every picture. Raises ``ValueError`` where there is nothing to ask."""
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
    files = picture_files(options.picture or [])
    return [Asked(file, question) for file in files for question in questions]


class Speaker:
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
        {"picture": None if a.picture is None else str(a.picture), "question": a.question, "answer": text, "ids": ids}
        for a, text, ids in zip(asked, made.texts, made.ids, strict=True)
    ]
    cost = {"tokens_per_forward": made.stats.tokens_per_forward, "tokens_per_second": made.stats.tokens_per_second}
    return {
        "answers": answers,
        "stats": asdict(made.stats) | cost,
        "model": {"source": who.source, "trained": who.model.spec.text_objective, "decoded": way},
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
    way, warning = way_to_decode(who.model.spec.text_objective, options.objective, options.anyway)
    how = decoding(options, way)
    require_used(options)
    sampling = Sampling(options.temperature, options.top_k, options.top_p)
    for note in [*who.notes, *([warning] if warning else [])]:
        print(f"note: {note}", file=sys.stderr)
    if not options.json:
        for number, row in enumerate(asked, start=1):
            about = "" if row.picture is None else f"  ({row.picture.name})"
            head = f"#{number} " * (len(asked) > 1) + row.question + about
            console.print(head, style="bold", markup=False, highlight=False, soft_wrap=True)
    speaker = Speaker(console, options.trace, len(asked))
    recorder = Recorder(who.prompter, len(asked), None if options.json else speaker.watch)
    patches = None if options.no_picture else who.patches([row.picture for row in asked if row.picture is not None])
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
    if options.json:
        print(json.dumps(record(options, who, way, asked, made), indent=2, ensure_ascii=False))
    else:
        speaker.close([printable(text) for text in made.texts])
        console.print(told(made, len(asked)), style="dim", highlight=False, soft_wrap=True)
    if options.trace_gif is not None:
        panels = [Panel(row.picture, row.question) for row in asked]
        rule = options.accept or "threshold:0.9"
        name = "bd, speculative" if options.speculative else way if way == "ar" else f"{way}, {rule}"
        save_animation(options.trace_gif, panels, recorder.steps, name)
        print(f"written to {options.trace_gif}", file=sys.stderr if options.json else sys.stdout)


def require_writable(path: Path) -> None:
    """Before the model is asked."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--trace-gif {path}: the folder cannot be made ({error.strerror})") from error
    if path.suffix.lower() != ".gif" or path.is_dir() or not os.access(path.parent, os.W_OK | os.X_OK):
        raise ValueError(f"--trace-gif {path}: expected the name of a .gif file in a folder of yours")


def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    try:
        ask(options, Console())
    except BrokenPipeError:  # whoever was reading (``| head``) has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError) as error:
        print(f"generate_text: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
