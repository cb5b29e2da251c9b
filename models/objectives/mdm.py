"""Masked diffusion: the whole answer is one block, its tokens come in any order (MDLM, LLaDA)."""

from __future__ import annotations

from config.schema import Job
from models.objectives.block_size import Fixed
from models.objectives.diffusion import Diffusion
from models.objectives.elbo_weights import Ratio


def masked_diffusion(job: Job) -> Diffusion:
    """``training.text_objective: mdm`` with the knobs of ``text_mdm.*`` and ``text_diffusion.*``."""
    return Diffusion(
        name="mdm",
        sizes=Fixed(job.text_mdm.canvas_multiple),
        whole=True,
        ratio=Ratio(job.text_mdm.min_mask_ratio, job.text_mdm.max_mask_ratio),
        complementary=job.block_diffusion.complementary_mask,
        prediction=job.text_diffusion.prediction,
        weighting=job.text_diffusion.weighting,
        ar_aux_weight=job.text_diffusion.ar_aux_weight,
    )
