"""Compare block decoding with next-token decoding on trained models: tokens per second at equal quality.

Trains two small models on reports of 30 to 85 tokens (benchmarks/harness/desk_reports.py; a few minutes on one core,
once: they are stored), one by ``ar``, one by ``bd`` with next-token prediction, so that its weights decode both ways.
Both have the KV cache. Decodes held-out questions by the next token, by blocks at several thresholds and speculatively,
and reports the share of right answers and the tokens per forward and per second. The headline is the fastest block
setting whose answers are right as often as those of both next-token decoders.

Examples:
  the figures of the documentation:
    python -m benchmarks.text_decoding --out benchmarks/results/text_decoding.json
  a quick trial (the models have learned nothing):
    python -m benchmarks.text_decoding --steps 2 --hidden 32 --held-out 4 --timed 2 --rounds 1 --models outputs/trial
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.harness.desk_reports import Recipe, Sample, Trained, load_or_train, sample
from benchmarks.harness.record import Parser, write
from benchmarks.harness.timing import Spread, alternate, clock_of
from common.arguments import path_argument, real, whole
from common.command import progress_bar, run_command
from common.tables import markdown_table
from models.decoding import Decoding, Generation, Threshold, generate
from models.pretrained.model_io import Built

LONGEST = 128
"""Limit on the tokens of an answer; the longest report has 85."""
QUALITY_BATCH = 32
AR, OWN_AR, SPECULATIVE = "ar", "ar, bd's weights", "bd, speculative"


@dataclass(frozen=True)
class Variant:
    """A model and a way to decode it."""

    built: Built
    objective: str
    decoding: Decoding

    def answers(self, questions: Sequence[str], patches: Tensor) -> Generation:
        return generate(
            self.built.model,
            self.built.prompter,
            questions,
            patches,
            LONGEST,
            objective=self.objective,
            decoding=self.decoding,
        )


def variants(ar: Built, bd: Built, thresholds: Sequence[float]) -> dict[str, Variant]:
    """Return all ways that are compared, by name."""
    plain = Decoding()
    blocks = {f"bd, threshold {t:g}": Variant(bd, "bd", Decoding(accept=Threshold(t))) for t in thresholds}
    return {
        AR: Variant(ar, "ar", plain),
        OWN_AR: Variant(bd, "ar", plain),
        **blocks,
        SPECULATIVE: Variant(bd, "bd", Decoding(speculative=True)),
    }


@dataclass(frozen=True)
class Quality:
    """Quality of held-out answers: share of exact matches, share of tokens at their right position."""

    exact_match: float
    token_accuracy: float
    questions: int


def quality(
    variant: Variant, samples: Sequence[Sample], device: torch.device, tick: Callable[[int], object]
) -> Quality:
    """Measure greedy answers, in batches (answers do not depend on the batch)."""
    exact, right, tokens = 0, 0, 0
    prompter = variant.built.prompter
    for first in range(0, len(samples), QUALITY_BATCH):
        some = samples[first : first + QUALITY_BATCH]
        answer = variant.answers([s.question for s in some], torch.stack([s.patches for s in some]).to(device))
        for one, text, ids in zip(some, answer.texts, answer.ids, strict=True):
            truth = [*prompter.words(f" {one.answer}"), prompter.vocab.eos]
            exact += text == one.answer
            right += sum(a == b for a, b in zip(ids, truth, strict=False))
            tokens += max(len(ids), len(truth))
        tick(len(some))
    return Quality(exact / len(samples), right / tokens, len(samples))


def speed(
    compared: Mapping[str, Variant], samples: Sequence[Sample], batch: int, args: argparse.Namespace
) -> dict[str, dict[str, Any]]:
    """Time all variants, alternating, on the same questions in batches."""
    batches = [samples[first : first + batch] for first in range(0, len(samples), batch)]
    inputs = [([s.question for s in some], torch.stack([s.patches for s in some]).to(args.device)) for some in batches]
    answers: dict[str, list[Generation]] = {}

    def run(name: str) -> Callable[[], None]:
        return lambda: answers.update({name: [compared[name].answers(*given) for given in inputs]})

    runs = {name: run(name) for name in compared}
    timings = alternate(runs, args.rounds, args.device, name=f"batch {batch}")
    found = {}
    for name in compared:
        stats = [answer.stats for answer in answers[name]]
        tokens, forwards = sum(s.tokens for s in stats), sum(s.forwards for s in stats)
        found[name] = {
            "tokens": tokens,
            "tokens_per_forward": tokens / forwards,
            "milliseconds_per_forward": 1e3 * timings.seconds(name).median / forwards,
            "tokens_per_second": timings.rate(name, tokens),
            "first_token_wall_milliseconds": Spread.of([1e3 * s.first_token_seconds for s in stats]),
            "answers_times_faster_than_ar": timings.ratio(AR, name),
            "answers_times_faster_than_own_ar": timings.ratio(OWN_AR, name),
        }
    return found


def headline(
    qualities: Mapping[str, Quality], speeds: Mapping[str, Mapping[str, Mapping[str, Any]]], tolerance: float
) -> dict[str, Any]:
    """Return for each batch size the fastest block setting that is right as often as next-token decoding.

    Speed is relative to the faster of the two next-token decoders.
    """
    least = max(qualities[AR].exact_match, qualities[OWN_AR].exact_match) - tolerance
    good = [n for n, q in qualities.items() if n.startswith("bd, threshold") and q.exact_match >= least]
    found: dict[str, Any] = {"exact_match_needed": least, "tolerance": tolerance, "by_batch": {}}
    for batch, rows in speeds.items():
        if not good:
            found["by_batch"][batch] = None
            continue
        best = max(good, key=lambda name: rows[name]["tokens_per_second"].median)
        faster_ar = max(rows[AR]["tokens_per_second"].median, rows[OWN_AR]["tokens_per_second"].median)
        found["by_batch"][batch] = {
            "setting": best,
            "exact_match": qualities[best].exact_match,
            "token_accuracy": qualities[best].token_accuracy,
            "tokens_per_second": rows[best]["tokens_per_second"].median,
            "ar_tokens_per_second": faster_ar,
            "times_ar": rows[best]["tokens_per_second"].median / faster_ar,
        }
    return found


def table(qualities: Mapping[str, Quality], speeds: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Return the results as a Markdown table."""
    titles = [f"{what}, batch {b}" for b in speeds for what in ("tok/fwd", "tok/s")]
    rows = []
    for name, good in qualities.items():
        figures = [speeds[batch][name] for batch in speeds]
        cells = [c for f in figures for c in (f"{f['tokens_per_forward']:.2f}", str(f["tokens_per_second"]))]
        rows.append([name, f"{good.exact_match:.1%}", f"{good.token_accuracy:.2%}", *cells])
    return markdown_table(["decoding", "exact", "tokens right", *titles], rows)


def recipes(args: argparse.Namespace) -> dict[str, Recipe]:
    """Return the settings of both models, which differ in the objective."""
    shared = {"hidden": args.hidden, "layers": args.layers, "steps": args.steps, "batch": args.batch}
    shared |= {"block_size": args.block_size, "learning_rate": args.learning_rate}
    return {
        "ar": Recipe("ar", ar_aux_weight=0.0, **shared),
        "bd": Recipe("bd", ar_aux_weight=args.ar_aux_weight, **shared),
    }


def train_models(args: argparse.Namespace) -> dict[str, Trained]:
    """Train both models, or load them."""
    models = {}
    for name, recipe in recipes(args).items():
        with progress_bar(total=recipe.steps, desc=f"training {name}", unit="step") as bar:

            def tick(loss: float, bar: tqdm[None] = bar) -> None:
                bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
                bar.update()

            models[name] = load_or_train(recipe, args.models / name, tick)
        models[name].built.model.to(args.device)
    return models


def _parser() -> Parser:
    parser = Parser("text_decoding", __doc__)
    thresholds = "1,0.99,0.95,0.9,0.8,0.6,0.4"
    parser.add_argument(
        "--thresholds", default=thresholds, help="confidences above which tokens are accepted, by commas"
    )
    parser.add_argument("--batches", default="1,8", help="batch sizes, by commas (1,8)")
    parser.add_argument("--held-out", type=whole(1), default=128, help="questions that quality is measured on (128)")
    parser.add_argument("--timed", type=whole(1), default=8, help="questions that are timed (8)")
    parser.add_argument("--tolerance", type=real(0), default=0.0, help="exact match that blocks may lack (0)")
    folder = Path("outputs/benchmarks/text_decoding")
    parser.add_argument("--models", type=path_argument, default=folder, help="folder of the trained models")
    for field, default, meaning in (
        ("steps", 500, "optimizer steps of each model"),
        ("batch", 8, "samples of a step"),
        ("hidden", 128, "width of the backbone, a Phi with a head per 32"),
        ("layers", 4, "layers of the backbone"),
        ("block-size", 8, "tokens per block"),
    ):
        parser.add_argument(f"--{field}", type=int, default=default, help=f"{meaning} ({default})")
    parser.add_argument("--learning-rate", type=real(above=0), default=2e-3, help="peak learning rate (0.002)")
    parser.add_argument("--ar-aux-weight", type=real(0), default=1.0, help="weight of next-token prediction in bd (1)")
    return parser


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = _parser()
    args = parser.parse(argv)
    try:
        thresholds = [float(word) for word in args.thresholds.split(",")]
        batches = [int(word) for word in args.batches.split(",")]
    except ValueError as error:
        parser.error(f"--thresholds and --batches are numbers separated by commas: {error}")
    models = train_models(args)
    compared = variants(models["ar"].built, models["bd"].built, thresholds)
    samples = [sample(index, held_out=True) for index in range(args.held_out)]
    with progress_bar(total=len(samples) * len(compared), desc="quality", unit="answer") as bar:
        qualities = {name: quality(variant, samples, args.device, bar.update) for name, variant in compared.items()}
    speeds = {str(batch): speed(compared, samples[: max(args.timed, batch)], batch, args) for batch in batches}
    best = headline(qualities, speeds, args.tolerance)
    settings = {"recipes": recipes(args), "rounds": args.rounds, "timed": args.timed, "clock": clock_of(args.device)}
    content = {
        "settings": settings,
        "learning": {name: {"cpu_seconds": m.seconds, "loss": m.loss} for name, m in models.items()},
        "quality": {name: asdict(q) for name, q in qualities.items()},
        "speed": speeds,
        "headline": best,
    }
    print(table(qualities, speeds))
    for batch, found in best["by_batch"].items():
        if found is None:
            print(f"batch {batch}: no block setting is right as often as next-token decoding")
        else:
            print(
                f"batch {batch}: {found['setting']} generates {found['tokens_per_second']:.0f} tokens/s, "
                f"{found['times_ar']:.2f} times next-token decoding, and is right in {found['exact_match']:.1%} "
                f"(needed: {best['exact_match_needed']:.1%})"
            )
    write(args, content)
    return content


if __name__ == "__main__":
    run_command(main)
