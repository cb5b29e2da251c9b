"""Restore the state of the process after each test, and fail the test that changed it.

The product changes process-wide state: environment variables, hooks, signal handlers, TF32, threads, logging, the
state that accelerate shares. A test that leaves such a change behind makes the outcome of later tests depend on their
order. Two things are restored without a failure: random number generators, because drawing from them is no fault, and
the state that accelerate shares, which it keeps for the life of a process by design.
"""

from __future__ import annotations

import logging
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ALLOWED_VARIABLES = (
    "PYTEST_CURRENT_TEST",
    "TORCHINDUCTOR_CACHE_DIR",
    "_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR",
    "KINETO_LOG_LEVEL",
    "CUDA_MODULE_LOADING",
    "PYTORCH_NVML_BASED_CUDA_CHECK",
    "GIT_PYTHON_REFRESH",
)
"""Set by pytest between the phases of a test, by torch and accelerate on import, and while calvin_env is in use."""
os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
"""torch compiles in the thread of the test: its pool of threads would stay until the process ends."""
THREAD_GRACE_S = 2.0
"""How long a thread that the test started may take to end."""


def _signals() -> dict[int, Any]:
    watched = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGCHLD, signal.SIGALRM)
    return {number: signal.getsignal(number) for number in watched}


def _restore_signals(before: dict[int, Any]) -> None:
    for number, handler in before.items():
        signal.signal(number, handler)


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in ALLOWED_VARIABLES}


def _restore_environment(before: dict[str, str]) -> None:
    for name in set(_environment()) - set(before):
        del os.environ[name]
    os.environ.update(before)


def _search_path() -> list[str]:
    """Return ``sys.path`` without the folder that setuptools adds when torch imports it to compile."""
    return [entry for entry in sys.path if Path(entry).parts[-2:] != ("setuptools", "_vendor")]


def _restore_logging(before: tuple[int, int, list[logging.Handler]]) -> None:
    logging.disable(before[0])
    logging.root.setLevel(before[1])
    logging.root.handlers[:] = before[2]


def _torch() -> dict[str, Any]:
    """Return the global settings of torch, or nothing where no test has imported it yet."""
    torch = sys.modules.get("torch")
    if torch is None:
        return {}
    return {
        "threads": torch.get_num_threads(),
        "tf32": (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32),
        "dtype": torch.get_default_dtype(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "grad": torch.is_grad_enabled(),
    }


def _restore_torch(before: dict[str, Any]) -> None:
    torch = sys.modules.get("torch")
    if torch is None or not before:
        return
    torch.set_num_threads(before["threads"])
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before["tf32"]
    torch.set_default_dtype(before["dtype"])
    torch.use_deterministic_algorithms(before["deterministic"])
    torch.set_grad_enabled(before["grad"])


def _accelerate() -> dict[str, dict[str, Any]]:
    """Return what accelerate's objects share in this process."""
    state = sys.modules.get("accelerate.state")
    names = ("AcceleratorState", "GradientState", "PartialState")
    return {name: dict(getattr(state, name)._shared_state) for name in names} if state else {}


def _restore_accelerate(before: dict[str, dict[str, Any]]) -> None:
    state = sys.modules.get("accelerate.state")
    for name in ("AcceleratorState", "GradientState", "PartialState") if state else ():
        shared = getattr(state, name)._shared_state
        shared.clear()
        shared.update(before.get(name, {}))


WATCHED: dict[str, tuple[Callable[[], Any], Callable[[Any], None]]] = {
    "os.environ": (_environment, _restore_environment),
    "the current directory": (Path.cwd, os.chdir),
    "sys.path": (_search_path, lambda before: sys.path.__setitem__(slice(None), before)),
    "sys.excepthook": (lambda: sys.excepthook, lambda before: setattr(sys, "excepthook", before)),
    "threading.excepthook": (lambda: threading.excepthook, lambda before: setattr(threading, "excepthook", before)),
    "signal handlers": (_signals, _restore_signals),
    "logging": (
        lambda: (logging.root.manager.disable, logging.root.level, list(logging.root.handlers)),
        _restore_logging,
    ),
    "the settings of torch": (_torch, _restore_torch),
}


@pytest.fixture(autouse=True)
def _process_state() -> Iterator[None]:
    before = {name: read() for name, (read, _) in WATCHED.items()}
    threads, accelerate = set(threading.enumerate()), _accelerate()
    yield
    leaks = []
    for name, (read, restore) in WATCHED.items():
        after = read()
        if before[name] != after and before[name] != {}:  # {}: torch was imported by this test
            leaks.append(f"{name}: {_difference(before[name], after)}")
            restore(before[name])
    leaks += [f"a thread is still running: {thread}" for thread in _left_running(threads)]
    _restore_accelerate(accelerate)
    _seed()
    if leaks:
        pytest.fail("the test changed the state of its process: " + "; ".join(leaks), pytrace=False)


def _difference(before: Any, after: Any) -> str:
    if isinstance(before, dict) and isinstance(after, dict):
        keys = [key for key in {**before, **after} if before.get(key) != after.get(key)]
        return ", ".join(f"{key}: {before.get(key)!r} became {after.get(key)!r}" for key in keys)
    return f"{before!r} became {after!r}"


def _left_running(before: set[threading.Thread]) -> list[threading.Thread]:
    """Return the threads that the test started and did not end; daemon threads of pools end with the process."""
    deadline = time.monotonic() + THREAD_GRACE_S
    while True:
        left = [thread for thread in set(threading.enumerate()) - before if thread.is_alive() and not thread.daemon]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.02)


def _seed() -> None:
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.manual_seed(0)
