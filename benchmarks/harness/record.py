"""Parse the command line of a benchmark, and write its results as one JSON file with date, machine and command."""

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
from common.files import write_text
from config.schema import Objective

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "transformers", "numpy")


class Parser(argparse.ArgumentParser):
    """The options that all benchmarks share.

    ``doc``: the module's docstring, whose part from a line "examples:" on is shown after the options; ``objectives``:
    default of ``--objectives``, which is added if it is given.
    """

    def __init__(self, name: str, doc: str | None, rounds: int = 7, objectives: str | None = None) -> None:
        description, _, examples = (doc or "").partition("\nexamples:\n")
        super().__init__(
            prog=f"python -m benchmarks.{name}",
            description=description,
            epilog=f"examples:\n{examples}" if examples else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        self.name = name
        self.add_argument("--rounds", type=whole(1), default=rounds, help="timed runs of each variant (%(default)s)")
        self.add_argument("--device", type=torch.device, default=torch.device("cpu"), help="cpu, cuda, cuda:1 (cpu)")
        self.add_argument("--threads", type=whole(1), default=1, help="CPU threads (%(default)s)")
        out = Path("outputs/benchmarks") / f"{name}.json"
        self.add_argument("--out", type=path_argument, default=out, help="file of the results (%(default)s)")
        if objectives is not None:
            self.add_argument("--objectives", default=objectives, help="text objectives, by commas (%(default)s)")

    def parse(self, argv: Sequence[str] | None) -> argparse.Namespace:
        """Parse, set the number of threads, and split ``--objectives``."""
        args = self.parse_args(argv)
        args.name, args.argv = self.name, list(sys.argv[1:] if argv is None else argv)
        if "objectives" in args:
            args.objectives = self.split("--objectives", args.objectives, get_args(Objective))
        torch.set_num_threads(args.threads)
        return args

    def split(self, option: str, given: str, allowed: Sequence[str]) -> list[str]:
        """Split names by commas; exit with an error if one is not allowed."""
        names = given.split(",")
        if unknown := [name for name in names if name not in allowed]:
            self.error(f"{option} {given}: {unknown[0]!r} is none of {', '.join(allowed)}")
        return names


def settings_of(args: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Return the values of the named options."""
    return {name: getattr(args, name) for name in names}


def hardware(device: torch.device, threads: int) -> dict[str, Any]:
    """Describe the machine, without its name."""
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
    """Return the checked-out commit, with a ``+`` if files differ from it; ``unknown`` outside a checkout."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, check=False, encoding="utf-8")
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        head, changes = git("rev-parse", "--short=12", "HEAD"), git("status", "--porcelain", "--untracked-files=no")
    except FileNotFoundError:  # no git on this machine
        return "unknown"
    return f"{head}{'+' if changes else ''}" or "unknown"


def write(args: argparse.Namespace, content: Mapping[str, Any], announce: bool = True) -> None:
    """Write the results to ``args.out`` with command, date, commit, machine and library versions.

    ``announce``: print the name of the file.
    """
    record = {
        "benchmark": args.name,
        "command": shlex.join(["python", "-m", f"benchmarks.{args.name}", *args.argv]),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "hardware": hardware(args.device, args.threads),
        "software": {"python": platform.python_version(), **{package: version(package) for package in PACKAGES}},
        **content,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_text(args.out, json.dumps(record, indent=2, default=_plain) + "\n")
    if announce:
        print(f"figures: {args.out}")


def _plain(value: object) -> Any:
    """Convert dataclasses, paths and devices for JSON."""
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, (Path, torch.device)):
        return str(value)
    raise TypeError(f"cannot be written as JSON: {value!r}")
