"""Make the images of docs/gallery.md and write the page.

    python -m scripts.dev.gallery --models ar=RUN mdm=RUN bd=RUN --quickstart outputs/quickstart_ar

Draws with the bundled models and data. The answers need a trained text model for each objective: runs that --models
names, or else short runs (text alone), which are trained first. Screenshots need Chromium. What cannot be made is
reported and keeps its earlier image; the page lists the images that are there.
"""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.arguments import command_parser, path_argument
from common.command import report_errors, run_command
from common.files import PROJECT_DIR, write_text

TEMPLATE = Path(__file__).with_name("gallery.md.j2")
SCREENSHOT_WIDTH = 880
TEXT_RUNS, HTML_PAGES = Path("outputs/gallery/text"), Path("outputs/gallery/pages")
"""Relative, because pages show where they are."""


@dataclass(frozen=True)
class Item:
    """One image. ``caption``: what it shows; ``command``: what makes it, or one like it."""

    name: str
    file: str
    title: str
    caption: str
    command: str


ITEMS = (
    Item(
        "masks",
        "masks.png",
        "Attention masks of the three objectives",
        "A row is a query, a coloured square a key that it attends to. `ar` attends backwards. `mdm` masks the answer "
        "(▁) in two complementary noisy copies, each one block. `bd` does so block by block: a noisy block attends to "
        "the clean answer before it and to itself.",
        "python scripts/show_mask.py bd --answer 4 --patches 3 --png outputs/mask.png",
    ),
    Item(
        "answers",
        "answers.gif",
        "One answer filling in",
        "The same held-out question, answered by a small model of each objective: runs of `python -m "
        "scripts.study`, or without `--models` short runs. A chip is a token, its colour the "
        "forward pass that filled it: `ar` fills one at a time, `mdm` and `bd` several, those that are sure enough. "
        "The question is the one with the longest true answer among the first held-out ones, whether it is answered "
        "rightly or not; the true answer stands at the right. One question says nothing about which objective is "
        "better.",
        'python scripts/generate_text.py --checkpoint RUN --question "Where is the red toy?" --trace-gif answer.gif',
    ),
    Item(
        "frames",
        "frames.jpg",
        "Predicted frames",
        "The bundled model predicts the camera image ten control steps later, in 36 codes of a small tokenizer. Below "
        "each row is its error beside that of copying the present frame.",
        "python -m policy_rollout.future_frames --checkpoint assets/desk_policy --probe-data data/desk_doors/training "
        "--data data/desk_doors/validation --figure frames.png",
    ),
    Item(
        "rollouts",
        "rollouts.gif",
        "The same start, two instructions",
        "Left: the bundled model is told the task and does it. Right: from the same start it is told another task.",
        "python -m scripts.evaluate_desk --checkpoint assets/desk_policy --output-dir outputs/desk_policy_evaluation",
    ),
    Item(
        "decoding",
        "decoding.png",
        "Quality against speed of decoding",
        "Exact answers against tokens per second and tokens per forward pass, for each way of decoding.",
        "python -m scripts.compare_decoding --models ar=RUN mdm=RUN bd=RUN",
    ),
    Item(
        "inspect",
        "inspect.jpg",
        "The page of a data set",
        "Tasks, sentences, distributions of actions, and episodes to play, in one HTML file.",
        "python -m scripts.inspect_data dummy_data/calvin/training --count 4",
    ),
    Item(
        "evaluation",
        "evaluation.jpg",
        "The report of an evaluation",
        "Closed loop on the desk: success with intervals, films and predicted frames. The title states environment, "
        "policy, step limit and date. Charts need 20 chains.",
        "python -m policy_rollout.demo --tasks 3",
    ),
    Item(
        "quickstart",
        "quickstart.jpg",
        "The report of the quickstart",
        "What a small model sees, does and says after minutes of training, beside the expert and the bundled model.",
        "make quickstart",
    ),
)


@report_errors("gallery")
def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    from scripts.compare_decoding.__main__ import read_models

    models = {name: folders[0] for name, folders in read_models(args.models).items()}
    folder = args.output_dir.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    makers = _makers(args, models)
    for item in ITEMS:
        if item.name in args.only:
            try:
                why = makers[item.name](folder / item.file)
            except RuntimeError as error:  # a failed run, or no screenshot
                raise ValueError(str(error)) from error
            print(f"{item.name:12} {why or folder / item.file}", flush=True)
    there = [item for item in ITEMS if (folder / item.file).is_file()]
    write_page(args.page.resolve(), folder, there)
    print(f"written: {args.page}, {len(there)} of {len(ITEMS)} images")
    return 0


def write_page(page: Path, folder: Path, items: Sequence[Item]) -> None:
    """Write the page of these images, with links relative to it."""
    from common.html import render

    relative = Path(os.path.relpath(folder, page.parent)).as_posix()
    write_text(page, render(TEMPLATE, items=items, images=relative))


def _makers(args: argparse.Namespace, models: dict[str, Path]) -> dict[str, Callable[[Path], str | None]]:
    """Return the function of each image: it writes a file, or returns why not."""
    from common.image_grid import write_png
    from scripts.dev.gallery import images
    from scripts.dev.gallery.browser import find_chromium, screenshot

    def answers(path: Path) -> None:
        images.answers(path, models or images.train_text_models(args.text_runs), args.questions)

    def decoding(path: Path) -> str | None:
        found = args.decoding or images.newest_decoding(PROJECT_DIR / "benchmarks/results")
        if found is None:
            return "left out: no result of compare_decoding is committed, and no --decoding is given"
        write_png(path, images.read_figure(found))
        return None

    def page_of(make: Callable[[Path], Path | str], height: int) -> Callable[[Path], str | None]:
        def shoot(path: Path) -> str | None:
            chromium = find_chromium()
            if chromium is None:
                return "left out: no Chromium is installed (Debian: apt install chromium)"
            shutil.rmtree(HTML_PAGES / path.stem, ignore_errors=True)
            page = make(HTML_PAGES / path.stem)
            if isinstance(page, str):
                return page
            images.write_jpeg(path, screenshot(chromium, page, height=height), SCREENSHOT_WIDTH)
            return None

        return shoot

    def quickstart(_: Path) -> Path | str:
        page: Path = args.quickstart / "report.html"
        return page if page.is_file() else f"left out: {page} does not exist; run make quickstart, or give --quickstart"

    return {
        "masks": lambda path: images.masks(path),
        "answers": lambda path: answers(path),
        "frames": lambda path: images.frames(path),
        "rollouts": lambda path: images.rollouts(path),
        "decoding": decoding,
        "inspect": page_of(images.data_page, 1500),
        "evaluation": page_of(images.evaluation_page, 1650),
        "quickstart": page_of(quickstart, 2200),
    }


def _parser() -> argparse.ArgumentParser:
    made = command_parser(__doc__, prog="python -m scripts.dev.gallery")
    add, names = made.add_argument, [item.name for item in ITEMS]
    add("--only", nargs="+", choices=names, default=names, help="images to make (default: all)")
    models = "finished runs of ar, mdm and bd for the answers (default: short runs are trained)"
    add("--models", nargs="+", default=[], metavar="NAME=FOLDER", help=models)
    add("--text-runs", type=path_argument, default=TEXT_RUNS, help="folder of the short runs (default: %(default)s)")
    questions = "folder of held-out conversations (default: that of the first model's configuration)"
    add("--questions", type=path_argument, metavar="DIR", help=questions)
    decoding = "output folder of scripts.compare_decoding (default: the newest in benchmarks/results)"
    add("--decoding", type=path_argument, metavar="DIR", help=decoding)
    quickstart = Path("outputs/quickstart_ar")
    add("--quickstart", type=path_argument, metavar="DIR", default=quickstart, help="its folder (default: %(default)s)")
    folder = PROJECT_DIR / "docs/images/gallery"
    add("--output-dir", type=path_argument, default=folder, help="folder of the images (default: docs/images/gallery)")
    add("--page", type=path_argument, default=PROJECT_DIR / "docs/gallery.md", help="(default: docs/gallery.md)")
    return made


if __name__ == "__main__":
    run_command(main)
