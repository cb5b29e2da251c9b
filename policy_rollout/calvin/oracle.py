"""The task oracle: decides whether a task was done between two `env.get_info()` dictionaries.

It is used for the real CALVIN and for the embedded desk, and gives the verdicts of calvin_env's `Tasks` (envs/tasks.py
at 797142c), quirks included: success rates are comparable only with the same oracle. Revisions of calvin_env before
37c8abe (February 2022) have other rules for pushes and lifts. tests/calvin/test_oracle_vectors.py compares verdicts.

Entries of an info dictionary that are read:
    robot_info: uid, contacts
    scene_info: fixed_objects[name]: uid, links {link name: id}
                movable_objects[name]: uid, current_pos [m], current_orn (quaternion xyzw), contacts,
                                       current_lin_vel [m/s], current_ang_vel [rad/s]
                doors[name]: current_state [m];  lights[name]: logical_state 0 | 1
A contact is a tuple of pybullet's getContactPoints: [2] is the other body's uid, [4] the other body's link.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any

from policy_rollout.calvin.tasks import CALVIN_TASKS

Info = Mapping[str, Any]
Criterion = Callable[[Info, Info], bool]

VERSION = 2
"""Version of the verdicts in the stamp of records. Increase it whenever a verdict changes."""


class TaskOracle:
    """Evaluates tasks by a table in CALVIN's form.

    Raises ValueError naming the task for an unknown function or invalid arguments in the table.
    """

    def __init__(self, table: Mapping[str, Sequence[Any]] = CALVIN_TASKS) -> None:
        self._criteria: dict[str, Criterion] = {task: _criterion(task, row) for task, row in table.items()}

    def tasks_done(self, start_info: Info, end_info: Info, among: Iterable[str] | None = None) -> set[str]:
        """Return the tasks (of `among`, or all) that were done between `start_info` and `end_info`."""
        names = self._criteria if among is None else among
        return {task for task in names if self.done(task, start_info, end_info)}

    def done(self, task: str, start_info: Info, end_info: Info) -> bool:
        """Return whether `task` was done between `start_info` and `end_info`. Raises ValueError for an unknown task."""
        criterion = self._criteria.get(task)
        if criterion is None:
            raise ValueError(f"unknown task {task!r}; this oracle has: {', '.join(self._criteria)}")
        return criterion(start_info, end_info)


def _criterion(task: str, row: Sequence[Any]) -> Criterion:
    if isinstance(row, str) or not row:
        raise ValueError(f"task {task!r}: {row!r} is not a list [function, *arguments]")
    name, arguments = row[0], row[1:]
    kind = FUNCTIONS.get(name)
    if kind is None:
        raise ValueError(f"task {task!r}: unknown function {name!r}; known are {', '.join(FUNCTIONS)}")
    allowed = fields(kind)
    needed = sum(field.default is MISSING for field in allowed)
    if not needed <= len(arguments) <= len(allowed):
        signature = ", ".join(field.name for field in allowed)
        raise ValueError(f"task {task!r}: {name}({signature}) takes {needed} to {len(allowed)}, got {len(arguments)}")
    try:
        for field, value in zip(allowed, arguments, strict=False):  # defaults may be omitted
            _check_argument(field.name, str(field.type), value)
        criterion: Criterion = kind(*arguments)
    except ValueError as error:
        raise ValueError(f"task {task!r}: {name}{tuple(arguments)}: {error}") from error
    return criterion


def _check_argument(name: str, annotation: str, value: Any) -> None:
    """Raise ValueError if `value` is not of the type of the field's annotation."""
    if annotation in ("int", "float"):
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        _require(number, f"{name} is {value!r}; it must be a finite number")
    elif not (isinstance(value, str) or (value is None and "None" in annotation)):
        is_list = "Sequence" in annotation and isinstance(value, Sequence) and bool(value)
        is_named = is_list and all(isinstance(item, str) for item in value)
        _require(
            is_named, f"{name} is {value!r}; it must be a name{' or a list of names' * ('Sequence' in annotation)}"
        )


# ---- the functions of the table: one class each; its fields are the arguments in CALVIN's order ----


@dataclass(frozen=True)
class RotateObject:
    """Turned by more than `z_degrees` about z (its sign is the direction), hardly tilted, hardly moved, set down.

    The turn is the rotation from start to end pose, so 270 degrees to the left counts as 90 to the right.
    """

    obj_name: str
    z_degrees: float
    x_y_threshold: float = 30  # degrees
    z_threshold: float = 180  # degrees
    movement_threshold: float = 0.1  # metres, any direction

    def __post_init__(self) -> None:
        _require(self.z_degrees != 0, "z_degrees must not be 0: its sign is the direction")

    def __call__(self, start: Info, end: Info) -> bool:
        before, after = _movable(start, self.obj_name), _movable(end, self.obj_name)
        if math.dist(before["current_pos"], after["current_pos"]) > self.movement_threshold:
            return False
        if not _bodies(after) - {_robot(start)}:  # in the air, or in contact with the gripper only
            return False
        x, y, z = _rotation_degrees(before["current_orn"], after["current_orn"])
        towards = z if self.z_degrees > 0 else -z
        upright = abs(x) < self.x_y_threshold and abs(y) < self.x_y_threshold
        return abs(self.z_degrees) < towards < self.z_threshold and upright


@dataclass(frozen=True)
class PushObject:
    """Displaced by more than `x_direction` or `y_direction` metres, and still in contact with the same surface.

    Contacts are (body, link) pairs without those of the robot. There must be some at the start, and all of them must
    exist at the end, possibly with others (a block that was pushed against another one).
    """

    obj_name: str
    x_direction: float
    y_direction: float

    def __post_init__(self) -> None:
        _require((self.x_direction == 0) != (self.y_direction == 0), "exactly one of the two directions must be 0")

    def __call__(self, start: Info, end: Info) -> bool:
        before, after = _movable(start, self.obj_name), _movable(end, self.obj_name)
        surface = _links(before, without=_robot(start))
        if not surface or not surface <= _links(after, without=_robot(start)):
            return False
        axis, threshold = (0, self.x_direction) if self.x_direction else (1, self.y_direction)
        return _beyond(after["current_pos"][axis] - before["current_pos"][axis], threshold)


@dataclass(frozen=True)
class LiftObject:
    """Raised by more than `z_direction` metres, and in contact with the robot only at the end.

    With a surface, the block must be in contact with that body (and link) at the start, possibly also with the robot.
    """

    obj_name: str
    z_direction: float
    surface_body: str | None = None
    surface_link: str | None = None

    def __post_init__(self) -> None:
        _require(self.z_direction > 0, "z_direction must be above 0")

    def __call__(self, start: Info, end: Info) -> bool:
        before, after = _movable(start, self.obj_name), _movable(end, self.obj_name)
        return bool(
            after["current_pos"][2] - before["current_pos"][2] > self.z_direction
            and _bodies(after) == {_robot(start)}
            and (self.surface_body is None or _rests_on(before, start, self.surface_body, self.surface_link))
        )


@dataclass(frozen=True)
class PlaceObject:
    """A block held by the robot only is released and in contact with `dest_body` (and its link `dest_link`)."""

    dest_body: str
    dest_link: str | None = None

    def __call__(self, start: Info, end: Info) -> bool:
        grasped = _bodies(start["robot_info"])
        if len(grasped) != 1 or grasped & _bodies(end["robot_info"]):
            return False
        names = [name for name, block in _scene(start)["movable_objects"].items() if block["uid"] in grasped]
        if len(names) != 1 or _bodies(_movable(start, names[0])) != {_robot(start)}:
            return False
        return _rests_on(_movable(end, names[0]), end, self.dest_body, self.dest_link)


@dataclass(frozen=True)
class PushObjectInto:
    """The block (or one of the blocks) moves from `src_link` to `dest_link`.

    Its only contact at the start is the source, so the robot does not hold it. The original intends the same for the
    end but compares a body's uid with (body, link) pairs, which are never equal: the robot may be in contact there.
    """

    obj_name: str | Sequence[str]
    src_body: str
    src_link: str
    dest_body: str
    dest_link: str

    def __call__(self, start: Info, end: Info) -> bool:
        names = (self.obj_name,) if isinstance(self.obj_name, str) else self.obj_name
        return any(self._has_moved(name, start, end) for name in names)

    def _has_moved(self, name: str, start: Info, end: Info) -> bool:
        before, after = _movable(start, name), _movable(end, name)
        source, target = _link(start, self.src_body, self.src_link), _link(end, self.dest_body, self.dest_link)
        return _links(before) == {source} and target in _links(after)


@dataclass(frozen=True)
class MoveDoorRel:
    """The joint moved by more than `threshold` metres (its sign is the direction)."""

    joint_name: str
    threshold: float

    def __post_init__(self) -> None:
        _require(self.threshold != 0, "threshold must not be 0: its sign is the direction")

    def __call__(self, start: Info, end: Info) -> bool:
        return _beyond(_joint(end, self.joint_name) - _joint(start, self.joint_name), self.threshold)


@dataclass(frozen=True)
class MoveDoorAbs:
    """The joint went from beyond `start_threshold` to beyond `end_threshold`, in that direction."""

    joint_name: str
    start_threshold: float
    end_threshold: float

    def __post_init__(self) -> None:
        _require(self.start_threshold != self.end_threshold, "the two thresholds must differ")

    def __call__(self, start: Info, end: Info) -> bool:
        before, after = _joint(start, self.joint_name), _joint(end, self.joint_name)
        if self.start_threshold < self.end_threshold:
            return before < self.start_threshold and after > self.end_threshold
        return before > self.start_threshold and after < self.end_threshold


@dataclass(frozen=True)
class ToggleLight:
    """The light's logical state (0 or 1) went from `start_state` to `end_state`."""

    light_name: str
    start_state: int
    end_state: int

    def __post_init__(self) -> None:
        _require(self.start_state != self.end_state, "the two states must differ")

    def __call__(self, start: Info, end: Info) -> bool:
        before = _entry(start, "lights", self.light_name)["logical_state"]
        after = _entry(end, "lights", self.light_name)["logical_state"]
        return bool(before == self.start_state and after == self.end_state)


@dataclass(frozen=True)
class StackObjects:
    """A block without contact to blocks comes to rest on blocks only."""

    max_vel: float = 1  # m/s and rad/s, per component

    def __call__(self, start: Info, end: Info) -> bool:
        blocks = _block_uids(start)
        return any(
            not _bodies(before) & blocks and _on_blocks_only(after, blocks) and _is_slow(after, self.max_vel)
            for before, after in _pairs(start, end)
        )


@dataclass(frozen=True)
class UnstackObjects:
    """A block that rested on blocks only has no contact to blocks (it may be in the gripper)."""

    max_vel: float = 1  # m/s and rad/s, per component, at the start

    def __call__(self, start: Info, end: Info) -> bool:
        blocks = _block_uids(start)
        return any(
            _on_blocks_only(before, blocks) and not _bodies(after) & blocks and _is_slow(before, self.max_vel)
            for before, after in _pairs(start, end)
        )


FUNCTIONS: dict[str, Any] = {
    "rotate_object": RotateObject,
    "push_object": PushObject,
    "lift_object": LiftObject,
    "place_object": PlaceObject,
    "push_object_into": PushObjectInto,
    "move_door_rel": MoveDoorRel,
    "move_door_abs": MoveDoorAbs,
    "toggle_light": ToggleLight,
    "stack_objects": StackObjects,
    "unstack_objects": UnstackObjects,
}


# ---- reading an info dictionary ----


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _beyond(change: float, threshold: float) -> bool:
    """Return whether `change` exceeds `threshold` in the threshold's direction."""
    return bool(change > threshold if threshold > 0 else change < threshold)


def _scene(info: Info) -> Info:
    scene: Info | None = info.get("scene_info")
    if scene is None:
        raise ValueError("this info dictionary has no 'scene_info'; make the environment with use_scene_info=True")
    return scene


def _entry(info: Info, group: str, name: str) -> Info:
    entries = _scene(info)[group]
    if name not in entries:
        raise ValueError(f"info['scene_info'][{group!r}] has no {name!r}; it has {', '.join(map(repr, entries))}")
    entry: Info = entries[name]
    return entry


def _movable(info: Info, name: str) -> Info:
    return _entry(info, "movable_objects", name)


def _joint(info: Info, name: str) -> float:
    state = _entry(info, "doors", name)["current_state"]
    return float(state[0]) if isinstance(state, Sequence) else float(state)


def _robot(info: Info) -> int:
    uid: int = info["robot_info"]["uid"]
    return uid


def _bodies(entry: Info) -> set[int]:
    """Return the uids of the bodies in contact with an entry."""
    return {contact[2] for contact in entry["contacts"]}


def _links(entry: Info, without: int | None = None) -> set[tuple[int, int]]:
    """Return (uid, link) of all contacts of an entry, except of body `without`."""
    return {(contact[2], contact[4]) for contact in entry["contacts"] if contact[2] != without}


def _link(info: Info, body: str, link: str) -> tuple[int, int]:
    entry = _entry(info, "fixed_objects", body)
    if link not in entry["links"]:
        raise ValueError(f"fixed object {body!r} has no link {link!r}; it has {', '.join(map(repr, entry['links']))}")
    return entry["uid"], entry["links"][link]


def _rests_on(entry: Info, info: Info, body: str, link: str | None) -> bool:
    if link is None:
        return _entry(info, "fixed_objects", body)["uid"] in _bodies(entry)
    return _link(info, body, link) in _links(entry)


def _block_uids(info: Info) -> set[int]:
    return {block["uid"] for block in _scene(info)["movable_objects"].values()}


def _pairs(start: Info, end: Info) -> list[tuple[Info, Info]]:
    """Return each block's entries at the start and at the end."""
    return [(block, _movable(end, name)) for name, block in _scene(start)["movable_objects"].items()]


def _on_blocks_only(entry: Info, blocks: set[int]) -> bool:
    touched = _bodies(entry)
    return bool(touched) and touched <= blocks


def _is_slow(entry: Info, max_vel: float) -> bool:
    speeds = (*entry["current_lin_vel"], *entry["current_ang_vel"])
    return all(abs(component) < max_vel for component in speeds)


def _rotation_degrees(start_orn: Sequence[float], end_orn: Sequence[float]) -> tuple[float, float, float]:
    """Return the rotation between two orientations (quaternions xyzw) as angles about fixed x, y, z axes, degrees."""
    ax, ay, az, aw = end_orn
    bx, by, bz, bw = -start_orn[0], -start_orn[1], -start_orn[2], start_orn[3]  # the conjugate inverts the start
    w = aw * bw - ax * bx - ay * by - az * bz
    x = aw * bx + ax * bw + ay * bz - az * by
    y = aw * by - ax * bz + ay * bw + az * bx
    z = aw * bz + ax * by - ay * bx + az * bw
    norm = w * w + x * x + y * y + z * z
    about_x = math.atan2(2 * (w * x + y * z), norm - 2 * (x * x + y * y))
    about_y = math.asin(max(-1.0, min(1.0, 2 * (w * y - z * x) / norm)))
    about_z = math.atan2(2 * (w * z + x * y), norm - 2 * (y * y + z * z))
    return math.degrees(about_x), math.degrees(about_y), math.degrees(about_z)
