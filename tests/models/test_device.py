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


HOLES = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from models.device import return_freed_memory
import numpy as np

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

def left_after_freeing():
    np.ones(30 << 20, dtype=np.uint8)  # glibc takes blocks up to this size from its heap from now on
    before, large, small = resident(), [], []
    for _ in range(16):
        large.append(np.ones(8 << 20, dtype=np.uint8))
        small.append(np.ones(64 << 10, dtype=np.uint8))  # stays between them, and at the top
    large.clear()
    return resident() - before, small

print(left_after_freeing()[0])
assert return_freed_memory()
print(left_after_freeing()[0])
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/statm")
def test_holes_between_blocks_that_stay_are_returned(pytestconfig):
    script = HOLES.format(root=str(pytestconfig.rootpath))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    by_default, returned = map(int, done.stdout.split())
    assert by_default > 96 << 20
    assert returned < 16 << 20
