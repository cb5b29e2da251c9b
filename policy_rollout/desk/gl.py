"""Pictures by OpenGL (`mujoco.Renderer`): shadows and plain colours, not the same bytes everywhere."""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np

from policy_rollout.desk.cameras import Jitter, View
from policy_rollout.desk.looks import BULB_ON, LED_ON, LIGHT_OFF
from policy_rollout.desk.render import Picture


class GLRenderer:
    """Renderer "gl". Raises ValueError when MuJoCo finds no OpenGL (choose one with MUJOCO_GL=egl or osmesa)."""

    def __init__(self, model: Any, scene: str) -> None:
        self.model = model
        self.scene = scene
        self._made: dict[int, Any] = {}
        self._materials = {name: model.mat(name).id for name in ("led", "lightbulb")}
        self._sun = np.array(model.light_diffuse[0])
        self._everything = mujoco.MjvOption()
        self._everything.geomgroup[:] = 1

    def _renderer(self, size: int) -> Any:
        if size not in self._made:
            try:
                self._made[size] = mujoco.Renderer(self.model, size, size)
            except (ImportError, AttributeError, RuntimeError, mujoco.FatalError) as error:
                raise ValueError(
                    f'renderer "gl" needs OpenGL, which MuJoCo could not start ({error}); '
                    'set MUJOCO_GL to egl or osmesa, or use renderer "raycast"'
                ) from error
        return self._made[size]

    def shoot(self, data: Any, view: View, size: int, led: int, bulb: int, jitter: Jitter) -> Picture:
        renderer = self._renderer(size)
        for name, on, lit in (("led", led, LED_ON), ("lightbulb", bulb, BULB_ON)):
            self.model.mat_rgba[self._materials[name], :3] = lit if on else LIGHT_OFF
            self.model.mat_emission[self._materials[name]] = 0.6 if on else 0.0
        self.model.light_diffuse[0] = self._sun * jitter.brightness
        renderer.update_scene(data, self._camera(view), self._everything)
        self._aim(renderer.scene, view)
        rgb = renderer.render().copy()
        renderer.enable_depth_rendering()
        depth = renderer.render().astype(np.float32)
        renderer.disable_depth_rendering()
        return Picture(rgb, depth)

    def _camera(self, view: View) -> Any:
        camera = mujoco.MjvCamera()
        camera.type = mujoco.mjtCamera.mjCAMERA_FREE
        camera.lookat[:] = view.pos + view.forward
        camera.distance = 1.0
        return camera

    def _aim(self, scene: Any, view: View) -> None:
        """A free camera has no roll, so the pose and the frustum are written over."""
        # As mujoco.Renderer assumes when it turns the depth buffer into metres.
        near, far = (float(self.model.stat.extent * v) for v in (self.model.vis.map.znear, self.model.vis.map.zfar))
        for camera in scene.camera:
            camera.pos[:], camera.forward[:], camera.up[:] = view.pos, view.forward, view.up
            camera.frustum_near, camera.frustum_far = near, far
            camera.frustum_bottom, camera.frustum_top = -near * view.tan_half, near * view.tan_half
            camera.frustum_center, camera.frustum_width = 0.0, near * view.tan_half

    def close(self) -> None:
        for renderer in self._made.values():
            renderer.close()
        self._made.clear()
