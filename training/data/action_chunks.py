"""Actions of an episode as training targets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from common.robot import CALVIN_LAYOUT


def action_chunk(
    episode: npt.NDArray[np.float32], now: int, act_step: int, gripper: Sequence[int] = CALVIN_LAYOUT.gripper
) -> tuple[int, npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Return the training target at frame ``now`` of an episode's relative actions [n, A], as the original defines it.

    Returns (future, actions [T, A], is_pad [T]): the frame that the chunk leads to, ``min(now + T, n - 1)``; the
    actions of frames ``now .. future - 1`` (at the last frame: its own), then padding: zeros, except for the numbers
    at the indices ``gripper``, which repeat the last action.
    """
    last = len(episode) - 1
    future = min(now + act_step, last)
    used = episode[now : max(future, now + 1)]
    actions = np.zeros((act_step, episode.shape[1]), dtype=np.float32)
    actions[: len(used)] = used
    held = list(gripper)
    actions[len(used) :, held] = used[-1, held]
    return future, actions, np.arange(act_step) >= len(used)


def action_chunks(
    now: npt.NDArray[np.int64], ends: npt.NDArray[np.int64], act_step: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """The same for many samples of a table in which episodes follow one another, without their actions.

    ``now`` [B]: rows of the table; ``ends`` [B]: one past the last row of each one's episode. Returns (future [B], rows
    [B, T], is_pad [B, T]): where pads are, ``rows`` is that of the last action used, whose gripper is held.
    """
    future = np.minimum(now + act_step, ends - 1)
    used = np.maximum(future - now, 1)  # [B] actions that are not padding
    steps = np.arange(act_step)
    return future, now[:, None] + np.minimum(steps, used[:, None] - 1), steps >= used[:, None]
