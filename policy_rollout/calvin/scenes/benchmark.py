"""A scene of the real CALVIN as a benchmark, for single tasks from any state; no data set is needed."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from policy_rollout.calvin.installation import package_commit
from policy_rollout.calvin.oracle import VERSION, TaskOracle
from policy_rollout.calvin.scenes.configuration import compose_configuration
from policy_rollout.calvin.scenes.env import SceneEnv
from policy_rollout.calvin.scenes.layout import read_layout
from policy_rollout.desk.layout import Layout
from policy_rollout.policies.interface import ActionConvention


@dataclass(frozen=True)
class SceneBenchmark:
    """Scene "A" to "D" of the installed calvin_env with this project's instructions.

    ``renderer``: "egl" or "tiny". ``static_size``, ``gripper_size``: edge lengths of the images in pixels.
    """

    scene: str
    renderer: str
    static_size: int
    gripper_size: int

    name = "calvin"
    convention = ActionConvention()
    envs_per_process = 1

    def stamp(self) -> dict[str, Any]:
        """Return all that outcomes depend on."""
        return {
            "name": self.name,
            "scene": self.scene,
            "renderer": self.renderer,
            "static_size": self.static_size,
            "gripper_size": self.gripper_size,
            "oracle": VERSION,
            "versions": {"calvin_env": package_commit(), "pybullet": version("pybullet"), "numpy": version("numpy")},
        }

    def make_env(self) -> SceneEnv:
        """Return a new environment; a process has one at a time."""
        return SceneEnv(self.scene, self.renderer == "egl", None, self.static_size, self.gripper_size)

    def oracle(self) -> TaskOracle:
        """Return CALVIN's oracle."""
        return TaskOracle()

    def layout(self) -> Layout:
        """Return where the scene's furniture is."""
        return read_layout(compose_configuration(self.scene), self.scene)
