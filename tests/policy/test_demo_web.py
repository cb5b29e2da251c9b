"""`python -m policy_rollout.demo --web`: plays of several users, answers that fill in, and the page in a browser."""

from __future__ import annotations

import gc
import importlib.util
import re
import signal
import socket
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.files import PROJECT_DIR
from policy_rollout.demo import __main__ as demo
from policy_rollout.demo.persistent_desk import ANY_TASK, Attempt, attempt_of
from policy_rollout.demo.web.answers import load_text_models
from policy_rollout.demo.web.play import Play, SharedModel, Start, View
from policy_rollout.demo.web.sessions import Sessions
from policy_rollout.demo.web.settings import free_port, parse_text_models
from policy_rollout.desk.task_sets import DOORS
from policy_rollout.policies.interface import ActionConvention, Observation
from policy_rollout.text_generation.loading import sample_questions
from policy_rollout.text_generation.trace import Step
from scripts.dev.gallery.browser import find_chromium
from tests.policy.test_demo import Expert
from tests.scripts.saved_run import write_run

T, MAX_STEPS = 5, 20
RULES = replace(DOORS, max_steps=MAX_STEPS, replan_every=T, static_size=32)


class Shifter:
    """Moves the hand to the side that the instruction names, and predicts a grey image as bright as its code."""

    convention, act_step, cameras, predicts_with_actions = ActionConvention(), T, ("rgb_static",), True

    def reset(self) -> None: ...

    def act(self, observations: Sequence[Observation]) -> Any:
        chunks = np.zeros((len(observations), T, 7), np.float32)
        chunks[:, :, 0] = [0.5 * {"right": 1, "left": -1}.get(one.instruction, 0) for one in observations]
        return chunks

    def act_with_codes(self, observations: Sequence[Observation]) -> Any:
        return self.act(observations), np.full((len(observations), 1), 7)

    def decode(self, codes: Any) -> Any:
        return np.full((len(codes), 1, 8, 8, 3), codes[0, 0], np.uint8)


@pytest.fixture
def make() -> Iterator[Callable[..., Play]]:
    made: list[Play] = []

    def new(policy: Any = None, seed: int = 0) -> Play:
        play = Play(SharedModel(policy or Shifter()), RULES, Start("D", seed))
        play.speed = 100.0
        made.append(play)
        return play

    yield new
    for play in made:
        play.close()


def hand(play: Play) -> float:
    """Return the hand's x in cm."""
    found = re.match(r"x ([+-]\d+)", play.view.state["hand"])
    assert found is not None
    return float(found[1])


def watch(play: Play) -> list[View]:
    return list(play.watch())


def test_the_views_of_an_attempt_have_its_images_steps_and_predictions(make: Callable[..., Play]) -> None:
    play = make()
    play.act(Attempt("right"))
    views = watch(play)
    last = views[-1]
    assert (last.instruction, last.step, last.max_steps, last.done) == ("right", MAX_STEPS, MAX_STEPS, False)
    assert last.outcome == "not done in 20 steps"
    assert last.history == ("right: not done in 20 steps",)
    assert last.predicted is not None
    assert last.predicted.shape == (8, 8, 3)
    assert last.predicted.min() == 7
    assert last.predicted_at == MAX_STEPS - T
    assert last.note.startswith("no task has a similar wording")


def test_a_task_that_the_oracle_confirms_is_done(make: Callable[..., Play]) -> None:
    expert = Expert("open_drawer")
    play = Play(SharedModel(expert), replace(RULES, max_steps=120), Start("D", 0, "open_drawer"))  # type: ignore[arg-type]
    try:
        play.speed, expert.desk = 100.0, play.desk
        expert.reset()
        play.act(attempt_of("open drawer"))
        last = watch(play)[-1]
        assert last.done
        assert re.fullmatch(r"done: open_drawer, \d+ steps \(\d\.\d s\)", last.outcome)
        assert last.predicted is None, "this policy predicts no codes with its actions"
    finally:
        play.close()


def test_another_instruction_in_the_middle_continues_from_the_present_state(make: Callable[..., Play]) -> None:
    play = make()
    play.speed = 1.0
    before = hand(play)
    play.act(Attempt("right"))
    views = play.watch()
    assert next(view for view in views if view.step >= T).outcome == ""
    play.speed = 100.0
    play.act(Attempt("left"))
    assert [view.instruction for view in views][-1] == "left"
    (first, second) = play.view.history
    assert re.fullmatch(r"right: another instruction after (5|10|15) steps", first)
    assert second == "left: not done in 20 steps"
    assert hand(play) < before


def test_stop_ends_the_attempt_and_a_new_start_resets_the_desk(make: Callable[..., Play]) -> None:
    play = make()
    before = hand(play)
    play.stop()  # without effect
    play.act(Attempt("right"))
    next(view for view in play.watch() if view.step >= T)
    play.stop()
    assert re.fullmatch(r"stopped after (5|10|15|20) steps|not done in 20 steps", watch(play)[-1].outcome)
    assert hand(play) > before
    play.act(Attempt("wait"), Start("D", 0))
    watch(play)
    assert abs(hand(play) - before) <= 1


def test_plays_of_one_model_do_not_touch_each_other(make: Callable[..., Play]) -> None:
    model = Shifter()
    one, other = make(model), make(model)
    before = other.view
    one.act(Attempt("right"))
    watch(one)
    assert other.view is before
    other.act(Attempt("left"))
    one.act(Attempt("right"))
    watch(one)
    watch(other)
    assert hand(one) > hand(other) + 5
    assert other.view.history == ("left: not done in 20 steps",)


def test_a_second_reader_takes_over(make: Callable[..., Play]) -> None:
    play = make()
    play.act(Attempt("right"))
    first = play.watch()
    next(first)
    assert watch(play)[-1].outcome
    assert len(list(first)) <= 1


def test_sessions_are_bounded_and_freed(make: Callable[..., Play]) -> None:
    sessions = Sessions(make, limit=2, timeout=60)
    one = sessions.get("a")
    assert sessions.get("a") is one
    sessions.get("b")
    with pytest.raises(ValueError, match=r"2 pages are open, which is the limit \(--max-sessions\)"):
        sessions.get("c")
    sessions.close("a")
    assert not one.alive
    assert sessions.get("c") is not one
    sessions.timeout = 0.0
    sessions.close_idle()
    assert len(sessions) == 0
    sessions.get("d")
    sessions.close_all()
    sessions.close("unknown")
    assert len(sessions) == 0


def test_a_closed_play_frees_its_desk() -> None:
    play = Play(SharedModel(Shifter()), RULES, Start("D", 0))
    desk = weakref.ref(play.desk)
    play.act(Attempt("right"))
    play.close()
    del play
    gc.collect()
    assert desk() is None


def test_what_a_user_gives_is_a_task_or_a_sentence() -> None:
    assert attempt_of("open drawer") == attempt_of("open_drawer") == attempt_of("pull the drawer open")
    assert attempt_of("pull the drawer open").task == "open_drawer"
    assert attempt_of("please pull the drawer open") == Attempt("please pull the drawer open", ANY_TASK)
    assert attempt_of("please pull the drawer open").closest_task == "open_drawer"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The run of each text objective."""
    blocks = {"text_block_size": 4, "text_canvas_multiple": 4}
    more: dict[str, dict[str, int]] = {"ar": {}, "mdm": {}, "bd": blocks}
    return {name: str(write_run(tmp_path_factory.mktemp(name), name, **more[name])) for name in more}


def test_an_answer_fills_in_by_each_objective_and_ends_with_its_cost(runs: dict[str, str]) -> None:
    models = load_text_models(runs, "cpu")
    (image, question, _), *_ = sample_questions(2)
    for name, model in models.items():
        *steps, cost = model.answer(image, question)
        rows = [step.rows[0] for step in steps if isinstance(step, Step)]
        assert len(rows) == len(steps) > 1, name
        filled = [sum(not token.masked for token in row) for row in rows]
        assert filled == sorted(filled), name
        assert all(any(token.fresh for token in row) for row in rows), name
        masked = [any(token.masked for token in row) for row in rows]
        assert any(masked) is (name != "ar"), name
        assert not masked[-1], name
        assert re.match(r"\d+ tokens in \d+ forwards", str(cost)), name
        assert model.note == ""


def test_a_model_may_answer_by_another_objective_with_a_note(runs: dict[str, str]) -> None:
    models = load_text_models({"bd": runs["bd"], "ar": runs["bd"]}, "cpu")
    assert models["bd"].note == ""
    assert "the answer may be poor" in models["ar"].note


def test_the_thread_of_an_unread_answer_ends(runs: dict[str, str]) -> None:
    models = load_text_models({"bd": runs["bd"]}, "cpu")
    (image, question, _), *_ = sample_questions(2)
    unread = models["bd"].answer(image, question)
    next(unread)
    unread.close()  # the thread ends, which conftest.py requires


def test_a_text_model_that_cannot_answer_that_way_is_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path, "ar")
    with pytest.raises(ValueError, match=r"--text-models bd=.*: --objective bd: this model is trained with ar"):
        load_text_models({"bd": str(run)}, "cpu")


def test_text_models_are_given_by_objective() -> None:
    assert parse_text_models("ar=a, bd=c=d") == {"ar": "a", "bd": "c=d"}
    for text in ("", "a", "ar=", "xy=a", "ar=a,ar=b", "ar=a,"):
        with pytest.raises(ValueError, match="expected ar=DIR,mdm=DIR,bd=DIR"):
            parse_text_models(text)


def test_a_port_in_use_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"--port {port}: address already in use; give another --port"):
            free_port("127.0.0.1", port)
    assert free_port("127.0.0.1", 0) > 0


def test_without_gradio_the_remedy_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("policy_rollout.demo.web.settings.find_spec", lambda name: None)
    assert demo.main(["--web"]) == 2
    assert capsys.readouterr().err == (
        "demo: --web needs the package gradio: pip install -e '.[web]' in the project's folder\n"
    )


# The page in headless Chromium: pip install -e '.[web]' playwright, and chromium from the system's packages.

CHROMIUM = find_chromium()
WAYS = {"ar": "next token (ar)", "mdm": "masked diffusion (mdm)", "bd": "block diffusion (bd)"}
FORWARDS = """() => new Promise((done, fail) => {
  const seen = [], end = Date.now() + 120000;
  const timer = setInterval(() => {
    const answer = document.querySelector('.answer');
    const cost = answer?.innerText.includes('tokens per forward') ?? false;
    const fresh = seen.length > 0 || !cost;  // not the end of the answer before
    if (answer !== null && fresh) seen.push({
      cost, forwards: Number(answer.dataset.forwards), masked: answer.querySelectorAll('.masked').length,
      filled: answer.querySelectorAll('.fresh, .settled').length,
    });
    if (cost && fresh) { clearInterval(timer); done(seen); }
    if (Date.now() > end) { clearInterval(timer); fail('no answer: ' + JSON.stringify(seen.slice(-3))); }
  }, 20);
})"""  # states of the answer until its cost is shown
MISSING = [name for name in ("gradio", "playwright") if importlib.util.find_spec(name) is None]
PATIENCE_MS = 120_000
in_a_browser = pytest.mark.skipif(
    bool(MISSING) or CHROMIUM is None, reason=f"not installed: {', '.join(MISSING) or 'chromium'}"
)


class Server:
    """The command with the bundled model, as a process."""

    def __init__(self, log: Path, *options: str) -> None:
        self.log = log
        command = [sys.executable, "-m", "policy_rollout.demo", "--web", "--port", "0", "--device", "cpu", *options]
        with log.open("w", encoding="utf-8") as output:
            self.process = subprocess.Popen(command, cwd=PROJECT_DIR, stdout=output, stderr=subprocess.STDOUT)
        self.url = self._wait_for(r"open (http://127\.0\.0\.1:\d+) in a browser")

    def _wait_for(self, pattern: str, seconds: float = 600) -> str:
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.process.poll() is None:
            if (found := re.search(pattern, self.log.read_text(encoding="utf-8"))) is not None:
                return found[1]
            time.sleep(0.2)
        raise AssertionError(self.log.read_text(encoding="utf-8"))

    def stop(self, number: int) -> tuple[int, float]:
        """Return (exit code, seconds until the process had ended)."""
        began = time.monotonic()
        self.process.send_signal(number)
        return self.process.wait(60), time.monotonic() - began


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, runs: dict[str, str]) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("web") / "log"
    models = ",".join(f"{name}={run}" for name, run in runs.items())
    made = Server(log, "--max-sessions", "2", "--text-models", models)
    yield made
    if made.process.poll() is None:
        made.process.kill()
        made.process.wait()


@pytest.fixture
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


def open_page(browser: Any, server: Server) -> tuple[Any, set[str]]:
    """Return a page of a new user, and the hosts that it sends requests to."""
    page = browser.new_context(viewport={"width": 1280, "height": 860}).new_page()
    page.set_default_timeout(PATIENCE_MS)
    hosts: set[str] = set()
    page.on("request", lambda request: hosts.add(request.url.split("/")[2]) if "//" in request.url else None)
    page.goto(server.url)
    page.wait_for_selector("#stage .desk-view")
    return page, hosts


def wait_for(page: Any, condition: str) -> None:
    page.wait_for_function(f"(() => {{ const view = document.querySelector('.desk-view'); return {condition}; }})()")


def image_of(page: Any) -> str:
    return str(page.get_attribute(".desk-images img", "src"))


@in_a_browser
@pytest.mark.slow
def test_the_page_in_a_browser(server: Server, browser: Any) -> None:
    page, hosts = open_page(browser, server)
    other, _ = open_page(browser, server)
    untouched = image_of(other)

    # A task is done while images and predictions change.
    before = image_of(page)
    assert page.input_value("#instruction textarea, #instruction input") == "pull the drawer open"
    page.click("#start")
    wait_for(page, "view.dataset.acting == 'yes' && view.dataset.step > 0")
    assert image_of(page) != before
    predicted = page.get_attribute(".desk-images img[alt='predicted image']", "src")
    assert predicted.startswith("data:image/jpeg")
    wait_for(page, "view.dataset.acting == 'no'")
    assert page.inner_text(".desk-sign").startswith("done: open_drawer")
    assert page.get_attribute(".desk-images img[alt='predicted image']", "src") != predicted

    # A task of the list, and another instruction while the model acts.
    page.click("#task input")
    page.get_by_role("option", name="slide the door to the left").click()
    wait_for(page, "document.querySelector('#instruction textarea, #instruction input').value.includes('left')")
    page.click("#instruct")
    wait_for(page, "view.dataset.acting == 'yes' && view.dataset.step > 0")
    page.fill("#instruction textarea, #instruction input", "push the drawer <b>shut</b>")
    page.click("#instruct")
    wait_for(page, "view.innerText.includes('push the drawer <b>shut</b>')")
    page.click("#stop")
    wait_for(page, "view.dataset.acting == 'no'")
    lines = page.inner_text(".desk-history").splitlines()
    assert len(lines) == 3
    assert "another instruction after" in lines[1]

    # The other user's desk has not moved, and a third user is refused.
    assert image_of(other) == untouched
    assert "Choose a task" in other.inner_text(".desk-head")
    third = browser.new_context().new_page()
    third.goto(server.url)
    third.get_by_text("2 pages are open, which is the limit").wait_for(timeout=PATIENCE_MS)
    third.close()
    assert hosts == {server.url.split("/")[2]}, "no request leaves this machine"

    # An answer fills in by each objective.
    other.get_by_role("tab", name="Ask").click()
    for name, way in WAYS.items():
        other.get_by_label(way).check()
        other.click("#ask")
        seen = other.evaluate(FORWARDS)
        assert seen[-1]["cost"], (name, seen)
        assert len({one["filled"] for one in seen}) > 1, (name, seen)
        assert any(one["masked"] for one in seen if one["forwards"] > 0) is (name != "ar"), (name, seen)

    # A closed page frees its desk for another user.
    page.context.close()
    deadline = time.monotonic() + PATIENCE_MS / 1000
    while time.monotonic() < deadline:
        fourth = browser.new_context().new_page()
        fourth.goto(server.url)
        fourth.wait_for_selector("#stage .desk-view, .toast-body", timeout=PATIENCE_MS)
        if fourth.query_selector("#stage .desk-view") is not None:
            break
        fourth.context.close()
        time.sleep(1)
    else:
        raise AssertionError("the closed page still has a desk")

    fourth.click("#start")
    wait_for(fourth, "view.dataset.acting == 'yes' && view.dataset.step > 0")
    code, seconds = server.stop(signal.SIGINT)
    assert code == 0
    assert seconds < 60, "open pages do not keep the server"
    assert "Traceback" not in server.log.read_text(encoding="utf-8")
    assert "Warning" not in server.log.read_text(encoding="utf-8")


@in_a_browser
@pytest.mark.slow
def test_sigterm_ends_the_command_cleanly(tmp_path: Path) -> None:
    server = Server(tmp_path / "log", "--max-steps", "8")
    code, seconds = server.stop(signal.SIGTERM)
    assert code == 0
    assert seconds < 60
