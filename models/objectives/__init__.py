"""Text objectives: how the model learns to speak. One file each; the switch ``training.text_objective`` names one."""

from __future__ import annotations

from models.objectives.ar import Autoregressive
from models.objectives.base import TextObjective, TextTask

OBJECTIVES = {"ar": Autoregressive}
"""Objectives that can be trained. ``mdm`` and ``bd`` join here when they land."""

PLANNED = ("mdm", "bd")


def text_objective(name: str) -> TextObjective:
    """The objective behind a value of ``training.text_objective``. Raises ``ValueError`` for one that does not exist
    (yet)."""
    if name in OBJECTIVES:
        return OBJECTIVES[name]()
    if name in PLANNED:
        raise ValueError(
            f"training.text_objective={name} cannot be trained yet: it is specified (its configs load and its model "
            f"builds) but its loss has not landed; use ar with train_upvla.py"
        )
    raise ValueError(f"training.text_objective is {name!r}; allowed: {', '.join([*OBJECTIVES, *PLANNED])}")


__all__ = ["OBJECTIVES", "PLANNED", "Autoregressive", "TextObjective", "TextTask", "text_objective"]
