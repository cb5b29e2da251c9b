"""Measure the package on a GPU in one run of at most 12 minutes: correctness, speed, memory.

Sections: correctness (FlexAttention, compiled forwards, bf16, CUDA graphs and TF32 against the plain way), training
steps of ar, mdm and bd at Phi-1.5 and Qwen3-1.7B size (speed, MFU, peak memory; with and without token cache; full and
LoRA), latency and throughput of a policy, answers by objective and block size, and the presets against their cards.
Weights are random and are made on the device; no model folder and no data are needed.

Each case runs within its own time in a worker process. A failure or a lack of memory is recorded with its message, and
the next case runs. Results are written after every case: one JSON file, a page (.md) and the worker's messages (.log)
next to it. The exit code is 1 if a case failed.

Examples:
  a card like H200 (the default):
    python -m benchmarks.gpu_report --out outputs/benchmarks/gpu_report.json
  what is missing after an interruption, or in more time:
    python -m benchmarks.gpu_report --resume
  whether it runs, in seconds on a CPU:
    python -m benchmarks.gpu_report --size tiny --device cpu --compiler eager --rounds 1
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_report.case import NETWORKS, Case
from benchmarks.gpu_report.page import page, summary
from benchmarks.gpu_report.runner import CPU_PATIENCE, Worker, outcome, run_cases
from benchmarks.gpu_report.sections import SECTIONS, all_cases
from benchmarks.harness.record import Parser, settings_of, write
from common.arguments import real
from common.command import progress_bar, run_command
from common.files import read_object, write_text

MINUTES = 12.0
SETTINGS = ("size", "networks", "rounds", "compiler", "threads")


def parser() -> Parser:
    made = Parser("gpu_report", __doc__, rounds=5)
    made.set_defaults(device=torch.device("cuda"))
    made.add_argument("--size", choices=sorted(NETWORKS), default="real", help="real: Phi-1.5 and Qwen3-1.7B (real)")
    names = ",".join(NETWORKS["real"])
    made.add_argument("--networks", default=names, help="networks, by commas (all); tiny ones of the same families")
    made.add_argument("--sections", default=",".join(SECTIONS), help="sections, by commas (all)")
    made.add_argument("--minutes", type=real(above=0.0), default=MINUTES, help="time of the whole report (12)")
    made.add_argument("--compiler", default="inductor", help="backend of torch.compile; eager: trace only (inductor)")
    made.add_argument("--resume", action="store_true", help="keep the finished cases of --out, and run the others")
    return made


def chosen_cases(args: argparse.Namespace) -> list[Case]:
    return [case for case in all_cases(args.size, args.networks) if case.section in args.sections]


def earlier(args: argparse.Namespace, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the content of ``--out`` for ``--resume``. Raises ``SystemExit`` if it is not of the same settings."""
    if not args.out.is_file():
        raise SystemExit(f"--resume: {args.out} does not exist; start without --resume")
    found = read_object(args.out)
    if found.get("benchmark") != "gpu_report" or found.get("settings") != settings:
        raise SystemExit(f"--resume: {args.out} has the settings {found.get('settings')}, not {settings}")
    return {"cases": found["cases"], "worker": found.get("worker", {})}


def main(argv: Sequence[str] | None = None) -> int:
    command_line = parser()
    args = command_line.parse(argv)
    args.sections = command_line.split("--sections", args.sections, SECTIONS)
    args.networks = command_line.split("--networks", args.networks, list(NETWORKS[args.size]))
    if args.device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no GPU was found; give --device cpu --size tiny to see whether the report runs")
    if args.device.type == "cpu" and args.size == "real":
        raise SystemExit("--size real is meant for a GPU (days on a CPU); give --device cuda, or --size tiny")
    settings = {**settings_of(args, *SETTINGS), "device": str(args.device)}
    cases = chosen_cases(args)
    content: dict[str, Any] = {"settings": settings, "worker": {}, "cases": {}}
    if args.resume:
        content |= earlier(args, settings)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    left = [case for case in cases if content["cases"].get(case.key, {}).get("status") not in ("done", "skipped")]
    log = args.out.with_suffix(".log")
    log.write_bytes(b"")
    command = [sys.executable, "-m", "benchmarks.gpu_report.worker", json.dumps(settings)]
    with progress_bar(total=len(left), unit="case") as bar:

        def record(case: Case | None, found: dict[str, Any]) -> None:
            if case is None:
                content["worker"] = found
                return
            content["cases"][case.key] = {"section": case.section, "name": case.name, **found}
            save(args, content, cases)
            bar.write(f"{case.key}: {line_of(found)}")
            bar.update()

        run_cases(
            left,
            partial(Worker, command, log),
            record,
            60 * args.minutes,
            CPU_PATIENCE if args.device.type == "cpu" else 1.0,
        )
    save(args, content, cases)
    print(f"{summary(content['cases'])}: {args.out.with_suffix('.md')}, {args.out}")
    return int(any(one["status"] == "failed" for one in content["cases"].values()))


def save(args: argparse.Namespace, content: dict[str, Any], cases: Sequence[Case]) -> None:
    """Write the JSON file and the page. Cases that were not reached yet are ``not run``."""
    pending = {"section": "", "name": "", **outcome("not run", "")}
    every = {
        case.key: content["cases"].get(case.key, {**pending, "section": case.section, "name": case.name})
        for case in cases
    }
    whole = {**content, "cases": {**content["cases"], **every}}
    write(args, whole, announce=False)
    write_text(page_path(args.out), page(whole))


def page_path(out: Path) -> Path:
    """Return the file of the page."""
    return out.with_suffix(".md")


def line_of(found: dict[str, Any]) -> str:
    """Return an outcome in one line."""
    figures = ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in found["figures"].items()
    )
    return f"{found['status']} in {found['seconds']:.1f} s  {found['message'] or figures}"


if __name__ == "__main__":
    run_command(main)
