"""`python -m policy_rollout.demo`: attempts from a state that persists, sentences, the window, and what is written."""

from __future__ import annotations

import io
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from policy_rollout.calvin.instructions import HELD_OUT, TRAINING, closest_task
from policy_rollout.calvin.tasks import TASK_NAMES
from policy_rollout.demo import __main__ as demo
from policy_rollout.demo.live_view import image_text
from policy_rollout.demo.persistent_desk import ANY_TASK, Attempt
from policy_rollout.demo.session import NO_TASK, Session
from policy_rollout.desk.env import DeskEnv
from policy_rollout.desk.experts.policy import ScriptedExpert
from policy_rollout.desk.task_sets import DOORS
from policy_rollout.policies.interface import ActionConvention, Observation
from policy_rollout.reports.results import read_results
from tests.policy.saved_model import write_model

T = 5


class Expert:
    """Plays one task's scripted expert, whatever the instruction; foresees the frame that it sees."""

    convention, act_step, cameras = ActionConvention(), T, ("rgb_static",)
    source = SimpleNamespace(weights_sha256="w", model_yaml="y", checkpoint="c")
    vq = SimpleNamespace(weights_hash="v")
    action_decoder, decoding, precision = "regression", None, "no"

    def __init__(self, task: str) -> None:
        self.task = task
        self.desk: DeskEnv
        self.instructions: list[str] = []

    def reset(self) -> None:
        self.expert = ScriptedExpert(self.desk.layout, self.task)

    def act(self, observations: Sequence[Observation]) -> Any:
        (seen,) = observations
        self.instructions.append(seen.instruction)
        before, actions = self.desk.save(), []
        for _ in range(T):
            actions.append(self.expert.act(self.desk.get_obs(render=False)))
            self.desk.step(actions[-1])
        self.desk.load(before)
        return np.array([actions], dtype=np.float32)

    def predict_future(self, observations: Sequence[Observation]) -> Any:
        return np.stack([seen.rgb_static[None] for seen in observations])


def session(folder: Path, task: str, console: Console | None = None, steps: int = 120) -> Session:
    policy = Expert(task)
    tasks = replace(DOORS, max_steps=steps, replan_every=T)
    made = Session(policy, tasks, 0, folder, console or Console(file=io.StringIO()))  # type: ignore[arg-type]
    policy.desk = made.desk
    return made


@pytest.mark.parametrize("task", ["open_drawer", "push_red_block_left", "turn_off_led", "stack_block"])
def test_every_known_phrasing_is_closest_to_its_task(task: str) -> None:
    for phrase in (task, *TRAINING[task], *HELD_OUT[task]):
        assert closest_task(phrase) == task


def test_a_sentence_without_a_similar_wording_has_no_task() -> None:
    assert closest_task("please open that drawer now") == "open_drawer"
    assert closest_task("make me a coffee") is None
    assert closest_task("...") is None


def test_a_task_is_done_and_the_next_one_starts_from_the_state_it_left(tmp_path: Path) -> None:
    made = session(tmp_path, "open_drawer")
    made.reset("open_drawer")
    assert made.play(Attempt("pull", "open_drawer")).completed == 1
    assert "open_drawer" not in made.feasible()
    task = made.next_task()
    assert task not in ("open_drawer", "close_drawer"), "another kind comes next"
    made.policy.task = task  # type: ignore[attr-defined]
    assert made.play(Attempt("go on", task)).completed == 1
    assert made.desk.get_obs(render=False)["scene_obs"][1] > 0.12, "the drawer is still open"
    made.write()
    assert [record.tasks for record in read_results(tmp_path).chains] == [("open_drawer",), (task,)]
    assert (tmp_path / "demo.gif").stat().st_size > 10_000
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/gif") == 2
    assert page.count("data:image/png") == 2


def test_a_free_sentence_reports_the_task_that_the_oracle_confirmed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = io.StringIO()
    made = session(tmp_path, "open_drawer", Console(file=output, width=200))
    demo.play_one(made, Attempt("make me a coffee"))
    assert "no task has a similar wording" in capsys.readouterr().out
    assert set(made.policy.instructions) == {"make me a coffee"}  # type: ignore[attr-defined]
    assert "1. make me a coffee: done: open_drawer" in output.getvalue()
    assert made.records[-1].tasks == ("open_drawer",)
    made.tasks = replace(made.tasks, max_steps=T)
    assert made.play(Attempt("[bold] and again")).tasks == (NO_TASK,)
    assert "2. [bold] and again: not done: any task, 5 steps" in output.getvalue()


def test_the_prompt_plays_sentences_and_names_and_can_start_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = session(tmp_path, "turn_on_led", steps=T)
    lines = iter(["close drawer", "hello", "reset", "turn_off_led", ""])
    demo.prompt(made, lambda _: next(lines))
    assert [record.index for record in made.records] == [0, 1, 2]
    assert made.records[0].tasks == ("close_drawer",)
    output = capsys.readouterr().out
    assert "close_drawer is not feasible" in output, "the drawer is closed at the start"
    assert f"all {len(TASK_NAMES)} are checked" in output
    assert "turn_off_led is not feasible" in output

    def at_end(_: str) -> str:
        raise EOFError

    demo.prompt(made, at_end)


def test_the_window_shows_image_instruction_and_state(tmp_path: Path) -> None:
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=120, height=40, color_system="truecolor")
    made = session(tmp_path, "open_drawer", console, steps=2 * T)
    made.reset("open_drawer")
    made.play(Attempt("pull the drawer open", "open_drawer"))
    text = output.getvalue()
    for expected in ("1. pull the drawer open", "▀", "9 of at most 10", "0 cm open", "gripper"):
        assert expected in text


def test_an_image_becomes_half_blocks_of_its_colours() -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    image[:4] = (255, 0, 0)
    text = image_text(image, 4)
    assert text.plain == "▀▀▀▀\n▀▀▀▀"
    assert str(text.spans[0].style) == "rgb(255,0,0) on rgb(255,0,0)"
    assert str(text.spans[-1].style) == "rgb(0,0,0) on rgb(0,0,0)"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's output folder with an untrained network of a few thousand weights."""
    folder = tmp_path_factory.mktemp("model")
    yaml = write_model(folder)
    run = folder / "run" / "checkpoint-3" / "unwrapped_model"
    shutil.copy(yaml, run / "config.yaml")
    return run


def test_the_command_plays_an_untrained_model(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "demo"
    short = ["--model", str(model), "--max-steps", "8", "--device", "cpu"]
    assert demo.main([*short, "--tasks", "2", "--output", str(folder)]) == 0
    output = capsys.readouterr().out
    assert "2 tasks in a row, scene D, seed 0" in output
    assert "not done: open_drawer, 8 steps (0.3 s)" in output
    assert "0 of 2 done" in output
    assert len(list((folder / "videos").glob("*.gif"))) == 2
    assert len(list((folder / "input_predict_truth").glob("*.png"))) == 2
    assert (folder / "report.html").is_file()
    assert demo.main([*short, "--output", str(folder)]) == 2
    assert "is not empty; give a new folder" in capsys.readouterr().err
    assert demo.main([*short, "--instruction", "pull the drawer open", "--output", str(tmp_path / "two")]) == 0
    assert "in which open_drawer is feasible" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "open_drawr"], "--list prints the tasks"),
        (["--task", "open the drawer"], "did you mean open_drawer?"),
        (["--instruction", " "], "--instruction is empty"),
        (["--model", "nowhere"], "checkpoint nowhere: there is no such checkpoint"),
    ],
)
def test_a_wrong_argument_is_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.slow
def test_the_bundled_model_does_most_tasks_of_the_demo(tmp_path: Path) -> None:
    assert demo.main(["--tasks", "8", "--device", "cpu", "--output", str(tmp_path / "demo")]) == 0
    assert sum(chain.completed for chain in read_results(tmp_path / "demo").chains) >= 6


def test_a_sentence_needs_no_task() -> None:
    assert Attempt("hello").task == ANY_TASK
