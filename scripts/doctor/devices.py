"""Checks of torch and its devices, in a process of its own that may crash or be slow."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from scripts.doctor.findings import Finding

TIMEOUT = 60.0
"""Seconds for the import of torch, which is slow on network file systems."""
PROBE = """
import json
import torch

found = {"torch": torch.__version__, "cuda": torch.version.cuda, "threads": torch.get_num_threads(), "devices": []}
for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
    about = torch.cuda.get_device_properties(number)
    device = {"name": about.name, "capability": f"{about.major}.{about.minor}", "total": about.total_memory}
    try:
        device["free"] = torch.cuda.mem_get_info(number)[0]
        device["sum"] = torch.ones(8, device=f"cuda:{number}").sum().item()
    except RuntimeError as error:
        device["error"] = str(error).splitlines()[0]
    found["devices"].append(device)
print(json.dumps(found))
"""


class TorchProbe:
    """Import torch in another process while other checks run."""

    def __init__(self, program: str = PROBE) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8"
        )

    def findings(self) -> Iterator[Finding]:
        """Yield what was found, when the process has ended."""
        try:
            output, errors = self._process.communicate(timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
            text = f"the import of torch takes more than {TIMEOUT:.0f} s"
            yield Finding("torch", "warning", text, "put the environment on a local disk")
            return
        if self._process.returncode != 0:
            last = (errors.strip().splitlines() or [f"exit code {self._process.returncode}"])[-1]
            remedy = 'reinstall torch ("torch" in pyproject.toml), or install it: see README.md'
            yield Finding("torch", "error", f"torch cannot be imported: {last}", remedy)
            return
        yield from torch_findings(json.loads(output.strip().splitlines()[-1]))


def torch_findings(found: dict[str, Any]) -> Iterator[Finding]:
    """Yield findings on the output of the probe."""
    build = f"CUDA {found['cuda']}" if found["cuda"] else "CPU build"
    yield Finding("torch", "ok", f"torch {found['torch']} ({build}), {found['threads']} threads", facts=found)
    for number, device in enumerate(found["devices"]):
        free = f", {device['free'] / 1e9:.1f} GB free" if "free" in device else ""
        text = f"cuda:{number} {device['name']}, {device['total'] / 1e9:.1f} GB{free}"
        if "error" in device:
            remedy = "another process may hold it (nvidia-smi), or this torch has no kernels for it"
            yield Finding("device", "error", f"{text}: {device['error']}", remedy)
        else:
            yield Finding("device", "ok", text)
    if not found["devices"]:
        yield _without_gpu(bool(found["cuda"]))


def _without_gpu(cuda_build: bool) -> Finding:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in ("", "-1"):
        text, remedy = f"CUDA_VISIBLE_DEVICES={visible} hides all GPUs", "unset CUDA_VISIBLE_DEVICES"
        return Finding("device", "note", text, remedy)
    if shutil.which("nvidia-smi") is None:
        return Finding("device", "note", "no NVIDIA driver (nvidia-smi): the CPU is used, for small models only")
    if not cuda_build:
        text = "there is an NVIDIA driver, but torch is the CPU build"
        return Finding("device", "warning", text, "pip install torch from PyPI (README.md), or: rm -r .venv; make venv")
    text = "there is an NVIDIA driver, and torch has CUDA, but sees no GPU"
    return Finding("device", "warning", text, "compare the driver's CUDA version (nvidia-smi) with torch's; update it")
