"""Text objectives: ``training.text_objective`` selects one."""

from __future__ import annotations

from config.schema import Job
from models.objectives.action_diffusion import action_diffusion, action_task
from models.objectives.ar import Autoregressive
from models.objectives.base import TextObjective, TextTask
from models.objectives.diffusion import block_diffusion, masked_diffusion

OBJECTIVES = ("ar", "mdm", "bd")


def text_objective(job: Job | str) -> TextObjective:
    """Return the objective that ``training.text_objective`` names, built from the config sections that it reads.

    A name alone takes the default configuration. Raises ``ValueError`` for an unknown name.
    """
    name, job = (job, Job()) if isinstance(job, str) else (job.training.text_objective, job)
    if name == "ar":
        return Autoregressive()
    if name == "mdm":
        return masked_diffusion(job.text_mdm, job.block_diffusion.complementary_mask, job.text_diffusion)
    if name == "bd":
        return block_diffusion(job.block_diffusion, job.text_diffusion)
    raise ValueError(f"training.text_objective is {name!r}; allowed: {', '.join(OBJECTIVES)}")


__all__ = [
    "OBJECTIVES",
    "Autoregressive",
    "TextObjective",
    "TextTask",
    "action_diffusion",
    "action_task",
    "text_objective",
]
