"""CALVIN's chains on the embedded desk; needs no other software."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from policy_rollout.benchmarks.base import Settings, official_jobs
from policy_rollout.calvin.oracle import VERSION, TaskOracle
from policy_rollout.closed_loop.interface import ChainJob
from policy_rollout.policies.interface import ActionConvention

if TYPE_CHECKING:
    from policy_rollout.desk import DeskEnv
    from policy_rollout.desk.layout import Layout

DESK_VERSION = 2
"""Version of the desk in the stamp of records: records of different versions do not mix.

Increase it with every change of what an action does, of the start states or of the instructions
(``tests/desk/test_golden_rollout.py`` fails then).
"""


@dataclass(frozen=True)
class DeskBenchmark:
    """Scene "A" to "D"; renderer and image sizes as of ``policy_rollout.desk.DeskEnv``."""

    scene: str = "D"
    renderer: str = "raycast"
    static_size: int = 200
    gripper_size: int = 84

    name = "desk"
    convention = ActionConvention()
    envs_per_process = None

    def stamp(self) -> dict[str, Any]:
        from policy_rollout.desk.engine import mujoco

        return {
            "name": self.name,
            "scene": self.scene,
            "renderer": self.renderer,
            "static_size": self.static_size,
            "gripper_size": self.gripper_size,
            "oracle": VERSION,
            "versions": {"mujoco": mujoco.__version__, "desk": str(DESK_VERSION)},
        }

    def jobs(self, count: int) -> list[ChainJob]:
        return official_jobs(count)

    def make_env(self) -> DeskEnv:
        from policy_rollout.desk import DeskEnv  # MuJoCo is needed here only

        return DeskEnv(self.scene, self.renderer, self.static_size, self.gripper_size)

    def oracle(self) -> TaskOracle:
        return TaskOracle()

    def layout(self) -> Layout:
        from policy_rollout.desk.layout import layout_of

        return layout_of(self.scene)


def from_settings(settings: Settings) -> DeskBenchmark:
    """Return the benchmark of the settings. Raises ``ValueError`` for an unknown scene or renderer."""
    from policy_rollout.desk.layout import SCENES
    from policy_rollout.desk.rendering import RENDERERS, check_renderer

    scene, renderer = str(settings["scene"]), str(settings["renderer"] or RENDERERS[0])
    for key, value, allowed in (("scene", scene, SCENES), ("renderer", renderer, RENDERERS)):
        if value not in allowed:
            raise ValueError(f"{key}={value}: the desk has {', '.join(allowed)}")
    check_renderer(renderer)
    return DeskBenchmark(scene, renderer)
