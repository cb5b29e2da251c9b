"""`DeskEnv`: the embedded desk behind CALVIN's interface (calvin_env's PlayTableSimEnv, see docs)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from common.constants import ENV_CAMERAS
from policy_rollout.desk import info as I
from policy_rollout.desk import layout as L
from policy_rollout.desk.control import Action, HandTarget, apply_action, vector
from policy_rollout.desk.engine import mujoco
from policy_rollout.desk.rendering import RENDERERS, make_renderer
from policy_rollout.desk.rendering.base import RenderedImage
from policy_rollout.desk.rendering.cameras import Jitter, checked_jitter, gripper_camera, static_camera
from policy_rollout.desk.rotation import euler_of, quaternion_of
from policy_rollout.desk.scene import SUBSTEPS, desk_xml

Array = npt.NDArray[np.float64]
Observation = dict[str, Any]
Info = dict[str, Any]
Render = bool | Collection[str]  # which cameras are drawn: all, none, or those named

_DOORS = ("base__slide", "base__drawer")
_JOINTS = (*_DOORS, "base__button", "base__switch")  # the order of scene_obs
_HAND = ("hand_x", "hand_y", "hand_z", "hand_roll", "hand_pitch", "hand_yaw")
HOME = np.array([*L.HOME_TCP, *L.HOME_EULER, 0.08, *([0.0] * 7), 1.0])
FARTHEST = 100.0  # metres or rad; MuJoCo would silently fail on larger values


@dataclass(frozen=True)
class Snapshot:
    """The complete state of a desk; returned by `save`, restored by `load`."""

    scene: str
    physics: Array
    target: HandTarget
    led: int
    bulb: int
    pressed: bool
    jitter: Jitter


class DeskEnv:
    """One desk. Actions at 30 Hz, observations and `info` as in CALVIN; a process can have several.

    Args:
        scene: "A", "B", "C" or "D"; they differ in layout, block sizes and materials.
        renderer: "raycast" (needs no OpenGL, the same bytes everywhere) or "gl" (mujoco.Renderer).
        static_size, gripper_size: image edge lengths in pixels.
        camera_jitter, light_jitter: 0 is none, 1 is a clearly visible change, drawn at every reset.
        seed: of the random initial states and of the jitter.

    Raises ValueError naming an invalid argument.
    """

    control_freq = 30

    def __init__(
        self,
        scene: str = "D",
        renderer: str = "raycast",
        static_size: int = 200,
        gripper_size: int = 84,
        camera_jitter: float = 0.0,
        light_jitter: float = 0.0,
        seed: int = 0,
    ) -> None:
        if renderer not in RENDERERS:
            raise ValueError(f"renderer is {renderer!r}; the desk has {', '.join(RENDERERS)}")
        self.layout = L.layout_of(scene)
        self.scene = scene
        self.renderer = renderer
        self.static_size = _whole(static_size, "static_size", 1)
        self.gripper_size = _whole(gripper_size, "gripper_size", 1)
        self.model = mujoco.MjModel.from_xml_string(desk_xml(scene))
        self.data = mujoco.MjData(self.model)
        self._camera_jitter = checked_jitter(camera_jitter, "camera_jitter")
        self._light_jitter = checked_jitter(light_jitter, "light_jitter")
        self._jitter = Jitter()
        self._renderer: Any = None
        self._find_addresses()
        self.seed(seed)
        self.reset()

    def _find_addresses(self) -> None:
        model = self.model
        self._qpos = {n: int(model.joint(n).qposadr[0]) for n in (*_JOINTS, *L.BLOCKS, *_HAND)}
        self._qvel = {n: int(model.joint(n).dofadr[0]) for n in (*_JOINTS, *L.BLOCKS, *_HAND)}
        self._fingers = [int(model.joint(f"finger_{side}").qposadr[0]) for side in ("left", "right")]
        self._hand_qpos = np.array([self._qpos[n] for n in _HAND])
        self._ctrl = np.array([model.actuator(n).id for n in (*_HAND, "grip")])
        self._hand = model.body("hand").id
        self._block_bodies = [model.body(n).id for n in L.BLOCKS]
        owner = I.owners([model.body(b).name for b in range(model.nbody)])
        self._geom_owner = [owner[int(b)] for b in model.geom_bodyid]

    # Reset

    def seed(self, seed: int) -> list[int]:
        """Restart the random numbers of initial states and jitter."""
        seed = _whole(seed, "seed", 0)
        self.np_random = np.random.default_rng(seed)
        self._jitter_random = np.random.default_rng([seed, 1])
        return [seed]

    def reset(
        self,
        robot_obs: npt.ArrayLike | None = None,
        scene_obs: npt.ArrayLike | None = None,
        seed: int | None = None,
        render: Render = False,
    ) -> Observation:
        """Set the state of the two observations and return the observation.

        Nothing is simulated, so a recorded state is restored exactly (the arm's joint angles are zeros, as there is no
        arm). Without `robot_obs` (15,) the hand is at CALVIN's initial pose; without `scene_obs` (24,) doors, drawer
        and lights are closed and off and the blocks are at random places. Raises ValueError, without changing the
        state, for another number of values or values above 100 metres or rad.
        """
        if seed is not None:
            self.seed(seed)
        robot = HOME if robot_obs is None else _state(robot_obs, 15, "robot_obs")
        scene = self._random_scene() if scene_obs is None else _state(scene_obs, 24, "scene_obs")
        mujoco.mj_resetData(self.model, self.data)
        self._place_scene(scene)
        self._place_hand(robot)
        self._jitter = Jitter.draw(self._jitter_random, self._camera_jitter, self._light_jitter)
        mujoco.mj_forward(self.model, self.data)
        return self.get_obs(render)

    def _place_scene(self, scene: Array) -> None:
        qpos = self.data.qpos
        for name, value in zip(_JOINTS, scene[:4], strict=True):
            qpos[self._qpos[name]] = value
        self._bulb, self._led = int(scene[4] > 0.5), int(scene[5] > 0.5)
        self._pressed = bool(scene[2] > L.BUTTON_THRESHOLD)
        for i, name in enumerate(L.BLOCKS):
            at = self._qpos[name]
            qpos[at : at + 3] = scene[6 + 6 * i : 9 + 6 * i]
            qpos[at + 3 : at + 7] = quaternion_of(scene[9 + 6 * i : 12 + 6 * i])

    def _place_hand(self, robot: Array) -> None:
        self.data.qpos[self._hand_qpos] = robot[:6]
        width = float(np.clip(robot[6], *L.GRIPPER_RANGE))
        self.data.qpos[self._fingers] = width / 2
        self._target = HandTarget(robot[:3].copy(), robot[3:6].copy(), width, 1.0 if robot[14] >= 0 else -1.0)
        self._send_target()

    def _random_scene(self) -> Array:
        """Return a state: closed, off, and the blocks on random surfaces, not near each other."""
        rng = self.np_random
        surfaces = self.layout.surfaces()
        names = list(surfaces)
        for _ in range(1000):
            places = []
            for _name in L.BLOCKS:
                low, high = surfaces[names[int(rng.integers(len(names)))]]
                places.append([*rng.uniform(low, high), 0.0, 0.0, _any_yaw(rng, low)])
            spots = np.array(places)[:, :2]
            distances = np.linalg.norm(spots[:, None] - spots[None], axis=-1)[np.triu_indices(3, 1)]
            if distances.min() > 0.11:
                return np.concatenate([np.zeros(6), *places])
        raise AssertionError("three blocks always fit on the desk")

    # Step

    def step(self, action: Action, render: Render = False) -> tuple[Observation, int, bool, Info]:
        """Act for 1/30 s. `action`: relative (7,), or {"type": "cartesian_rel" | "cartesian_abs", "action": (7,)}.

        Returns calvin_env's old four: observation (images only with `render`, see `get_obs`), reward 0, done False,
        info.
        """
        tcp = np.array(self.data.xpos[self._hand])
        self._target = apply_action(self._target, action, tcp, self.data.qpos[self._hand_qpos[3:]])
        self._send_target()
        # Positions are updated after the last substep, not before the first, so that observations are current.
        for _ in range(SUBSTEPS):
            mujoco.mj_step2(self.model, self.data)
            mujoco.mj_step1(self.model, self.data)
        self._switch_lights()
        return self.get_obs(render), 0, False, self.get_info()

    def _send_target(self) -> None:
        target = self._target
        self.data.ctrl[self._ctrl] = [*target.pos, *target.orn, target.width]

    def _switch_lights(self) -> None:
        """The LED toggles when the button passes its middle on the way down; the bulb follows the switch."""
        pressed = bool(self.data.qpos[self._qpos["base__button"]] > L.BUTTON_THRESHOLD)
        if pressed and not self._pressed:
            self._led = 1 - self._led
        self._pressed = pressed
        self._bulb = int(self.data.qpos[self._qpos["base__switch"]] > L.SWITCH_THRESHOLD)

    # Observations

    def get_obs(self, render: Render = True) -> Observation:
        """Return CALVIN's observation. `render`: True draws both cameras, ("static",) only that one.

        `rgb_obs` and `depth_obs` have the drawn cameras only; they are None without any. Drawing has no side effects.
        """
        obs: Observation = {"rgb_obs": None, "depth_obs": None}
        cameras = _cameras(render)
        if cameras:
            images = {name: self.image(name) for name in cameras}
            obs["rgb_obs"] = {f"rgb_{name}": image.rgb for name, image in images.items()}
            obs["depth_obs"] = {f"depth_{name}": image.depth for name, image in images.items()}
        obs["robot_obs"] = self._robot_obs()
        obs["scene_obs"] = self._scene_obs()
        return obs

    def image(self, camera: str = "static", size: int | None = None) -> RenderedImage:
        """Return colours (size, size, 3) and depth (size, size) in metres of the "static" or "gripper" camera."""
        if camera not in ENV_CAMERAS:
            raise ValueError(f'camera is {camera!r}; the desk has "static" and "gripper"')
        if self._renderer is None:
            self._renderer = make_renderer(self.renderer, self.model, self.scene)
        if camera == "static":
            view, default = static_camera(self._jitter), self.static_size
        else:
            pose = self.data.xpos[self._hand], self.data.xmat[self._hand].reshape(3, 3)
            view, default = gripper_camera(*pose), self.gripper_size
        size = default if size is None else _whole(size, "size", 1)
        image: RenderedImage = self._renderer.render(self.data, view, size, self._led, self._bulb, self._jitter)
        return image

    def render(self, camera: str = "static", size: int | None = None) -> npt.NDArray[np.uint8]:
        """Return colours (size, size, 3) uint8 of one camera."""
        return self.image(camera, size).rgb

    def _width(self) -> float:
        return float(self.data.qpos[self._fingers].sum())

    def _robot_obs(self) -> Array:
        tcp, euler = self.data.xpos[self._hand], euler_of(self.data.xmat[self._hand].reshape(3, 3))
        return np.array([*tcp, *euler, self._width(), *([0.0] * 7), self._target.gripper])

    def _scene_obs(self) -> Array:
        data = self.data
        values = [float(data.qpos[self._qpos[name]]) for name in _JOINTS]
        values += [float(self._bulb), float(self._led)]
        for body in self._block_bodies:
            values += [*data.xpos[body], *euler_of(data.xmat[body].reshape(3, 3))]
        return np.array(values)

    def get_info(self) -> Info:
        """Return CALVIN's info with `use_scene_info=True`; see `policy_rollout.desk.info`."""
        contacts = I.contacts_by_uid(self._lowered() if self.data.time == 0.0 else self.data, self._geom_owner)
        robot = self._robot_obs()
        return {
            "robot_info": {
                "tcp_pos": tuple(robot[:3].tolist()),
                "tcp_orn": tuple(robot[3:6].tolist()),
                "gripper_opening_width": float(robot[6]),
                "arm_joint_states": [0.0] * 7,
                "gripper_action": self._target.gripper,
                "uid": I.ROBOT_UID,
                "contacts": contacts.get(I.ROBOT_UID, ()),
            },
            "scene_info": self._scene_info(contacts),
        }

    def _lowered(self) -> Any:
        """Return the MuJoCo data with the blocks lowered by half a millimetre.

        Directly after a reset, a block exactly on or slightly above a surface has no contact with it yet, but must
        count as resting on it.
        """
        data = mujoco.MjData(self.model)
        data.qpos[:] = self.data.qpos
        data.qpos[[self._qpos[name] + 2 for name in L.BLOCKS]] -= 0.0005
        mujoco.mj_fwdPosition(self.model, data)
        return data

    def _scene_info(self, contacts: dict[int, tuple[I.Contact, ...]]) -> Info:
        joint = {name: float(self.data.qpos[self._qpos[name]]) for name in _JOINTS}
        table = {"uid": I.TABLE_UID, "contacts": contacts.get(I.TABLE_UID, ()), "links": dict(I.TABLE_LINKS)}
        lights = {"lightbulb": {"logical_state": self._bulb}, "led": {"logical_state": self._led}}
        return {
            "fixed_objects": {"table": table},
            "movable_objects": {
                n: self._block_info(n, b, contacts) for n, b in zip(L.BLOCKS, self._block_bodies, strict=True)
            },
            "doors": {name: {"current_state": joint[name]} for name in _DOORS},
            "buttons": {"base__button": {"joint_state": joint["base__button"], "logical_state": self._led}},
            "switches": {"base__switch": {"joint_state": joint["base__switch"], "logical_state": self._bulb}},
            "lights": lights,
        }

    def _block_info(self, name: str, body: int, contacts: dict[int, tuple[I.Contact, ...]]) -> Info:
        data = self.data
        w, x, y, z = data.xquat[body].tolist()
        at = self._qvel[name]
        spin = data.xmat[body].reshape(3, 3) @ data.qvel[at + 3 : at + 6]  # a free joint rotates in its body's frame
        uid = I.BLOCK_UIDS[name]
        return {
            "current_pos": tuple(data.xpos[body].tolist()),
            "current_orn": (x, y, z, w),
            "current_lin_vel": tuple(data.qvel[at : at + 3].tolist()),
            "current_ang_vel": tuple(spin.tolist()),
            "contacts": contacts.get(uid, ()),
            "uid": uid,
        }

    # Snapshots

    def save(self) -> Snapshot:
        """Return the current state, for `load`."""
        spec = int(mujoco.mjtState.mjSTATE_INTEGRATION)
        physics = np.empty(mujoco.mj_stateSize(self.model, spec))
        mujoco.mj_getState(self.model, self.data, physics, spec)
        t = self._target
        target = HandTarget(t.pos.copy(), t.orn.copy(), t.width, t.gripper)
        return Snapshot(self.scene, physics, target, self._led, self._bulb, self._pressed, self._jitter)

    def load(self, snapshot: Snapshot) -> None:
        """Restore a snapshot of this scene, from this desk or another one; further steps are bit-exact.

        The random numbers of later resets are not part of it.
        """
        if snapshot.scene != self.scene:
            raise ValueError(f"the snapshot is of scene {snapshot.scene}; this desk is scene {self.scene}")
        spec = int(mujoco.mjtState.mjSTATE_INTEGRATION)
        mujoco.mj_setState(self.model, self.data, snapshot.physics, spec)
        t = snapshot.target
        self._target = HandTarget(t.pos.copy(), t.orn.copy(), t.width, t.gripper)
        self._led, self._bulb, self._pressed = snapshot.led, snapshot.bulb, snapshot.pressed
        self._jitter = snapshot.jitter
        mujoco.mj_forward(self.model, self.data)

    def close(self) -> None:
        """Free the renderer's resources."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None


def _cameras(render: Render) -> tuple[str, ...]:
    if isinstance(render, str):
        return (render,)
    if isinstance(render, Collection):
        return tuple(render)
    return ENV_CAMERAS if render else ()


def _whole(value: int, name: str, minimum: int) -> int:
    if not isinstance(value, int | np.integer) or value < minimum:
        raise ValueError(f"{name} is {value!r}; it must be a whole number of at least {minimum}")
    return int(value)


def _state(values: npt.ArrayLike, size: int, what: str) -> Array:
    out = vector(values, size, what)
    if np.abs(out).max() > FARTHEST:
        raise ValueError(f"{what} has {np.abs(out).max():g}; metres and rad on the desk are below {FARTHEST:g}")
    return out


def _any_yaw(rng: np.random.Generator, low: Array) -> float:
    """Return a random yaw; in the cabinet near pi / 2, as in CALVIN's initial states, so that a block fits."""
    return float(rng.uniform(-np.pi, np.pi) if low[1] < 0 else rng.uniform(-np.pi / 8, np.pi / 8) + np.pi / 2)
