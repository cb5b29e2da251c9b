"""Block-diffusion actions: a chunk of actions as tokens after the robot flow, with the diffusion objective of answers.

    [robot flow | x0 | v1 | v2]      x0: T x A action tokens, step by step; one time step of 7 is a block by default

Layout, mask, weights and random numbers are those of ``diffusion.Diffusion``. The robot flow is the prefix and is not
changed: none of its slots attends an action token (``models.attention_mask.FROM_IMAGE``), so the image loss and the
regression head of the same forward compute what they compute without action tokens.

Legend: B batch, T chunk, A action size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from config.schema import BlockDiffusion, TextDiffusion
from models.action.encoding import ActionBins
from models.objectives.base import TextTask
from models.objectives.block_size import Fixed
from models.objectives.diffusion import Diffusion
from models.objectives.elbo_weights import Ratio
from models.rng import SampleRng
from models.sequence import TokenSequence, with_action_tokens


def action_diffusion(blocks: BlockDiffusion, text: TextDiffusion) -> Diffusion | None:
    """Return the objective of action tokens; None if ``block_diffusion.action_enabled`` is false."""
    if not blocks.action_enabled:
        return None
    return Diffusion(
        name="action_bd",
        sizes=Fixed(blocks.action_block_size),
        ratio=Ratio(low=blocks.mask_eps),
        complementary=blocks.complementary_mask,
        prediction=text.prediction,
        weighting=text.weighting,
    )


def action_task(
    objective: Diffusion,
    bins: ActionBins,
    robot: TokenSequence,
    actions: Tensor,
    counted: Tensor | None = None,
    samples: Sequence[int] | None = None,
    rng: SampleRng | None = None,
) -> TextTask:
    """Return the task of predicting masked action tokens after ``robot``; all tensors are on the host.

    ``actions`` [B, T, A]; ``counted`` [B, T] boolean: False excludes a step as if the chunk ended before it (None: all
    count); ``samples`` [B]: key of each row's random numbers (None: its row).
    """
    batch = actions.shape[0]
    ids = bins.ids(actions).flatten(1)  # [B, T * A]
    real = torch.ones(actions.shape[:2], dtype=torch.bool) if counted is None else counted
    clean = with_action_tokens(robot, ids, real.repeat_interleave(actions.shape[2], dim=1))
    return objective.task(bins.vocab, clean, list(range(batch)) if samples is None else list(samples), rng)
