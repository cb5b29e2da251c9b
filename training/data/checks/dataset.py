"""Check robot data against their contract: one set of rules for conversion, ``--verify`` and training.

A finding is gross if data and contract contradict each other (the data are refused), and doubtful if the data are
possible but unlikely (logged once, with an example). Actions are checked in a stream, so that memory does not grow
with the data set. Needs no torch: conversion workers import this module.

Shape letters: N frames, A action size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from common.constants import action_layout, gripper_values

Table = npt.NDArray[np.float32]  # [N, A]
Place = Callable[[int], str]  # number of a row -> its name in a message

TOLERANCE = 1e-4
"""Tolerance of bounds."""
FAR = 2.0
"""A relative action above this is not explained by rounding of a step of 1."""
IMPOSSIBLE = 10.0
"""A single relative action above this is refused."""
RARE = 0.01
"""Fraction of frames that may be doubtful outliers."""
STEP_M, STEP_RAD = 0.5, np.pi
"""Largest step of a robot arm, in metres and radians."""
MIN_FRAMES = 100
"""Fewer frames are not enough to check a distribution."""
SMOOTH = 0.05
"""Largest change of a pose in metres between two frames at 5 Hz or more."""
_REMEDY = (
    "convert them, declare what they are in dataset_contract.json (action.kind absolute for poses), or, if 1.0 is the "
    "declared unit, set dataset.action_normalisation"
)


@dataclass(frozen=True)
class Finding:
    """A problem of the data. ``where``: an example (a file, or an episode and frame)."""

    kind: str
    where: str
    what: str
    gross: bool

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


def require(findings: Iterable[Finding]) -> list[str]:
    """Return one line for each doubtful finding. Raises ValueError with the first gross one."""
    doubtful = []
    for finding in findings:
        if finding.gross:
            raise ValueError(str(finding))
        doubtful.append(str(finding))
    return doubtful


def actions_digest(actions: Table) -> str:
    """Return the digest of a table of actions; ``ActionChecks.digest`` is that of a stream."""
    return hashlib.blake2b(np.ascontiguousarray(actions, dtype=np.float32).tobytes(), digest_size=16).hexdigest()


def row_faults(actions: npt.NDArray[Any], action: Mapping[str, Any]) -> Iterator[tuple[int, str]]:
    """Yield (row, fault) for each of the actions [N, A] that violates the declaration ``action``."""
    finite = np.isfinite(actions).all(axis=1)
    values, layout = gripper_values(action["gripper"]), action_layout(action)
    motion = np.abs(np.where(finite[:, None], actions, 0)[:, list(layout.motion)])
    beyond = (motion > 1 + TOLERANCE).any(axis=1) & (action["kind"] != "absolute")
    grip = actions[:, list(layout.gripper)]
    off = _gripper_errors(grip, values)
    for row in np.flatnonzero(~finite | beyond | (off > TOLERANCE)).tolist():
        if not finite[row]:
            yield row, "holds a number that is not finite"
        elif beyond[row]:
            yield row, f"{np.array2string(actions[row], precision=3)} passes 1"
        else:
            found = " and ".join(f"{number:g}" for number in grip[row])
            yield row, f"the gripper is {found}; it must be {' or '.join(f'{v:g}' for v in values or ())}"


def _gripper_errors(grip: npt.NDArray[Any], values: tuple[float, float] | None) -> npt.NDArray[Any]:
    """Return how far each row of gripper commands [N, G] is from the declared ``values``, by its worst gripper [N]."""
    if values is None or not grip.shape[1]:
        return np.zeros(len(grip))
    return np.asarray(np.abs(grip[:, :, None] - np.asarray(values)).min(axis=2).max(axis=1))


@dataclass
class _Worst:
    """Number of rows that break a rule, and the worst of them."""

    count: int = 0
    size: float = 0.0
    where: str = ""
    actions: str = ""

    def add(self, sizes: npt.NDArray[Any], limit: float, table: Table, place: Place) -> None:
        over = sizes > limit
        self.count += int(over.sum())
        row = int(np.argmax(sizes))
        if sizes[row] > max(limit, self.size):
            self.size, self.where = float(sizes[row]), place(row)
            self.actions = np.array2string(table[row], precision=3, suppress_small=True)


def _largest(table: npt.NDArray[Any], indices: Sequence[int]) -> npt.NDArray[Any]:
    """Return the largest absolute value of each row [N] at some indices; 0 if there are none."""
    return np.asarray(np.abs(table[:, list(indices)]).max(axis=1, initial=0))


@dataclass
class ActionChecks:
    """Checks a stream of actions.

    ``action``: the contract's declaration. ``bounded``: relative numbers must be in [-1, 1] (False if they are
    normalised). ``tokens``: actions are trained on as tokens, which end at -1 and 1.
    """

    action: Mapping[str, Any]
    bounded: bool = True
    tokens: bool = False
    frames: int = field(default=0, init=False)
    _beyond: _Worst = field(default_factory=_Worst)
    _leaps: _Worst = field(default_factory=_Worst)
    _jumps: _Worst = field(default_factory=_Worst)
    _bad: _Worst = field(default_factory=_Worst)
    _between: _Worst = field(default_factory=_Worst)  # gripper numbers that are neither of the two declared
    low: npt.NDArray[np.float64] = field(init=False)
    high: npt.NDArray[np.float64] = field(init=False)
    _size_sum: float = 0.0
    _pairs: int = 0
    _smooth: int = 0
    _moving: int = 0
    _last: Table | None = None
    _digest: Any = field(default_factory=lambda: hashlib.blake2b(digest_size=16))

    def __post_init__(self) -> None:
        self.layout = action_layout(self.action)
        self.low, self.high = np.full(self.layout.dim, np.inf), np.full(self.layout.dim, -np.inf)

    @property
    def relative(self) -> bool:
        """True for relative actions."""
        return str(self.action["kind"]) != "absolute"

    @property
    def digest(self) -> str:
        """Digest of this stream of actions."""
        return str(self._digest.hexdigest())

    def add(self, table: Table, place: Place, begins: npt.NDArray[np.bool_] | None = None) -> None:
        """Check the next rows [N, A]. ``begins`` [N]: True at the first frame of an episode (default: row 0 only)."""
        table = np.ascontiguousarray(table, dtype=np.float32)
        if table.ndim != 2 or table.shape[1] != self.layout.dim or not len(table):
            raise ValueError(f"{place(0)}: actions must be [N, {self.layout.dim}], found {list(table.shape)}")
        self._digest.update(table.tobytes())
        self.frames += len(table)
        self._bad.add((~np.isfinite(table)).any(axis=1).astype(float), 0.5, table, place)
        table = np.nan_to_num(table)
        sizes = _largest(table, self.layout.motion)
        self.low, self.high = np.minimum(self.low, table.min(axis=0)), np.maximum(self.high, table.max(axis=0))
        self._size_sum += float(_largest(table, self.layout.position).sum())
        self._beyond.add(sizes, 1 + TOLERANCE, table, place)
        if self.relative:
            position, rotation = _largest(table, self.layout.position), _largest(table, self.layout.rotation)
            metres = position * float(self.action["position_m_per_unit"]) / STEP_M
            turns = rotation * float(self.action["rotation_rad_per_unit"]) / STEP_RAD
            self._leaps.add(np.maximum(metres, turns), 1 + TOLERANCE, table, place)
        self._add_pairs(table, place, begins)
        self._add_gripper(table, place)

    def _add_pairs(self, table: Table, place: Place, begins: npt.NDArray[np.bool_] | None) -> None:
        """Add the changes of position between consecutive frames of an episode."""
        before = table[:1] if self._last is None else self._last
        first = np.zeros(len(table), bool) if begins is None else begins.copy()
        first[0] |= self._last is None or begins is None
        change = _largest(np.diff(table, axis=0, prepend=before), self.layout.position)
        change[first] = 0
        self._last = table[-1:]
        self._pairs += int((~first).sum())
        self._smooth += int((change[~first] <= SMOOTH).sum())
        self._moving += int((change > 1e-6).sum())
        if not self.relative:
            self._jumps.add(change * float(self.action["position_m_per_unit"]) / STEP_M, 1, table, place)

    def _add_gripper(self, table: Table, place: Place) -> None:
        off = _gripper_errors(table[:, list(self.layout.gripper)], gripper_values(self.action["gripper"]))
        self._between.add(off, TOLERANCE, table, place)

    def findings(self) -> Iterator[Finding]:
        """Yield the findings, the worst first."""
        if self._bad.count:
            yield self._finding("action out of range", self._bad, "holds a number that is not finite", True)
        if not self.frames:
            return
        if self.relative:
            yield from self._range()
        elif self._jumps.count > RARE * self.frames:
            what = f"poses jump by more than {STEP_M} m from one frame to the next, but the contract declares poses"
            yield self._finding("action out of range", self._jumps, what, True)
        yield from self._gripper()
        yield from self._distribution()

    def _range(self) -> Iterator[Finding]:
        share = self._beyond.count / self.frames
        if self._leaps.count > RARE * self.frames or self._leaps.size > IMPOSSIBLE:
            units = f"{self.action['position_m_per_unit']} m and {self.action['rotation_rad_per_unit']} rad a unit"
            what = f"is far out of [-1, 1]: more than {STEP_M} m or half a turn in one step at {units}"
            yield self._finding("action out of range", self._leaps, f"{what}; {_REMEDY}", True)
        elif self._beyond.count and self.bounded:
            far = self._beyond.size > IMPOSSIBLE or (share > RARE and (self._beyond.size > FAR or self.tokens))
            what = f"relative actions lie in [-1, 1], the largest number is {self._beyond.size:.4g}"
            yield self._finding("action out of range", self._beyond, f"{what}; {_REMEDY}", far)

    def _gripper(self) -> Iterator[Finding]:
        values = gripper_values(self.action["gripper"])
        if values is None or not self._between.count:
            return
        grippers = list(self.layout.gripper)
        low, high = float(self.low[grippers].min()), float(self.high[grippers].max())
        middle, width = sum(values) / 2, abs(values[0] - values[1])
        outside = low < min(values) - 0.01 * width or high > max(values) + 0.01 * width
        one_sided = low < high and (low >= middle - TOLERANCE or high <= middle + TOLERANCE)
        what = (
            f"the gripper is neither {values[0]:g} nor {values[1]:g} in {self._between.count} of {self.frames} frames "
            f"(its numbers go from {low:.4g} to {high:.4g}), but the contract declares {self.action['gripper']!r}; "
            "convert an opening or a 0/1 command by a threshold, or declare the two numbers in dataset_contract.json"
        )
        yield Finding("gripper", self._between.where, what, outside or one_sided)

    def _distribution(self) -> Iterator[Finding]:
        if not self.relative or self._pairs < MIN_FRAMES or not self.layout.position:
            return
        size = self._size_sum / self.frames
        motion = list(self.layout.motion)
        largest = float(max(self.high[motion].max(), -self.low[motion].min()))
        if self._smooth > 0.98 * self._pairs and self._moving > 0.5 * self._pairs and size > 0.1:
            what = (
                f"the position changes by less than {SMOOTH} between frames and is {size:.2f} in the mean, as absolute "
                "poses are, but the contract declares relative actions; convert them if they are poses"
            )
            yield Finding("absolute poses", "actions", what, False)
        if 0 < largest < SMOOTH:
            metres = largest * float(self.action["position_m_per_unit"])
            what = (
                f"no number passes {largest:.3g}, which is {1000 * metres:.2g} mm or less in one step; if the "
                "actions are in metres and radians, declare 1.0 of each a unit, or convert them"
            )
            yield Finding("action units", "actions", what, False)

    def _finding(self, kind: str, worst: _Worst, what: str, gross: bool) -> Finding:
        return Finding(
            kind, worst.where, f"action {worst.actions} {what} ({worst.count} of {self.frames} frames)", gross
        )
