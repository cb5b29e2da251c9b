"""`SceneEnv`: a scene of the real CALVIN with the interface that the scripted experts and the recorder use."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from policy_rollout.calvin.egl import find_graphics
from policy_rollout.calvin.initial_states import ROBOT_START
from policy_rollout.calvin.scenes.configuration import compose_configuration, configuration_folder
from policy_rollout.calvin.scenes.layout import read_layout
from policy_rollout.calvin.simulator import CalvinEnv
from policy_rollout.closed_loop.interface import Render

RENDERERS = ("egl", "tiny")
JOINTS = slice(7, 14)  # in robot_obs
IK_STEPS = 20
IK_TOLERANCE = 1e-4  # metres


def choose_renderer(renderer: str | None) -> str:
    """Return "egl" or "tiny" (on the CPU): `renderer`, or without one "egl" if it works, else "tiny" with a notice.

    Raises ``ValueError`` in one line if EGL is requested and does not work.
    """
    if renderer == "tiny":
        return renderer
    found, problem = find_graphics(None)
    if found is not None:
        return "egl"
    if renderer == "egl":
        raise ValueError(f"--renderer egl: {problem}; --renderer tiny draws on the CPU")
    print(f"notice: {problem}; images are drawn on the CPU (--renderer tiny)", file=sys.stderr)
    return "tiny"


class SceneEnv(CalvinEnv):
    """One scene of the real CALVIN, built from the files of the installed calvin_env: no data set is needed.

    Args:
        scene: "A", "B", "C" or "D".
        egl, egl_device: see ``CalvinEnv``.
        static_size, gripper_size: edge lengths of the images in pixels; None: CALVIN's (200, 84).

    Raises ``ValueError`` if the simulator cannot be built, ``RuntimeError`` if this process already has one.
    """

    def __init__(
        self,
        scene: str = "D",
        egl: bool = False,
        egl_device: int | None = None,
        static_size: int | None = None,
        gripper_size: int | None = None,
    ) -> None:
        config = compose_configuration(scene, static_size, gripper_size)
        self.scene = scene
        self.layout = read_layout(config, scene)
        super().__init__(configuration_folder(), egl, egl_device, config=config)

    def reset(
        self,
        robot_obs: ArrayLike | None = None,
        scene_obs: ArrayLike | None = None,
        seed: int | None = None,
        render: Render = False,
    ) -> dict[str, Any]:
        """Reset to the state of the two observations.

        If the seven joint angles of `robot_obs` are zeros, they are computed from the pose of the hand. `seed` is not
        used: the two observations are the state.
        """
        robot = None if robot_obs is None else np.array(robot_obs, np.float64)
        if robot is not None and not robot[JOINTS].any():
            robot[JOINTS] = self._joints(robot[:6])
        obs = super().reset(robot, scene_obs)
        return self.get_obs(render) if render else obs

    def _joints(self, pose: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the joint angles (7,) in rad at which the hand has a pose (xyz, Euler angles).

        The search starts at CALVIN's initial state, so the result depends on the pose only. It moves the robot.
        """
        sim, robot = self._sim, self._sim.robot
        robot.reset(np.array(ROBOT_START))
        orientation = sim.p.getQuaternionFromEuler(pose[3:6])
        angles = np.array(ROBOT_START[JOINTS])
        for _ in range(IK_STEPS):
            angles = np.asarray(robot.mixed_ik.get_ik(pose[:3], orientation), np.float64)
            for joint, angle in zip(robot.arm_joint_ids, angles, strict=True):
                sim.p.resetJointState(robot.robot_uid, joint, angle, physicsClientId=sim.cid)
            if np.abs(np.asarray(robot.get_observation()[0][:3]) - pose[:3]).max() < IK_TOLERANCE:
                break
        return angles
