"""Peak memory of one piece of work, in a process that does nothing else.

A process's high-water mark never falls, and an allocator keeps what was freed: two variants are only comparable when
each starts fresh. ``peak_of`` starts a child, which builds the work, notes what it holds, does it, and reports.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

MB = 1 << 20
ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Peak:
    """Megabytes (2^20 bytes). ``before``: held when the work starts: libraries, weights, inputs. ``peak``: most held
    while it runs. On a GPU both are what torch has allocated there, on a CPU the process's resident memory."""

    before: float
    peak: float

    @property
    def above(self) -> float:
        """What the work itself needed: gradients and activations."""
        return self.peak - self.before


def peak_of(work: str, settings: Mapping[str, Any]) -> Peak:
    """Peak of ``work``, named ``package.module:function``. The function takes (settings, device) and returns what is
    to be measured, ready to run. ``settings`` holds plain values; ``device`` and ``threads`` are read here too."""
    command = [sys.executable, "-m", "benchmarks.memory", work, json.dumps(dict(settings))]
    child = subprocess.run(command, cwd=ROOT, capture_output=True, check=False, encoding="utf-8")
    if child.returncode:
        last = (child.stderr.strip().splitlines() or ["no message"])[-1]
        raise SystemExit(f"measuring the memory of {work} failed with exit code {child.returncode}: {last}")
    return Peak(**json.loads(child.stdout.strip().splitlines()[-1]))


def _measure(run: Callable[[], object], device: torch.device) -> Peak:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device) / MB
        run()
        torch.cuda.synchronize(device)
        return Peak(before, torch.cuda.max_memory_allocated(device) / MB)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the high-water mark starts again from here
    before = _status("VmRSS")
    run()
    return Peak(before, _status("VmHWM"))


def _status(field: str) -> float:
    """A line of /proc/self/status, in MB."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise ValueError(f"/proc/self/status has no {field}; memory on a CPU is measured on Linux")


def main() -> None:
    parser = argparse.ArgumentParser(description="The child of peak_of; not meant to be started by hand.")
    parser.add_argument("work")
    parser.add_argument("settings", type=json.loads)
    args = parser.parse_args()
    torch.set_num_threads(int(args.settings["threads"]))
    device = torch.device(args.settings["device"])
    module, _, name = args.work.partition(":")
    run = getattr(import_module(module), name)(args.settings, device)
    print(json.dumps(asdict(_measure(run, device))))


if __name__ == "__main__":
    main()
