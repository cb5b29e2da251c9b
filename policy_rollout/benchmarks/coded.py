"""Recorded frames out of a token cache: the codes of their images and the actions, without opening a frame's file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.constants import STATE_KEY
from policy_rollout.policies.model_yaml import load_model_yaml, located
from policy_rollout.policies.upvla import UPVLAPolicy
from training.data.caches.token_cache import CacheKey, TokenCache, find, raw_digest, remake_command
from training.data.calvin import CalvinSplit

CODES = "codes"
"""What frames have in place of cameras."""


class CodedFrames:
    """The frames of a raw split as ``CalvinSplit.frame`` gives them, but ``CODES`` int16 [V, n] in place of cameras.

    ``split``: where the robot's states are read, which a token cache does not hold.
    """

    def __init__(self, cache: TokenCache, split: CalvinSplit) -> None:
        self.cache, self.split = cache, split

    def frame(self, index: int, keys: Sequence[str]) -> dict[str, NDArray[Any]]:
        row = self.cache.row_of_id(index)
        found = {key: self.cache.rows.row(key, row) for key in keys if key != STATE_KEY}
        return found | (self.split.frame(index, (STATE_KEY,)) if STATE_KEY in keys else {})


def coded_frames(caches: Path, split: CalvinSplit, policy: UPVLAPolicy) -> CodedFrames:
    """The codes that the policy's image tokenizer once made of this split, from a folder of token caches.

    Raises ValueError where there are none, with the command that makes them.
    """
    spec = policy.spec
    wanted = CacheKey(raw_digest(split), policy.vq.weights_hash, spec.resolution, spec.num_view)
    source = policy.source
    assert source is not None, "a policy that was read from a yaml"
    vq = load_model_yaml(source.model_yaml, str(source.checkpoint)).job.model.vq_model
    weights = None if vq.pretrained_model_path is None else str(located(vq.pretrained_model_path))
    tokenizer = str(located(vq.vq_model_name))
    remake = remake_command(split.path, tokenizer, weights, spec.resolution, spec.num_view, caches)
    return CodedFrames(find([caches], wanted, remake, split.path), split)


NO_IMAGE: NDArray[np.uint8] = np.empty((0, 0, 3), dtype=np.uint8)
"""Stands where nobody looks."""
