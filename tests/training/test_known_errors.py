"""The error texts that the package matches, as the installed libraries raise them."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from tests.training.launches import free_port
from training.failure.known_errors import (
    describe_write_error,
    is_lost_process,
    is_open_files_error,
    is_shared_memory_error,
    is_write_error,
)

LOST_PEER = """
import os
import torch
import torch.distributed as dist
from training.failure.known_errors import is_lost_process

dist.init_process_group("gloo")
dist.barrier()
if os.environ["RANK"] == "1":
    os._exit(0)
try:
    dist.all_reduce(torch.ones(1))
    dist.all_reduce(torch.ones(1))
except RuntimeError as error:
    print("recognised" if is_lost_process(error) else error, flush=True)
os._exit(0)  # threads of gloo can abort an ordinary exit
"""


def test_gloo_reports_a_process_that_has_ended() -> None:
    port = str(free_port())
    settings = {**os.environ, "MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": "2", "MASTER_PORT": port}
    other, first = (
        subprocess.Popen([sys.executable, "-c", LOST_PEER], env={**settings, "RANK": rank}, stdout=subprocess.PIPE)
        for rank in ("1", "0")
    )
    output, _ = first.communicate(timeout=120)
    other.communicate(timeout=120)
    assert output.decode().strip() == "recognised"


def test_other_errors_are_no_lost_process() -> None:
    assert not is_lost_process(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_torch_and_python_report_a_full_disk() -> None:
    with pytest.raises((RuntimeError, OSError)) as caught:
        torch.save({"a": torch.zeros(100_000)}, "/dev/full")
    assert is_write_error(caught.value)
    with pytest.raises(OSError, match="No space left") as text:
        Path("/dev/full").write_text("a", encoding="utf-8")
    assert is_write_error(text.value)
    assert describe_write_error(text.value, Path("/tmp")) == os.strerror(errno.ENOSPC)


def test_safetensors_reports_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises((SafetensorError, OSError)) as caught:
        save_file({"a": torch.zeros(1)}, str(tmp_path / "missing" / "a.safetensors"))
    assert is_write_error(caught.value)
    assert describe_write_error(caught.value, tmp_path)


def test_other_runtime_errors_are_no_write_errors() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.ones(2, 3) @ torch.ones(2, 3)
    assert not is_write_error(caught.value)


SHARED_MEMORY = """
import resource, signal, sys
import torch
from training.failure.known_errors import is_shared_memory_error

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 12, 1 << 12))
try:
    torch.zeros(1 << 20).share_memory_()
except RuntimeError as error:
    sys.exit(0 if is_shared_memory_error(str(error)) else str(error))
sys.exit("no error was raised")
"""


def test_torch_reports_shared_memory_that_is_too_small() -> None:
    done = subprocess.run([sys.executable, "-c", SHARED_MEMORY], capture_output=True, text=True)
    assert done.returncode in (0, -signal.SIGBUS), done.stderr


def test_the_system_reports_too_many_open_files() -> None:
    assert is_open_files_error(os.strerror(errno.EMFILE))
    assert is_shared_memory_error(os.strerror(errno.ENOSPC))
    assert not is_shared_memory_error(os.strerror(errno.EMFILE))
