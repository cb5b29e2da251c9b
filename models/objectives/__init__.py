"""Text objectives: how the model learns to speak. The switch ``training.text_objective`` names one."""

from __future__ import annotations

from collections.abc import Callable

from config.schema import Job
from models.objectives.action_diffusion import action_diffusion, action_task
from models.objectives.ar import Autoregressive
from models.objectives.base import TextObjective, TextTask
from models.objectives.bd import block_diffusion
from models.objectives.mdm import masked_diffusion

OBJECTIVES: dict[str, Callable[[Job], TextObjective]] = {
    "ar": lambda job: Autoregressive(),
    "mdm": masked_diffusion,
    "bd": block_diffusion,
}
"""What each value of the switch makes of a job."""


def text_objective(job: Job | str) -> TextObjective:
    """The objective of a job, its knobs set as the job says; a name alone stands for a job of defaults.

    Raises ``ValueError`` for a name that does not exist.
    """
    if isinstance(job, str):
        name, job = job, Job()
    else:
        name = job.training.text_objective
    if name not in OBJECTIVES:
        raise ValueError(f"training.text_objective is {name!r}; allowed: {', '.join(OBJECTIVES)}")
    return OBJECTIVES[name](job)


__all__ = [
    "OBJECTIVES",
    "Autoregressive",
    "TextObjective",
    "TextTask",
    "action_diffusion",
    "action_task",
    "text_objective",
]
