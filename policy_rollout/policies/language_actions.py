"""Actions as words: a chunk of T relative actions as one short sentence, and back. Imports no torch.

    sentence  = motion {", " motion} [", " gripper] | "stay" [", " gripper]
    motion    = ("right" | "left" | "forward" | "back" | "up" | "down") " " number " cm"
              | ("roll" | "pitch" | "yaw") " " ["-"] number " degrees"
    gripper   = "open" | "close"

A sentence states the sum of the chunk's actions, rounded: +x is right, +y forward and +z up in the frame that the
convention declares (CALVIN: the world, in which the arm faces +y), roll, pitch and yaw are the sums of the three
rotation numbers. Motions of zero are left out. The gripper is the command of the last action. Each axis occurs at most
once; ``describe`` writes them in the order above, ``parse`` accepts any order. The actions of a sentence are T equal
steps. What that loses is measured by ``errors``.

Shape letters: T actions per chunk, A action size, h recorded actions of a chunk (1 to T).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.constants import CALVIN_STATE, CALVIN_STATE_DIM, gripper_values
from policy_rollout.policies.interface import ActionConvention

DIRECTIONS = (("right", "left"), ("forward", "back"), ("up", "down"))
"""Words of each position axis: positive, negative."""
ROTATIONS = ("roll", "pitch", "yaw")
STAY = "stay"
GRIPPER = ("close", "open")
MM, DEGREES = 5.0, 2.0
"""Default resolution of positions, in millimetres, and of rotations."""
CALVIN_GRIPPER_STATE = CALVIN_STATE["groups"]["gripper"][0]
"""Index of the last gripper command in CALVIN's ``robot_obs`` (-1 closed, +1 open)."""

_NUMBER = r"(\d{1,4}(?:\.\d{1,2})?)"
_POSITION = re.compile(rf"({'|'.join(word for pair in DIRECTIONS for word in pair)}) {_NUMBER} cm")
_ROTATION = re.compile(rf"({'|'.join(ROTATIONS)}) (-?){_NUMBER} degrees?")


@dataclass(frozen=True)
class Motion:
    """Content of a sentence: ``centimetres`` and ``degrees`` along the three axes; ``gripper``: ``open``, ``close`` or
    None if the robot has none."""

    centimetres: tuple[float, float, float] = (0.0, 0.0, 0.0)
    degrees: tuple[float, float, float] = (0.0, 0.0, 0.0)
    gripper: str | None = None

    def __str__(self) -> str:
        """Return the sentence."""
        parts = [
            f"{DIRECTIONS[axis][value < 0]} {_text(abs(value))} cm"
            for axis, value in enumerate(self.centimetres)
            if value
        ]
        parts += [f"{ROTATIONS[axis]} {_text(value)} degrees" for axis, value in enumerate(self.degrees) if value]
        parts = parts or [STAY]
        return ", ".join(parts if self.gripper is None else [*parts, self.gripper])


def parse(sentence: str) -> Motion:
    """Return the motion of a sentence. Upper case, extra spaces and a final full stop are accepted.

    Raises ``ValueError`` naming the part that is no motion or occurs twice.
    """
    numbers: dict[str, float] = {}
    gripper = None
    stays = False
    for part in " ".join(sentence.lower().split()).removesuffix(".").split(","):
        part = part.strip()
        if part in GRIPPER and gripper is None:
            gripper = part
        elif part == STAY and not stays:
            stays = True
        else:
            axis, value = _axis(part)
            if axis in numbers:
                raise ValueError(f"{part!r} names an axis twice in {sentence!r}")
            numbers[axis] = value
    if stays == bool(numbers):
        raise ValueError(f"{sentence!r} names no motion" if not numbers else f"{sentence!r} stays and moves")
    x, y, z, roll, pitch, yaw = (numbers.get(axis, 0.0) for axis in (*(pair[0] for pair in DIRECTIONS), *ROTATIONS))
    return Motion((x, y, z), (roll, pitch, yaw), gripper)


def _axis(part: str) -> tuple[str, float]:
    """Return (positive word of the axis, signed number) of one motion."""
    if (found := _POSITION.fullmatch(part)) is not None:
        positive, negative = next(pair for pair in DIRECTIONS if found[1] in pair)
        return positive, float(found[2]) * (-1 if found[1] == negative else 1)
    if (found := _ROTATION.fullmatch(part)) is not None:
        return found[1], float(found[3]) * (-1 if found[2] else 1)
    raise ValueError(f"{part!r} is no motion")


def _text(value: float) -> str:
    """Return a number with at most two decimals."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


@dataclass(frozen=True)
class ActionLanguage:
    """The sentences of one action convention, for chunks of ``act_step`` actions.

    ``mm``, ``degrees``: resolution of the sentences that ``describe`` writes; reading needs neither.

    Raises:
        ValueError: absolute actions, or numbers whose meaning the convention does not declare.
    """

    convention: ActionConvention
    act_step: int
    mm: float = MM
    degrees: float = DEGREES

    def __post_init__(self) -> None:
        layout, given = self.convention.layout, self.convention
        sizes = (len(layout.position), len(layout.rotation), len(layout.gripper))
        if given.kind == "absolute":
            raise ValueError("language actions describe relative actions, and these are absolute")
        if sizes[0] != 3 or sizes[1] not in (0, 3) or sizes[2] > 1 or sum(sizes) != layout.dim:
            raise ValueError(
                f"language actions need 3 numbers of position, 0 or 3 of rotation and at most one gripper; of the "
                f"{layout.dim} numbers of these actions, action.groups declares {sizes[0]}, {sizes[1]} and {sizes[2]}"
            )
        if sizes[2] and gripper_values(given.gripper) is None:
            raise ValueError(f"language actions need a gripper such as '-1 closed, +1 open', not {given.gripper!r}")
        for name, value in (("mm", self.mm), ("degrees", self.degrees)):
            if not 0.1 <= value <= 100:
                raise ValueError(f"the resolution {name}={value} must be between 0.1 and 100")

    def question(self, instruction: str) -> str:
        """Return what the model is asked; the same in training and acting."""
        return f"The task is: {instruction.strip().rstrip('.')}. Which motion comes next, in {self.act_step} steps?"

    def describe(self, actions: NDArray[np.floating]) -> str:
        """Return the sentence of recorded actions [h, A], 1 <= h <= T."""
        layout, given = self.convention.layout, self.convention
        total = np.asarray(actions, dtype=np.float64).sum(axis=0)
        millimetres = total[list(layout.position)] * given.position_m_per_unit * 1000
        x, y, z = (float(value) / 10 for value in np.round(millimetres / self.mm) * self.mm)
        roll = pitch = yaw = 0.0
        if layout.rotation:
            angles = np.degrees(total[list(layout.rotation)] * given.rotation_rad_per_unit)
            roll, pitch, yaw = (float(value) for value in np.round(angles / self.degrees) * self.degrees)
        gripper = None
        if layout.gripper:
            gripper = GRIPPER[int(self.is_open(float(actions[-1][layout.gripper[0]])))]
        return str(Motion((x, y, z), (roll, pitch, yaw), gripper))

    def actions(self, sentence: str) -> NDArray[np.float32]:
        """Return the chunk [T, A] of a sentence: equal steps, clipped to [-1, 1] of a unit each.

        Raises ``ValueError`` for a sentence that is not in the grammar, or does not fit the robot.
        """
        motion, layout, given = parse(sentence), self.convention.layout, self.convention
        if (motion.gripper is None) == bool(layout.gripper):
            raise ValueError(f"{sentence!r} names {'no' if layout.gripper else 'a'} gripper command")
        if any(motion.degrees) and not layout.rotation:
            raise ValueError(f"{sentence!r} turns a robot whose actions have no rotation")
        step = np.zeros(layout.dim)
        step[list(layout.position)] = np.array(motion.centimetres) / 100 / given.position_m_per_unit / self.act_step
        if layout.rotation:
            step[list(layout.rotation)] = np.radians(motion.degrees) / given.rotation_rad_per_unit / self.act_step
        step[list(layout.motion)] = step[list(layout.motion)].clip(-1, 1)
        if motion.gripper is not None:
            step[layout.gripper[0]] = self._gripper_number(motion.gripper)
        return np.tile(step.astype(np.float32), (self.act_step, 1))

    def no_motion(self, state: NDArray[np.floating] | None = None) -> NDArray[np.float32]:
        """Return a chunk [T, A] that stays. The gripper keeps the command of CALVIN's ``robot_obs`` (``state``), and
        opens if that is not known."""
        if not self.convention.layout.gripper:
            return self.actions(STAY)
        closed = state is not None and len(state) == CALVIN_STATE_DIM and state[CALVIN_GRIPPER_STATE] < 0
        return self.actions(f"{STAY}, {GRIPPER[not closed]}")

    def is_open(self, number: float) -> bool:
        """Return whether a gripper command is nearer to open than to closed."""
        closed, opened = gripper_values(self.convention.gripper) or (-1.0, 1.0)
        return abs(number - opened) <= abs(number - closed)

    def _gripper_number(self, word: str) -> float:
        closed, opened = gripper_values(self.convention.gripper) or (-1.0, 1.0)
        return opened if word == "open" else closed


@dataclass(frozen=True)
class LanguageErrors:
    """What sentences lose of recorded chunks: of the pose after the chunk, and on the way there.

    Millimetres of the distance of the hand, degrees of the largest of three angles, mean and maximum over chunks;
    ``gripper``: share of steps with another gripper command.
    """

    chunks: int
    end_mm: tuple[float, float]
    path_mm: tuple[float, float]
    end_degrees: tuple[float, float]
    gripper: float

    def __str__(self) -> str:
        return (
            f"{self.chunks} chunks: hand {self.end_mm[0]:.1f} mm off at the end (at most {self.end_mm[1]:.1f}), "
            f"{self.path_mm[0]:.1f} mm at the worst step (at most {self.path_mm[1]:.1f}); rotation "
            f"{self.end_degrees[0]:.1f} degrees (at most {self.end_degrees[1]:.1f}); another gripper command in "
            f"{100 * self.gripper:.1f} % of the steps"
        )


def errors(language: ActionLanguage, chunks: Sequence[NDArray[np.floating]]) -> LanguageErrors:
    """Return what the sentences of recorded chunks, each [h, A], lose."""
    layout, given = language.convention.layout, language.convention
    position, rotation = list(layout.position), list(layout.rotation)
    end, path, turned, gripper = [], [], [], []
    for recorded in chunks:
        padded = np.zeros((language.act_step, layout.dim))
        padded[: len(recorded)] = recorded
        apart = np.cumsum(language.actions(language.describe(recorded)) - padded, axis=0)  # [T, A]
        away = np.linalg.norm(apart[:, position], axis=1) * given.position_m_per_unit * 1000
        end.append(away[-1])
        path.append(away.max())
        turned.append(np.degrees(np.abs(apart[-1, rotation]).max(initial=0.0) * given.rotation_rad_per_unit))
        if layout.gripper:
            commands = recorded[:, layout.gripper[0]]
            spoken = language.is_open(float(commands[-1]))
            gripper.append(np.mean([language.is_open(float(number)) != spoken for number in commands]))
    return LanguageErrors(
        len(chunks),
        (float(np.mean(end)), float(np.max(end))),
        (float(np.mean(path)), float(np.max(path))),
        (float(np.mean(turned)), float(np.max(turned))),
        float(np.mean(gripper)) if gripper else 0.0,
    )
