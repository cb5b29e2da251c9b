"""Data against their contract: what is refused, what is warned about, and what is all right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.constants import by_view, gripper_values
from models.pretrained.model_config import CALVIN_RELATIVE
from preprocess_data import process_calvin
from preprocess_data.formats.verify import verify_processed
from tests.data.builders import edit_index, raw_split
from training.data.caches.token_cache import FOLDER
from training.data.calvin import CalvinSplit
from training.data.checks.dataset import ActionChecks, actions_digest, row_faults
from training.data.checks.split import check_processed, check_raw
from training.data.dataset_spec import CONTRACT_NAME, read_contract, write_contract
from training.data.episode_index import Episode, Frame, read_index, write_index

CALVIN = Path(__file__).parents[3] / "shared" / "calvin" / "mini_D_D"


def relative(frames: int = 300) -> np.ndarray:
    rng = np.random.default_rng(0)
    table = rng.uniform(-1, 1, (frames, 7)).astype(np.float32)
    table[:, 6] = np.where(table[:, 6] > 0, 1, -1)
    return table


def poses(frames: int = 300, turned: bool = True) -> np.ndarray:
    """A hand that moves slowly about (0.3, -0.2, 0.5) metres."""
    table = np.zeros((frames, 7), np.float32)
    steps = np.random.default_rng(0).uniform(-0.01, 0.01, (frames, 3))
    table[:, :3] = np.array([0.3, -0.2, 0.5]) + np.cumsum(steps, axis=0)
    table[:, 3] = 3.1 if turned else 0.0
    table[:, 6] = 1
    return table


def found(table: np.ndarray, bounded: bool = True, **declared: Any) -> set[tuple[str, bool]]:
    """(kind, gross) of what a table of one episode contradicts, fed in pieces."""
    checks = ActionChecks({**CALVIN_RELATIVE, **declared}, bounded=bounded)
    for start in range(0, len(table), 7):
        piece = table[start : start + 7]
        checks.add(piece, lambda row, start=start: f"frame {start + row}", np.arange(start, start + len(piece)) == 0)
    assert checks.digest == actions_digest(table)
    return {(finding.kind, finding.gross) for finding in checks.findings()}


def changed(column: Any, values: Any) -> np.ndarray:
    table = relative()
    table[:, column] = values
    return table


SIGNS = relative()[:, 6]


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        (relative(), set()),
        (changed(6, (SIGNS + 1) / 2), {("gripper", True)}),  # 0/1
        (changed(6, (SIGNS - 1) / 2), {("gripper", True)}),  # -1/0
        (changed(6, 0.04 + 0.04 * np.linspace(-1, 1, 300)), {("gripper", True)}),  # an opening in metres
        (changed(6, np.linspace(0, 100, 300)), {("gripper", True)}),
        (changed(6, np.linspace(-1, 1, 300)), {("gripper", False)}),  # half open
        (changed(6, 1.0), set()),
        (400 * relative() * ([1] * 6 + [1 / 400]), {("action out of range", True)}),
        (changed(slice(0, 6), 5 * relative()[:, :6]), {("action out of range", True)}),
        (changed((0, 3), [[1.2, 0.1]]), {("action out of range", False)}),  # hardly beyond
        (poses(), {("action out of range", True), ("absolute poses", False)}),
        (poses(turned=False), {("absolute poses", False)}),
        (changed(slice(0, 6), 0.01 * relative()[:, :6]), {("action units", False)}),  # metres a step
    ],
)
def test_what_is_told_of_actions(table: np.ndarray, expected: set[tuple[str, bool]]) -> None:
    assert found(table.astype(np.float32)) == expected


def test_a_contract_that_says_so_makes_it_right() -> None:
    assert found(changed(6, (SIGNS + 1) / 2), gripper="0 closed, 1 open") == set()
    assert found(relative(), gripper="0 closed, 1 open") == {("gripper", True)}
    assert found(poses(), kind="absolute", position_m_per_unit=1.0) == set()
    assert found(relative(), kind="absolute", position_m_per_unit=1.0) == {("action out of range", True)}  # jumps
    assert found(changed(slice(0, 6), 5 * relative()[:, :6]), bounded=False) == set()  # normalised
    assert found(400 * relative() * ([1] * 6 + [1 / 400]), bounded=False) == {("action out of range", True)}


def test_the_example_is_the_worst_frame() -> None:
    table = relative()
    table[123, 2] = 77
    (finding,) = list(_fed(table).findings())
    assert finding.where == "row 123"
    assert finding.gross
    assert [row for row, _ in row_faults(table, CALVIN_RELATIVE)] == [123]


def _fed(table: np.ndarray) -> ActionChecks:
    checks = ActionChecks(CALVIN_RELATIVE)
    checks.add(table, lambda row: f"row {row}")
    return checks


@pytest.mark.skipif(not CALVIN.is_dir(), reason="needs the recordings in ../shared/calvin")
@pytest.mark.parametrize(("key", "kinds"), [("rel_actions", set()), ("actions", {"action out of range"})])
def test_recordings_of_the_simulator(key: str, kinds: set[str]) -> None:
    split = CalvinSplit(CALVIN / "training")
    checks = ActionChecks(CALVIN_RELATIVE)
    for first, last in split.ranges.tolist():
        table = np.stack([split.frame(frame, (key,))[key] for frame in range(first, last + 1)])
        checks.add(table.astype(np.float32), lambda row, first=first: str(first + row))
    assert {finding.kind for finding in checks.findings() if finding.gross} == kinds


def test_names_and_words() -> None:
    assert by_view({"rgb_gripper": 1, "rgb_static": 2}) == {"rgb_static": 2, "rgb_gripper": 1}
    assert list(by_view({"rgb_gripper": 1, "rgb_static": 2})) == ["rgb_static", "rgb_gripper"]
    assert by_view({"front": 1, "hand": 2}) == {"rgb_static": 1, "rgb_gripper": 2}
    assert by_view({"front": 1, "rgb_static": 2}) == {"rgb_static": 2, "rgb_gripper": 1}
    assert gripper_values("0 closed, 1 open") == (0, 1)
    assert gripper_values("suction") is None


# --- processed splits ---------------------------------------------------------------------------------------------


def processed(raw: Path, out: Path, *options: str) -> int:
    command = ["--source-split-dir", str(raw), "--output-dir", str(out), "--workers", "1", *options]
    return process_calvin.main(command)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    split = raw_split(tmp_path / "raw" / "training", range(40), [(5, 15), (15, 25), (25, 30)])
    np.save(split / "ep_start_end_ids.npy", np.array([[0, 19], [20, 39]]))
    return split


def kinds(root: Path, **options: Any) -> set[tuple[str, bool]]:
    findings = check_processed(read_index(root), read_contract(root), **options).findings
    return {(finding.kind, finding.gross) for finding in findings}


def test_a_window_that_crosses_recordings_is_refused_or_left_out(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert processed(raw, tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert "frames 15 to 25" in said
    assert "ep_start_end_ids.npy" in said
    assert not (tmp_path / "out" / "dataset_info.json").exists()
    assert processed(raw, tmp_path / "out", "--skip-bad") == 0
    assert "left out: frames 15 to 25" in capsys.readouterr().err
    index = read_index(tmp_path / "out")
    assert [index.instruction(episode) for episode in range(index.episodes)] == ["sentence 0", "sentence 2"]
    assert kinds(tmp_path / "out") == set()


def test_a_processed_split_of_before_that_crosses_recordings_is_found(raw: Path, tmp_path: Path) -> None:
    (raw / "ep_start_end_ids.npy").rename(tmp_path / "aside.npy")
    assert processed(raw, tmp_path / "out") == 0
    assert kinds(tmp_path / "out") == set()
    (tmp_path / "aside.npy").rename(raw / "ep_start_end_ids.npy")
    assert kinds(tmp_path / "out") == {("crosses recordings", True)}
    assert {problem.kind for problem in verify_processed(tmp_path / "out", progress=False).problems} == {
        "crosses recordings"
    }


def test_raw_actions_against_the_contract_are_refused_at_conversion(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, change in enumerate(([0.5] * 6 + [0.0], [2.0] + [0.5] * 5 + [1.0])):
        raw = raw_split(tmp_path / f"raw{number}", range(10), [(0, 4), (5, 9)])
        with np.load(raw / "episode_0000007.npz") as held:
            arrays = dict(held)
        np.savez(raw / "episode_0000007.npz", **{**arrays, "rel_actions": np.array(change)})
        assert processed(raw, tmp_path / f"out{number}") == 2
        assert "episode_0000007.npz: rel_actions" in capsys.readouterr().err
        assert processed(raw, tmp_path / f"out{number}", "--skip-bad") == 0
        assert read_index(tmp_path / f"out{number}").episodes == 1


def split_of(root: Path, table: np.ndarray, instruction: str = "open the drawer", suffix: str = ".npz") -> Path:
    """Frames with images alone, as a processed split may have them."""
    root.mkdir(parents=True)
    frames = []
    for number, row in enumerate(table.tolist()):
        name = f"frame_{number}{suffix}"
        np.savez(root / name, rgb_static=np.zeros((6, 8, 3), np.uint8), rgb_gripper=np.zeros((6, 6, 3), np.uint8))
        frames.append(Frame(name, row, row))
    write_index(root, [Episode(instruction, None, frames)])
    return root


def test_frames_of_images_alone_are_whole_for_verify(tmp_path: Path) -> None:
    root = split_of(tmp_path / "data", relative(12))
    report = verify_processed(root, full=True, progress=False)
    assert report.problems == []
    assert "12 frames and 1 instructions" in report.text()


def test_statistics_of_other_actions(tmp_path: Path) -> None:
    root = split_of(tmp_path / "data", relative(12))
    write_contract(root, {"rgb_static": (6, 8), "rgb_gripper": (6, 6)})
    assert kinds(root, normalised=True) == set()
    edit_index(root, lambda episodes: episodes[0].update(instruction="close the drawer"))
    assert kinds(root, normalised=True) == set()  # the actions are the same ones
    edit_index(root, lambda episodes: episodes[0]["frames"][3].update(rel_action=[0.123] * 6 + [1.0]))
    assert kinds(root, normalised=True) == {("statistics", True)}
    assert kinds(root) == {("statistics", False)}
    assert {problem.kind for problem in verify_processed(root, progress=False).problems} == {"statistics"}


def test_statistics_without_a_digest_are_compared_by_their_range(tmp_path: Path) -> None:
    root = split_of(tmp_path / "data", relative(12))
    write_contract(root, {})
    path = root / CONTRACT_NAME
    content = json.loads(path.read_text())
    del content["statistics"]["digest"]
    path.write_text(json.dumps(content))
    assert kinds(root, normalised=True) == set()
    edit_index(root, lambda episodes: episodes[0].update(frames=episodes[0]["frames"][1:]))
    assert kinds(root, normalised=True) == {("statistics", True)}


def test_images_of_another_shape_than_declared_and_cameras_in_any_order(tmp_path: Path) -> None:
    root = split_of(tmp_path / "data", relative(4))
    write_contract(root, {"rgb_gripper": (6, 6), "rgb_static": (6, 8)})
    assert kinds(root) == set()
    write_contract(root, {"rgb_gripper": (6, 8), "rgb_static": (6, 6)})
    assert kinds(root) == {("image size", True)}
    write_contract(root, {"rgb_static": (12, 16)})
    assert kinds(root) == {("image size", False)}  # the same part of the scene


def test_empty_instructions(tmp_path: Path) -> None:
    root = split_of(tmp_path / "data", relative(4), instruction=" ")
    assert kinds(root) == {("empty instruction", True)}
    edit_index(root, lambda episodes: episodes.append({**episodes[0], "instruction": "open it", "task": ""}))
    assert kinds(root) == {("empty instruction", False), ("empty task", False)}


def test_frames_recorded_again_are_noticed(raw: Path, tmp_path: Path) -> None:
    assert processed(raw, tmp_path / "out", "--annotations", "0") == 0
    assert kinds(tmp_path / "out") == set()
    for path in raw.glob("episode_*.npz"):
        with np.load(path) as held:
            arrays = dict(held)
        np.savez(path, **{**arrays, "rel_actions": -arrays["rel_actions"]})
    assert kinds(tmp_path / "out") == {("other recording", False)}


def test_a_raw_split_is_sampled(raw: Path) -> None:
    checked = check_raw(CalvinSplit(raw), read_contract(raw), range(40))
    assert checked.findings == []
    assert "40 of 40 frames" in checked.about


def test_verify_names_a_token_cache_of_other_data(tmp_path: Path) -> None:
    root = split_of(tmp_path / "data", relative(4))
    folder = root / FOLDER / "32px_0"
    folder.mkdir(parents=True)
    about = {"kind": "tokens", "data": "dataset_info.json 0 4", "probes": {}}
    (folder / "plan.json").write_text(json.dumps({"rows": 4, "shard_rows": 4, "columns": {}, "about": about}))
    (problem,) = verify_processed(root, progress=False).problems
    assert (problem.kind, problem.file) == ("token cache", str(folder))
