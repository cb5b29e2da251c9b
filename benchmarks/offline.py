"""Time offline evaluation, from images and from a token cache, against the original's way.

Evaluates a policy with random weights on made-up recorded frames (CALVIN's format, annotated windows of 64 frames): by
the package from images, by the package from a token cache, and as the original does it, one sample at a time with
logits of every slot and a file opened for every action. The errors that the three report are compared first. Reports
samples per second, ratios of alternating runs, and how far they are above the counted operations. The reference is
tests/benchmarks/naive_acting.py.

Examples:
  the figures of the documentation (a few minutes on one core):
    python -m benchmarks.offline --out benchmarks/results/offline.json
  windows that overlap by half, as CALVIN's do: a frame is read and encoded once
    python -m benchmarks.offline --overlap 32
  at the real size, on a GPU:
    python -m benchmarks.offline --size phi --device cuda --precision bf16 --samples 512 --batch 256
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness.problems import Size, add_size, check_size
from benchmarks.harness.record import Parser, settings_of, write
from benchmarks.harness.recordings import WINDOW, write_raw_split
from benchmarks.harness.timing import PRODUCT, Product, alternate, counted
from benchmarks.policy import SENTENCES, Pair
from common.arguments import whole
from common.command import run_command
from models.pretrained.weights_io import write_safetensors
from policy_rollout.benchmarks.coded import CodedFrames
from policy_rollout.benchmarks.offline import Errors, FrameReader, Report, Sample, evaluate, list_samples
from policy_rollout.policies.upvla import UPVLAPolicy
from preprocess_data import tokenize_images
from training.data.caches.token_cache import CacheKey, find, raw_digest
from training.data.calvin import CalvinSplit

SAME = 1e-3
"""Largest relative difference of mean errors that sums of different order explain."""
IMAGES, CACHE, FILES = "pictures", "token cache", "files alone"


def token_cache(folder: Path, split: CalvinSplit, policy: UPVLAPolicy, size: Size) -> CodedFrames:
    """Make a token cache of the split by preprocess_data/tokenize_images.py."""
    tokenizer, caches, spec = folder / "vq", folder / "caches", policy.spec
    tokenizer.mkdir()
    write_safetensors(tokenizer / "model.safetensors", policy.vq.state_dict())
    sizes = {"_class_name": "MAGVITv2", "enc": asdict(size.encoder), "dec": asdict(size.decoder)}
    (tokenizer / "config.json").write_text(json.dumps(sizes), encoding="utf-8")
    given = ["--data", split.path, "--tokenizer", tokenizer, "--resolution", spec.resolution, "--output", caches]
    tokenize_images.main([str(word) for word in given])
    wanted = CacheKey(raw_digest(split), policy.vq.weights_hash, spec.resolution, spec.num_view)
    return CodedFrames(find([caches], wanted, "(made by this benchmark)", split.path), split)


@dataclass(frozen=True)
class Work:
    """The three ways over one split. ``few``: the samples of the original's way, which takes them one by one."""

    pair: Pair
    split: CalvinSplit
    coded: CodedFrames
    samples: list[Sample]
    few: list[Sample]
    batch: int

    def from_images(self, samples: Sequence[Sample] | None = None) -> Report:
        return evaluate(self.split, self.pair.policy, samples or self.samples, batch_size=self.batch)

    def from_codes(self, samples: Sequence[Sample] | None = None) -> Report:
        chosen = samples or self.samples
        return evaluate(self.split, self.pair.policy, chosen, batch_size=self.batch, coded=self.coded)

    def original(self) -> dict[str, float]:
        errors = Errors()
        for sample in self.few:
            with self.pair.autocast:
                errors.add(
                    *self.pair.naive.offline_sample(self.split.path, sample.start, sample.horizon, sample.instruction)
                )
        return errors.summary()

    def read(self) -> list[Any]:
        """Read the files only; return the batches of observations."""
        reader = FrameReader(self.split, self.samples, "rel_actions", self.pair.policy.cameras)
        firsts = range(0, len(self.samples), self.batch)
        return [reader.prepare(self.samples[first : first + self.batch]).observations for first in firsts]


def prepare(args: argparse.Namespace, size: Size, folder: Path) -> Work:
    """Write the recordings and the token cache, and build the policies."""
    pair = Pair.of(size, args.device, args.precision)
    path = folder / "split" / "validation"
    write_raw_split(path, (-(-args.samples // WINDOW) + 1) * WINDOW, SENTENCES, args.overlap)
    split = CalvinSplit(path)
    samples = sorted(list_samples(split.annotations, size.act_step), key=lambda s: s.start)[: args.samples]
    few = samples[:: max(len(samples) // args.few, 1)][: args.few]
    return Work(pair, split, token_cache(folder, split, pair.policy, size), samples, few, args.batch)


def compare(work: Work, bf16: bool) -> dict[str, Any]:
    """Return what the three report for the same samples. Raises ``SystemExit`` if that is not the same."""
    reports = {IMAGES: work.from_images(work.few).overall, CACHE: work.from_codes(work.few).overall}
    original = work.original()
    for name, report in reports.items():
        for metric, value in original.items():
            if abs(report[metric] - value) > (50 if bf16 else 1) * SAME * max(abs(value), 1e-3):
                raise SystemExit(
                    f"the original's way reports {metric} {value:.6g}, from {name} it is {report[metric]:.6g}; "
                    "nothing is timed"
                )
    return {"original": original, **reports}


def measure(work: Work, args: argparse.Namespace) -> dict[str, Any]:
    """Time all ways, alternating with the product of matrices that floors are based on."""
    product = Product(args.device, torch.bfloat16 if args.precision != "no" else torch.float32)
    variants: dict[str, Callable[[], object]] = {
        "original": work.original,
        IMAGES: work.from_images,
        CACHE: work.from_codes,
        FILES: work.read,
        PRODUCT: product.prepare(),
    }
    timings = alternate(variants, args.rounds, args.device, name="evaluating")
    few, count, first = len(work.few), len(work.samples), work.read()[0]
    operations = counted(lambda: work.pair.policy.act(first)) / len(first)
    encode = counted(lambda: work.pair.policy._codes(first)) / len(first)
    floors = {IMAGES: operations, CACHE: operations - encode}  # of one sample
    return {
        "samples_per_second": {
            name: timings.rate(name, few if name == "original" else count) for name in list(variants)[:-1]
        },
        "times_faster": {name: timings.ratio("original", name, count / few) for name in floors},
        "gflop_a_sample": {name: amount / 1e9 for name, amount in floors.items()},
        "times_floor": {name: timings.times_floor(name, amount * count, product) for name, amount in floors.items()},
        "share_of_files": timings.ratio(FILES, IMAGES),
    }


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = Parser("offline", __doc__, rounds=5)
    add_size(parser)
    parser.add_argument("--samples", type=whole(1), default=64, help="samples of the package's ways (64)")
    parser.add_argument("--few", type=whole(1), default=8, help="samples of the original's way (8)")
    parser.add_argument("--batch", type=whole(1), default=16, help="samples of one forward (16)")
    parser.add_argument("--overlap", type=whole(0, WINDOW - 1), default=0, help="frames that windows share (0)")
    parser.add_argument("--precision", choices=("no", "bf16"), default="no", help="precision of the network (no: fp32)")
    args = parser.parse(argv)
    size = check_size(args)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        work = prepare(args, size, Path(name))
        same = compare(work, args.precision != "no")
        found = measure(work, args)
    settings = settings_of(args, "size", "samples", "few", "batch", "overlap", "precision")
    content = {"settings": settings, "same": same, **found}
    for way, speed in found["samples_per_second"].items():
        print(f"  {way:<12} {speed} samples per second")
    for way, faster in found["times_faster"].items():
        print(f"  {way:<12} {faster} times the original, {found['times_floor'][way]} times its floor")
    write(args, content)
    return content


if __name__ == "__main__":
    run_command(main)
