"""The contract of a robot data set: its cameras, the meaning of an action, and the statistics of its numbers.

``dataset_contract.json`` is next to ``dataset_info.json``:

    {"format": 1,
     "cameras": {"rgb_static": [200, 200], "rgb_gripper": [84, 84]},        # height and width as recorded
     "action": {"kind": "relative", "frame": "world", "position_m_per_unit": 0.02, "rotation_rad_per_unit": 0.05,
                "rotation": "euler_xyz", "gripper": "-1 closed, +1 open", "rate_hz": 30},
     "statistics": {"min": [7 numbers], "max": ..., "mean": ..., "std": ..., "q01": ..., "q99": ...,
                    "frames": 1234, "digest": "..."}}                        # of the actions they were computed from

A robot whose actions are not CALVIN's seven numbers adds to ``action`` its ``dim`` and, as far as they exist, the
``groups`` of indices: ``"dim": 8, "groups": {"position": [0, 1, 2], "rotation": [3, 4, 5, 6], "gripper": [7]}``.

A data set whose frames have a ``state`` declares its numbers (in metres and radians) and their statistics:

    "state": {"dim": 15, "groups": {"position": [0, 1, 2], "rotation": [3, 4, 5], "gripper": [14]},
              "rotation": "euler_xyz", "statistics": {"min": [15 numbers], ...}}

Undeclared states of 15 numbers are CALVIN's ``robot_obs``. ``"action_key": "expert_actions"`` declares that only what
the expert wanted is a label, because a policy made the recorded motion (``preprocess_data/relabel_rollouts.py``).
``"image_rotation": 180`` declares that all images are rotated by half a turn against those of their camera (LIBERO).

Training saves it in the checkpoint, and evaluation compares it with the robot's convention. A folder without one has
CALVIN's conventions, which are the defaults.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from common.constants import CALVIN_ACTION_DIM, CALVIN_LAYOUT, CALVIN_STATE, CALVIN_STATE_DIM, action_layout
from common.files import atomic_path, read_object
from config.schema import ActionKey, ActionNormalisation
from models.action.encoding import ActionScale
from models.action.state import StateConvention
from models.pretrained.model_config import CALVIN_RELATIVE, IMAGE_ROTATIONS
from training.data.checks.dataset import actions_digest
from training.data.episode_index import INDEX_NAME, read_index
from training.data.formats.column_file import Column

CONTRACT_NAME = "dataset_contract.json"
FORMAT = 1
_CHUNK = 1 << 20  # actions read at a time
_KEYS = ("cameras", "action", "statistics", "state", "action_key", "image_rotation")
_ROWS = ("min", "max", "mean", "std", "q01", "q99")


@dataclass(frozen=True)
class Statistics:
    """Statistics of relative actions (or of states) over ``frames`` frames, one number for each of the A dimensions."""

    frames: int
    min: tuple[float, ...]
    max: tuple[float, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    q01: tuple[float, ...]
    q99: tuple[float, ...]
    digest: str = ""  # of the actions; empty if it was not recorded

    @classmethod
    def of(cls, actions: npt.ArrayLike) -> Statistics:
        """Compute the statistics of a table [N, A], N at least 1. Needs memory for one more column."""
        table = np.asarray(actions, dtype=np.float32)
        if table.ndim != 2 or not table.size:
            raise ValueError(f"statistics need actions [N, A] with N and A of 1 or more, got {list(table.shape)}")
        columns = [table[:, dimension].astype(np.float64) for dimension in range(table.shape[1])]
        return cls(
            frames=len(table),
            min=tuple(float(column.min()) for column in columns),
            max=tuple(float(column.max()) for column in columns),
            mean=tuple(float(column.mean()) for column in columns),
            std=tuple(float(column.std()) for column in columns),
            q01=tuple(float(np.quantile(column, 0.01)) for column in columns),
            q99=tuple(float(np.quantile(column, 0.99)) for column in columns),
            digest=actions_digest(table),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the fields with the digits that float32 needs."""
        rows = {name: _rounded(getattr(self, name)) for name in _ROWS}
        return rows | {"frames": self.frames, "digest": self.digest}

    def scale(self, kind: ActionNormalisation, gripper: Sequence[int] = CALVIN_LAYOUT.gripper) -> ActionScale | None:
        """Return the scale of ``dataset.action_normalisation`` to [-1, 1]; None for no normalisation.

        ``gripper``: indices of gripper commands.
        """
        if kind == "none":
            return None
        low, high = (self.min, self.max) if kind == "min_max" else (self.q01, self.q99)
        # A gripper has two positions; percentiles would lose one that is rarer than a hundredth.
        low = tuple(self.min[i] if i in gripper else number for i, number in enumerate(low))
        high = tuple(self.max[i] if i in gripper else number for i, number in enumerate(high))
        return ActionScale(kind, low, high)


@dataclass(frozen=True)
class DataContract:
    """The declarations of a data set.

    ``cameras``: name -> (height, width) as recorded, the static one first, empty if unknown; ``action``: fields as in
    ``policy_rollout.policies.upvla.ActionConvention``; ``state``: ``dim``, ``groups`` and ``rotation`` of the robot's
    state, None if they are not declared; ``action_key``: the only actions that are labels, None if all are;
    ``image_rotation``: degrees by which the images are rotated against those of their camera; ``path``: for messages.
    """

    cameras: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    action: Mapping[str, Any] = field(default_factory=lambda: dict(CALVIN_RELATIVE))
    statistics: Statistics | None = None
    path: Path | None = None
    state: Mapping[str, Any] | None = None
    state_statistics: Statistics | None = None
    action_key: ActionKey | None = None
    image_rotation: int = 0

    def labelled(self, action_key: ActionKey) -> DataContract:
        """Return the contract for a choice of ``dataset.action_key``. Its statistics are those of ``rel_actions``.

        Raises ValueError if these actions are no labels.
        """
        if self.action_key not in (None, action_key):
            raise ValueError(
                f"dataset.action_key={action_key}: {self.path} declares that only {self.action_key} are labels (the "
                f"motions of a policy are not); set dataset.action_key={self.action_key}"
            )
        return self if action_key == "rel_actions" else replace(self, statistics=None)

    def require_same(self, other: DataContract) -> None:
        """Raise ValueError with both values if actions mean something else in ``other``, or images are rotated."""
        keys = {**self.action, **other.action}
        pairs = [(f"the action's {key}", self.action.get(key), other.action.get(key)) for key in keys]
        for name, ours, theirs in (*pairs, ("image_rotation", self.image_rotation, other.image_rotation)):
            if ours != theirs:
                raise ValueError(
                    f"{self.path or 'the training data'} declares {name} as {ours!r}, but "
                    f"{other.path or 'the validation data'} as {theirs!r}; convert one of them"
                )

    def for_actions(self, dim: int) -> DataContract:
        """Return the contract with ``action.dim``, which is ``dim``, the size of the data set's actions, if undeclared.

        Raises ``ValueError`` if the contract declares another size.
        """
        declared = self.action.get("dim")
        if declared is None and self.statistics is not None:
            declared = len(self.statistics.min)
        if declared is not None and declared != dim:
            raise ValueError(
                f"{self.path}: action.dim is {declared}, but the actions of dataset_info.json have {dim} numbers; set "
                f"it to {dim}, or convert the data again"
            )
        undeclared = dim != CALVIN_ACTION_DIM and "dim" not in self.action
        return replace(self, action={**self.action, "dim": dim}) if undeclared else self


def read_contract(root: str | os.PathLike[str]) -> DataContract:
    """Return the contract of a data set's folder; CALVIN's if there is none.

    Raises ValueError with the file and the key for a wrong one.
    """
    path = Path(root) / CONTRACT_NAME
    if not path.is_file():
        return DataContract(path=Path(root))
    return _parse(path, path)


def _parse(file: Path, path: Path) -> DataContract:
    """Parse ``file``, which messages call ``path``."""
    content = read_object(file, named=path)
    unknown = sorted(set(content) - {"format", *_KEYS})
    if unknown or content.get("format") != FORMAT:
        what = f"unknown key {unknown[0]!r}" if unknown else f"format {content.get('format')!r}"
        raise ValueError(f"{path}: {what}; allowed: format {FORMAT}, {', '.join(_KEYS)}")
    action, statistics = _action(path, content.get("action", {})), None
    state, state_statistics = _state(path, content.get("state"))
    if content.get("statistics") is not None:
        statistics = _statistics(path, content["statistics"], action.get("dim"))
        if len(statistics.min) != CALVIN_ACTION_DIM:
            action["dim"] = len(statistics.min)
    return DataContract(
        cameras=_cameras(path, content.get("cameras", {})),
        action=action,
        statistics=statistics,
        path=path,
        state=state,
        state_statistics=state_statistics,
        action_key=_choice(path, content, "action_key", None, get_args(ActionKey)),
        image_rotation=_choice(path, content, "image_rotation", 0, IMAGE_ROTATIONS),
    )


def write_contract(
    root: str | os.PathLike[str],
    cameras: Mapping[str, Sequence[int]],
    action: Mapping[str, Any] | None = None,
    actions: npt.ArrayLike | None = None,
    states: npt.ArrayLike | None = None,
    state: Mapping[str, Any] | None = None,
    action_key: ActionKey | None = None,
    image_rotation: int = 0,
) -> DataContract:
    """Write ``<root>/dataset_contract.json``, completely or not at all, and return it.

    Args:
        cameras: name -> (height, width) as recorded, the static camera first.
        action: fields that differ from CALVIN's relative actions (``models.pretrained.model_config.CALVIN_RELATIVE``).
        actions: all relative actions [N, A], for the statistics; None reads them from ``<root>/dataset_info.json``.
        states: all states [N, S], for their statistics; None if the frames have none.
        state: ``dim``, ``groups`` and ``rotation`` of the states, if they are not CALVIN's.
        action_key: the only actions that are labels, if the others are not.
        image_rotation: degrees by which the images are rotated against those of their camera, 0 or 180.
    """
    path = Path(root) / CONTRACT_NAME
    statistics = Statistics.of(_all_actions(root) if actions is None else actions)
    dim = len(statistics.min)
    size = {} if dim == CALVIN_ACTION_DIM else {"dim": dim}
    content = {
        "format": FORMAT,
        "cameras": {name: [int(side) for side in sides] for name, sides in cameras.items()},
        "action": {**CALVIN_RELATIVE, **size, **(action or {})},
        "statistics": statistics.to_json(),
    }
    if states is not None:
        content["state"] = {**(state or CALVIN_STATE), "statistics": Statistics.of(states).to_json()}
    content |= {k: v for k, v in (("action_key", action_key), ("image_rotation", image_rotation)) if v}
    with atomic_path(path) as partial:
        partial.write_text(_format(content), encoding="utf-8")
        return _parse(partial, path)  # raises ValueError for a wrong camera or key before the file takes its name


def action_scale(
    contract: DataContract,
    kind: ActionNormalisation,
    root: str | os.PathLike[str],
    action_key: ActionKey = "rel_actions",
) -> ActionScale | None:
    """Return the scale of ``dataset.action_normalisation``, from the contract's statistics or, if it has none, from
    those of the chosen actions of ``<root>/dataset_info.json``."""
    if kind == "none":
        return None
    statistics = contract.statistics or Statistics.of(_all_actions(root, action_key))
    return statistics.scale(kind, action_layout(contract.for_actions(len(statistics.min)).action).gripper)


def state_convention(contract: DataContract, root: str | os.PathLike[str]) -> StateConvention:
    """Return the convention of a data set's states, with statistics from the contract or, if it has none, from the
    states themselves.

    Raises ValueError if the data set has no states, or if the contract does not declare them.
    """
    column = read_index(root, images=False).states
    if column is None:
        raise ValueError(
            f"model.vla.proprioception=pose reads the robot's state, but the frames of {Path(root) / INDEX_NAME} have "
            "no 'state'; convert the data again (preprocess_data/process_calvin.py writes it), or set "
            "model.vla.proprioception=none"
        )
    size = int(column.array.shape[1])
    declared = contract.state or (CALVIN_STATE if size == CALVIN_STATE_DIM else None)
    where = Path(root) / CONTRACT_NAME
    if declared is None:
        raise ValueError(
            f"{where} does not declare the {size} numbers of a state that model.vla.proprioception=pose reads; add "
            f"'state': {{'dim': {size}, 'groups': ...}}, or set model.vla.proprioception=none"
        )
    if declared["dim"] != size:
        raise ValueError(
            f"{where}: state.dim is {declared['dim']}, but the states of {INDEX_NAME} have {size} numbers; set it to "
            f"{size}, or convert the data again"
        )
    statistics = contract.state_statistics or Statistics.of(_all_rows(column))
    try:
        return StateConvention.of(declared, dict(enumerate(statistics.mean)), dict(enumerate(statistics.std)))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _all_actions(root: str | os.PathLike[str], action_key: ActionKey = "rel_actions") -> npt.NDArray[np.float32]:
    return _all_rows(read_index(root, action_key=action_key).actions)


def _all_rows(column: Column[np.float32]) -> npt.NDArray[np.float32]:
    return np.concatenate([column[start : start + _CHUNK] for start in range(0, len(column), _CHUNK)])


def _cameras(path: Path, found: Any) -> dict[str, tuple[int, int]]:
    if not isinstance(found, dict):
        raise ValueError(f"{path}: cameras must be an object, name -> [height, width], found {found!r}")
    for name, sides in found.items():
        if not (isinstance(sides, list) and len(sides) == 2 and all(isinstance(s, int) and s > 0 for s in sides)):
            raise ValueError(f"{path}: camera {name!r} must be [height, width] in pixels, found {sides!r}")
    return {name: (sides[0], sides[1]) for name, sides in found.items()}


def _action(path: Path, found: Any) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise ValueError(f"{path}: action must be an object, found {found!r}")
    try:
        layout = action_layout(found)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    found = dict(found)
    if layout == CALVIN_LAYOUT:  # as a contract that does not name it
        found.pop("dim", None)
        found.pop("groups", None)
    for name, value in found.items():
        if name in ("dim", "groups"):
            continue
        if name not in CALVIN_RELATIVE:
            raise ValueError(f"{path}: unknown action.{name}; allowed: {', '.join(CALVIN_RELATIVE)}, dim, groups")
        wanted = CALVIN_RELATIVE[name]
        if isinstance(wanted, str) != isinstance(value, str) or isinstance(value, bool):
            raise ValueError(f"{path}: action.{name} must be like {wanted!r}, found {value!r}")
        if not isinstance(value, str) and not (isinstance(value, (int, float)) and value > 0 and math.isfinite(value)):
            raise ValueError(f"{path}: action.{name} must be a positive number, found {value!r}")
    return {**CALVIN_RELATIVE, **found}


def _choice(path: Path, content: Mapping[str, Any], key: str, default: Any, allowed: Sequence[Any]) -> Any:
    found = content.get(key, default)
    if found != default and found not in allowed:
        raise ValueError(f"{path}: {key} must be one of {', '.join(map(str, allowed))}, found {found!r}")
    return found


def _state(path: Path, found: Any) -> tuple[dict[str, Any] | None, Statistics | None]:
    """Check the declaration of the robot's state, and its statistics."""
    if found is None:
        return None, None
    if not isinstance(found, dict) or not {"dim", "groups"} <= set(found) <= {*CALVIN_STATE, "statistics"}:
        raise ValueError(f"{path}: state must have dim and groups, and may have rotation and statistics")
    declared = {name: value for name, value in found.items() if name != "statistics"}
    if not isinstance(declared.get("rotation", ""), str):
        raise ValueError(f"{path}: state.rotation must be a text, found {declared['rotation']!r}")
    try:
        dim = action_layout(declared, "state").dim
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    counted = found.get("statistics")
    return declared, None if counted is None else _statistics(path, counted, dim, "state.statistics")


def _statistics(path: Path, found: Any, dim: int | None, name: str = "statistics") -> Statistics:
    """Check the statistics of actions of ``dim`` numbers; None: not declared, then all rows must be of one length."""
    if not isinstance(found, dict) or set(found) - {"digest"} != {"frames", *_ROWS}:
        raise ValueError(f"{path}: {name} must have frames, {', '.join(_ROWS)}")
    if not isinstance(found.get("digest", ""), str):
        raise ValueError(f"{path}: {name}.digest must be a text, found {found['digest']!r}")
    lengths = {len(found[key]) if isinstance(found[key], list) else 0 for key in _ROWS}
    if dim is None:
        dim = lengths.pop() if len(lengths) == 1 else CALVIN_ACTION_DIM
    for key in _ROWS:
        row = found[key]
        if not (
            isinstance(row, list)
            and len(row) == dim
            and all(isinstance(number, (int, float)) and math.isfinite(number) for number in row)
        ):
            raise ValueError(f"{path}: {name}.{key} must be {dim} finite numbers, found {row!r}")
    rows = {key: tuple(float(number) for number in found[key]) for key in _ROWS}
    if any(low > high for low, high in zip(rows["min"] + rows["q01"], rows["max"] + rows["q99"], strict=True)):
        raise ValueError(f"{path}: {name}.min and q01 must not be above max and q99")
    if any(number < 0 for number in rows["std"]):
        raise ValueError(f"{path}: {name}.std must not be negative, found {found['std']!r}")
    return Statistics(frames=int(found["frames"]), **rows, digest=found.get("digest", ""))


def _rounded(numbers: Sequence[float]) -> list[float]:
    """Round to the digits that float32 needs."""
    return [float(str(np.float32(number))) for number in numbers]


def _format(content: Mapping[str, Any]) -> str:
    """Return readable JSON with one line for each part and each statistic."""
    parts = [f"  {json.dumps(name)}: {json.dumps(content[name])}" for name in ("format", "cameras", "action")]
    parts += [f'  "{key}": {json.dumps(content[key])}' for key in ("action_key", "image_rotation") if key in content]
    parts.append('  "statistics": ' + _block(content["statistics"], "  "))
    if "state" in content:
        rows = {name: json.dumps(value) for name, value in content["state"].items() if name != "statistics"}
        lines = [f"    {json.dumps(name)}: {value}" for name, value in rows.items()]
        lines.append('    "statistics": ' + _block(content["state"]["statistics"], "    "))
        parts.append('  "state": {\n' + ",\n".join(lines) + "\n  }")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _block(values: Mapping[str, Any], indent: str) -> str:
    rows = ",\n".join(f"{indent}  {json.dumps(name)}: {json.dumps(value)}" for name, value in values.items())
    return "{\n" + rows + f"\n{indent}}}"
