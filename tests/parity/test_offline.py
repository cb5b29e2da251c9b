"""Offline metrics, sample lists and the acting path against the original's numbers."""

from __future__ import annotations

import json
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray
from omegaconf import OmegaConf

from policy_rollout.benchmarks.offline import Errors, list_samples
from policy_rollout.policies.upvla import Observation, UPVLAPolicy
from training.data.calvin import Annotation

pytestmark = pytest.mark.parity

ACTIONS = 2e-5
"""Relative to the largest value."""
METRIC = 1e-12
"""Relative. The arithmetic is the original's, so only the last float64 digits may differ between NumPy versions."""


def expected(parity: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((parity / "offline_metrics_expected.json").read_text(encoding="utf-8"))
    return found


def test_metrics_are_the_originals_to_the_last_digits(parity: Path) -> None:
    """The summary over all pairs, and that of an empty run."""
    arrays, errors = np.load(parity / "offline_metrics.npz"), Errors()
    pairs = sorted(name for name in arrays.files if name.startswith("pred"))
    assert pairs
    for name in pairs:
        errors.add(arrays[name], arrays[name.replace("pred", "gt")])
    summary = errors.summary()
    for name, value in expected(parity)["summary"].items():
        assert_allclose(summary[name], value, rtol=METRIC, err_msg=name)
    nothing = Errors().summary()
    for name, value in expected(parity)["empty"].items():
        assert nothing[name] == value, name


def test_the_same_start_frames_and_horizons_are_evaluated(parity: Path) -> None:
    """Which frames are asked about, for every setting that was recorded."""
    told = expected(parity)["build_samples"]
    windows = [
        Annotation(start, end, sentence, task)
        for (start, end), sentence, task in zip(told["ranges"], told["anns"], told["tasks"], strict=True)
    ]
    assert told["cases"]
    for name, case in told["cases"].items():
        samples = list_samples(windows, told["act_step"], **case["args"])
        assert [list(astuple(sample)) for sample in samples] == case["samples"], name


@pytest.mark.parametrize("views", [1, 2])
def test_images_and_sentences_become_the_originals_actions(parity: Path, views: int, tmp_path: Path) -> None:
    """Camera images and sentences in, the original's actions and expected future codes out; by a model yaml."""
    arrays = np.load(parity / f"pre_{views}view.npz")
    text = json.loads((parity / "pre_text.json").read_text(encoding="utf-8"))
    resolution = arrays["images_static"].shape[-1]
    settings = {
        "act_step": arrays["predict_actions"].shape[1],
        "model": {
            "vq_model": {"vq_model_name": str(parity / "ckpt/magvit")},
            "showo": {
                "tuned_model_path": str(next((parity / "ckpt/upvla_run").glob("checkpoint-*"))),
                "llm_model_path": str(parity / "ckpt/phi"),
            },
            "vla": {"num_view": views},
        },
        "dataset": {"preprocessing": {"max_seq_length": text["max_text_len"], "resolution": resolution}},
    }
    OmegaConf.save(OmegaConf.create(settings), tmp_path / "model.yaml")
    policy = UPVLAPolicy.from_config(tmp_path / "model.yaml", device="cpu")
    observations = [
        Observation(rgb_static=_image(static), rgb_gripper=_image(gripper), instruction=sentence)
        for static, gripper, sentence in zip(
            arrays["images_static"], arrays["images_gripper"], text["texts"], strict=True
        )
    ]
    largest = float(np.abs(arrays["predict_actions"]).max())
    together = policy.act(observations)
    assert_allclose(together, arrays["predict_actions"], rtol=0, atol=ACTIONS * largest)
    for observation, chunk in zip(observations, arrays["predict_actions"], strict=True):
        assert_allclose(policy.act([observation])[0], chunk, rtol=0, atol=ACTIONS * largest)
    codes = policy.predict_codes(observations)
    assert_array_equal(codes, arrays["predicted_future_codes"])


def _image(pixels: NDArray[np.float32]) -> NDArray[np.uint8]:
    """A preprocessed image [3,R,R] in [-1,1] as the camera image it came from: uint8 [R,R,3]."""
    back: NDArray[np.uint8] = np.rint((pixels.transpose(1, 2, 0) + 1) * 127.5).astype(np.uint8)
    return back
