"""One forward before anyone waits for it. It also shows what is wrong with a model while somebody looks."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from policy_rollout.policies.interface import Observation, Policy

_SIZE = (200, 200)


def warm_up(policy: Policy, sizes: Mapping[str, tuple[int, ...]]) -> None:
    """Asks about black images. ``sizes``: height and width by camera, where the model says what it saw."""
    black = {camera: np.zeros((*sizes.get(camera, _SIZE)[:2], 3), dtype=np.uint8) for camera in policy.cameras}
    policy.act([Observation(black["rgb_static"], "warm up", black.get("rgb_gripper"))])
    policy.reset()
