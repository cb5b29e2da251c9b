"""Checks of memory, disks, network, launch variables and leftovers on this machine."""

from __future__ import annotations

import os
import resource
import shutil
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

from common import shared_memory
from config.parsing import ConfigError
from scripts.doctor.findings import Finding
from training.distributed.launch_environment import check_launcher, is_on

MEMORY, SHARED, DISK = 4e9, 256e6, 5e9
"""Bytes below which a warning is given: free memory (quickstart needs 2 GB), all of /dev/shm, and free disk."""
OPEN_FILES = 1024
STALE_S = 600.0
"""Age in seconds of a lock file above which no compiler holds it any more."""
HUB_S = 4.0
CGROUP = Path("/sys/fs/cgroup/memory.max")
MEMINFO = Path("/proc/meminfo")


def check_memory() -> Finding:
    """Check the free memory and the cores of this process."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        entries = dict(line.split(":", 1) for line in MEMINFO.read_text(encoding="ascii").splitlines())
    except OSError:
        return Finding("memory", "note", f"{cores} cores; {MEMINFO} cannot be read")
    total, free = (1024 * int(entries[name].split()[0]) for name in ("MemTotal", "MemAvailable"))
    if CGROUP.is_file() and (text := CGROUP.read_text(encoding="ascii").strip()).isdecimal():
        total, free = min(total, int(text)), min(free, int(text))
    text, facts = f"{cores} cores; {free / 1e9:.1f} of {total / 1e9:.1f} GB free", {"cores": cores, "free": free}
    if free < MEMORY:
        remedy = "end other programs; python scripts/estimate_memory.py config=... estimates what a run needs"
        return Finding("memory", "warning", text, remedy, facts)
    return Finding("memory", "ok", text, facts=facts)


def check_shared_memory() -> Finding:
    """Check the size of /dev/shm, through which data workers send batches."""
    folder = shared_memory.SHARED_MEMORY
    if not folder.is_dir():
        text = f"{folder} does not exist: data workers cannot send batches"
        return Finding("shared memory", "warning", text, "set dataset.params.num_workers=0")
    usage = shutil.disk_usage(folder)
    text = f"{folder}: {usage.free / 1e6:,.0f} of {usage.total / 1e6:,.0f} MB free"
    if usage.free < SHARED:
        text += "; data workers send batches through it"
        return Finding("shared memory", "warning", text, shared_memory.more_shared_memory())
    return Finding("shared memory", "ok", text)


def check_disks(env: Mapping[str, str]) -> Iterator[Finding]:
    """Check the disks of the current folder and of the caches, each disk once, and the limit of open files."""
    hub = Path(env.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    seen = set()
    for purpose, folder in (
        ("the current folder", Path.cwd()),
        ("models of the hub", hub),
        ("temporary", _temporary()),
    ):
        place = next(path for path in (folder, *folder.parents) if path.exists())
        if (device := place.stat().st_dev) in seen:
            continue
        seen.add(device)
        free = shutil.disk_usage(place).free
        text = f"{purpose}, {place}: {free / 1e9:.1f} GB free"
        if not os.access(place, os.W_OK):
            yield Finding("disk", "warning", f"{text}, but it cannot be written to", "choose another folder")
        elif free < DISK:
            yield Finding(
                "disk", "warning", text, "delete old outputs/ (experiment.checkpoints_total_limit limits them)"
            )
        else:
            yield Finding("disk", "ok", text)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit < OPEN_FILES:
        text = f"only {limit} files may be open; data workers need more"
        yield Finding("disk", "warning", text, f"ulimit -n {OPEN_FILES} or more")


def _temporary() -> Path:
    return Path(os.environ.get("TMPDIR") or "/tmp")


def check_launch(env: Mapping[str, str]) -> Finding:
    """Check that no variable of a launcher (torchrun, Slurm, MPI) would disturb a start from here."""
    try:
        place = check_launcher(env)
    except ConfigError as error:
        return Finding("launch", "error", str(error))
    if place.variables:
        names = ", ".join(place.variables)
        return Finding("launch", "ok", f"process {place.rank} of {place.world}, by {names}")
    if "SLURM_JOB_ID" in env:
        text = "inside a Slurm job, outside of a step with several tasks: one process starts"
        return Finding("launch", "note", text, "start several by srun or accelerate launch (docs/clusters.md)")
    return Finding("launch", "ok", "no variable of a launcher is set: a command starts one process")


def check_locks(env: Mapping[str, str], now: float | None = None) -> Iterator[Finding]:
    """Find lock files of torch's compiler of extensions that a killed process has left."""
    cache = Path(env.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "torch_extensions"
    root = Path(env.get("TORCH_EXTENSIONS_DIR") or cache)
    locks = sorted({*root.glob("*/lock"), *root.glob("*/*/lock")})
    for lock in locks:
        try:
            age = (time.time() if now is None else now) - lock.stat().st_mtime
        except FileNotFoundError:  # its process has just finished
            continue
        if age > STALE_S:
            text = f"{lock} is {age / 3600:.1f} h old: every start with DeepSpeed waits for it for ever"
            yield Finding("extensions", "error", text, f"rm {lock} (if no process compiles)")
        else:
            text = f"{lock} is {age:.0f} s old: a process may compile an extension"
            yield Finding("extensions", "note", text, f"if none does, a start with DeepSpeed waits for ever: rm {lock}")
    if not locks:
        yield Finding("extensions", "ok", "no leftover lock of torch's extensions")


def check_hub(env: Mapping[str, str]) -> Finding:
    """Check that the Hugging Face hub answers."""
    endpoint = (env.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    download = "run hf download <model> where there is network, copy the folder and give its path, or set HF_HOME"
    if is_on(env, "HF_HUB_OFFLINE") or is_on(env, "TRANSFORMERS_OFFLINE"):
        return Finding("hub", "note", "HF_HUB_OFFLINE is set: models come from the local cache only", download)
    answer: list[str] = []
    thread = threading.Thread(target=_ask_hub, args=(endpoint, answer), daemon=True)
    thread.start()
    thread.join(HUB_S)  # the look-up of a name has no timeout of its own
    reason = answer[0] if answer else f"no answer in {HUB_S:.0f} s"
    if reason:
        text = f"{endpoint} cannot be reached ({reason}); bundled and local models work"
        return Finding("hub", "note", text, download)
    token = (
        bool(env.get("HF_TOKEN"))
        or (Path(env.get("HF_HOME") or Path.home() / ".cache/huggingface") / "token").is_file()
    )
    return Finding("hub", "ok", f"{endpoint} answers; {'with' if token else 'without'} an access token")


def _ask_hub(endpoint: str, answer: list[str]) -> None:
    """Append the reason why the hub does not answer, or an empty text."""
    request = urllib.request.Request(f"{endpoint}/api/models?limit=1", headers={"User-Agent": "blockdiff-vla doctor"})
    try:
        urllib.request.urlopen(request, timeout=HUB_S).close()
    except urllib.error.HTTPError as error:  # it has answered
        answer.append("" if error.code < 500 else f"HTTP {error.code}")
    except (OSError, ValueError) as error:
        answer.append(str(getattr(error, "reason", error)) or type(error).__name__)
    else:
        answer.append("")
