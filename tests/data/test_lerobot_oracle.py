"""Our LeRobot files read by ``lerobot`` itself, and its files read by us.

``lerobot`` needs torchvision, which this project's environment must not have: BLOCKDIFF_LEROBOT_PYTHON names an
interpreter of another environment.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pyarrow", reason="LeRobot data needs pyarrow: pip install -r requirements-lerobot.txt")
pytest.importorskip("av", reason="LeRobot data needs PyAV: pip install -r requirements-lerobot.txt")

from preprocess_data import export_lerobot, process_lerobot
from preprocess_data.formats.lerobot import LerobotData
from tests.data.builders import frame_arrays, raw_split
from training.data.episode_index import read_index

PYTHON = os.environ.get("BLOCKDIFF_LEROBOT_PYTHON", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason="BLOCKDIFF_LEROBOT_PYTHON names no interpreter that has lerobot"),
]


def oracle(what: str, folder: Path, result: Path) -> dict[str, np.ndarray]:
    script = Path(__file__).with_name("lerobot_oracle.py")
    made = subprocess.run(
        [PYTHON, str(script), what, str(folder), str(result)], capture_output=True, text=True, check=False,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(result.parent / "hub")},
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    with np.load(result) as held:
        return dict(held)


@pytest.mark.parametrize("images", ["png", "lossless"])
def test_lerobot_reads_what_is_exported(tmp_path: Path, images: str) -> None:
    raw = raw_split(tmp_path / "raw", [*range(10, 18), *range(40, 43)], [(10, 14), (12, 17), (40, 42)])
    options = ["--source-split-dir", str(raw), "--output-dir", str(tmp_path / "out"), "--pictures", images]
    assert export_lerobot.main(options) == 0
    found = oracle("read", tmp_path / "out", tmp_path / "found.npz")
    frames = [*range(10, 18), *range(40, 43)]
    assert found["lengths"].tolist() == [8, 3]
    assert found["tasks"].tolist() == ["sentence 0"] * 5 + ["sentence 1"] * 3 + ["sentence 2"] * 3
    assert found["index"].tolist() == list(range(11))
    for row, frame in enumerate(frames):
        arrays = frame_arrays(frame)
        np.testing.assert_array_equal(found["action"][row], arrays["rel_actions"].astype(np.float32))
        np.testing.assert_array_equal(found["observation.state"][row], arrays["robot_obs"].astype(np.float32))
        image = (found["observation.images.static"][row] * 255).round().astype(np.uint8).transpose(1, 2, 0)
        np.testing.assert_array_equal(image, arrays["rgb_static"])


def test_what_lerobot_writes_is_read(tmp_path: Path) -> None:
    made = oracle("write", tmp_path / "data", tmp_path / "made.npz")
    data = LerobotData(tmp_path / "data")
    assert [place.length for place in data.episodes] == [4, 3]
    images = [image for place in data.episodes for image in data.images(place, "observation.images.top")]
    np.testing.assert_array_equal(images, made["pictures"])
    options = ["--source", str(tmp_path / "data"), "--output-dir", str(tmp_path / "out"), "--workers", "1"]
    assert process_lerobot.main(options) == 0
    index = read_index(tmp_path / "out")
    assert [index.instruction(e) for e in range(2)] == ["task 0", "task 1"]
    np.testing.assert_array_equal(index.actions[:][:, :6], made["action"][:, :6])
