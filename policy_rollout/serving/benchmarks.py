"""Conventions of vla-eval's benchmarks: what they execute and observe, and which models they may run.

vla-eval's client names its benchmark in hello, but not the benchmark's conventions. They are listed here as the
classes of vla-eval 0.8.0 and the simulators behind them have them; docs/libero.md names the sources.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from common.constants import ACTION_GROUPS, CAMERAS
from policy_rollout.policies.action_units import CONVERTED_ROTATIONS, METRES
from policy_rollout.policies.interface import (
    ROBOT_OBS,
    ActionConvention,
    Policy,
    StateLayout,
    image_rotation_of,
    state_read_by,
)
from policy_rollout.serving.wire import WireError


@dataclass(frozen=True)
class Benchmark:
    """A benchmark, and the models that it may run.

    ``key``: part of its import path; ``action``: what it executes, None if unknown; ``kinds``: of the actions that it
    runs, if they are more than its own; ``cameras``: its name of each view; ``state``: the state that it sends, None if
    it is not compared; ``state_format``: vla-eval's name for it; ``image_rotation``: degrees by which it rotates its
    camera's images, None if unknown; ``params``: arguments for its constructor; ``tasks``: start of the names of tasks
    for which all this holds.
    """

    key: str
    title: str
    action: ActionConvention | None = None
    kinds: tuple[str, ...] = ()
    cameras: Mapping[str, str] = field(default_factory=lambda: {camera: camera for camera in CAMERAS})
    state: StateLayout | None = None
    state_format: str = ""
    image_rotation: int | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    tasks: str = ""

    def executed(self, convention: ActionConvention) -> ActionConvention:
        """Return the convention of the actions that are sent for a model's: metres and radians if it is unknown."""
        return replace(METRES, rotation=convention.rotation) if self.action is None else self.action

    def require(self, policy: Policy) -> None:
        """Raise `WireError` naming both sides if a policy does not fit. Units, gripper signs and rotations of images
        are converted and may differ; rates are set by the simulator."""
        if self.action is None:
            return
        ours, theirs, layout = policy.convention, self.action, policy.convention.layout
        rotations = [theirs.rotation, *(name for name, other in CONVERTED_ROTATIONS if other == theirs.rotation)]
        for name, found, allowed in (
            ("kind", ours.kind, self.kinds or (theirs.kind,)),
            ("frame", ours.frame, (theirs.frame,)),
            ("rotation", ours.rotation, rotations),
            ("groups", {group: list(getattr(layout, group)) for group in ACTION_GROUPS}, [_groups(theirs)]),
        ):
            if found not in allowed:
                choices = " or ".join(map(str, allowed))
                raise WireError(f"{self.title} executes actions with {name} {choices}, this model's are {found}")
        if not set(policy.cameras) <= set(self.cameras):
            raise WireError(
                f"{self.title} has the cameras {', '.join(self.cameras.values())}, this model reads "
                f"{len(policy.cameras)} views ({', '.join(policy.cameras)}); train with model.vla.num_view=1"
            )
        state = state_read_by(policy)
        if state is not None and self.state is not None and not _has(self.state, state):
            raise WireError(f"{self.title} gives the state {self.state}; this model reads another one, {state}")

    def require_task(self, name: object) -> None:
        """Raise `WireError` if a task is of another robot than the one whose conventions are listed."""
        if isinstance(name, str) and not name.startswith(self.tasks):
            raise WireError(f"{self.title}: only tasks {self.tasks}* are supported, {name[:60]} is of another robot")

    def turns_images(self, policy: Policy) -> bool:
        """Return whether images must be rotated by half a turn for a policy."""
        ours = image_rotation_of(policy)
        return None not in (ours, self.image_rotation) and ours != self.image_rotation

    def describe_state(self, state: StateLayout) -> dict[str, Any]:
        """Return ``dims`` and ``format`` of vla-eval's specification of a state that a policy reads."""
        if self.state is not None:
            return {"dims": self.state.dim, "format": self.state_format}
        if state == ROBOT_OBS:
            return {"dims": len(CALVIN_STATES), "format": "eef_pos3_euler3_gripper2"}
        return {"dims": state.dim, "format": "raw"}


def _groups(convention: ActionConvention) -> dict[str, list[int]]:
    return {group: list(getattr(convention.layout, group)) for group in ACTION_GROUPS}


def _has(given: StateLayout, wanted: StateLayout) -> bool:
    """Return whether a state has all numbers that are wanted, with the same meaning."""
    numbers = all({*getattr(wanted, group)} <= {*getattr(given, group)} for group in ACTION_GROUPS)
    return numbers and given.dim == wanted.dim and (not wanted.rotation or given.angles == wanted.angles)


CALVIN_STATES = (0, 1, 2, 3, 4, 5, 6, 14)
"""Indices of the numbers of ``robot_obs`` that vla-eval's CALVIN sends: all but the joints."""
UNKNOWN = Benchmark("", "the benchmark")
"""Actions in metres and radians, the gripper +1 open; nothing is compared."""
BENCHMARKS = (
    Benchmark("calvin", "CALVIN", METRES, image_rotation=0),
    Benchmark(
        "libero",
        "LIBERO",
        # robosuite's OSC_POSE: +-1 is 0.05 m and 0.5 rad, added to the measured pose
        ActionConvention("relative_to_measured", "world", 0.05, 0.5, "axis_angle", "-1 open, +1 closed", 20),
        cameras={"rgb_static": "agentview", "rgb_gripper": "wrist"},
        # the joints of the two fingers are positions in metres
        state=StateLayout(8, (0, 1, 2, 6, 7), (3, 4, 5), (6, 7), "axis_angle"),
        state_format="eef_pos3_axisangle3_gripper2",
        image_rotation=180,
        params={"quat_no_antipodal": True},  # robosuite's axis angles, as in the data sets
    ),
    Benchmark(
        "simpler",
        "SimplerEnv",
        # arm_pd_ee_target_delta_pose_align2: metres and a rotation vector, added to the last target
        ActionConvention("relative", "robot_base", 1.0, 1.0, "axis_angle", "-1 closed, +1 open", 5),
        kinds=("relative", "relative_to_measured"),  # BridgeData's: its models are evaluated so
        cameras={"rgb_static": "primary"},
        state=StateLayout(8, (0, 1, 2), (3, 4, 5, 6), (7,), "quaternion_wxyz"),
        state_format="raw",
        image_rotation=0,
        tasks="widowx",
    ),
)


def find_benchmark(name: object) -> Benchmark:
    """Return the benchmark of an import path as hello names it; ``UNKNOWN`` if it is not listed."""
    text = name.lower() if isinstance(name, str) else ""
    return next((benchmark for benchmark in BENCHMARKS if benchmark.key in text), UNKNOWN)
