"""Films and images of expected frames: which are made, what is said in them, and what they cost the others."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from common.image_grid import RgbImage, add_caption
from common.video import write_gif, write_mp4
from policy_rollout.closed_loop.interface import ChainJob, ChainRecord, PolicyCall
from policy_rollout.policies.interface import Observation
from policy_rollout.reports import rollout_video
from policy_rollout.reports.rollout_video import RolloutVideoRecorder, make_recorder

SIZE = 24
TASKS = ("open_drawer", "turn_on_led")


def image(number: int) -> RgbImage:
    """Grey, twice as bright as the control steps that were taken."""
    return np.full((SIZE, SIZE, 3), 2 * number, np.uint8)


class Clairvoyant:
    """Expects what comes, `off` too bright."""

    act_step = 4

    def __init__(self, off: int = 0) -> None:
        self.off, self.asked = off, 0

    def predict_future(self, observations: Sequence[Observation]) -> Any:
        self.asked += len(observations)
        now = np.stack([seen.rgb_static for seen in observations])
        return np.stack([np.resize(now + 2 * self.act_step + self.off, now.shape)], axis=1)


def job(index: int = 3) -> ChainJob:
    return ChainJob(index, TASKS, ("pull it open", "press the button"))


def call(task_index: int, step: int, seen: Observation, codes: Any = None) -> PolicyCall:
    return PolicyCall(task_index, step, seen, np.zeros((4, 7), np.float32), codes)


def watch(
    recorder: RolloutVideoRecorder, job: ChainJob, steps: Sequence[int], completed: int, look_every: int = 4
) -> None:
    """Plays a chain whose world gets brighter at every step, before a recorder."""
    recorder.start_chain(job)
    taken = 0
    for place, count in enumerate(steps):
        for step in range(count):
            if step % look_every == 0:
                recorder.add_call(job, call(place, step, Observation(image(taken), job.instructions[place])))
            taken += 1
            if step % recorder.frame_interval == 0:
                recorder.add_frame(job, place, step, image(taken))
    recorder.finish_chain(job, ChainRecord(job.index, job.tasks, completed, tuple(steps)))


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What is written below images."""
    words: list[tuple[str, str]] = []

    def listening(frame: RgbImage, text: str, note: str = "", *colour: Any) -> RgbImage:
        words.append((text, note))
        return add_caption(frame, text, note, *colour)

    monkeypatch.setattr(rollout_video, "add_caption", listening)
    return words


def row(step: int, predicted: float, present: float) -> tuple[str, str]:
    """Caption of a row of frames: what they are, and the errors."""
    errors = f"mean pixel error: prediction {predicted:.1f}, copy of the present frame {present:.1f} of 255"
    return f"step {step}: now | predicted | true, 4 steps later", errors


def names(folder: Path) -> list[str]:
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


def test_a_video_shows_instruction_and_outcome(tmp_path: Path, said: list[tuple[str, str]]) -> None:
    watch(RolloutVideoRecorder(tmp_path, 9, Clairvoyant()), job(), (10, 20), completed=1)
    assert ("pull it open", "task 1 of 2, step 0") in said
    assert ("pull it open", "task 1 of 2: done in 10 steps") in said
    assert ("press the button", "task 2 of 2: not done in 20 steps") in said
    assert said.index(("pull it open", "task 1 of 2: done in 10 steps")) < said.index(
        ("press the button", "task 2 of 2, step 0")
    )
    with Image.open(tmp_path / "videos" / "chain_0003_1_done.gif") as film:
        shown, time = 0.0, 0.0
        for frame in range(film.n_frames):  # type: ignore[attr-defined]
            film.seek(frame)
            time += film.info["duration"] / 1000
            shown = max(shown, film.info["duration"] / 1000)
    frames = (1 + 5) + 10 + (1 + 10) + 10
    assert time == pytest.approx((frames - 1) / 15 + 1, abs=0.02), "at the robot's speed, and outcomes for a while"
    assert shown >= 1, "and the last for longest"


def test_what_was_expected_is_shown_with_the_input_as_many_steps_later(
    tmp_path: Path, said: list[tuple[str, str]]
) -> None:
    policy = Clairvoyant(off=3)
    watch(RolloutVideoRecorder(tmp_path, 9, policy), job(), (30, 3), completed=1)
    image = "input_predict_truth/chain_0003_task_1"
    assert names(tmp_path) == [f"{image}.json", f"{image}.png", "videos/chain_0003_1_done.gif"]
    rows = [(text, note) for text, note in said if "| true" in text]
    assert rows == [row(step, 3, 8) for step in (0, 8, 16, 24)]
    assert policy.asked == 4, "only moments that are pictured are predicted"
    errors = [{"step": step, "predicted": 3.0, "present": 8.0} for step in (0, 8, 16, 24)]
    assert json.loads((tmp_path / f"{image}.json").read_text()) == {"act_step": 4, "errors": errors}


def test_images_that_came_with_the_actions_are_decoded_and_not_predicted_again(
    tmp_path: Path, said: list[tuple[str, str]]
) -> None:
    class InOnePass(Clairvoyant):
        predicts_with_actions = True

        def act_with_codes(self, observations: Sequence[Observation]) -> Any:
            raise AssertionError("the loop asks, not the recorder")

        def decode(self, codes: Any) -> Any:
            return np.broadcast_to(codes[:, None, None, None], (len(codes), 1, SIZE, SIZE, 3)).astype(np.uint8)

    recorder, chain = RolloutVideoRecorder(tmp_path, 9, InOnePass()), job()
    assert recorder.wants_codes
    assert not RolloutVideoRecorder(tmp_path, 9, Clairvoyant()).wants_codes
    recorder.start_chain(chain)
    for step in (0, 4):
        seen, expected = Observation(image(step), "pull it open"), np.array([2 * (step + 4) + 1])
        recorder.add_call(chain, call(0, step, seen, expected))
    recorder.finish_chain(chain, ChainRecord(3, TASKS, 0, (8,)))
    assert recorder.policy.asked == 0  # type: ignore[attr-defined]
    assert row(0, 1, 8) in said


def test_where_there_is_no_observation_the_video_frame_is_used(tmp_path: Path, said: list[tuple[str, str]]) -> None:
    """It looks every 3 steps and expects 4 steps ahead: step 0 + 4 is no look, but filmed."""
    watch(RolloutVideoRecorder(tmp_path, 9, Clairvoyant(), frame_interval=1), job(), (9, 1), completed=1, look_every=3)
    assert row(0, 0, 8) in said


def test_two_views_are_shown_in_one_row(tmp_path: Path) -> None:
    class TwoEyes(Clairvoyant):
        def predict_future(self, observations: Sequence[Observation]) -> Any:
            return np.zeros((len(observations), 2, SIZE, SIZE, 3), np.uint8)

    recorder, chain = RolloutVideoRecorder(tmp_path, 9, TwoEyes()), job()
    recorder.start_chain(chain)
    for step in (0, 4):
        seen = Observation(image(step), "pull it open", np.zeros((10, 10, 3), np.uint8))
        recorder.add_call(chain, call(0, step, seen))
    recorder.finish_chain(chain, ChainRecord(3, TASKS, 0, (8,)))
    with Image.open(tmp_path / "input_predict_truth" / "chain_0003_task_1.png") as page:
        assert page.width > 6 * rollout_video.PREDICTION_HEIGHT


def test_a_chain_that_is_run_again_leaves_one_video(tmp_path: Path) -> None:
    """A process was killed between its film and its record; another one comes to another end."""
    watch(RolloutVideoRecorder(tmp_path, 9, Clairvoyant()), job(), (10, 20), completed=1)
    (tmp_path / "videos" / "chain_0003_1_done.gif.tmp").touch()
    watch(RolloutVideoRecorder(tmp_path, 9, Clairvoyant()), job(30), (3,), completed=0)
    watch(RolloutVideoRecorder(tmp_path, 9, Clairvoyant()), job(), (2,), completed=0)
    assert names(tmp_path) == ["videos/chain_0003_0_done.gif", "videos/chain_0030_0_done.gif"]


def test_a_chain_that_begins_again_forgets_what_was_seen_of_the_first(tmp_path: Path, said: Any) -> None:
    recorder = RolloutVideoRecorder(tmp_path, 9, Clairvoyant())
    recorder.start_chain(job())
    recorder.add_call(job(), call(1, 300, Observation(image(99), "press the button")))
    watch(recorder, job(), (6,), completed=0)
    assert {text for text, _ in said if "button" in text} == set()


def test_the_first_chains_are_filmed_and_the_others_are_not_even_watched(tmp_path: Path) -> None:
    given = {"num_videos": 2, "save_rollout_as_video": False}
    recorder = make_recorder(given, tmp_path, Clairvoyant())
    assert recorder is not None
    assert [recorder.selects(job(index)) for index in range(4)] == [True, True, False, False]
    assert make_recorder({**given, "num_videos": 0}, tmp_path, Clairvoyant()) is None


def test_chains_that_were_run_before_without_a_video_are_known(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "chain_0001_2_done.gif").touch()
    assert RolloutVideoRecorder(tmp_path, 3, Clairvoyant()).without_video([0, 1, 2, 3]) == [0, 2]


def test_videos_are_mp4_where_that_is_requested(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    given = {"num_videos": 9, "save_rollout_as_video": True}
    recorder = make_recorder(given, tmp_path, Clairvoyant())
    assert recorder is not None
    watch(recorder, job(), (10, 20), completed=1)
    with av.open(str(tmp_path / "videos" / "chain_0003_1_done.mp4")) as film:
        stream = film.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in film.decode(stream)]
        assert (stream.codec_context.name, stream.average_rate) == ("h264", 15)
    assert len(frames) == (1 + 5) + 10 + (1 + 10) + 10 + 15, "start and every second step, both outcomes, a last second"
    assert frames[3][:200].mean() == pytest.approx(2 * 5, abs=3), "the image after step 4"


def test_without_the_package_for_mp4_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.video.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="save_rollout_as_video=true needs the package PyAV: pip install 'av"):
        make_recorder({"num_videos": 1, "save_rollout_as_video": True}, tmp_path, Clairvoyant())


@pytest.mark.parametrize("write", [write_gif, write_mp4])
def test_a_video_that_cannot_be_finished_leaves_the_last_one(
    tmp_path: Path, write: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("av")
    file = tmp_path / "film"
    write(file, [image(1)] * 3)
    before = file.read_bytes()
    monkeypatch.setattr("common.files.os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write(file, [image(9)] * 3)
    assert file.read_bytes() == before
