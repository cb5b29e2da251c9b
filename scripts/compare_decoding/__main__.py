"""Decode trained text models in every way, and draw quality against speed.

    python -m scripts.compare_decoding --models ar=outputs/tiny_arvla bd=outputs/tiny_bdvla joint=outputs/tiny_jointvla

Every model answers the same held-out questions by the next token, and models of mdm and bd also in blocks, for several
sizes of the blocks and thresholds of acceptance; bd also by drafts that next-token prediction verifies. Reports exact
matches, tokens per forward with the upper bound that perfect acceptance would give, and tokens per second, one answer
at a time. Writes summary.md, decoding.png and decoding.csv.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from common.arguments import command_parser, path_argument, whole
from common.command import print_next, progress_bar, report_errors, run_command
from common.files import write_text
from common.record_table import write_record_table
from common.tables import markdown_table
from config.loading import load_job

if TYPE_CHECKING:
    from scripts.compare_decoding.sweep import Decoded, Items, Way

TABLE = "decoding/1"
"""Kind and version of the table of records (docs/evaluation.md)."""
WHOLE = "whole"
BLOCKS, THRESHOLDS = "1,2,4,8,whole", "1,0.95,0.9,0.7,0.5"
COUNT, TIMED = 96, 16


@report_errors("compare_decoding")
def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    models, blocks, thresholds = read_models(args.models), read_blocks(args.blocks), read_thresholds(args.thresholds)
    job = load_job([f"config={next(iter(models.values()))[0] / 'config.yaml'}"], None)
    held_out = args.questions or job.dataset.params.validation_mmu_shards_path_or_url
    if held_out is None:
        raise ValueError("--questions: the configuration of the first model names no held-out conversations; give some")
    from scripts.objective_comparison.evaluate import read_held_out  # loads torch, after the arguments are checked

    found = read_held_out(job, Path(held_out))
    chosen = found.questions[:: max(1, len(found.questions) // args.count)][: args.count]
    from scripts.compare_decoding.sweep import Items

    items = Items([q.text for q in chosen], found.patches_of(chosen), [q.answer for q in chosen])
    results = decode(models, items, args.max_new_tokens or job.max_new_tokens, args.timed, blocks, thresholds)
    command = shlex.join(["python", "-m", "scripts.compare_decoding", *(sys.argv[1:] if argv is None else argv)])
    print(write(results, args.output_dir, len(items), args.timed, f"`{command}`"))
    print(f"done: {args.output_dir / 'summary.md'}, decoding.png, decoding.csv")
    print_next("open {figure}", figure=args.output_dir / "decoding.png")
    return 0


def decode(
    models: Mapping[str, Sequence[Path]],
    items: Items,
    longest: int,
    timed: int,
    blocks: Sequence[int | None],
    thresholds: Sequence[float],
) -> dict[str, list[dict[Way, Decoded]]]:
    """Return the results of every way, by name and run."""
    from models.pretrained.model_io import load_folder
    from policy_rollout.policies.upvla import pick_device
    from scripts.compare_decoding.sweep import measure, ways_of

    loaded = {}
    for name, folders in models.items():
        for number, folder in enumerate(folders):
            built = load_folder(folder, pick_device())
            loaded[name, number] = built, ways_of(built.spec.decoding.text_objective, blocks, thresholds)
    answers = sum(len(ways) for _, ways in loaded.values()) * (len(items) + min(timed, len(items)))
    by_run = {f"{name} {number}": pair for (name, number), pair in loaded.items()}
    with progress_bar(total=answers, desc="decoding", unit="answer") as bar:
        found = measure(by_run, items, longest, timed, bar.update)
    return {name: [found[f"{name} {number}"] for number in range(len(folders))] for name, folders in models.items()}


def write(
    runs: Mapping[str, Sequence[Mapping[Way, Decoded]]], folder: Path, count: int, timed: int, source: str
) -> str:
    """Write summary.md, decoding.png and decoding.csv; return the summary.

    ``runs``: name -> its runs, which are taken together; ``source``: command of the results.
    """
    from policy_rollout.policies.upvla import pick_device
    from scripts.compare_decoding.figure import draw
    from scripts.compare_decoding.sweep import merged, rows_of
    from scripts.objective_comparison.evaluate import machine

    folder.mkdir(parents=True, exist_ok=True)
    results = {name: merged(of_name) for name, of_name in runs.items()}
    where = f"{datetime.now(timezone.utc):%Y-%m-%d}, {machine(pick_device())}"
    text = "\n".join(
        [
            "# Quality against speed of decoding",
            "",
            f"{source}, {where}.",
            "",
            "![Quality against speed](decoding.png)",
            "",
            f"Exact matches of {count} held-out questions for each run; cost of the first {min(timed, count)}, one "
            "answer at a time, all models and ways alternating (CPU time on a CPU). Bound: tokens per forward if every "
            "proposed token were accepted, for answers of these lengths. `ar` has never read a mask and decodes by the "
            "next token only. The answers of speculative decoding are those of the next token, by construction.",
            "",
            table(results),
            "",
        ]
    )
    write_text(folder / "summary.md", text)
    write_record_table(folder / "decoding.csv", TABLE, list(rows_of(runs)))
    draw(results, folder / "decoding.png", where)
    return text


def table(results: Mapping[str, Mapping[Way, Decoded]]) -> str:
    """Return a Markdown table; a star marks the ways that no other one of the model beats."""
    from scripts.compare_decoding.sweep import best_of

    rows = []
    for name, ways in results.items():
        best = best_of(ways)
        for way, one in ways.items():
            rows.append(
                [
                    f"{name}, {way.name}{' *' if way in best else ''}",
                    f"{100 * one.exact_match:.1f} %",
                    f"{one.tokens_per_forward:.2f}",
                    f"{one.bound:.2f}",
                    f"{one.tokens_per_second:.0f}",
                ]
            )
    return markdown_table(["model, decoding", "exact match", "tokens per forward", "bound", "tokens per second"], rows)


def read_models(given: Sequence[str]) -> dict[str, list[Path]]:
    """Parse ``NAME=FOLDER,FOLDER``. Raises ``ValueError`` or ``FileNotFoundError``."""
    found: dict[str, list[Path]] = {}
    for text in given:
        name, equals, folders = text.partition("=")
        if not equals or not name or not folders:
            raise ValueError(f"--models {text}: expected NAME=FOLDER, or NAME=FOLDER,FOLDER for several runs")
        if name in found:
            raise ValueError(f"--models {text}: {name} is given twice; write {name}=FOLDER,FOLDER for several runs")
        found[name] = [path_argument(folder) for folder in folders.split(",")]
    for folder in (folder for folders in found.values() for folder in folders):
        for file in ("config.yaml", "model.safetensors"):
            if not (folder / file).is_file():
                raise FileNotFoundError(f"--models: {folder / file} does not exist; name the folder of a finished run")
    return found


def read_blocks(text: str) -> list[int | None]:
    """Parse ``1,2,whole``; ``whole`` is None. Raises ``ValueError``."""
    words = text.split(",")
    if not all(word == WHOLE or (word.isdecimal() and int(word) > 0) for word in words):
        raise ValueError(f"--blocks {text}: expected numbers of at least 1, or whole, separated by commas")
    return [None if word == WHOLE else int(word) for word in dict.fromkeys(words)]


def read_thresholds(text: str) -> list[float]:
    """Parse ``1,0.9``. Raises ``ValueError``."""
    try:
        found = [float(word) for word in dict.fromkeys(text.split(","))]
    except ValueError:
        found = [-1.0]
    if not all(value >= 0 for value in found):
        raise ValueError(f"--thresholds {text}: expected probabilities separated by commas, such as 1,0.9")
    return found


def _parser() -> argparse.ArgumentParser:
    made = command_parser(__doc__, prog="python -m scripts.compare_decoding")
    add = made.add_argument
    models = "finished runs, by names such as ar, mdm, bd, joint; several runs of one are taken together"
    add("--models", nargs="+", required=True, metavar="NAME=FOLDER[,FOLDER]", help=models)
    questions = "folder of held-out conversations (default: that of the first model's configuration)"
    add("--questions", type=path_argument, metavar="DIR", help=questions)
    add("--count", type=whole(1), default=COUNT, help="questions, evenly spaced (default: %(default)s)")
    add("--timed", type=whole(1), default=TIMED, help="of them, answered one at a time for cost (default: %(default)s)")
    add("--blocks", default=BLOCKS, help="tokens of a block, whole: of the answer (default: %(default)s)")
    add("--thresholds", default=THRESHOLDS, help="1: one token per forward (default: %(default)s)")
    add("--max-new-tokens", type=whole(1), help="longest answer (default: as the first model's configuration)")
    output = "summary.md, decoding.png, decoding.csv (default: %(default)s)"
    add("--output-dir", type=path_argument, default=Path("results/decoding"), help=output)
    return made


if __name__ == "__main__":
    run_command(main)
