"""Actions of an episode as training targets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from common.constants import CALVIN_LAYOUT


def action_chunk(
    episode: npt.NDArray[np.float32], now: int, act_step: int, gripper: Sequence[int] = CALVIN_LAYOUT.gripper
) -> tuple[int, npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Return the target at frame ``now`` of an episode with relative actions [n, A], as the original computes it.

    Returns (future, actions [T, A], is_pad [T]): the frame after the chunk, ``min(now + T, n - 1)``; the actions of
    frames ``now .. future - 1`` (at the last frame: its own), then padding: no motion, the gripper command repeated.
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
    """Return the row numbers of many chunks in a table of consecutive episodes.

    ``now`` [B]: rows of the table; ``ends`` [B]: one past the last row of each episode. Returns (future [B], rows
    [B, T], is_pad [B, T]). The row of padding is that of the last action, whose gripper command is repeated.
    """
    future = np.minimum(now + act_step, ends - 1)
    used = np.maximum(future - now, 1)  # [B] actions without padding
    steps = np.arange(act_step)
    return future, now[:, None] + np.minimum(steps, used[:, None] - 1), steps >= used[:, None]
