"""Measure the peak memory of one piece of work, in a process of its own.

A process's high-water mark never falls, and an allocator keeps freed memory: two variants are comparable only if each
starts fresh. ``peak_of`` starts a child process, which builds the work, measures what it holds, and runs the work.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from benchmarks.harness.record import ROOT

MB = 1 << 20
SAMPLE_SECONDS = 0.002


@dataclass(frozen=True)
class Peak:
    """Megabytes (2^20 bytes) in use ``before`` the work (libraries, weights, inputs), and at its ``peak``.

    On a GPU both are torch's allocations there, on a CPU the process's resident memory.
    """

    before: float
    peak: float

    @property
    def above(self) -> float:
        """Memory of the work itself: gradients and activations."""
        return self.peak - self.before


def peak_of(work: str, settings: Mapping[str, Any]) -> Peak:
    """Return the peak of ``work``, given as ``package.module:function``.

    The function receives (settings, device) and returns the work, ready to run. ``settings`` holds plain values,
    ``device`` and ``threads`` among them. Raises ``SystemExit`` with the child's last line if it fails.
    """
    command = [sys.executable, "-m", "benchmarks.harness.memory", work, json.dumps(dict(settings))]
    child = subprocess.run(command, cwd=ROOT, capture_output=True, check=False, encoding="utf-8")
    if child.returncode:
        last = (child.stderr.strip().splitlines() or ["no message"])[-1]
        raise SystemExit(f"measuring the memory of {work} failed with exit code {child.returncode}: {last}")
    return Peak(**json.loads(child.stdout.strip().splitlines()[-1]))


def compare_peaks(
    work: str, variants: Sequence[str], settings: Mapping[str, Any], args: argparse.Namespace
) -> dict[str, Any]:
    """Return the peaks of all variants, and those of all but the first as fractions of the first.

    ``work`` receives the name of the variant as ``settings["variant"]``.
    """
    shared = {**settings, "device": str(args.device), "threads": args.threads}
    peaks = {name: peak_of(work, {**shared, "variant": name}) for name in variants}
    first = peaks[variants[0]]
    return {
        "memory_mb": {name: {"before": p.before, "above": p.above, "peak": p.peak} for name, p in peaks.items()},
        "memory_share": {
            name: {"above": peaks[name].above / first.above, "peak": peaks[name].peak / first.peak}
            for name in variants[1:]
        },
    }


def measure(run: Callable[[], object], device: torch.device) -> Peak:
    """Run ``run`` and return its peak in this process."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device) / MB
        run()
        torch.cuda.synchronize(device)
        return Peak(before, torch.cuda.max_memory_allocated(device) / MB)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # reset the high-water mark
    before = _status("VmRSS")
    run()
    return Peak(before, _status("VmHWM"))


class AnonymousPeak:
    """Context that measures this process's anonymous memory (``RssAnon``), in MB: ``before``, ``peak`` and ``after``.

    Anonymous memory is the process's own; pages of mapped files are not part of it. The kernel keeps no peak of it, so
    a thread reads it every 2 ms.
    """

    def __enter__(self) -> AnonymousPeak:
        gc.collect()
        self.before = self.peak = self.after = _status("RssAnon")
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        self.after = _status("RssAnon")
        self.peak = max(self.peak, self.after)

    def _sample(self) -> None:
        while not self._ended.wait(SAMPLE_SECONDS):
            self.peak = max(self.peak, _status("RssAnon"))


def smaps_rollup(pid: int | str = "self") -> dict[str, int]:
    """Return the sums over all mappings of a process in KB, by the kernel's names (``Pss_File``, ``Private_Dirty``)."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()[1:]
    return {name: int(value.split()[0]) for name, _, value in (line.partition(":") for line in lines)}


def _status(field: str) -> float:
    """Return a value of /proc/self/status, in MB."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise ValueError(f"/proc/self/status has no {field}; memory on a CPU is measured on Linux")


def main() -> None:
    work, settings = sys.argv[1], json.loads(sys.argv[2])
    torch.set_num_threads(int(settings["threads"]))
    device = torch.device(settings["device"])
    module, _, name = work.partition(":")
    run = getattr(import_module(module), name)(settings, device)
    print(json.dumps(asdict(measure(run, device))))


if __name__ == "__main__":
    main()
