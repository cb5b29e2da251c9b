"""Make the small models and data that the project brings along, or check that they can be made again.

    python scripts/make_assets.py                    # everything (an hour of one core)
    python scripts/make_assets.py phi clip           # only these
    python scripts/make_assets.py --check            # make the quick parts in a scratch folder and compare

Same command, same files: tokenizer, configurations and questions to the byte; images to a grey level or two (another
Pillow may mix their edges differently); demonstrations to the last digit of their numbers. The trained image tokenizer
and CLIP tower are the same on one machine and one number of threads; elsewhere their last digits may differ, so they
are not compared.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from common.command import run_command
from preprocess_data.tiny_assets import clip, conversations, demonstrations, language, tokenizer_training

ROOT = Path(__file__).resolve().parent.parent
TOKENIZER_SCENES, TOKENIZER_PLAY = 1500, 120
"""Random scenes; episodes of play."""
ENCODER_STEPS, DECODER_STEPS = (1200, 1200), 1200
"""The encoder learns twice, with the learning rate rising and falling each time."""


def make_magvit(root: Path) -> None:
    play = tokenizer_training.played_images(TOKENIZER_PLAY)
    anywhere = tokenizer_training.random_images(TOKENIZER_SCENES, seed=0)
    images = play + anywhere
    model, _ = tokenizer_training.train_encoder(images, ENCODER_STEPS[0])
    model, reading = tokenizer_training.train_encoder(images, ENCODER_STEPS[1], learning_rate=1.5e-3, start=model)
    errors = tokenizer_training.train_decoder(model, play.every(8) + anywhere, DECODER_STEPS)
    tokenizer_training.write_magvit(model, root / "assets/tiny_magvit")
    print(f"error of reading the state, last 50 steps: {np.mean(reading[-50:]):.3f} standard deviations")
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
    """Differences between what is committed and what is made again now; empty when there are none."""
    problems = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        again = Path(scratch)
        for name in QUICK:
            MAKERS[name](again)
        for made in sorted(path for path in again.rglob("*") if path.is_file()):
            name = str(made.relative_to(again))
            committed = ROOT / name
            if not committed.is_file():
                problems.append(f"{name} is missing")
            elif made.suffix == ".json" and _same_json(made, committed):
                continue
            elif not filecmp.cmp(made, committed, shallow=False):
                problems.append(f"{name} differs")
        problems += conversations.differences(ROOT / "dummy_data", again)
        problems += demonstrations.differences(ROOT / "dummy_data", again)
    return problems


def _same_json(a: Path, b: Path) -> bool:
    """Equal but for the version of the library that wrote them."""
    left, right = (json.loads(file.read_text(encoding="utf-8")) for file in (a, b))
    for data in (left, right):
        if isinstance(data, dict):
            data.pop("transformers_version", None)
    return bool(left == right)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("assets", nargs="*", metavar="asset", help=f"which: {', '.join(MAKERS)} (default: all)")
    parser.add_argument("--check", action="store_true", help="compare instead of writing; exit code 1 on a difference")
    args = parser.parse_args(argv)
    unknown = sorted(set(args.assets) - set(MAKERS))
    if unknown:
        parser.error(f"unknown asset {', '.join(unknown)}; choose from {', '.join(MAKERS)}")
    if args.check:
        problems = check()
        print("\n".join(problems) or "assets can be made again: no difference")
        return 1 if problems else 0
    for name in args.assets or MAKERS:
        print(f"making {name}")
        MAKERS[name](ROOT)
    return 0


if __name__ == "__main__":
    run_command(main)
