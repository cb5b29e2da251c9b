"""Targets of the ground loss: positions of named objects, and sentences about random scenes.

Shape letters: B batch, K objects.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from config.schema import Job
from models.grounding import PositionTargets
from models.rng import generator
from training.data.batch import RobotBatch
from training.data.dataloader import Flow
from training.data.episode_index import read_index
from training.data.object_positions import COMMAND, FILE, ObjectPositions, read_positions
from training.future_view_prediction_w_action_dataset import DataProvider

SCENES_KEY = "dataset.params.ground_shards_path"
OFFSET, OFFSET_UNIT, SMOOTH = "offset", 0.1, 0.1
"""``training.ground_target`` of offsets, metres of their unit, and the error of 1 cm below which it is squared."""


@dataclass(frozen=True)
class Sentence:
    """An instruction, and the number of the object that it names."""

    text: str
    target: int


def declared_workspace(job: Job) -> dict[str, Any] | None:
    """Return the workspace of the object positions of the run's data; None without a ground loss.

    Raises ValueError if no data have positions, or if demonstrations and scenes have other objects or workspaces.
    """
    if job.training.ground_coeff == 0:
        return None
    if job.training.ground_target == OFFSET and job.model.vla.proprioception == "none":
        raise ValueError(
            "training.ground_target=offset learns offsets from the hand; set model.vla.proprioception=pose, or "
            "training.ground_target=position"
        )
    robot, scenes = job.dataset.params.train_pre_shards_path_or_url, job.dataset.params.ground_shards_path
    found = {root: positions_of(root) for root in (robot, scenes) if root is not None}
    if scenes is not None and found[scenes] is None:
        raise ValueError(f"{SCENES_KEY}={scenes} has no {FILE}; run {COMMAND} {scenes}")
    if (
        scenes is not None
        and job.model.vla.proprioception != "none"
        and read_index(scenes, images=False).states is None
    ):
        raise ValueError(
            f"{SCENES_KEY}={scenes} has no states, which model.vla.proprioception reads; make the scenes again "
            "(preprocess_data/make_desk_scenes.py), or set model.vla.proprioception=none"
        )
    present = {root: positions for root, positions in found.items() if positions is not None}
    if not present:
        raise ValueError(
            f"training.ground_coeff={job.training.ground_coeff:g} learns positions of objects, and {robot} has no "
            f"{FILE}; run {COMMAND} {robot}, give {SCENES_KEY}, or set training.ground_coeff=0"
        )
    workspaces = [positions.workspace for positions in present.values()]
    if len(set(workspaces)) > 1:
        raise ValueError(
            f"{' and '.join(present)} have positions in other workspaces; run {COMMAND} {' '.join(present)}"
        )
    offsets = {"target": OFFSET} if job.training.ground_target == OFFSET else {}
    return {**workspaces[0].to_json(), **offsets}


def positions_of(root: str) -> ObjectPositions | None:
    """Return the object positions of a processed split, None if it has none."""
    return read_positions(root, read_index(root, images=False))


def named_positions(batch: RobotBatch) -> Tensor | None:
    """Return the positions [B, 3] in metres of the objects that the instructions name, NaN where none is named or
    known; None if the data have no positions."""
    if batch.positions is None or batch.targets is None:
        return None
    return positions_at(batch.positions, batch.targets)


def positions_at(positions: Tensor, numbers: Tensor) -> Tensor:
    """Return the positions [B, 3] of one object for each row of [B, K, 3], NaN for the number -1."""
    rows = positions[torch.arange(len(positions)), numbers.clamp_min(0)]
    return torch.where((numbers >= 0)[:, None], rows, torch.nan)


def offset_targets(metres: Tensor, hand: Tensor) -> PositionTargets:
    """Return the offsets of positions [B, 3] from the hand's [B, 3], both in metres, as targets.

    An action moves the hand by this offset at most. An absolute error has the same gradient near the hand, where the
    images show millimetres, as far from it, where they do not.
    """
    return PositionTargets((metres - hand) / OFFSET_UNIT, torch.full((3,), OFFSET_UNIT), smooth=SMOOTH)


def scaled_targets(metres: Tensor, workspace: Mapping[str, Any]) -> PositionTargets:
    """Return positions [B, 3] in metres as targets."""
    low, high = (torch.tensor(workspace[end], dtype=torch.float32) for end in ("low", "high"))
    half = (high - low) / 2
    return PositionTargets((metres - (low + high) / 2) / half, half)


def sentences_of(flow: Flow[RobotBatch] | None) -> tuple[Sentence, ...]:
    """Return the distinct instructions of random scenes that name an object, in a fixed order; none without scenes.

    Raises ValueError if no instruction names an object.
    """
    if flow is None:
        return ()
    assert isinstance(flow.dataset, DataProvider)
    positions, data = flow.dataset.positions, flow.dataset.data
    assert positions is not None
    pairs = np.stack([np.asarray(data.instruction_of), positions.object_of], axis=1)
    found = {(data.texts[text], target) for text, target in np.unique(pairs, axis=0).tolist() if target >= 0}
    if not found:
        raise ValueError(f"{positions.path} names an object for no instruction; run {COMMAND} {positions.path.parent}")
    return tuple(Sentence(text, target) for text, target in sorted(found))


def draw_sentences(
    sentences: Sequence[Sentence], indices: Sequence[int], seed: int, step: int
) -> tuple[list[str], Tensor]:
    """Return a random sentence for each scene and the object [B] that it names.

    A scene gets other sentences, and so other colours, in other steps. The rank of the sample does not matter.
    """
    numbers = [int(torch.randint(len(sentences), (), generator=generator(seed, "sentence", step, i))) for i in indices]
    drawn = [sentences[number] for number in numbers]
    return [sentence.text for sentence in drawn], torch.tensor([sentence.target for sentence in drawn])
