"""python -m scripts.inspect_data: recorded rollouts on a page, and episodes and rollouts in rerun."""

from __future__ import annotations

import importlib.util
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.video import write_gif, write_mp4
from policy_rollout.closed_loop.interface import ChainRecord
from policy_rollout.closed_loop.records import write_results
from preprocess_data.dataset_viewer.sources import open_source
from scripts import inspect_data
from tests.data.builders import raw_split

needs_rerun = pytest.mark.skipif(importlib.util.find_spec("rerun") is None, reason="not installed: rerun-sdk")
RATE, LEVELS = 15.0, (0, 0, 40, 80, 120, 160)


@pytest.fixture
def rollouts(tmp_path: Path) -> Path:
    """An evaluation of two chains, the second of which was recorded."""
    chains = [ChainRecord(0, ("open_drawer",), 0, (9,)), ChainRecord(1, ("turn_on_led", "open_drawer"), 1, (4, 9))]
    write_results(tmp_path, chains, {}, policy_from={})
    frames = [np.full((20, 30, 3), level, np.uint8) for level in LEVELS]
    write_gif(tmp_path / "videos" / "chain_0001_1_done.gif", frames, RATE)
    return tmp_path


def test_recorded_rollouts_have_their_frames_tasks_and_outcome(rollouts: Path, tmp_path: Path) -> None:
    source = open_source(rollouts)
    assert (len(source), source.rate) == (1, RATE)
    episode = source.episode(0)
    assert episode.title == "turn_on_led, open_drawer"
    expected = "chain 1: 1 of 2 done (turn_on_led done in 4 steps, open_drawer not done in 9 steps)"
    assert episode.note == expected
    levels = [int(episode.image("film", moment)[0, 0, 0]) for moment in range(len(LEVELS))]
    assert levels == pytest.approx(LEVELS, abs=8), "the equal frames, which Pillow stored once, are there again"
    page = tmp_path / "page.html"
    assert inspect_data.main([str(rollouts), "--out", str(page)]) == 0
    text = page.read_text(encoding="utf-8")
    assert expected in text
    assert "rollouts of a closed-loop evaluation" in text


def test_films_may_be_mp4_and_an_evaluation_without_any_is_refused(
    rollouts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (film,) = (rollouts / "videos").iterdir()
    film.unlink()
    assert inspect_data.main([str(rollouts)]) == 2
    assert "has no recorded chain; evaluate with num_videos=N" in capsys.readouterr().err
    write_mp4(film.with_suffix(".mp4"), [np.full((20, 30, 3), 90, np.uint8)] * 6, RATE)
    source = open_source(rollouts)
    assert source.rate == RATE
    assert source.episode(0).image("film", 3).mean() == pytest.approx(90, abs=4)


def entities(file: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of every entity in a recording: column names to values."""
    from rerun.chunk import RrdReader

    found = defaultdict(list)
    for chunk in RrdReader(file).stream():
        found[chunk.entity_path].extend(chunk.to_record_batch().to_pylist())
    return found


def blueprint(file: Path) -> list[dict[str, Any]]:
    """Return the rows of the layout in a recording."""
    from rerun.chunk import RrdReader

    reader = RrdReader(file)
    (layout,) = reader.blueprints()
    return [row for chunk in reader.stream(store=layout) for row in chunk.to_record_batch().to_pylist()]


@needs_rerun
def test_an_episode_in_rerun_has_its_images_states_actions_and_instruction(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    split = raw_split(tmp_path / "X" / "training", range(10, 40), [(10, 19), (15, 30)])
    file = tmp_path / "new" / "episode.rrd"
    assert inspect_data.main([str(split), "--episodes", "1", "--rerun", str(file)]) == 0
    assert capsys.readouterr().err.splitlines()[-1] == f"next: rerun {file}"
    episode, found = open_source(split).episode(1), entities(file)
    assert episode.actions is not None
    assert episode.states is not None
    for camera in ("rgb_static", "rgb_gripper"):
        assert len(found[f"/observation.images.{camera}"]) == episode.length == 16
    names = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
    for axis, name in enumerate(names):
        rows = [row for row in found[f"/action/{name}"] if "Scalars:scalars" in row]
        rows.sort(key=lambda row: row["frame_index"])
        assert [row["frame_index"] for row in rows] == list(range(16))
        values = [row["Scalars:scalars"][0] for row in rows]
        np.testing.assert_allclose(values, episode.actions[:, axis], rtol=1e-6)
        assert rows[15]["timestamp"].total_seconds() == pytest.approx(0.5)
    assert len([name for name in found if name.startswith("/state/")]) == episode.states.shape[1] == 15
    (row,) = found["/instruction"]
    assert row["TextDocument:text"][0].startswith(f"{episode.title}\n\n")
    views = {text for row in blueprint(file) for text in row.get("ViewBlueprint:display_name") or ()}
    assert views == {"instruction", "rgb_static", "rgb_gripper", "action", "state"}


@needs_rerun
def test_rollouts_open_in_rerun(rollouts: Path, tmp_path: Path) -> None:
    file = tmp_path / "rollout.rrd"
    assert inspect_data.main([str(rollouts), "--rerun", str(file)]) == 0
    found = entities(file)
    assert len(found["/observation.images.film"]) == open_source(rollouts).episode(0).length
    assert "turn_on_led done in 4 steps" in found["/instruction"][0]["TextDocument:text"][0]


def test_without_rerun_the_remedy_is_one_line(
    rollouts: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("preprocess_data.dataset_viewer.rerun_log.find_spec", lambda name: None)
        assert inspect_data.main([str(rollouts), "--rerun"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("inspect_data: --rerun needs the package rerun-sdk: pip install -e '.[rerun]'")
    assert error.count("\n") == 1
    monkeypatch.setattr("preprocess_data.dataset_viewer.rerun_log.find_spec", lambda name: object())
    assert inspect_data.main([str(rollouts), "--rerun", "film.mp4"]) == 2
    assert "expected the name of an .rrd file" in capsys.readouterr().err


def test_lerobot_episodes_have_their_states(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="not installed: pyarrow")
    from tests.data.test_lerobot import v21

    states = open_source(v21(tmp_path / "set")).episode(0).states
    assert states is not None
    assert states.shape == (4, 8)
    np.testing.assert_allclose(states[:, 0], [0, 0.1, 0.2, 0.3], rtol=1e-6)
