"""Block decoding against next-token decoding: tokens per second at equal quality, on trained models.

    python -m benchmarks.text_decoding [--thresholds 0.99,0.9,0.7,0.5] [--batches 1,8] [--steps 500]

Two models learn the same reports in the same order (``benchmarks/desk_reports.py``): one by ``ar``, one by ``bd`` with
next-token prediction beside it, whose one set of weights decodes both ways. Both have the KV cache. Trained models are
kept under ``outputs/benchmarks``.
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

from benchmarks.desk_reports import Recipe, Sample, Trained, sample, trained
from benchmarks.record import arguments, parser, write
from benchmarks.timing import Lap, Spread, alternate, clock_of, ratio
from common.arguments import path_argument, real, whole
from common.command import run_command
from models.decoding import Decoding, Generation, Threshold, generate
from models.pretrained.model_io import Built

NAME = "text_decoding"
DESCRIPTION = """\
Trains two small models on reports of 30 to 85 tokens (a few minutes on one core, once: they are kept), decodes
held-out questions by the next token, by blocks at several thresholds and speculatively, and reports for each how many
answers are right and how many tokens come out per forward and per second. The headline is the fastest block setting
whose answers are right as often as those of both next-token decoders. Runs alternate; medians with quartiles."""
EPILOG = """\
examples:
  the figures of the documentation:
    python -m benchmarks.text_decoding --out benchmarks/results/text_decoding.json
  a look at the mechanics, in seconds (the models have learned nothing):
    python -m benchmarks.text_decoding --steps 2 --hidden 32 --held-out 4 --timed 2 --rounds 1 --models outputs/look"""

LONGEST = 128
"""Most tokens of an answer; the longest report has 85."""
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
    """All that are compared, by name."""
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
    """Of held-out answers: share that are right to the letter, share of their tokens that stand where they should,
    tokens per forward when asked one by one (a batch waits for its slowest row)."""

    exact_match: float
    token_accuracy: float
    questions: int


def quality(
    variant: Variant, samples: Sequence[Sample], device: torch.device, tick: Callable[[int], object]
) -> Quality:
    """Greedy answers, in batches (they do not depend on the batch)."""
    exact, right, tokens = 0, 0, 0
    prompter = variant.built.prompter
    for first in range(0, len(samples), QUALITY_BATCH):
        some = samples[first : first + QUALITY_BATCH]
        said = variant.answers([s.question for s in some], torch.stack([s.patches for s in some]).to(device))
        for one, text, ids in zip(some, said.texts, said.ids, strict=True):
            truth = [*prompter.words(f" {one.answer}"), prompter.vocab.eos]
            exact += text == one.answer
            right += sum(a == b for a, b in zip(ids, truth, strict=False))
            tokens += max(len(ids), len(truth))
        tick(len(some))
    return Quality(exact / len(samples), right / tokens, len(samples))


def speed(
    compared: Mapping[str, Variant], samples: Sequence[Sample], batch: int, args: argparse.Namespace, bar: tqdm[None]
) -> dict[str, dict[str, Any]]:
    """Every variant answers the same questions, ``batch`` at a time, in turn."""
    asked = [samples[first : first + batch] for first in range(0, len(samples), batch)]
    ready = [([s.question for s in some], torch.stack([s.patches for s in some]).to(args.device)) for some in asked]
    said: dict[str, list[Generation]] = {name: [] for name in compared}

    def run(name: str) -> Callable[[], None]:
        def answer_all() -> None:
            said[name] = [compared[name].answers(*questions) for questions in ready]

        return answer_all

    laps = alternate({name: run(name) for name in compared}, args.rounds, args.device, tick=bar.update)
    clock = clock_of(args.device)
    return {name: _figures(laps[name], laps, said[name], clock) for name in compared}


def _figures(own: list[Lap], laps: Mapping[str, list[Lap]], said: Sequence[Generation], clock: Any) -> dict[str, Any]:
    tokens, forwards = sum(g.stats.tokens for g in said), sum(g.stats.forwards for g in said)
    return {
        "tokens": tokens,
        "tokens_per_forward": tokens / forwards,
        "milliseconds_per_forward": 1e3 * Spread.of([lap.of(clock) for lap in own]).median / forwards,
        "tokens_per_second": Spread.of([tokens / lap.of(clock) for lap in own]),
        "first_token_wall_milliseconds": Spread.of([1e3 * g.stats.first_token_seconds for g in said]),
        "answers_times_faster_than_ar": ratio(laps[AR], own, clock),
        "answers_times_faster_than_own_ar": ratio(laps[OWN_AR], own, clock),
    }


def headline(
    judged: Mapping[str, Quality], speeds: Mapping[str, Mapping[str, Mapping[str, Any]]], tolerance: float
) -> dict[str, Any]:
    """For each batch size the fastest block setting that is right as often as next-token decoding, and by how much
    it is faster than the faster of the two next-token decoders."""
    least = max(judged[AR].exact_match, judged[OWN_AR].exact_match) - tolerance
    good = [n for n, q in judged.items() if n.startswith("bd, threshold") and q.exact_match >= least]
    found: dict[str, Any] = {"exact_match_needed": least, "tolerance": tolerance, "by_batch": {}}
    for batch, rows in speeds.items():
        if not good:
            found["by_batch"][batch] = None
            continue
        best = max(good, key=lambda name: rows[name]["tokens_per_second"].median)
        faster_ar = max(rows[AR]["tokens_per_second"].median, rows[OWN_AR]["tokens_per_second"].median)
        found["by_batch"][batch] = {
            "setting": best,
            "exact_match": judged[best].exact_match,
            "token_accuracy": judged[best].token_accuracy,
            "tokens_per_second": rows[best]["tokens_per_second"].median,
            "ar_tokens_per_second": faster_ar,
            "times_ar": rows[best]["tokens_per_second"].median / faster_ar,
        }
    return found


def table(judged: Mapping[str, Quality], speeds: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Everything, for people (and for Markdown)."""
    batches = list(speeds)
    head = [
        "decoding",
        "exact",
        "tokens right",
        *(f"{what}, batch {b}" for b in batches for what in ("tok/fwd", "tok/s")),
    ]
    rows = [head, ["---"] * len(head)]
    for name, good in judged.items():
        figures = [speeds[b][name] for b in batches]
        cells = [c for f in figures for c in (f"{f['tokens_per_forward']:.2f}", str(f["tokens_per_second"]))]
        rows.append([name, f"{good.exact_match:.1%}", f"{good.token_accuracy:.2%}", *cells])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def recipes(args: argparse.Namespace) -> dict[str, Recipe]:
    """The same but for the objective."""
    shared = {"hidden": args.hidden, "layers": args.layers, "steps": args.steps, "batch": args.batch}
    shared |= {"block_size": args.block_size, "learning_rate": args.learning_rate}
    return {
        "ar": Recipe("ar", ar_aux_weight=0.0, **shared),
        "bd": Recipe("bd", ar_aux_weight=args.ar_aux_weight, **shared),
    }


def learn(args: argparse.Namespace) -> dict[str, Trained]:
    """Both models, from the shelf where they are on it."""
    models = {}
    for name, recipe in recipes(args).items():
        with tqdm(total=recipe.steps, desc=f"learning {name}", unit="step") as bar:

            def tick(loss: float, bar: tqdm[None] = bar) -> None:
                bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
                bar.update()

            models[name] = trained(recipe, args.models / name, tick)
        models[name].built.model.to(args.device)
    return models


def _parser() -> argparse.ArgumentParser:
    made = parser(NAME, DESCRIPTION, EPILOG)
    made.add_argument(
        "--thresholds", default="1,0.99,0.95,0.9,0.8,0.6,0.4", help="confidences above which words are kept"
    )
    made.add_argument("--batches", default="1,8", help="questions asked at once, by commas (1,8)")
    made.add_argument("--held-out", type=whole(1), default=128, help="questions that quality is judged on (128)")
    made.add_argument("--timed", type=whole(1), default=8, help="of these, questions that are timed (8)")
    made.add_argument(
        "--tolerance", type=real(0), default=0.0, help="exact match that blocks may lack to count as equal (0)"
    )
    made.add_argument(
        "--models", type=path_argument, default=Path("outputs/benchmarks/text_decoding"), help="kept models"
    )
    for field, default, meaning in (
        ("steps", 500, "optimizer steps of each model"),
        ("batch", 8, "samples of a step"),
        ("hidden", 128, "width of the backbone, a Phi with a head per 32"),
        ("layers", 4, "its layers"),
        ("block-size", 8, "tokens per block"),
    ):
        made.add_argument(f"--{field}", type=int, default=default, help=f"{meaning} ({default})")
    made.add_argument("--learning-rate", type=real(above=0), default=2e-3, help="highest, of a cosine (0.002)")
    made.add_argument("--ar-aux-weight", type=real(0), default=1.0, help="of next-token prediction beside bd (1)")
    return made


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    made = _parser()
    args = made.parse_args(argv)
    try:
        thresholds = [float(word) for word in args.thresholds.split(",")]
        batches = [int(word) for word in args.batches.split(",")]
    except ValueError as error:
        made.error(f"--thresholds and --batches are numbers with commas between them: {error}")
    torch.set_num_threads(args.threads)
    models = learn(args)
    compared = variants(models["ar"].built, models["bd"].built, thresholds)
    samples = [sample(index, held_out=True) for index in range(args.held_out)]
    with tqdm(total=len(samples) * len(compared), desc="quality", unit="answer") as bar:
        judged = {name: quality(variant, samples, args.device, bar.update) for name, variant in compared.items()}
    with tqdm(total=len(batches) * len(compared) * args.rounds, desc="speed", unit="run") as bar:
        speeds = {str(b): speed(compared, samples[: max(args.timed, b)], b, args, bar) for b in batches}
    best = headline(judged, speeds, args.tolerance)
    content = {
        "settings": {
            "recipes": recipes(args),
            "rounds": args.rounds,
            "timed": args.timed,
            "clock": clock_of(args.device),
        },
        "learning": {name: {"cpu_seconds": m.seconds, "loss": m.loss} for name, m in models.items()},
        "quality": {name: asdict(q) for name, q in judged.items()},
        "speed": speeds,
        "headline": best,
    }
    print(table(judged, speeds))
    for batch, found in best["by_batch"].items():
        if found is None:
            print(f"batch {batch}: no block setting is right as often as next-token decoding")
        else:
            print(
                f"batch {batch}: {found['setting']} says {found['tokens_per_second']:.0f} tokens/s, "
                f"{found['times_ar']:.2f} times next-token decoding, and is right in {found['exact_match']:.1%} "
                f"(needed: {best['exact_match_needed']:.1%})"
            )
    write(args.out, NAME, arguments(argv), args.device, args.threads, content)
    return content


if __name__ == "__main__":
    run_command(main)
