"""What a CPU process frees stays its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import ctypes, sys
from pathlib import Path
sys.path.insert(0, {root!r})
from models.device import keep_freed_memory
import numpy as np

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

def left_after_freeing():
    before = resident()
    image = np.ones(64 << 20, dtype=np.uint8)
    del image
    return resident() - before

given_back = left_after_freeing()
assert keep_freed_memory()
print(given_back, left_after_freeing())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/statm")
def test_memory_of_a_freed_image_is_given_back_before_and_kept_after(pytestconfig):
    script = SCRIPT.format(root=str(pytestconfig.rootpath))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    given_back, kept = map(int, done.stdout.split())
    assert given_back < 8 << 20
    assert kept > 56 << 20
