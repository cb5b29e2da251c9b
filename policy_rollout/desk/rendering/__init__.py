"""Renderers of the desk by name. A renderer's module is imported only when it is made."""

from __future__ import annotations

from typing import Any

from policy_rollout.desk.rendering.base import Renderer

RENDERERS = ("raycast", "gl")


def make_renderer(name: str, model: Any, scene: str) -> Renderer:
    """Return the renderer of a model. Raises ValueError for an unknown name and, for "gl", without OpenGL."""
    if name == "raycast":
        from policy_rollout.desk.rendering.raycast import RayCaster

        return RayCaster(model, scene)
    if name == "gl":
        from policy_rollout.desk.rendering.opengl import GLRenderer

        return GLRenderer(model, scene)
    raise ValueError(f"renderer is {name!r}; the desk has {', '.join(RENDERERS)}")


def check_renderer(name: str) -> None:
    """Raise ValueError in one line if this renderer cannot draw here."""
    if name == "gl":
        from policy_rollout.desk.engine import mujoco
        from policy_rollout.desk.rendering.opengl import make_offscreen

        make_offscreen(mujoco.MjModel.from_xml_string("<mujoco/>"), 16).close()
