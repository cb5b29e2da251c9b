"""A standing measure of what a policy takes from its instruction: does the action follow the colour word?

The colour word of an instruction is exchanged, and the change of the predicted actions is compared with the size of
actions. A policy that ignores the word has 0. A held-out action loss does not show it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from torch import Tensor

from models.losses import SumAndCount
from models.upvla import UPVLA
from training.batch_to_tasks import RobotCodes, robot_task
from training.build import Components
from training.data.batch import RobotBatch
from training.data.dataloader import Flow
from training.future_view_prediction_w_action_dataset import DataProvider

COLOURS = ("red", "blue", "pink")
"""Colour words, each of which is exchanged for the next: those of CALVIN's blocks."""
COLOUR_CHANGE = "colour/action_change"
"""RMS change of the predicted actions when the colour is exchanged, relative to the RMS of the recorded actions."""
SQUARES = ("colour/change_square", "colour/action_square")
"""Mean squares whose ratio is the square of ``COLOUR_CHANGE``."""
_COLOUR = re.compile(rf"\b({'|'.join(COLOURS)})\b")


def with_other_colour(instruction: str) -> str:
    """Return an instruction with every colour word exchanged; the same text if it has none."""
    return _COLOUR.sub(lambda found: COLOURS[(COLOURS.index(found[1]) + 1) % len(COLOURS)], instruction)


def colour_samples(flow: Flow[RobotBatch], limit: int) -> list[int]:
    """Return at most ``limit`` samples, evenly spaced among those whose instruction has a colour word.

    Only data of this project's format are searched; others give none.
    """
    if not isinstance(flow.dataset, DataProvider):
        return []
    data = flow.dataset.data
    texts = np.unique(np.asarray(data.instruction_of)).tolist()
    coloured = [number for number in texts if _COLOUR.search(data.texts[number])]
    samples = np.flatnonzero(np.isin(np.asarray(data.instruction_of), coloured)[np.asarray(data.episode_of)])
    count = min(limit, len(samples))
    return samples[np.arange(count) * len(samples) // max(count, 1)].tolist()


def colour_squares(model: UPVLA, components: Components, codes: RobotCodes) -> dict[str, SumAndCount]:
    """Return the ``SQUARES`` of a batch, in the units of the data set."""
    true = codes.batch.actions.to(components.device)
    change = _actions(model, components, codes, exchange=True) - _actions(model, components, codes, exchange=False)
    return {name: _squares(values) for name, values in zip(SQUARES, (change, true), strict=True)}


def _actions(model: UPVLA, components: Components, codes: RobotCodes, exchange: bool) -> Tensor:
    """Return the predicted actions [B, T, A]."""
    batch = codes.batch
    texts = [with_other_colour(text) for text in batch.instructions] if exchange else batch.instructions
    task = robot_task(components, replace(codes, batch=replace(batch, instructions=texts), scenes=None))
    assert task is not None
    return components.denormalize_actions(model.predict(task.sequence.to(components.device)).actions)


def _squares(values: Tensor) -> SumAndCount:
    total = values.square().sum()
    return SumAndCount(total, total.new_full((), values.numel()))


def colour_change(totals: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """Return ``COLOUR_CHANGE`` from the totals of ``SQUARES`` over all ranks; empty if no instruction has a colour."""
    (change, count), (size, _) = (totals.get(name, (0.0, 0.0)) for name in SQUARES)
    return {COLOUR_CHANGE: math.sqrt(change / size)} if count > 0 and size > 0 else {}
