"""The quickstart's report: one page with numbers, films, frames and answers, and what to do next."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from policy_rollout.closed_loop.single_task import EpisodeRecord, Rollout
from policy_rollout.desk.task_sets import DOORS
from scripts import quickstart
from scripts.quickstart_report.evidence import (
    EXPERTS,
    SHIPPED,
    TRAINED,
    EpisodeFilms,
    Evidence,
    Future,
    Result,
    Sight,
    films,
    pick_episodes,
)
from scripts.quickstart_report.page import Facts, write_page
from training.metrics.samples import Answer

ERRORS = {"mae_all": 0.121, "rmse_all": 0.168, "mae_pos": 0.147, "mae_rot": 0.133, "samples": 240}


def record(index: int, success: bool) -> EpisodeRecord:
    return EpisodeRecord(index, "open_drawer", "pull the drawer open", success, 31 if success else 120)


def grey(level: int) -> np.ndarray:
    return np.full((8, 8, 3), level, np.uint8)


def facts() -> Facts:
    return Facts("D", 120, {"objective": "ar", "steps": 1200}, 412.3)


def results(done: list[bool]) -> list[Result]:
    rollout = Rollout([record(i, success) for i, success in enumerate(done)], {i: [grey(i)] for i in range(len(done))})
    return [Result(SHIPPED, [True] * len(done), ERRORS, rollout), Result(TRAINED, done, ERRORS, rollout),
            Result(EXPERTS, [True] * len(done))]  # fmt: skip


@pytest.mark.parametrize(
    ("done", "shown"),
    [
        ([False, True, True, False, True, True], [1, 2, 4, 0]),
        ([True] * 6, [0, 1, 2, 3]),
        ([False, False, True, False, False], [2, 0, 1, 3]),
        ([False, False], [0, 1]),
    ],
)
def test_successes_are_shown_first_and_a_failure_is_not_hidden(done: list[bool], shown: list[int]) -> None:
    assert pick_episodes([record(i, success) for i, success in enumerate(done)]) == shown


def test_the_expert_plays_the_same_start_beside_both_models() -> None:
    found = films(DOORS, {result.name: result for result in results([False, True])})
    assert [list(episode.films) for episode in found] == [[TRAINED, SHIPPED, EXPERTS]] * 2
    done, frames = found[0].films[EXPERTS]
    assert (done.index, done.task, done.success) == (1, DOORS.tasks[1], True)
    assert len(frames) > done.steps / 2
    assert frames[0].shape == (DOORS.static_size, DOORS.static_size, 3)


def test_the_page_has_numbers_films_frames_answers_and_next_steps_in_one_file(tmp_path: Path) -> None:
    image = tmp_path / "toy.png"
    Image.fromarray(grey(90)).save(image)
    outcome = {TRAINED: record(3, True), SHIPPED: record(3, True), EXPERTS: record(3, False)}
    evidence = Evidence(
        [EpisodeFilms("pull <it> open", {name: (one, [grey(0), grey(200)]) for name, one in outcome.items()})],
        Sight("pull <it> open", grey(10), grey(20), 36),
        [Future("pull <it> open", grey(100), grey(103), grey(108)), Future("again", grey(100), grey(107), grey(110))],
        10,
        [(image, Answer("Where?", "Left.", "Left.")), (image, Answer("Which?", "Red.", "Blue."))],
    )
    (tmp_path / "run").mkdir()
    rows = [{"step": step, "action/loss": 1 / step} for step in range(1, 30)]
    rows.append({"step": 29, "validation/action/loss": 0.2})
    (tmp_path / "run/metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    page = write_page(tmp_path, facts(), results([True] * 3 + [False]), evidence)
    assert page == tmp_path / "report.html"
    source = page.read_text(encoding="utf-8")
    text = re.sub(r"\s+", " ", re.sub("<[^>]*>", " ", source))
    title = re.search("<title>(.*?)</title>", source)
    assert title is not None
    for stated in ("Desk, scene D (not CALVIN)", "text objective ar", "1,200 training steps", "120 control steps"):
        assert stated in title[1]
    assert re.search(r"trained .* 75 % \[30, 95\] 0.121 0.168 0.147 0.133", text)
    assert source.count('class="failed"> expert, not done') == 1
    assert source.count('class="done"> trained, 31 steps') == 1
    assert "Over 2 frames: mean pixel error: prediction 4.0, copy of the present frame 9.0 of 255." in text
    assert "Mean pixel error: prediction 5.0, copy of the present frame 8.0 of 255" in text
    assert "1 of 2 held-out questions are answered exactly" in text
    assert "wrong; in the data: Blue." in text
    assert source.count("<svg") == 1, "no curve of a loss that was not logged"
    assert f"tensorboard --logdir {tmp_path / 'run'}" in text
    assert "&lt;it&gt;" in source
    assert "<it>" not in source
    assert {link for link in re.findall(r'(?:src|href)="(.{5})', source) if not link.startswith("#")} == {"data:"}
    names = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    films = [f"rollout_3_open_drawer_{name}.gif" for name in ("experts", "shipped_model", "trained")]
    assert names == ["now_predicted_true.png", *films]


def test_a_run_with_nothing_to_show_has_a_page(tmp_path: Path) -> None:
    source = write_page(tmp_path, facts(), results([False]), Evidence()).read_text(encoding="utf-8")
    assert "What the model" not in source
    assert "make recipe" in source


def test_the_last_line_in_the_terminal_names_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quickstart.write_results(results([True, False]), tmp_path)
    quickstart.print_outputs(tmp_path, tmp_path / "report.html", 12.3)
    out, err = capsys.readouterr()
    assert "| trained | 0.1210 | 0.1680 | 0.1470 | 0.1330 | 1/2  [0.09, 0.91] |" in out
    assert err.splitlines()[-1].startswith(f"next: open {tmp_path / 'report.html'} in a browser")
    assert json.loads((tmp_path / "results.json").read_text())[TRAINED]["closed_loop_success"] == 0.5
