"""Load weight files into a network: the original's key names, tied heads, and modules that a file may lack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from common.constants import CALVIN_ACTION_DIM
from common.files import read_object
from models.grounding import ground_target
from models.pretrained.folders import CONFIG_FILE, SPEC_FIELD
from models.pretrained.weights_io import load_strict, read_weights
from models.upvla import UPVLA

KEY_PREFIXES: tuple[tuple[str, str], ...] = (
    ("backbone.lm.", "showo."),
    ("projector.", "mm_projector."),
    ("action_head.pool.", "token_learner."),
    ("action_head.out.", "to_logits.0."),
)
"""(ours, on disk)."""

ACTION_HEAD_KEYS = ("action_head.pool.", "action_head.out.")
STATE_KEYS = "state_encoder."
CODE_BITS_KEYS = "code_bits."
GROUND_KEYS = "ground_head."
"""Prefixes of modules that a file may lack."""


Stored = TypeVar("Stored")


def to_disk_names(state: Mapping[str, Stored]) -> dict[str, Stored]:
    """Rename our state-dict names to the original's."""
    return {_rename(name, KEY_PREFIXES): tensor for name, tensor in state.items()}


def from_disk_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the original's names to ours; unknown names are unchanged, and reported as unexpected on loading."""
    return {_rename(name, [(theirs, ours) for ours, theirs in KEY_PREFIXES]): t for name, t in state.items()}


def _rename(name: str, prefixes: Sequence[tuple[str, str]]) -> str:
    for old, new in prefixes:
        if name.startswith(old):
            return new + name[len(old) :]
    return name


def load_weights(model: UPVLA, file: Path, initial: bool = False) -> tuple[str, ...]:
    """Load a Show-o or UP-VLA weight file.

    A base Show-o checkpoint has no action head yet, which stays random. So do, at the start of a run (``initial``), the
    last layer of a head for actions of another size, a state encoder that the checkpoint lacks or that reads other
    numbers, and the vectors of code bits and the ground head that it lacks. Returned notes name these. Any other
    missing, unexpected or resized key raises ``ValueError``.
    """
    state = _with_tied_head(model, from_disk_names(read_weights(file)))
    notes = _drop_unfit(model, state, file) if initial else []
    optional = (*ACTION_HEAD_KEYS, STATE_KEYS, CODE_BITS_KEYS, GROUND_KEYS) if initial else ACTION_HEAD_KEYS
    absent = load_strict(model, state, file, optional, named=lambda name: _rename(name, KEY_PREFIXES))
    if any(name.startswith(ACTION_HEAD_KEYS) for name in absent) and not notes:
        notes.append("the checkpoint has no action head: it starts from random weights")
    if any(name.startswith(STATE_KEYS) for name in absent):
        notes.append("the checkpoint has no state encoder that reads these numbers: it starts from random weights")
    if any(name.startswith(CODE_BITS_KEYS) for name in absent):
        notes.append("the checkpoint has no vectors for the bits of image codes: they start from random weights")
    if any(name.startswith(GROUND_KEYS) for name in absent):
        notes.append("the checkpoint has no ground head of this target: it starts from random weights")
    return tuple(notes)


def _drop_unfit(model: UPVLA, state: dict[str, Tensor], file: Path) -> list[str]:
    """Remove the modules of a start's weights that were trained for another robot, and a ground head that this run does
    not train; return notes on the action head.

    Raises ``ValueError`` if the weights read the robot's state and the model does not.
    """
    workspaces = model.spec.data.workspace, _saved_spec(file).get("workspace")
    if model.ground_head is None or len({ground_target(workspace) for workspace in workspaces}) > 1:
        for name in [name for name in state if name.startswith(GROUND_KEYS)]:
            del state[name]
    ours, encoder = model.state_encoder, [name for name in state if name.startswith(STATE_KEYS)]
    if encoder and ours is None:
        raise ValueError(
            f"{file} reads the robot's state, and model.vla.proprioception is none; set model.vla.proprioception=pose"
        )
    wanted_shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    if any(state[name].shape != wanted_shapes.get(name) for name in encoder):
        for name in encoder:
            del state[name]
    saved, wanted = _saved_action_dim(file), model.spec.action_dim
    last = [name for name in state if name.startswith(ACTION_HEAD_KEYS[1])]
    if saved == wanted or not last:
        return []
    for name in last:
        del state[name]
    return [
        f"the checkpoint has an action head of {saved} numbers, and model.vla.action_dim is {wanted}: the head's last "
        "layer starts from random weights"
    ]


def _saved_action_dim(weights: Path) -> int:
    """Return the action size of the model whose weights these are; CALVIN's if no description names another."""
    return int(_saved_spec(weights).get("action_dim", CALVIN_ACTION_DIM))


def _saved_spec(weights: Path) -> Mapping[str, Any]:
    """Return the description of the model whose weights these are; empty without one."""
    config = weights.parent / CONFIG_FILE
    described = read_object(config).get(SPEC_FIELD) if config.is_file() else None
    return described if isinstance(described, dict) else {}


def _with_tied_head(model: UPVLA, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add a tied head to a state dict, in which it is stored once, as the embedding."""
    head, embedding = tied_names(model)
    if head and head not in state and embedding in state:
        state[head] = state[embedding]
    return state


def tied_names(model: UPVLA) -> tuple[str | None, str]:
    """Return (name of the head if it is tied to the embedding, else None; name of the embedding)."""
    embedding, head = model.backbone.lm.get_input_embeddings().weight, model.backbone.lm.get_output_embeddings()
    names = [name for name, p in model.named_parameters(remove_duplicate=False) if p is embedding]
    within = {name for name, module in model.named_modules() if module is head}
    tied = next((name for name in names if name.rpartition(".")[0] in within), None)
    return tied, next(name for name in names if name != tied)
