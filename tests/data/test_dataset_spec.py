"""What a data set declares of itself: written, read, wrong in every way, and carried to where it is compared."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.action.encoding import ActionScale
from models.pretrained.model_config import CALVIN_RELATIVE
from policy_rollout.policies.upvla import ActionConvention
from preprocess_data import process_calvin
from tests.data.builders import processed_split, raw_split
from training.data.dataset_spec import CONTRACT_NAME, Statistics, action_scale, read_contract, write_contract
from training.data.episode_index import read_index

PROJECT = Path(__file__).parents[2]
CAMERAS = {"rgb_static": (20, 24), "rgb_gripper": (12, 12)}


def table(frames: int = 500) -> np.ndarray:
    actions = np.random.default_rng(0).normal(size=(frames, 7)).astype(np.float32)
    actions[:, 5] = 0.25  # never changes
    actions[:, 6] = np.where(actions[:, 6] > 0, 1.0, -1.0)
    return actions


def test_what_is_written_is_read(tmp_path: Path) -> None:
    written = write_contract(tmp_path, CAMERAS, {"rate_hz": 5}, table())
    read = read_contract(tmp_path)
    assert read == written
    assert dict(read.cameras) == CAMERAS
    assert dict(read.action) == {**CALVIN_RELATIVE, "rate_hz": 5}
    assert read.statistics is not None
    assert read.statistics.frames == 500
    np.testing.assert_allclose(read.statistics.q99, np.quantile(table(), 0.99, axis=0), rtol=1e-5)
    np.testing.assert_allclose(read.statistics.std, table().std(axis=0), rtol=1e-4, atol=1e-6)
    assert [path.name for path in tmp_path.iterdir()] == [CONTRACT_NAME]


def test_a_folder_without_one_is_calvins(tmp_path: Path) -> None:
    contract = read_contract(tmp_path)
    assert dict(contract.action) == CALVIN_RELATIVE
    assert contract.statistics is None
    assert ActionConvention(**contract.action) == ActionConvention()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"format": 2}, "format 2"),
        ({"kameras": {}}, "unknown key 'kameras'"),
        ({"cameras": {"rgb_static": [20]}}, r"camera 'rgb_static' must be \[height, width\]"),
        ({"cameras": {"rgb_static": [20, 0]}}, "camera 'rgb_static'"),
        ({"action": {"scale": 2}}, r"unknown action\.scale; allowed: kind"),
        ({"action": {"rate_hz": -1}}, r"action\.rate_hz must be a positive number"),
        ({"action": {"rate_hz": "30"}}, r"action\.rate_hz must be like 30"),
        ({"action": {"gripper": True}}, r"action\.gripper must be like"),
        ({"statistics": {}}, "statistics must have frames"),
        ({"statistics": {"min": [0.0] * 6}}, r"statistics\.min must be 7 finite numbers"),
        ({"statistics": {"min": [float("nan")] * 7}}, r"statistics\.min must be 7 finite numbers"),
        ({"statistics": {"min": [9.0] * 7}}, "must not be above"),
    ],
)
def test_a_wrong_one_is_refused_with_file_and_key(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    write_contract(tmp_path, CAMERAS, None, table())
    path = tmp_path / CONTRACT_NAME
    content = json.loads(path.read_text())
    for key, value in change.items():
        merged = key == "statistics" and value
        content[key] = {**content[key], **value} if merged else value
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=told) as caught:
        read_contract(tmp_path)
    assert str(path) in str(caught.value)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / CONTRACT_NAME).write_text('{"format": 1')
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / CONTRACT_NAME))):
        read_contract(tmp_path)


def test_a_wrong_declaration_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown action\.units"):
        write_contract(tmp_path, CAMERAS, {"units": "mm"}, table())
    assert list(tmp_path.iterdir()) == []


def test_held_out_data_of_another_meaning_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    ours = write_contract(tmp_path / "a", CAMERAS, None, table())
    theirs = write_contract(tmp_path / "b", CAMERAS, {"gripper": "+1 closed, -1 open"}, table())
    ours.require_same(read_contract(tmp_path / "a"))
    with pytest.raises(ValueError, match="gripper") as caught:
        ours.require_same(theirs)
    for part in (str(tmp_path / "b"), "-1 closed, +1 open", "+1 closed, -1 open"):
        assert part in str(caught.value)


# --- normalisation -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["min_max", "quantile"])
def test_normalised_actions_lie_in_the_unit_range_and_come_back(kind: Any) -> None:
    actions = table()
    scale = Statistics.of(actions).scale(kind)
    assert scale is not None
    learned = scale.apply(torch.from_numpy(actions))
    assert float(learned.abs().max()) <= 1 + 1e-6
    back = scale.undo(learned).numpy()
    if kind == "min_max":
        np.testing.assert_allclose(back, actions, atol=1e-5)
    else:
        low, high = np.quantile(actions, 0.01, axis=0), np.quantile(actions, 0.99, axis=0)
        np.testing.assert_allclose(back, np.clip(actions, low, high), atol=1e-5)
        assert np.abs(back - actions).max() > 0.1  # wild frames were cut off


def test_a_number_that_never_changes_becomes_zero_and_comes_back() -> None:
    scale = Statistics.of(table()).scale("min_max")
    assert scale is not None
    learned = scale.apply(torch.from_numpy(table()))
    assert torch.equal(learned[:, 5], torch.zeros(500))
    assert torch.allclose(scale.undo(torch.rand(4, 7))[:, 5], torch.tensor(0.25))


def test_a_gripper_of_two_positions_stays_what_it_is() -> None:
    scale = Statistics.of(table()).scale("quantile")
    assert scale is not None
    assert torch.equal(scale.apply(torch.from_numpy(table()))[:, 6], torch.from_numpy(table()[:, 6]))


def test_a_gripper_that_is_hardly_ever_closed_can_still_be_closed() -> None:
    rare = table()
    rare[:, 6] = 1
    rare[7, 6] = -1  # 1 of 500: beyond the first percentile
    scale = Statistics.of(rare).scale("quantile")
    assert scale is not None
    learned = scale.apply(torch.from_numpy(rare))
    assert torch.equal(learned[:, 6], torch.from_numpy(rare[:, 6]))
    assert torch.equal(scale.undo(learned)[:, 6], torch.from_numpy(rare[:, 6]))


def test_no_normalisation_is_no_scale() -> None:
    assert Statistics.of(table()).scale("none") is None


def test_a_scale_survives_json() -> None:
    scale = Statistics.of(table()).scale("quantile")
    assert scale is not None
    assert ActionScale.from_json(json.loads(json.dumps(scale.to_json()))) == scale


def test_statistics_come_from_the_index_where_the_contract_has_none(tmp_path: Path) -> None:
    root = processed_split(tmp_path / "p", [4, 3])
    scale = action_scale(read_contract(root), "min_max", root)
    actions = np.asarray(read_index(root).actions[:])
    assert scale is not None
    assert scale.low == tuple(actions.min(axis=0).tolist())
    assert scale.high == tuple(actions.max(axis=0).tolist())


# --- where it is written -----------------------------------------------------------------------------------------


def test_processing_writes_it_and_keeps_what_the_raw_split_declares(tmp_path: Path) -> None:
    raw = raw_split(tmp_path / "raw", range(10), [(0, 9)])
    process_calvin.main(["--source-split-dir", str(raw), "--output-dir", str(tmp_path / "plain"), "--workers", "1"])
    plain = read_contract(tmp_path / "plain")
    assert dict(plain.cameras) == CAMERAS
    assert dict(plain.action) == CALVIN_RELATIVE
    assert plain.statistics is not None
    actions = np.asarray(read_index(tmp_path / "plain").actions[:])
    assert plain.statistics.frames == len(actions) == 10
    np.testing.assert_allclose(plain.statistics.mean, actions.mean(axis=0), rtol=1e-4)
    write_contract(raw, CAMERAS, {"rate_hz": 15}, table())
    process_calvin.main(["--source-split-dir", str(raw), "--output-dir", str(tmp_path / "slow"), "--workers", "1"])
    assert read_contract(tmp_path / "slow").action["rate_hz"] == 15


def test_the_adapter_in_the_docs_makes_a_data_set_that_is_read(tmp_path: Path) -> None:
    """The example of one's own robot in docs/data.md, run as it stands on recordings of the kind it describes."""
    page = (PROJECT / "docs" / "data.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(# my_robot\.py.*?)```", page, re.S)
    assert code is not None, "docs/data.md has lost its example"
    assert code[1].count("\n") <= 36
    (tmp_path / "my_robot.py").write_text(code[1])
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        folder = tmp_path / "recordings" / name
        folder.mkdir(parents=True)
        np.savez(
            folder / "episode.npz",
            images=rng.integers(0, 256, (6, 24, 32, 3), dtype=np.uint8),
            poses=rng.uniform(-0.5, 0.5, (6, 6)),
            gripper_open=np.array([1, 1, 0, 0, 1, 1]),
        )
        (folder / "instruction.txt").write_text(f"do {name}\n")
    command = [sys.executable, str(tmp_path / "my_robot.py"), str(tmp_path / "recordings"), str(tmp_path / "out")]
    subprocess.run(command, check=True, cwd=PROJECT, env={"PYTHONPATH": str(PROJECT), "PATH": "/usr/bin:/bin"})
    index, contract = read_index(tmp_path / "out"), read_contract(tmp_path / "out")
    assert index.episodes == 2
    assert len(index) == 10  # the last frame of an episode has no action
    assert index.instruction(1) == "do b"
    assert contract.action["rate_hz"] == 10
    assert dict(contract.cameras) == {"front": (24, 32)}
    with np.load(tmp_path / "recordings" / "a" / "episode.npz") as episode:
        moved = (episode["poses"][1] - episode["poses"][0])[:3] / 0.05
    np.testing.assert_allclose(index.actions[0:1][0][:3], moved, rtol=1e-5)
    assert index.actions[2:3][0][6] == -1.0
