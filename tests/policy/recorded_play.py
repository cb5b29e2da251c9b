"""Ten-line fakes: what a recorded split holds, and a policy that remembers what it was asked."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from policy_rollout.policies.upvla import CAMERAS, ActionConvention, Observation

FRAMES = range(100, 140)
WINDOWS = [
    ("open_drawer", "pull the drawer", 100, 112),
    ("lift_red", "lift it", 108, 109),
    ("open_drawer", "go", 120, 135),
]


def frame_actions(frame: int) -> np.ndarray:
    """Recognisable numbers: 0.01 per frame, the gripper closed in even frames."""
    return np.array([0.01 * (frame - 100)] * 6 + [-1.0 if frame % 2 == 0 else 1.0])


def frame_image(frame: int, camera: str) -> np.ndarray:
    size = 20 if camera == "rgb_static" else 12
    return np.full((size, size, 3), frame if camera == "rgb_static" else frame // 2, dtype=np.uint8)


class Recorder:
    """Acts by a function of the observation and keeps every batch it was given."""

    convention = ActionConvention()

    def __init__(self, answer, act_step: int = 10, cameras: tuple[str, ...] = CAMERAS) -> None:
        self.answer, self.act_step, self.cameras = answer, act_step, cameras
        self.batches: list[list[Observation]] = []

    def reset(self) -> None:
        self.batches.clear()

    def act(self, observations: Sequence[Observation]) -> np.ndarray:
        self.batches.append(list(observations))
        return np.stack([self.answer(observation) for observation in observations]).astype(np.float32)
