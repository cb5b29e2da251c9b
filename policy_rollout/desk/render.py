"""The renderers by name. Both are loaded only when a picture is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from policy_rollout.desk.cameras import Jitter, View

RENDERERS = ("raycast", "gl")


@dataclass(frozen=True)
class Picture:
    """Colours (S, S, 3) uint8 and distance along the optical axis (S, S) float32 in metres."""

    rgb: npt.NDArray[np.uint8]
    depth: npt.NDArray[np.float32]


class Renderer(Protocol):
    def shoot(self, data: Any, view: View, size: int, led: int, bulb: int, jitter: Jitter) -> Picture: ...

    def close(self) -> None: ...


def make_renderer(name: str, model: Any, scene: str) -> Renderer:
    """ "raycast" or "gl". Raises ValueError for another name and, for "gl", when there is no OpenGL."""
    if name == "raycast":
        from policy_rollout.desk.raycast import RayCaster

        return RayCaster(model, scene)
    if name == "gl":
        from policy_rollout.desk.gl import GLRenderer

        return GLRenderer(model, scene)
    raise ValueError(f"renderer is {name!r}; the desk has {', '.join(RENDERERS)}")


def check_renderer(name: str) -> None:
    """Raise ValueError in one line where no image can be drawn by this renderer; "raycast" needs nothing."""
    if name == "gl":
        from policy_rollout.desk.engine import mujoco
        from policy_rollout.desk.gl import make_offscreen

        make_offscreen(mujoco.MjModel.from_xml_string("<mujoco/>"), 16).close()
