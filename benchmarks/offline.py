"""Offline evaluation: samples per second from images and from a token cache, against the original's way.

    python -m benchmarks.offline [--size cpu|phi|qwen3] [--samples 64] [--overlap 0]

The reference is ``tests/benchmarks/naive_acting.py``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.floor import Product, counted, times_floor
from benchmarks.policy import PIXELS, SENTENCES
from benchmarks.record import arguments, parser, write
from benchmarks.sizes import SIZES, bearable, image_tokenizer, language_model
from benchmarks.timing import Lap, Spread, alternate, clock_of
from common.arguments import whole
from common.command import run_command
from models.pretrained.weights_io import write_safetensors
from models.vision.magvitv2 import MagVITv2
from policy_rollout.benchmarks.coded import CodedFrames
from policy_rollout.benchmarks.offline import Errors, FrameReader, Report, Sample, evaluate, list_samples
from policy_rollout.policies.upvla import UPVLAPolicy
from preprocess_data import tokenize_images
from tests.benchmarks.naive_acting import Naive
from tests.benchmarks.naive_step import slow_model
from training.data.caches.token_cache import CacheKey, find, raw_digest
from training.data.calvin import CalvinSplit

NAME = "offline"
DESCRIPTION = """\
Evaluates a policy with random weights on made-up recorded frames (CALVIN's format, 200 x 200 pixels, annotated windows
of 64 frames): by the package from images, by the package from a token cache, and as the original does it, one sample
at a time with logits of every slot and a file opened for every action. The errors that the three report are compared
first. Samples per second, ratios of alternating runs, and how far they are above the counted operations."""
EPILOG = """\
examples:
  the figures of the documentation (a few minutes on one core):
    python -m benchmarks.offline --out benchmarks/results/offline.json
  windows that overlap by half, as CALVIN's do: a frame is read and encoded once
    python -m benchmarks.offline --overlap 32
  at the real size, on a GPU:
    python -m benchmarks.offline --size phi --device cuda --precision bf16 --samples 512 --batch 256"""

WINDOW = 64  # frames of an annotated window
SAME = 1e-3
"""Largest relative difference of mean errors that sums of different order explain."""


def make_split(folder: Path, frames: int, overlap: int) -> CalvinSplit:
    """A raw split of smooth images with some noise, compressed as CALVIN's are."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for frame in range(frames):
        coarse = rng.integers(0, 256, (25, 25, 3), dtype=np.uint8).repeat(PIXELS // 25, 0).repeat(PIXELS // 25, 1)
        noise = rng.integers(0, 8, coarse.shape, dtype=np.uint8)
        action = rng.uniform(-1, 1, 7)
        np.savez_compressed(
            folder / f"episode_{frame:07d}.npz",
            rgb_static=coarse // 2 + noise,
            rgb_gripper=coarse[:84, :84],
            rel_actions=action,
            actions=action,
            robot_obs=rng.uniform(-1, 1, 15),
            scene_obs=rng.uniform(-1, 1, 24),
        )
    starts = range(0, frames - WINDOW, WINDOW - overlap)
    sentences = [SENTENCES[number % len(SENTENCES)] for number in range(len(starts))]
    (folder / "lang_annotations").mkdir()
    annotations = {
        "language": {"ann": sentences, "task": [f"task_{number}" for number in range(len(starts))]},
        "info": {"indx": [(start, start + WINDOW) for start in starts]},
    }
    np.save(folder / "lang_annotations" / "auto_lang_ann.npy", np.array(annotations, dtype=object))
    np.save(folder / "ep_start_end_ids.npy", np.array([[0, frames - 1]]))
    return CalvinSplit(folder)


def write_tokenizer(folder: Path, vq: MagVITv2, args: argparse.Namespace) -> Path:
    """The image tokenizer as a folder, which the command that makes a token cache reads."""
    size = SIZES[args.size]
    folder.mkdir()
    write_safetensors(folder / "model.safetensors", vq.state_dict())
    sizes = {"_class_name": "MAGVITv2", "enc": asdict(size.encoder), "dec": asdict(size.decoder)}
    (folder / "config.json").write_text(json.dumps(sizes), encoding="utf-8")
    return folder


def token_cache(folder: Path, split: CalvinSplit, policy: UPVLAPolicy, args: argparse.Namespace) -> CodedFrames:
    """Made by the command."""
    tokenizer, spec = write_tokenizer(folder / "vq", policy.vq, args), policy.spec
    where = folder / "caches"
    given = ["--data", split.path, "--tokenizer", tokenizer, "--resolution", spec.resolution, "--output", where]
    tokenize_images.main([str(word) for word in given])
    wanted = CacheKey(raw_digest(split), policy.vq.weights_hash, spec.resolution, spec.num_view)
    return CodedFrames(find([where], wanted, "(made by this benchmark)", split.path))


@dataclass(frozen=True)
class Work:
    """The three ways over the same split. ``few``: samples of the original's way, which takes one by one."""

    policy: UPVLAPolicy
    naive: Naive
    split: CalvinSplit
    coded: CodedFrames
    samples: list[Sample]
    few: list[Sample]
    batch: int
    autocast: torch.autocast

    def images(self, samples: Sequence[Sample] | None = None) -> Report:
        return evaluate(self.split, self.policy, samples or self.samples, batch_size=self.batch)

    def codes(self, samples: Sequence[Sample] | None = None) -> Report:
        return evaluate(self.split, self.policy, samples or self.samples, batch_size=self.batch, coded=self.coded)

    def original(self) -> dict[str, float]:
        errors = Errors()
        for sample in self.few:
            with self.autocast:
                pair = self.naive.offline_sample(self.split.path, sample.start, sample.horizon, sample.instruction)
            errors.add(*pair)
        return errors.summary()

    def files(self) -> None:
        """Reading alone."""
        reader = FrameReader(self.split, self.samples, "rel_actions", self.policy.cameras)
        for first in range(0, len(self.samples), self.batch):
            reader.prepare(self.samples[first : first + self.batch])


def compare(work: Work, low: bool) -> dict[str, Any]:
    """What the three report of the same samples; ``SystemExit`` where that is not the same."""
    found = {
        "original": work.original(),
        "pictures": work.images(work.few).overall,
        "token cache": work.codes(work.few).overall,
    }
    for name in ("pictures", "token cache"):
        for figure, value in found["original"].items():
            if abs(found[name][figure] - value) > (50 if low else 1) * SAME * max(abs(value), 1e-3):
                raise SystemExit(
                    f"the original's way reports {figure} {value:.6g}, from {name} it is {found[name][figure]:.6g}; "
                    "nothing is timed"
                )
    return found


def measure(work: Work, args: argparse.Namespace) -> dict[str, Any]:
    """All ways in turn, with the product of matrices that floors are made of."""
    device, clock = args.device, clock_of(args.device)
    product = Product(device, torch.bfloat16 if args.precision != "no" else torch.float32)
    variants: dict[str, Callable[[], object]] = {
        "original": work.original,
        "pictures": work.images,
        "token cache": work.codes,
        "files alone": work.files,
        "matrix product": product.ready(),
    }
    counts = {"original": len(work.few), **dict.fromkeys(("pictures", "token cache", "files alone"), len(work.samples))}
    with tqdm(total=len(variants) * args.rounds, desc="evaluating", unit="run") as bar:
        laps = alternate(variants, args.rounds, device, tick=bar.update)
    each = {name: [_share(one, count) for one in laps[name]] for name, count in counts.items()}  # of one sample
    first = next(iter(_batches(work)))
    operations = counted(lambda: work.policy.act(first)) / len(first)
    encode = counted(lambda: work.policy._codes(first)) / len(first)
    floors = {"pictures": operations, "token cache": operations - encode}
    return {
        "samples_per_second": {n: Spread.of([1 / one.of(clock) for one in laps_]) for n, laps_ in each.items()},
        "times_faster": {
            name: Spread.of([a.of(clock) / b.of(clock) for a, b in zip(each["original"], each[name], strict=True)])
            for name in floors
        },
        "gflop_a_sample": {name: amount / 1e9 for name, amount in floors.items()},
        "times_floor": {
            name: times_floor(each[name], laps["matrix product"], amount, product.operations, clock)
            for name, amount in floors.items()
        },
        "share_of_files": Spread.of(
            [a.of(clock) / b.of(clock) for a, b in zip(each["files alone"], each["pictures"], strict=True)]
        ),
    }


def _batches(work: Work) -> Any:
    reader = FrameReader(work.split, work.samples, "rel_actions", work.policy.cameras)
    yield reader.prepare(work.samples[: work.batch]).observations


def _share(one: Lap, count: int) -> Lap:
    return Lap(one.cpu / count, one.wall / count)


def _parser() -> argparse.ArgumentParser:
    made = parser(NAME, DESCRIPTION, EPILOG)
    made.set_defaults(rounds=5)
    made.add_argument("--size", choices=SIZES, default="cpu", help="see benchmarks/sizes.py (default cpu)")
    made.add_argument("--samples", type=whole(1), default=64, help="evaluated by the package (default 64)")
    made.add_argument("--few", type=whole(1), default=8, help="evaluated by the original's way (default 8)")
    made.add_argument("--batch", type=whole(1), default=16, help="samples of one forward (default 16)")
    made.add_argument("--overlap", type=whole(0), default=0, help="frames that neighbouring windows share (default 0)")
    made.add_argument("--precision", choices=("no", "bf16"), default="no", help="of the network (default no: float32)")
    made.add_argument("--anyway", action="store_true", help="run a real size on a CPU")
    return made


def prepare(args: argparse.Namespace, folder: Path) -> Work:
    size, device = SIZES[args.size], args.device
    built, vq = language_model(size, device), image_tokenizer(size, device)
    built.model.requires_grad_(False)
    naive = Naive(slow_model(built.model), vq, built.prompter)
    policy = UPVLAPolicy(built, vq, device=device, precision=args.precision)
    windows = -(-args.samples // WINDOW) + 1
    split = make_split(folder / "split" / "validation", windows * WINDOW + 1, args.overlap)
    samples = sorted(list_samples(split.annotations, size.act_step), key=lambda s: s.start)[: args.samples]
    return Work(
        policy=policy,
        naive=naive,
        split=split,
        coded=token_cache(folder, split, policy, args),
        samples=samples,
        few=samples[:: max(len(samples) // args.few, 1)][: args.few],
        batch=args.batch,
        autocast=torch.autocast(device.type, torch.bfloat16, enabled=args.precision != "no"),
    )


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    args = _parser().parse_args(argv)
    if not 0 <= args.overlap < WINDOW:
        raise SystemExit(f"--overlap {args.overlap}: windows have {WINDOW} frames; give 0 to {WINDOW - 1}")
    bearable(SIZES[args.size], args.device, args.anyway)
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        work = prepare(args, Path(name))
        same = compare(work, args.precision != "no")
        found = measure(work, args)
    settings = {key: getattr(args, key) for key in ("size", "samples", "few", "batch", "overlap", "precision")}
    content = {"settings": settings, "same": same, **found}
    for way, speed in found["samples_per_second"].items():
        print(f"  {way:<12} {speed} samples per second")
    for way, faster in found["times_faster"].items():
        print(f"  {way:<12} {faster} times the original, {found['times_floor'][way]} times its floor")
    write(args.out, NAME, arguments(argv), args.device, args.threads, content)
    return content


if __name__ == "__main__":
    run_command(main)
