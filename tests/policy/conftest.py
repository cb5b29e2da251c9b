"""Fixtures of the policy tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from policy_rollout.policies.upvla import CAMERAS
from tests.policy.recorded_play import FRAMES, WINDOWS, frame_actions, frame_image


@pytest.fixture
def split_dir(tmp_path: Path) -> Path:
    """A raw CALVIN split of 40 frames with three annotated windows, two of which overlap."""
    path = tmp_path / "validation"
    (path / "lang_annotations").mkdir(parents=True)
    for frame in FRAMES:
        np.savez(
            path / f"episode_{frame:07d}.npz",
            rel_actions=frame_actions(frame),
            actions=frame_actions(frame) * 2,
            robot_obs=np.zeros(15),
            scene_obs=np.zeros(24),
            **{camera: frame_image(frame, camera) for camera in CAMERAS},
        )
    tasks, sentences, starts, ends = zip(*WINDOWS, strict=True)
    annotations = {
        "language": {"ann": list(sentences), "task": list(tasks), "emb": np.zeros((len(tasks), 1, 384))},
        "info": {"episodes": [], "indx": list(zip(starts, ends, strict=True))},
    }
    np.save(path / "lang_annotations" / "auto_lang_ann.npy", np.array(annotations, dtype=object), allow_pickle=True)
    np.save(path / "ep_start_end_ids.npy", np.array([[FRAMES.start, FRAMES.stop - 1]]))
    return path
