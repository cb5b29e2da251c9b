"""What a measurement leaves behind: one JSON file that says when, where, on what and by which command."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import torch

from common.arguments import path_argument, whole
from config.schema import Objective

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "transformers", "numpy")


def parser(name: str, description: str, epilog: str) -> argparse.ArgumentParser:
    """A command's parser with what all benchmarks share."""
    made = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--rounds", type=whole(1), default=7, help="measured runs of each variant, in turn (default 7)")
    made.add_argument("--device", type=torch.device, default=torch.device("cpu"), help="cpu (default), cuda, cuda:1")
    made.add_argument("--threads", type=whole(1), default=1, help="CPU threads of one run (default 1)")
    made.add_argument(
        "--out",
        type=path_argument,
        default=Path("outputs/benchmarks") / f"{name}.json",
        help=f"where the figures go (default outputs/benchmarks/{name}.json)",
    )
    return made


def chosen_objectives(made: argparse.ArgumentParser, given: str) -> list[Objective]:
    """The text objectives that ``--objectives`` names by commas; ends the command where one is unknown."""
    known: dict[str, Objective] = {name: name for name in get_args(Objective)}
    names = given.split(",")
    if unknown := [name for name in names if name not in known]:
        made.error(f"--objectives {given}: {unknown[0]!r} is none of {', '.join(known)}")
    return [known[name] for name in names]


def hardware(device: torch.device, threads: int) -> dict[str, Any]:
    """The machine, without its name."""
    found: dict[str, Any] = {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "threads": threads,
        "load_average": round(os.getloadavg()[0], 1),
    }
    if device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
    return found


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def commit() -> str:
    """The checked-out commit, with a ``+`` when files differ from it; ``unknown`` outside a checkout."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, check=False, encoding="utf-8")
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        head, changes = git("rev-parse", "--short=12", "HEAD"), git("status", "--porcelain", "--untracked-files=no")
    except FileNotFoundError:  # no git on this machine
        return "unknown"
    return f"{head}{'+' if changes else ''}" or "unknown"


def write(
    file: Path, name: str, argv: Sequence[str], device: torch.device, threads: int, content: Mapping[str, Any]
) -> None:
    """The figures with their circumstances, whole or not at all."""
    record = {
        "benchmark": name,
        "command": shlex.join(["python", "-m", f"benchmarks.{name}", *argv]),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "hardware": hardware(device, threads),
        "software": {"python": platform.python_version(), **{package: version(package) for package in PACKAGES}},
        **content,
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(".partial")
    unfinished.write_text(json.dumps(record, indent=2, default=_plain) + "\n", encoding="utf-8")
    os.replace(unfinished, file)
    print(f"figures: {file}")


def _plain(value: object) -> Any:
    """What json does not know: our dataclasses, paths and devices."""
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, (Path, torch.device)):
        return str(value)
    raise TypeError(f"cannot be written as JSON: {value!r}")


def arguments(argv: Sequence[str] | None) -> list[str]:
    """What was typed, also when ``main`` is called by a test."""
    return list(sys.argv[1:] if argv is None else argv)
