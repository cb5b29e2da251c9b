"""An honest stand-in for calvin_env's PlayTableSimEnv: no physics, but the same interface and the same traps.

What it has of the real one (mees/calvin_env 797142c): the constructor's arguments; the old 4-tuple of ``step``; every
camera in ``cameras`` drawn at every step; blocks in the order of the scene's file; actions in floats alone, their
gripper exactly -1 or 1; ``reset`` that leaves the last gripper command; contacts that hang on what was played before,
until ``load``; pybullet's one world per process; a commit hash that fails outside of git; prints when it is closed.
With EGL: the first two images of a connection have no shadows, and ``load`` leaks memory that only ``close`` frees.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import gym
import gym.utils.seeding
import numpy as np

BLOCK_UIDS = {"block_red": 3, "block_blue": 4, "block_pink": 5}
LEAK = 12
"""MB of meshes that a loaded world occupies until its connection is closed."""
IMAGES_WITHOUT_SHADOWS = 2
CRASH = Path(__file__).with_name("crash")
"""If this file exists, the next step deletes it and ends the process."""
worlds = 0
connections = 0
memory = peak_memory = 0


def get_git_commit_hash(path):
    raise ValueError(f"{path} is not in a git repository")


class Camera:
    def __init__(self, env, name, width, height):
        self.env, self.name, self.shape, self.drawn = env, name, (height, width), 0

    def render(self):
        self.drawn += 1
        self.env.images += 1
        image = np.full((*self.shape, 4), 200, np.uint8)
        image[..., 0] = np.abs(1000 * self.env.state[:7]).sum() % 256
        if not self.env.use_egl or self.env.images > IMAGES_WITHOUT_SHADOWS:
            image[: self.shape[0] // 2, :, 1] = 141
        return image[:, :, :3], np.ones(self.shape, np.float32)


class PlayTableSimEnv(gym.Env):
    def __init__(
        self,
        robot_cfg,
        seed,
        use_vr,
        bullet_time_step,
        cameras,
        show_gui,
        scene_cfg,
        use_scene_info,
        use_egl,
        control_freq=30,
    ):
        global worlds, connections
        assert not worlds, "calls of pybullet without a client would go to the other world"
        assert (use_scene_info, use_vr, show_gui) == (True, False, False)
        assert "tactile" not in cameras
        worlds += 1
        connections += 1
        self.images = self.meshes = 0
        self.owns, self.use_egl, self.egl_device = True, use_egl, os.environ.get("EGL_VISIBLE_DEVICES")
        print("pybullet build time: never")
        self.robot = SimpleNamespace(robot_uid=0, gripper_action=1, filename=robot_cfg.filename)
        names = list(scene_cfg.objects.movable_objects)
        self.scene = SimpleNamespace(movable_objects=[SimpleNamespace(name=name) for name in names], np_random=None)
        self.cameras = [Camera(self, name, cameras[name].width, cameras[name].height) for name in cameras]
        self.seed(seed)
        self.load()
        get_git_commit_hash(__file__)

    def seed(self, seed=None):
        self.np_random, seed = gym.utils.seeding.np_random(seed)
        return [seed]

    def load(self):
        global memory, peak_memory
        if self.use_egl:
            self.meshes += LEAK
            memory += LEAK
            peak_memory = max(memory, peak_memory)
        self.played = 0
        self.state = np.zeros(24)
        self.target = np.zeros(6)
        self.joints = np.zeros(7)
        self.width = 0.08

    def reset(self, robot_obs=None, scene_obs=None):
        self.state = self.scene.np_random.random(24) if scene_obs is None else np.array(scene_obs)
        self.target = np.zeros(6) if robot_obs is None else np.array(robot_obs[:6])
        self.joints = np.zeros(7) if robot_obs is None else np.array(robot_obs[7:14])
        self.width = 0.08 if robot_obs is None else robot_obs[6]
        return self.get_obs()

    def step(self, action):
        if CRASH.exists():
            CRASH.unlink()
            os._exit(9)
        position, orientation, gripper = np.split(np.copy(action), [3, 6])
        position *= 0.02
        orientation *= 0.05
        assert gripper[0] in (-1, 1)
        self.robot.gripper_action = gripper[0]
        self.target += [*position, *orientation]
        self.state[1] += max(0.0, -position[1])  # pulled back, it takes the drawer along
        self.state[6] += position[0] * (1 + 0.01 * self.played)  # the first block is pushed
        self.played += 1
        return self.get_obs(), 0, False, self.get_info()

    def get_obs(self):
        shots = {camera.name: camera.render() for camera in self.cameras}
        return {
            "rgb_obs": {f"rgb_{name}": rgb for name, (rgb, _) in shots.items()},
            "depth_obs": {f"depth_{name}": depth for name, (_, depth) in shots.items()},
            "robot_obs": np.array([*self.target, self.width, *self.joints, self.robot.gripper_action]),
            "scene_obs": np.array(self.state),
        }

    def get_info(self):
        blocks = {}
        for i, block in enumerate(self.scene.movable_objects):
            blocks[block.name] = {
                "uid": BLOCK_UIDS[block.name],
                "current_pos": tuple(self.state[6 + 6 * i : 9 + 6 * i]),
                "current_orn": (0.0, 0.0, 0.0, 1.0),
                "current_lin_vel": (0.0, 0.0, 0.0),
                "current_ang_vel": (0.0, 0.0, 0.0),
                "contacts": ((0, 0, 6, 0, -1),),
            }
        doors = {"base__slide": self.state[0], "base__drawer": self.state[1]}
        lights = {"lightbulb": self.state[4], "led": self.state[5]}
        links = {"base_link": -1, "plank_link": 5, "drawer_link": 3}
        return {
            "robot_info": {"uid": 0, "contacts": (), "gripper_action": self.robot.gripper_action},
            "scene_info": {
                "fixed_objects": {"table": {"uid": 6, "links": links, "contacts": ()}},
                "movable_objects": blocks,
                "doors": {name: {"current_state": float(state)} for name, state in doors.items()},
                "buttons": {"base__button": {"joint_state": self.state[2], "logical_state": 0}},
                "switches": {"base__switch": {"joint_state": self.state[3], "logical_state": 0}},
                "lights": {name: {"logical_state": float(state)} for name, state in lights.items()},
            },
        }

    @property
    def ownsPhysicsClient(self):
        return self.owns

    @ownsPhysicsClient.setter
    def ownsPhysicsClient(self, value):
        self.owns = value

    def close(self):
        global worlds, memory
        print("disconnecting id 0 from server" if self.owns else "does not own physics client id")
        worlds -= self.owns
        memory -= self.meshes if self.owns else 0

    def __del__(self):
        self.close()
