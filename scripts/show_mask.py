"""Who sees whom: the attention mask of any layout, as text or as a picture.

python scripts/show_mask.py bd block_diffusion.block_size=3 --png outputs/mask.png
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):  # started as a file: the repository's root is not on the path yet
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from PIL import Image

from common.arguments import path_argument, whole
from common.command import run_command
from common.os_errors import reason_of
from config.loading import find, read_into
from config.parsing import ConfigError, build, new_tree
from config.schema import Job
from models.draws import Draws, generator
from models.objectives.schedules import block_sizes
from scripts.mask_layouts import LAYOUTS, Layout, Sizes, lay_out
from scripts.mask_picture import draw_mask

DESCRIPTION = """\
Draws the attention mask of a layout, with the very builders and the very rule that training uses: which slot (a row)
sees which (a column), what each slot holds, and which token is predicted from it with which weight.

layouts:
  robot    <|t2i|> instruction | image codes | <|lvg|>
  ar       system | picture | question | answer (also called mmu)
  mdm      the same, with the answer hidden in noisy views as one block
  bd       the same, with the answer hidden in noisy views block by block
  actions  the robot flow with block-diffusion actions behind it
Without one, the configuration's training.text_objective is drawn."""
EPILOG = """\
examples:
  python scripts/show_mask.py bd
  python scripts/show_mask.py bd block_diffusion.block_size=3 --answer 6,3 --png outputs/mask.png
  python scripts/show_mask.py mdm text_diffusion.prediction=aligned block_diffusion.complementary_mask=false
  python scripts/show_mask.py bd block_diffusion.elastic_block_enabled=true --seed 4
  python scripts/show_mask.py robot model.vla.num_view=2 --padding 2
  python scripts/show_mask.py config=./config/bdvla_action_tuning.yaml --answer 100 --patches 576 --png outputs/real.png

Without config= the knobs have the schema's defaults, but small enough to look at: act_step=2,
block_diffusion.block_size=2 (candidates 1, 2, 4), text_mdm.canvas_multiple=2."""
SMALL = {
    "act_step": "2",
    "block_diffusion.block_size": "2",
    "block_diffusion.block_size_candidates": "[1, 2, 4]",
    "text_mdm.canvas_multiple": "2",
}
WIDEST_TEXT = 160
"""Slots above which text would no longer fit any terminal."""
LARGEST_PICTURE = 4000
"""Slots above which a mask would take gigabytes to draw."""


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument(
        "what", nargs="*", metavar="layout | config=FILE | section.key=value", help="see above; in any order"
    )
    sizes = made.add_argument_group("the made-up sequence")
    sizes.add_argument("--answer", default="5", help="words of the answer; 6,3: of two answers (default: 5)")
    sizes.add_argument("--question", type=whole(0), default=2, help="words of each question (default: 2)")
    sizes.add_argument("--system", type=whole(0), default=1, help="words of the system prompt (default: 1)")
    sizes.add_argument("--patches", type=int, default=4, help="patches of the picture (default: 4; released CLIP: 576)")
    sizes.add_argument("--instruction", type=whole(0), default=2, help="words of the robot's instruction (default: 2)")
    sizes.add_argument("--codes", type=int, default=4, help="codes of one camera's image (default: 4; real: 1024)")
    sizes.add_argument("--padding", type=whole(0), default=0, help="padding slots, as in a batch (default: 0)")
    draws = made.add_argument_group("what is drawn at random")
    draws.add_argument(
        "--seed", type=whole(0), default=0, help="of what is hidden and of elastic block sizes (default: 0)"
    )
    draws.add_argument("--step", type=whole(0), default=0, help="optimizer step, for annealed block sizes (default: 0)")
    made.add_argument("--png", type=path_argument, metavar="FILE", help="write a picture instead of text")
    return made


def job_of(words: Sequence[str]) -> tuple[str, Job, bool]:
    """(layout, job, was config= given) of the free arguments. Raises ``ConfigError``."""
    layout, config, overrides = "", None, []
    for word in words:
        name, equals, text = word.partition("=")
        if not equals:
            if layout:
                raise ConfigError(f"argument {word}: one layout at a time, {layout} was named already")
            layout = "ar" if word == "mmu" else word
        elif name == "config":
            config = text
        else:
            overrides.append((name, text))
    tree = new_tree()
    if config is None:
        for name, text in SMALL.items():
            tree.set(name, text, "default of this script")
    else:
        read_into(tree, find(config))
    for name, text in overrides:
        tree.set(name, text, "command line")
    job = build(tree)
    layout = layout or job.training.text_objective
    if layout not in LAYOUTS:
        raise ConfigError(f"layout {layout}: no such layout; allowed: {', '.join(LAYOUTS)} (see --help)")
    return layout, job, config is not None


def knobs(layout: str, job: Job, step: int) -> str:
    """The settings that shape this layout, in words."""
    text, blocks = job.text_diffusion, job.block_diffusion
    if layout == "robot":
        return f"act_step {job.act_step}, {job.model.vla.num_view} camera(s)"
    if layout == "ar":
        return "next-token prediction"
    views = "complementary views" if blocks.complementary_mask else "one view"
    if layout == "mdm":
        size = f"the answer is one block, continued to a multiple of {job.text_mdm.canvas_multiple}"
    elif layout == "actions":
        size = f"blocks of {blocks.action_block_size}"
    elif blocks.elastic_block_enabled:
        size = f"a block size out of {', '.join(map(str, blocks.block_size_candidates))}"
    elif blocks.anneal_steps:
        now = block_sizes(blocks).size(step, generator(0))
        size = f"blocks of {now} (step {step}; growing to {blocks.block_size} in {blocks.anneal_steps} steps)"
    else:
        size = f"blocks of {blocks.block_size}"
    return f"{size}, {views}, {text.prediction}"


def as_text(layout: Layout) -> str:
    """``Rule.draw`` with what each slot holds and predicts beside it."""
    sequence = layout.sequence
    header, *lines = sequence.rule.draw(sequence.slots).split("\n")
    span_of = [name for name, span in layout.spans for _ in range(len(span))]
    wide, high = max(map(len, layout.names)), max(map(len, span_of))
    told = [header]
    for slot, line in enumerate(lines):
        readings = ", ".join(f"{r.target} x{r.weight:.3g}" for r in layout.readings.get(slot, []))
        right = f"{span_of[slot]:{high}}  {layout.names[slot]:{wide}}" + (f"  -> {readings}" if readings else "")
        told.append(f"{line}   {right}".rstrip())
    return "\n".join(told)


def save(path: Path, layout: Layout, title: str, note: str) -> None:
    """The file appears complete or not at all."""
    if path.suffix.lower() != ".png" or path.is_dir():
        raise ValueError(f"--png {path}: expected the name of a .png file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}.tmp")
        picture = draw_mask(layout, title, note).quantize(128, dither=Image.Dither.NONE)  # flat colours: a third
        picture.save(unfinished, format="PNG", optimize=True)
        os.replace(unfinished, path)
    except OSError as error:
        raise ValueError(f"--png {path}: cannot be written ({reason_of(error)})") from error


def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_intermixed_args(argv)
    try:
        name, job, configured = job_of(options.what)
        answers = tuple(int(count) for count in options.answer.split(",") if count.strip().isdigit())
        if len(answers) != len(options.answer.split(",")):
            answers = ()
        sizes = Sizes(
            options.instruction, options.codes, options.system, options.patches, options.question, answers,
            options.padding,
        )  # fmt: skip
        layout = lay_out(name, job, sizes, Draws(options.seed, options.step))
        count = layout.sequence.ids.shape[1]
        if options.png is None and count > WIDEST_TEXT:
            raise ValueError(f"{count} slots are too many for text; draw a picture with --png FILE, or take fewer")
        if count > LARGEST_PICTURE:
            raise ValueError(f"{count} slots are too many for a picture, which has room for {LARGEST_PICTURE}")
        title = f"{name}: {knobs(name, job, options.step)}"
        if options.png is not None:
            save(options.png, layout, title, "" if configured else "Small sizes, to be looked at.")
    except ValueError as error:
        print(f"show_mask: {error}", file=sys.stderr)
        return 2
    if options.png is not None:
        print(f"{title}; {count} slots, written to {options.png}")
        return 0
    print(title)
    print("a row is a query: # sees that column, · does not; the last word of a line is predicted there, x its weight")
    print(as_text(layout))
    return 0


if __name__ == "__main__":
    run_command(main)
