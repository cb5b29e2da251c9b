"""Positions next to processed splits, and questions about places in words of the grid."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

from config.schema import MMU_INDEX
from policy_rollout.calvin.scene_state import KEYS, Regions, symbolic_state
from policy_rollout.desk.layout import SLIDE_RANGE, layout_of
from preprocess_data import locate_objects, make_place_questions
from preprocess_data.desk_scenes import grid
from preprocess_data.desk_scenes.objects import OBJECTS, object_of_task, object_positions
from preprocess_data.make_desk_scenes import Settings, make_scenes
from preprocess_data.make_place_questions import TRUTHS, blind, make_questions
from tests.data.builders import frame_arrays
from training.data.calvin import CalvinSplit
from training.data.episode_index import read_index
from training.data.object_positions import FILE, read_positions

SMALL = Settings(count=180, static_size=16, gripper_size=8, seed=2)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scenes")
    make_scenes(out, SMALL)
    return out / "training"


def test_scenes_have_the_positions_of_their_objects(scenes: Path) -> None:
    index = read_index(scenes)
    positions = read_positions(scenes, index)
    assert positions is not None
    assert positions.names == OBJECTS
    for row in (0, 101):
        state = CalvinSplit(scenes).frame(row, ["scene_obs"])["scene_obs"]
        np.testing.assert_allclose(positions.positions[row], object_positions(layout_of("D"), state), atol=1e-6)
        assert OBJECTS[int(positions.object_of[row])] == object_of_task(index.task(row))
        assert index.states is not None


def test_frames_of_the_real_simulator_have_blocks_only(tmp_path: Path) -> None:
    (tmp_path / "frames").mkdir()
    frames = []
    for number in range(3):
        name = f"frames/episode_{number:07d}.npz"
        np.savez(tmp_path / name, **frame_arrays(number))
        frames.append({"dir": name, "rel_action": [0.0] * 7, "abs_action": [0.0] * 7})
    episodes = [{"instruction": "lift it", "task": "lift_pink_block_table", "frames": frames}]
    (tmp_path / "dataset_info.json").write_text(json.dumps(episodes))
    assert locate_objects.main(["--data", str(tmp_path)]) == 2  # the recording is unknown
    assert locate_objects.main(["--data", str(tmp_path), "--scene", "calvin"]) == 0
    positions = read_positions(tmp_path, read_index(tmp_path))
    assert positions is not None
    assert positions.names == ("red block", "blue block", "pink block")
    assert positions.object_of.tolist() == [2]
    wanted = np.stack([frame_arrays(number)["scene_obs"][6:].reshape(3, 6)[:, :3] for number in range(3)])
    np.testing.assert_allclose(np.asarray(positions.positions), wanted, atol=1e-6)


def test_damaged_positions_are_named(scenes: Path, tmp_path: Path) -> None:
    for name in ("dataset_info.json", FILE):
        (tmp_path / name).write_bytes((scenes / name).read_bytes())
    content = bytearray((tmp_path / FILE).read_bytes())
    content[-3] ^= 1
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(ValueError, match=FILE):
        read_positions(tmp_path, read_index(tmp_path, images=False))


def test_words_name_the_cell_and_its_error_is_that_of_the_cell() -> None:
    rng = np.random.default_rng(0)
    points = rng.uniform((-0.44, -0.49), (0.44, 0.2), (2000, 2))
    errors = [grid.error_mm(f"On the table, {grid.cell_words(point)}.", point) for point in points]
    assert max(error for error in errors if error is not None) <= 1000 * grid.CELL / 2 * 2**0.5 + 1e-6
    assert None not in errors
    np.testing.assert_allclose(np.mean([error for error in errors if error is not None]), 19.1, atol=0.6)
    assert grid.cell_words((-0.45, -0.5)) == "column 1, row 1"
    assert grid.cell_centre("column 1, row 1") == pytest.approx((-0.425, -0.475))
    assert grid.cell_centre("Column 2, row 1.") == pytest.approx((-0.375, -0.475))
    assert grid.cell_centre("column 99, row 1") is None
    assert grid.cell_centre("in the drawer") is None


def test_answers_are_true(scenes: Path) -> None:
    layout, split = layout_of("D"), CalvinSplit(scenes)
    for asked in make_questions(scenes, 60, 4, seed=1):
        arrays = split.frame(asked.frame, ["scene_obs", "robot_obs"])
        regions = Regions(shelf_split_x=layout.door_x - SLIDE_RANGE[1] / 2)
        state = symbolic_state(arrays["scene_obs"], arrays["robot_obs"], regions=regions)
        places = {key.split("_")[0]: str(state[key]) for key in KEYS}
        question = asked.question
        if question.kind.startswith("where is the block"):
            colour = question.text.split()[3]
            place = "stacked_top" if "on the" in question.answer.lower() and "table" not in question.answer else None
            assert (
                place
                or {words: name for name, words in grid.SURFACES.items()}[
                    question.answer.split(",")[0][0].lower() + question.answer.split(",")[0][1:]
                ]
            ) == places[colour]
            assert question.position is not None
            error = grid.error_mm(question.answer, question.position)
            assert error is not None
            assert error < 36
        elif question.kind.startswith("which is there"):
            words = question.text.removeprefix("Which block is ").removesuffix("?")
            name = {words: name for name, words in grid.SURFACES.items()}[words]
            for colour, place in places.items():
                assert (colour in question.answer.lower()) == (place == name)


def test_answers_of_a_question_occur_about_equally_often(scenes: Path) -> None:
    asked = make_questions(scenes, None, 3, seed=1)
    kinds = Counter(one.question.kind for one in asked)
    assert len(kinds) == 5
    assert max(kinds.values()) < 1.5 * min(kinds.values())
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for one in asked:
        answers[one.question.text][one.question.answer] += 1
    further = [counts for text, counts in answers.items() if text.startswith("Which is further left")]
    assert all(max(counts.values()) <= 0.65 * sum(counts.values()) for counts in further)
    accuracy, error = blind(asked)
    assert accuracy < 0.5
    assert error > 60


def test_conversations_are_llavas_and_answers_are_scored_in_millimetres(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "places"
    assert make_place_questions.main(["--data", str(scenes), "--out", str(out), "--images", "20", "--turns", "1"]) == 0
    assert "best fixed answers" in capsys.readouterr().out
    records = json.loads((out / MMU_INDEX).read_text())
    assert len(records) == 20
    assert all((out / record["image"]).is_file() for record in records)
    assert records[0]["conversations"][0]["value"].startswith("<image>\n")
    truths = json.loads((out / TRUTHS).read_text())
    answers = {record["id"]: record["conversations"][1]["value"] for record in records}
    results = [{"id": name, "answer": answer} for name, answer in answers.items()]
    (tmp_path / "results.json").write_text(json.dumps({"records": results}))
    assert make_place_questions.main(["--score", str(tmp_path), "--out", str(out)]) == 0
    line = capsys.readouterr().out
    assert f"{len(truths)} of {len(truths)} answers name a cell" in line
    assert float(line.split("its centre is ")[1].split()[0]) < 36
