"""EGL connections of the real simulator: images and memory. Skipped if it, EGL or the recordings are not here."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from policy_rollout.calvin.egl import find_graphics
from policy_rollout.calvin.initial_states import initial_state
from policy_rollout.calvin.installation import package_folder
from policy_rollout.calvin.sequences import official_sequences
from policy_rollout.calvin.simulator import WORLDS_PER_CONNECTION, CalvinEnv

RECORDED = Path(os.environ.get("BLOCKDIFF_CALVIN_DIR", Path(__file__).parents[3] / "shared" / "calvin")) / "mini_D_D"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(package_folder() is None, reason="calvin_env is not installed (scripts/install_calvin_env.sh)"),
    pytest.mark.skipif(not RECORDED.is_dir(), reason=f"no recordings of the real CALVIN in {RECORDED}"),
]


@pytest.fixture
def env() -> Iterator[CalvinEnv]:
    graphics, complaint = find_graphics(None)
    if graphics is None:
        pytest.skip(complaint)
    made = CalvinEnv(RECORDED / "validation", graphics.egl, graphics.device)
    yield made
    made.close()


def first_images(env: CalvinEnv, chain: int) -> Any:
    env.reset(*initial_state(official_sequences(chain + 1)[chain].state))
    return env.get_obs()["rgb_obs"]


def resident_megabytes() -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) // 1024


def test_the_first_image_of_a_connection_is_that_of_any_later_one(env: CalvinEnv) -> None:
    expected = first_images(env, 0)
    for chain in range(1, WORLDS_PER_CONNECTION):
        first_images(env, chain)
    for _ in range(2):  # the second one in a new connection
        images = first_images(env, 0)
        assert all(np.array_equal(images[name], expected[name]) for name in expected)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc")
def test_memory_does_not_grow_from_connection_to_connection(env: CalvinEnv) -> None:
    peaks = []
    for _ in range(4):
        sizes = []
        for chain in range(WORLDS_PER_CONNECTION):
            first_images(env, chain)
            sizes.append(resident_megabytes())
        peaks.append(max(sizes))
    assert peaks[-1] - peaks[0] < 60, "four times as many worlds would be 360 MB more"
