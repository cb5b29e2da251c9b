"""Make the small models and data that come with the project, or check that they are reproducible.

    python -m preprocess_data.tiny_assets            # everything (an hour of one core)
    python -m preprocess_data.tiny_assets phi clip   # only these
    python -m preprocess_data.tiny_assets --check    # make the quick parts in a scratch folder and compare
    python -m preprocess_data.tiny_assets magvit --frames data/calvin_D/training --output-dir outputs/calvin_magvit

The same command makes the same files: tokenizer, configurations and questions byte for byte; images up to a grey level
or two (other versions of Pillow blend edges differently); demonstrations to the last digit. The trained image tokenizer
and CLIP tower are the same on one machine with one number of threads; elsewhere their last digits may differ, so they
are not compared.

With --frames, the embedded image tokenizer is trained further on frames of raw CALVIN splits, such as recordings of
the real simulator (preprocess_data/make_desk_demos.py --environment calvin), and written to --output-dir with an
image of reconstructions before and after. Default steps take about 15 minutes of one core.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from common.arguments import command_parser, path_argument, whole
from common.command import report_errors, run_command
from common.files import PROJECT_DIR
from preprocess_data.tiny_assets import (
    clip,
    conversations,
    demonstrations,
    language,
    recorded_frames,
    tokenizer_training,
)

TOKENIZER_SCENES, TOKENIZER_PLAY = 1500, 120
"""Random scenes; recorded episodes."""
ENCODER_STEPS, DECODER_STEPS = (1200, 1200), 1200
"""The encoder is trained twice, each time with a full learning rate schedule."""


def make_magvit(root: Path) -> None:
    recorded = tokenizer_training.played_images(TOKENIZER_PLAY)
    random = tokenizer_training.random_images(TOKENIZER_SCENES, seed=0)
    images = recorded + random
    model, _ = tokenizer_training.train_encoder(images, ENCODER_STEPS[0])
    model, state_errors = tokenizer_training.train_encoder(images, ENCODER_STEPS[1], learning_rate=1.5e-3, start=model)
    errors = tokenizer_training.train_decoder(model, recorded.every(8) + random, DECODER_STEPS)
    tokenizer_training.write_magvit(model, root / "assets/tiny_magvit")
    print(f"error of the predicted state, last 50 steps: {np.mean(state_errors[-50:]):.3f} standard deviations")
    print(f"mean absolute error of the last 50 steps: {np.mean(errors[-50:]):.4f} (of a range of 2)")


def make_llava(root: Path) -> None:
    for folder, count in conversations.write_all(root / "dummy_data").items():
        print(f"dummy_data/{folder}: {count} questions")


MAKERS: dict[str, Callable[[Path], None]] = {
    "phi": lambda root: language.write_phi(root / "assets/tiny_phi"),
    "nano": lambda root: language.write_phi(root / "assets/nano_phi", hidden=128, layers=3),
    "qwen3": lambda root: language.write_qwen3(root / "assets/tiny_qwen3"),
    "clip": lambda root: clip.write_clip(root / "assets/tiny_clip"),
    "magvit": make_magvit,
    "demonstrations": lambda root: demonstrations.write_demonstrations(root / "dummy_data"),
    "llava": make_llava,
}
QUICK = ("phi", "nano", "qwen3")


def check() -> list[str]:
    """Return differences between the committed files and newly made ones."""
    problems = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        remade = Path(scratch)
        for name in QUICK:
            MAKERS[name](remade)
        for made in sorted(path for path in remade.rglob("*") if path.is_file()):
            name = str(made.relative_to(remade))
            committed = PROJECT_DIR / name
            if not committed.is_file():
                problems.append(f"{name} is missing")
            elif made.suffix == ".json" and _same_json(made, committed):
                continue
            elif not filecmp.cmp(made, committed, shallow=False):
                problems.append(f"{name} differs")
        problems += conversations.differences(PROJECT_DIR / "dummy_data", remade)
        problems += demonstrations.differences(PROJECT_DIR / "dummy_data", remade)
    return problems


def _same_json(a: Path, b: Path) -> bool:
    """Return whether two JSON files are equal except for the version of the library that wrote them."""
    left, right = (json.loads(file.read_text(encoding="utf-8")) for file in (a, b))
    for data in (left, right):
        if isinstance(data, dict):
            data.pop("transformers_version", None)
    return bool(left == right)


def _train_further(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    if args.assets != ["magvit"] or args.check or args.frames is None or args.output_dir is None:
        parser.error("--frames and --output-dir belong together, and to the asset magvit")
    print(recorded_frames.train_further(args.frames, args.output_dir, tuple(args.steps), args.count))
    return 0


@report_errors("tiny_assets")
def main(argv: Sequence[str] | None = None) -> int:
    parser = command_parser(__doc__, prog="python -m preprocess_data.tiny_assets")
    parser.add_argument("assets", nargs="*", metavar="asset", help=f"which: {', '.join(MAKERS)} (default: all)")
    parser.add_argument("--check", action="store_true", help="compare instead of writing; exit code 1 on a difference")
    add = parser.add_argument
    add("--frames", type=path_argument, nargs="+", metavar="SPLIT", help="magvit: raw splits to train further on")
    add("--output-dir", "--out", type=path_argument, metavar="DIR", help="with --frames: folder of the new tokenizer")
    steps = tuple(recorded_frames.STEPS)
    steps_help = f"with --frames: steps of encoder and decoder (default: {steps[0]} {steps[1]})"
    add("--steps", type=whole(1), nargs=2, metavar=("E", "D"), default=steps, help=steps_help)
    add("--count", type=whole(20), default=6000, help="with --frames: frames at most (default: 6000)")
    args = parser.parse_args(argv)
    if args.frames is not None or args.output_dir is not None:
        return _train_further(parser, args)
    unknown = sorted(set(args.assets) - set(MAKERS))
    if unknown:
        parser.error(f"unknown asset {', '.join(unknown)}; choose from {', '.join(MAKERS)}")
    if args.check:
        problems = check()
        print("\n".join(problems) or "assets are reproducible: no difference")
        return 1 if problems else 0
    for name in args.assets or MAKERS:
        print(f"making {name}")
        MAKERS[name](PROJECT_DIR)
    return 0


if __name__ == "__main__":
    run_command(main)
