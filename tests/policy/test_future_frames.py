"""The probe of the hand in predicted frames: it finds what is there, and measures predictions by it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from policy_rollout import future_frames as command
from policy_rollout.benchmarks import future_frames
from policy_rollout.benchmarks.future_frames import FutureFrames, HandProbe, as_bits, measure, train_probe
from policy_rollout.benchmarks.offline import Sample
from policy_rollout.demo.__main__ import MODEL
from policy_rollout.policies.interface import Observation
from policy_rollout.policies.upvla import UPVLAPolicy
from preprocess_data import make_desk_demos
from tests.policy.saved_model import write_model
from training.data.calvin import CalvinSplit

BITS, N, T = 4, 6, 3


def codes_of(positions: NDArray[Any]) -> NDArray[np.int64]:
    """Return codes [S, 6] whose bits are the positions: two codes of four bits for each coordinate in [0, 1)."""
    levels = (positions * 256).astype(np.int64)
    return np.concatenate([levels >> 4, levels & 15], axis=1)


@pytest.fixture(scope="module")
def probe() -> HandProbe:
    positions = np.random.default_rng(0).uniform(0, 1, (2000, 3)).astype(np.float32)
    return train_probe(codes_of(positions), positions, BITS)


def test_bits_are_signs() -> None:
    assert as_bits(np.array([[5, 0]]), 3).tolist() == [[1, -1, 1, -1, -1, -1]]


def test_the_probe_finds_positions_that_it_was_not_trained_on(probe: HandProbe) -> None:
    positions = np.random.default_rng(1).uniform(0, 1, (200, 3)).astype(np.float32)
    errors = np.linalg.norm(probe.positions(codes_of(positions)) - positions, axis=1)
    assert np.median(errors) < 0.03
    assert float(np.linalg.norm(probe.positions(codes_of(positions[::-1])) - positions, axis=1).mean()) > 0.4


def test_equal_seeds_give_equal_probes() -> None:
    positions = np.random.default_rng(2).uniform(0, 1, (200, 3)).astype(np.float32)
    one, two, other = (train_probe(codes_of(positions), positions, BITS, seed) for seed in (0, 0, 1))
    found = [it.positions(codes_of(positions)) for it in (one, two, other)]
    assert np.array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])


class Line:
    """A recording of 40 frames in which the hand moves 2 cm a frame; an image holds the frame's number."""

    annotations = (SimpleNamespace(start=0, end=19, task="a", instruction="go"),
                   SimpleNamespace(start=20, end=39, task="b", instruction="stay"))  # fmt: skip

    def position(self, frame: int) -> NDArray[Any]:
        return np.array([0.1 + 0.02 * frame, 0.5, 0.3])

    def frame(self, index: int, keys: Sequence[str]) -> dict[str, Any]:
        image = np.full((4, 4, 3), index, np.uint8)
        return {"rgb_static": image, "robot_obs": np.append(self.position(index), np.zeros(12))}


class Model:
    """Encodes the true position; foresees the frame `ahead` later."""

    act_step, cameras = T, ("rgb_static",)
    spec = SimpleNamespace(num_vq_tokens=N, codebook_size=2**BITS)

    def __init__(self, ahead: int) -> None:
        self.ahead = ahead

    def encode(self, observations: Sequence[Observation]) -> NDArray[np.int64]:
        return self._codes(observations, 0)

    def predict_codes(self, observations: Sequence[Observation]) -> NDArray[np.int64]:
        return self._codes(observations, self.ahead)

    def _codes(self, observations: Sequence[Observation], ahead: int) -> NDArray[np.int64]:
        return codes_of(np.stack([Line().position(int(seen.rgb_static[0, 0, 0]) + ahead) for seen in observations]))


def measured(ahead: int, probe: HandProbe) -> FutureFrames:
    return measure(Model(ahead), Line(), probe, 100)  # type: ignore[arg-type]


def test_a_clairvoyant_model_is_as_good_as_the_true_frame(probe: HandProbe) -> None:
    found = measured(T, probe)
    assert len(found.samples) == 2 * (20 - T), "the frame three steps later is in the window"
    assert found.moving.all()
    assert found.near("predicted") == found.near("true")
    assert found.near("true").point > 0.9
    assert found.near("present").point == 0, "6 cm away"


def test_a_model_that_predicts_no_motion_is_as_bad_as_the_present_frame(probe: HandProbe) -> None:
    found = measured(0, probe)
    assert found.near("predicted") == found.near("present")
    assert found.near("predicted").point == 0
    text = found.summary(T)
    assert "34 held-out frames of 2 windows, 34 of them with a moving hand" in text
    assert "| predicted frame | 0 % [0," in text
    as_json = json.loads(json.dumps(found.as_json()))
    assert as_json["predicted"]["near"]["point"] == 0
    assert as_json["true"]["median_error_m"] < 0.03


def test_samples_of_one_window_are_not_independent() -> None:
    samples = [Sample("", "", i, T) for i in range(40)]
    hand = np.zeros((40, 3), np.float32)
    read = np.zeros((40, 3), np.float32)
    read[:20, 0] = 1.0
    apart, together = (
        FutureFrames(samples, windows, {"predicted": read}, hand, hand).near("predicted")
        for windows in (np.arange(40), np.arange(40) // 20)
    )
    assert apart.point == together.point == 0.5
    assert together.high - together.low > 1.5 * (apart.high - apart.low)


def test_windows_without_a_later_frame_are_refused() -> None:
    with pytest.raises(ValueError, match="more than 20 frames"):
        future_frames.list_samples(Line.annotations, 20, 5)


def test_the_command_measures_an_untrained_model(
    split_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    yaml = write_model(tmp_path / "model")
    run = tmp_path / "model/run/checkpoint-3/unwrapped_model"
    shutil.copy(yaml, run / "config.yaml")
    training = shutil.copytree(split_dir, tmp_path / "training")
    for file in training.glob("episode_*.npz"):  # a hand that moves
        arrays = dict(np.load(file))
        arrays["robot_obs"][:3] = (0.01 * (int(file.stem[-3:]) - 100), 0, 0.5)
        np.savez(file, **arrays)
    arguments = ["--model", str(run), "--device", "cpu", "--probe-data", str(split_dir)]
    out = ["--output-json", str(tmp_path / "out.json"), "--figure", str(tmp_path / "figure.png")]
    assert command.main([*arguments, "--data", str(training), "--samples", "6", *out]) == 0
    assert "| predicted frame |" in capsys.readouterr().out
    assert json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))["samples"] == 6
    assert (tmp_path / "figure.png").stat().st_size > 1000
    assert command.main([*arguments, "--data", str(split_dir)]) == 2
    assert "the probe would know its frames" in capsys.readouterr().err


@pytest.mark.slow
def test_the_bundled_model_predicts_the_hand_better_than_no_motion(tmp_path: Path) -> None:
    """A small version of the measurement in docs/desk.md: a coarser probe, and fewer frames."""
    common = ["--out", str(tmp_path), "--tasks", "doors_and_lights", "--static-size", "128", "--gripper-size", "64"]
    for split, episodes in (("training", "8"), ("validation", "3")):
        assert make_desk_demos.main([*common, "--split", split, "--episodes", episodes, "--workers", "1"]) == 0
    policy = UPVLAPolicy.from_config(MODEL / "config.yaml", "cpu", checkpoint=MODEL)
    training, held_out = (CalvinSplit(tmp_path / split) for split in ("training", "validation"))
    found = future_frames.evaluate(policy, training, held_out, probe_frames=1500, samples=80)
    median = {source: float(np.median(found.errors(source))) for source in future_frames.SOURCES}
    assert median["true"] < median["predicted"] < 0.75 * median["present"]
    assert found.near("predicted").point > found.near("present").point
