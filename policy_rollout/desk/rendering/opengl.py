"""Rendering by OpenGL (`mujoco.Renderer`): shadows and plain colours; images differ between machines."""

from __future__ import annotations

import os
import sys
import warnings
from importlib import reload
from typing import Any

import numpy as np

from policy_rollout.desk.engine import VARIABLE, mujoco
from policy_rollout.desk.rendering.base import RenderedImage
from policy_rollout.desk.rendering.cameras import Jitter, View
from policy_rollout.desk.rendering.materials import BULB_ON, LED_ON, LIGHT_OFF


def make_offscreen(model: Any, size: int) -> Any:
    """Return a `mujoco.Renderer` with the OpenGL of MUJOCO_GL. Raises ValueError in one line if that fails."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # GLFW warns of errors that are raised below
            _load_opengl()
            return mujoco.Renderer(model, size, size)
    except (ImportError, AttributeError, OSError, RuntimeError, mujoco.FatalError) as error:
        value = os.environ.get(VARIABLE)
        raise ValueError(
            f"renderer=gl needs OpenGL, which MuJoCo could not start with {VARIABLE}"
            f"{' not set' if value is None else f'={value}'} ({' '.join(str(error).split())}); "
            f"set {VARIABLE} to egl or osmesa, whichever is installed, or use renderer=raycast"
        ) from error


def _load_opengl() -> None:
    """Load OpenGL, which `engine` disabled when it imported MuJoCo."""
    contexts = sys.modules[mujoco.Renderer.__module__].gl_context
    if getattr(contexts, "GLContext", None) is None:
        reload(contexts)
        if getattr(contexts, "GLContext", None) is None:
            raise RuntimeError("this value turns OpenGL off")


class GLRenderer:
    """Renderer "gl". Raises ValueError without OpenGL (select one with MUJOCO_GL=egl or osmesa)."""

    def __init__(self, model: Any, scene: str) -> None:
        self.model = model
        self.scene = scene
        self._renderers: dict[int, Any] = {}
        self._materials = {name: model.mat(name).id for name in ("led", "lightbulb")}
        self._sun = np.array(model.light_diffuse[0])
        self._options = mujoco.MjvOption()
        self._options.geomgroup[:] = 1

    def _renderer(self, size: int) -> Any:
        if size not in self._renderers:
            self._renderers[size] = make_offscreen(self.model, size)
        return self._renderers[size]

    def render(self, data: Any, view: View, size: int, led: int, bulb: int, jitter: Jitter) -> RenderedImage:
        renderer = self._renderer(size)
        for name, on, lit in (("led", led, LED_ON), ("lightbulb", bulb, BULB_ON)):
            self.model.mat_rgba[self._materials[name], :3] = lit if on else LIGHT_OFF
            self.model.mat_emission[self._materials[name]] = 0.6 if on else 0.0
        self.model.light_diffuse[0] = self._sun * jitter.brightness
        renderer.update_scene(data, self._camera(view), self._options)
        self._aim(renderer.scene, view)
        rgb = renderer.render().copy()
        renderer.enable_depth_rendering()
        depth = renderer.render().astype(np.float32)
        renderer.disable_depth_rendering()
        return RenderedImage(rgb, depth)

    def _camera(self, view: View) -> Any:
        camera = mujoco.MjvCamera()
        camera.type = mujoco.mjtCamera.mjCAMERA_FREE
        camera.lookat[:] = view.pos + view.forward
        camera.distance = 1.0
        return camera

    def _aim(self, scene: Any, view: View) -> None:
        """Set pose and frustum, as a free camera has no roll."""
        # As mujoco.Renderer assumes when it turns the depth buffer into metres.
        near, far = (float(self.model.stat.extent * v) for v in (self.model.vis.map.znear, self.model.vis.map.zfar))
        for camera in scene.camera:
            camera.pos[:], camera.forward[:], camera.up[:] = view.pos, view.forward, view.up
            camera.frustum_near, camera.frustum_far = near, far
            camera.frustum_bottom, camera.frustum_top = -near * view.tan_half, near * view.tan_half
            camera.frustum_center, camera.frustum_width = 0.0, near * view.tan_half

    def close(self) -> None:
        for renderer in self._renderers.values():
            renderer.close()
        self._renderers.clear()
