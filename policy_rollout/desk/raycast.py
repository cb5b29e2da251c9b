"""Pictures by ray casting with `mujoco.mj_multiRay`: no OpenGL, the same bytes in every process."""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np
import numpy.typing as npt

from policy_rollout.desk.cameras import Jitter, View
from policy_rollout.desk.looks import BULB_ON, LED_ON, Look, looks_of
from policy_rollout.desk.render import Picture

Array = npt.NDArray[np.float64]
SUN = np.array([0.35, -0.75, 1.6])


class RayCaster:
    def __init__(self, model: Any, scene: str) -> None:
        self.model = model
        looks = looks_of(scene)
        names = [model.mat(int(m)).name for m in model.geom_matid]
        self.looks: list[Look] = [looks[n] for n in names]
        self.led, self.bulb = names.index("led"), names.index("lightbulb")
        self._directions: dict[int, Array] = {}
        # mj_multiRay grew an argument (the normals) after MuJoCo 3.3.
        self._extra = (None,) if "normal:" in (mujoco.mj_multiRay.__doc__ or "") else ()

    def close(self) -> None:
        self._directions.clear()

    def _cast(self, data: Any, origin: Array, rays: Array) -> tuple[npt.NDArray[np.int32], Array]:
        n = len(rays)
        geom, dist = np.empty(n, np.int32), np.empty(n)
        mujoco.mj_multiRay(
            self.model, data, origin, rays.reshape(-1), None, True, -1, geom, dist, *self._extra, n, mujoco.mjMAXVAL
        )
        return geom, dist

    def shoot(self, data: Any, view: View, size: int, led: int, bulb: int, jitter: Jitter) -> Picture:
        axis = (np.arange(size) + 0.5) / size * 2 - 1
        flat = np.stack(np.meshgrid(axis, -axis), -1).reshape(-1, 2) * view.tan_half
        rays = view.forward + flat[:, :1] * view.right + flat[:, 1:] * view.up
        length = np.linalg.norm(rays, axis=1, keepdims=True)
        rays /= length
        geom, dist = self._cast(data, view.pos, rays)
        points = view.pos + rays * dist[:, None]
        sun = SUN + np.array(jitter.light)
        sun = sun / np.linalg.norm(sun)
        out = np.full((len(rays), 3), 0.97)
        for g in np.unique(geom):
            if g < 0:
                continue
            at = np.flatnonzero(geom == g)
            matrix = data.geom_xmat[g].reshape(3, 3)
            local = (points[at] - data.geom_xpos[g]) @ matrix
            normal = self._normals(int(g), local) @ matrix.T
            look = self.looks[g]
            colour = np.array(look.colour)
            lit = 0.62 + 0.42 * np.clip(normal @ sun, 0, 1)
            if (g == self.led and led) or (g == self.bulb and bulb):
                colour, lit = np.array(LED_ON if g == self.led else BULB_ON), 0.85 + 0.15 * lit
            out[at] = colour * (lit * jitter.brightness)[:, None]
        rgb = (np.clip(out, 0, 1) * 255).astype(np.uint8).reshape(size, size, 3)
        depth = (dist / length[:, 0]).astype(np.float32).reshape(size, size)
        return Picture(rgb, depth)

    def _normals(self, geom: int, local: Array) -> Array:
        """Outward normals (n, 3) in the geom's frame at points (n, 3) of its surface."""
        kind, size = int(self.model.geom_type[geom]), self.model.geom_size[geom]
        if kind == int(mujoco.mjtGeom.mjGEOM_BOX):
            axis = np.argmax(np.abs(local / size), axis=1)
            out = np.zeros_like(local)
            rows = np.arange(len(local))
            out[rows, axis] = np.sign(local[rows, axis])
            return out
        if kind == int(mujoco.mjtGeom.mjGEOM_PLANE):
            return np.tile([0.0, 0.0, 1.0], (len(local), 1))
        out = local.copy()
        if kind == int(mujoco.mjtGeom.mjGEOM_CYLINDER):
            cap = np.abs(local[:, 2]) > size[1] * (1 - 1e-6)
            out[:, 2] = 0
            out[cap] = np.stack([np.zeros(cap.sum()), np.zeros(cap.sum()), np.sign(local[cap, 2])], 1)
        elif kind == int(mujoco.mjtGeom.mjGEOM_CAPSULE):
            out[:, 2] -= np.clip(local[:, 2], -size[1], size[1])
        return out / np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-12)
