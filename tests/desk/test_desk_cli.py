"""`python -m policy_rollout.desk`: what a person types, and what comes of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.image_grid import add_caption
from common.video import write_gif
from policy_rollout.calvin.tasks import TASK_NAMES
from policy_rollout.desk import benchmark as bench_module
from policy_rollout.desk import cli

ROOT = Path(__file__).resolve().parents[2]


def test_the_module_runs_and_its_help_shows_every_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "policy_rollout.desk", "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for option in ("--list", "--task open_drawer --expert --save", "--draw", "--chain", "--bench"):
        assert option in done.stdout


def test_the_list_names_every_task_with_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:-1]] == list(TASK_NAMES)
    assert all(len(line.split()) > 3 for line in lines[1:-1])


def test_an_expert_opens_the_drawer_and_the_clip_shows_both_cameras_and_the_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = tmp_path / "clip.gif"
    assert cli.main(["--task", "open_drawer", "--expert", "--save", str(clip), "--size", "48"]) == 0
    said = capsys.readouterr().out
    assert "done after" in said
    with Image.open(clip) as film:
        assert film.n_frames > 5  # type: ignore[attr-defined]
        assert film.size[0] == 48 + 4 + 48
        assert film.size[1] > 48 + 20
        first = np.asarray(film.convert("RGB"), dtype=int)
        film.seek(film.n_frames - 1)  # type: ignore[attr-defined]
        last = np.asarray(film.convert("RGB"), dtype=int)
    assert np.abs(first - last).max() > 100
    # The outcome is written in green.
    strip = last[48:]
    assert ((strip[..., 1] - strip[..., 0] > 40) & (strip[..., 1] - strip[..., 2] > 30)).sum() > 20


def test_random_actions_do_not_open_the_drawer_and_the_status_reports_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--task", "open_drawer", "--random"]) == 1
    assert "NOT done after 360 steps" in capsys.readouterr().out


def test_a_chain_is_run_task_by_task(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--chain", "2", "--seed", "1"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "2 of 2 in a row"


def test_a_drawing_depends_on_scene_and_seed(tmp_path: Path) -> None:
    drawn = []
    for number, options in enumerate((["--seed", "1"], ["--seed", "1"], ["--seed", "2"], ["--scene", "B"])):
        path = tmp_path / f"{number}.png"
        assert cli.main(["--draw", str(path), "--size", "40", *options]) == 0
        drawn.append(np.asarray(Image.open(path)))
    assert drawn[0].shape[1] == 84
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert (drawn[0] != drawn[2]).any()
    assert (drawn[0] != drawn[3]).any()


def test_all_scenes_and_all_tasks_are_drawn_on_one_sheet_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "EXPERT_TASKS", ("open_drawer", "turn_on_led"))
    assert cli.main(["--draw", str(tmp_path / "scenes.png"), "--scene", "all", "--size", "40"]) == 0
    assert cli.main(["--sheet", str(tmp_path / "tasks.png"), "--size", "40"]) == 0
    assert "2 tasks before and after; not done: none" in capsys.readouterr().out
    assert Image.open(tmp_path / "scenes.png").size[0] > 2 * 84
    assert Image.open(tmp_path / "tasks.png").size[0] > 2 * 84


def test_the_bench_measures_steps_and_images(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench_module, "SECONDS", 0.01)
    assert cli.main(["--bench"]) == 0
    table = capsys.readouterr().out
    assert "| static camera, 200 px |" in table
    for line in table.splitlines()[2:]:
        if line.startswith("|"):
            assert 0 < float(line.split("|")[2]) < 1000


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--task lift_red", "did you mean lift_red_block_table"),
        ("--task open_drawer --save clip.mp4", "must end in .gif"),
        ("--draw state.jpg", "must end in .png"),
        ("--chain 9", "--chain is 9"),
        ("--list --size 4", "--size is 4"),
        ("--bench --scene all", "--scene all needs --draw"),
        ("--list --save a.gif", "--save needs --task or --chain"),
        ("--draw /proc/none/state.png", "/proc/none"),
    ],
)
def test_a_wrong_option_is_one_line_that_names_it(options: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(options.split()) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_long_captions_wrap_and_animations_level_their_heights(tmp_path: Path) -> None:
    frame = np.zeros((20, 90, 3), np.uint8)
    short = add_caption(frame, "open it")
    long = add_caption(frame, "take the handle of the drawer and pull it all the way out")
    assert long.shape[0] > short.shape[0] > frame.shape[0]
    write_gif(tmp_path / "a.gif", [short, long])
    with Image.open(tmp_path / "a.gif") as film:
        assert film.size == (90, long.shape[0])
    assert [p.name for p in tmp_path.iterdir()] == ["a.gif"]
