"""Block-diffusion actions: a chunk of actions as tokens behind the robot flow, diffused like an answer.

    [robot flow | x0 | v1 | v2]      x0: T x A action tokens, step after step; one time step is a block by default

Layout, mask, weights and draws are those of ``diffusion.Diffusion``. The robot flow is the prefix and is not touched:
nothing in it sees an action token (``models.attention_mask.FROM_IMAGE``), so the image loss and the regression head of
the same forward compute what they compute without.

Legend: B batch, T chunk, A action size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from config.schema import Job
from models.action.encoding import ActionBins
from models.objectives.base import TextTask
from models.objectives.block_size import Fixed
from models.objectives.diffusion import Diffusion
from models.objectives.elbo_weights import Ratio
from models.rng import SampleRng
from models.sequence import TokenSequence, with_action_tokens


def action_diffusion(job: Job) -> Diffusion | None:
    """How the job's action tokens are hidden, read and weighed; None where ``block_diffusion.action_enabled`` is
    false."""
    blocks = job.block_diffusion
    if not blocks.action_enabled:
        return None
    return Diffusion(
        name="action_bd",
        sizes=Fixed(blocks.action_block_size),
        ratio=Ratio(low=blocks.mask_eps),
        complementary=blocks.complementary_mask,
        prediction=job.text_diffusion.prediction,
        weighting=job.text_diffusion.weighting,
    )


def action_task(
    objective: Diffusion,
    bins: ActionBins,
    robot: TokenSequence,
    actions: Tensor,
    counted: Tensor | None = None,
    samples: Sequence[int] | None = None,
    draws: SampleRng | None = None,
) -> TextTask:
    """The problem of reading back hidden action tokens behind ``robot``; everything on the host.

    ``actions`` [B, T, A]; ``counted`` [B, T] boolean: False leaves a step out as if the chunk ended before it (None:
    all count); ``samples`` [B]: by which each row's draws are named (None: by row).
    """
    batch = actions.shape[0]
    ids = bins.ids(actions).flatten(1)  # [B, T * A]
    real = torch.ones(actions.shape[:2], dtype=torch.bool) if counted is None else counted
    clean = with_action_tokens(robot, ids, real.repeat_interleave(actions.shape[2], dim=1))
    return objective.task(bins.vocab, clean, list(range(batch)) if samples is None else list(samples), draws)
