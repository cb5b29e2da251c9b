"""Block diffusion: answers come block by block, the tokens of a block in any order, several at once."""

from __future__ import annotations

from config.schema import Job
from models.objectives.block_size import block_sizes
from models.objectives.diffusion import Diffusion
from models.objectives.elbo_weights import Ratio


def block_diffusion(job: Job) -> Diffusion:
    """``training.text_objective: bd`` with the knobs of ``block_diffusion.*`` and ``text_diffusion.*``."""
    return Diffusion(
        name="bd",
        sizes=block_sizes(job.block_diffusion),
        ratio=Ratio(low=job.block_diffusion.mask_eps),
        complementary=job.block_diffusion.complementary_mask,
        prediction=job.text_diffusion.prediction,
        weighting=job.text_diffusion.weighting,
        ar_aux_weight=job.text_diffusion.ar_aux_weight,
    )
