"""Draw the attention mask of any layout, as text or as an image.

python scripts/show_mask.py bd block_diffusion.block_size=3 --png outputs/mask.png
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from common.arguments import command_parser, path_argument, whole
from common.command import report_errors, run_command
from common.files import atomic_path, reason_of
from config.loading import find, read_into
from config.parsing import ConfigError, build, new_tree
from config.schema import Job
from models.mask_drawing import LAYOUTS, Layout, Sizes, build_layout, draw_mask
from models.objectives.block_size import block_sizes
from models.rng import SampleRng, generator

DESCRIPTION = """\
Draws the attention mask of a layout, built by the functions and the rule that training uses: which slot (a row)
attends to which (a column), what each slot holds, and which token it has to predict with which weight.

layouts:
  robot    <|t2i|> instruction | image codes | <|lvg|>
  ar       system | image patches | question | answer (also called mmu)
  mdm      the same, with the answer masked in noisy copies as one block
  bd       the same, with the answer masked in noisy copies block by block
  actions  the robot flow followed by block-diffusion actions
Without a layout, the configuration's training.text_objective is drawn."""
EPILOG = """\
examples:
  python scripts/show_mask.py bd
  python scripts/show_mask.py bd block_diffusion.block_size=3 --answer 6,3 --png outputs/mask.png
  python scripts/show_mask.py mdm text_diffusion.prediction=aligned block_diffusion.complementary_mask=false
  python scripts/show_mask.py bd block_diffusion.elastic_block_enabled=true --seed 4
  python scripts/show_mask.py robot model.vla.num_view=2 --padding 2
  python scripts/show_mask.py config=./config/bdvla_action_tuning.yaml --answer 100 --patches 576 --png outputs/real.png

Without config= the settings have the schema's defaults, except for sizes that fit a screen: act_step=2,
block_diffusion.block_size=2 (candidates 1, 2, 4), text_mdm.canvas_multiple=2."""
SMALL = {
    "act_step": "2",
    "block_diffusion.block_size": "2",
    "block_diffusion.block_size_candidates": "[1, 2, 4]",
    "text_mdm.canvas_multiple": "2",
}
WIDEST_TEXT = 160
"""Slots above which text does not fit a terminal."""
LARGEST_IMAGE = 4000
"""Slots above which drawing a mask takes gigabytes."""


def parser() -> argparse.ArgumentParser:
    made = command_parser(DESCRIPTION, EPILOG)
    made.add_argument(
        "what", nargs="*", metavar="layout | config=FILE | section.key=value", help="see above; in any order"
    )
    sizes = made.add_argument_group("the made-up sequence")
    sizes.add_argument("--answer", default="5", help="tokens of the answer; 6,3: of two answers (default: 5)")
    sizes.add_argument("--question", type=whole(0), default=2, help="tokens of each question (default: 2)")
    sizes.add_argument("--system", type=whole(0), default=1, help="tokens of the system prompt (default: 1)")
    sizes.add_argument("--patches", type=int, default=4, help="patches of the image (default: 4; released CLIP: 576)")
    sizes.add_argument("--instruction", type=whole(0), default=2, help="tokens of the robot's instruction (default: 2)")
    sizes.add_argument("--codes", type=int, default=4, help="codes of one camera's image (default: 4; real: 1024)")
    sizes.add_argument("--padding", type=whole(0), default=0, help="padding slots, as in a batch (default: 0)")
    draws = made.add_argument_group("random choices")
    draws.add_argument("--seed", type=whole(0), default=0, help="of masked tokens and elastic block sizes (default: 0)")
    draws.add_argument("--step", type=whole(0), default=0, help="optimizer step, for annealed block sizes (default: 0)")
    made.add_argument("--png", type=path_argument, metavar="FILE", help="write an image instead of text")
    return made


def job_of(words: Sequence[str]) -> tuple[str, Job, bool]:
    """Return (layout, job, whether config= was given) from the positional arguments. Raises ``ConfigError``."""
    layout, config, overrides = "", None, []
    for word in words:
        name, equals, text = word.partition("=")
        if not equals:
            if layout:
                raise ConfigError(f"argument {word}: one layout at a time, {layout} is given already")
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


def describe_settings(layout: str, job: Job, step: int) -> str:
    """Describe the settings that this layout depends on."""
    text, blocks = job.text_diffusion, job.block_diffusion
    if layout == "robot":
        return f"act_step {job.act_step}, {job.model.vla.num_view} camera(s)"
    if layout == "ar":
        return "next-token prediction"
    copies = "complementary copies" if blocks.complementary_mask else "one copy"
    if layout == "mdm":
        size = f"the answer is one block, padded to a multiple of {job.text_mdm.canvas_multiple}"
    elif layout == "actions":
        size = f"blocks of {blocks.action_block_size}"
    elif blocks.elastic_block_enabled:
        size = f"a block size out of {', '.join(map(str, blocks.block_size_candidates))}"
    elif blocks.anneal_steps:
        now = block_sizes(blocks).size(step, generator(0))
        size = f"blocks of {now} (step {step}; growing to {blocks.block_size} in {blocks.anneal_steps} steps)"
    else:
        size = f"blocks of {blocks.block_size}"
    return f"{size}, {copies}, {text.prediction}"


def as_text(layout: Layout) -> str:
    """Return ``Rule.draw`` followed, in each row, by the slot's span, token and targets."""
    sequence = layout.sequence
    header, *lines = sequence.rule.draw(sequence.slots).split("\n")
    span_of = [name for name, span in layout.spans for _ in range(len(span))]
    wide, high = max(map(len, layout.names)), max(map(len, span_of))
    rows = [header]
    for slot, line in enumerate(lines):
        targets = ", ".join(f"{t.token} x{t.weight:.3g}" for t in layout.targets.get(slot, []))
        right = f"{span_of[slot]:{high}}  {layout.names[slot]:{wide}}" + (f"  -> {targets}" if targets else "")
        rows.append(f"{line}   {right}".rstrip())
    return "\n".join(rows)


def save(path: Path, layout: Layout, title: str, note: str) -> None:
    """Write the drawing to ``path``, complete or not at all. Raises ``ValueError``."""
    if path.suffix.lower() != ".png" or path.is_dir():
        raise ValueError(f"--png {path}: expected the name of a .png file")
    try:
        with atomic_path(path) as partial:
            draw_mask(layout, title, note).savefig(partial, format="png")
    except OSError as error:
        raise ValueError(f"--png {path}: cannot be written ({reason_of(error)})") from error


@report_errors("show_mask")
def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_intermixed_args(argv)
    name, job, configured = job_of(options.what)
    answers = tuple(int(count) for count in options.answer.split(",") if count.strip().isdigit())
    if len(answers) != len(options.answer.split(",")):
        answers = ()
    sizes = Sizes(
        options.instruction, options.codes, options.system, options.patches, options.question, answers, options.padding
    )
    layout = build_layout(name, job, sizes, SampleRng(options.seed, options.step))
    count = layout.sequence.ids.shape[1]
    if options.png is None and count > WIDEST_TEXT:
        raise ValueError(f"{count} slots are too many for text; write an image with --png FILE, or reduce the sizes")
    if count > LARGEST_IMAGE:
        raise ValueError(f"{count} slots are too many for an image; at most {LARGEST_IMAGE} are drawn")
    title = f"{name}: {describe_settings(name, job, options.step)}"
    if options.png is not None:
        save(options.png, layout, title, "" if configured else "Sizes are reduced for display.")
        print(f"{title}; {count} slots, written to {options.png}")
        return 0
    print(title)
    print("a row is a query: # attends to that column, · does not; behind -> are the slot's targets, x their weights")
    print(as_text(layout))
    return 0


if __name__ == "__main__":
    run_command(main)
