"""What the desk's cameras show."""

from __future__ import annotations

import mujoco
import numpy as np
import pytest

from policy_rollout.desk import LAYOUTS, SCENES, DeskEnv
from policy_rollout.desk.cameras import gripper_camera, static_camera

OPEN = np.array([0.28, 0.22, 0, 0.088, 1, 1, 0.0703, 0.0924, 0.461, 0, 0, 1.6, 0.05, -0.12, 0.46, 0, 0, 1.4])
OPEN = np.concatenate([OPEN, [0.18, -0.1, 0.46, 0, 0, 0.5]])
AWAY = np.array([-0.3, -0.55, 0.7, np.pi, 0, np.pi / 2, 0.08, *[0] * 7, 1])


def reference(env: DeskEnv, camera: str, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Geom (S, S) and depth (S, S) by MuJoCo's own ray caster."""
    hand = env.model.body("hand").id
    view = static_camera()
    if camera == "gripper":
        view = gripper_camera(env.data.xpos[hand], env.data.xmat[hand].reshape(3, 3))
    axis = ((np.arange(size) + 0.5) / size * 2 - 1) * view.tan_half
    u, v = (part.reshape(-1, 1) for part in np.meshgrid(axis, -axis))
    rays = view.forward + u * view.right + v * view.up
    geoms, distances = np.empty(len(rays), np.int32), np.empty(len(rays))
    extra = (None,) if "normal:" in mujoco.mj_multiRay.__doc__ else ()  # grew an argument after MuJoCo 3.3
    flat = rays.reshape(-1)
    mujoco.mj_multiRay(env.model, env.data, view.pos, flat, None, 1, -1, geoms, distances, *extra, len(rays), 1e10)
    return geoms.reshape(size, size), distances.reshape(size, size)


@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("camera", ["static", "gripper"])
def test_every_pixel_lies_where_mujocos_own_ray_caster_says(scene: str, camera: str):
    env = DeskEnv(scene)
    env.reset(scene_obs=OPEN)
    for _ in range(8):
        env.step(np.array([0.5, -0.3, -0.4, 0.6, 0.3, 0.5, -1]))
    _, depth = reference(env, camera, 64)
    error = np.abs(env.picture(camera, 64).depth - depth)
    assert np.mean(error < 1e-4) > 0.995, "all but a few pixels on edges"


@pytest.mark.parametrize("scene", SCENES)
def test_everything_a_task_needs_is_visible_in_the_static_camera(scene: str):
    env = DeskEnv(scene)
    env.reset(AWAY, OPEN)
    geoms, _ = reference(env, "static", 200)
    names = {
        "block_red": 60, "block_blue": 60, "block_pink": 60, "button_cap": 60, "led": 200, "bulb": 60,
        "switch_bar": 60, "door_bar": 40, "drawer_bar": 60, "drawer_floor": 1000, "drawer_front": 400,
    }  # fmt: skip
    for name, pixels in names.items():
        assert np.sum(geoms == env.model.geom(name).id) >= pixels, name
    for point in (env.layout.door_handle_at(0.28), env.layout.switch_handle_at(0.088), env.layout.button):
        column, row = static_camera().project(point, 200)
        assert 4 < column < 196
        assert 4 < row < 196


def test_the_kept_background_gives_the_same_picture_as_a_fresh_desk():
    used = DeskEnv("A")
    used.reset(seed=1, render=True)
    for _ in range(5):
        used.step(np.array([1.0, 0, -1, 0, 0, 0, -1]), render=True)
    fresh = DeskEnv("A")
    fresh.load(used.save())
    for camera in ("static", "gripper"):
        np.testing.assert_array_equal(used.render(camera), fresh.render(camera))


@pytest.mark.parametrize("size", [32, 84, 256])
def test_pictures_have_the_size_that_was_asked_for(size: int):
    env = DeskEnv(static_size=size, gripper_size=size // 2)
    obs = env.get_obs()
    assert obs["rgb_obs"]["rgb_static"].shape == (size, size, 3)
    assert obs["rgb_obs"]["rgb_gripper"].shape == (size // 2, size // 2, 3)
    assert obs["rgb_obs"]["rgb_static"].dtype == np.uint8
    assert obs["depth_obs"]["depth_static"].shape == (size, size)
    assert env.render("gripper", 48).shape == (48, 48, 3)


def test_a_lit_led_is_green_and_a_lit_bulb_yellow():
    env = DeskEnv()
    dark = OPEN.copy()
    dark[4:6] = 0
    env.reset(AWAY, OPEN)
    lit = env.render().astype(int)
    env.reset(AWAY, dark)
    unlit = env.render().astype(int)
    for name, darker, brighter in (("led", (0, 2), 1), ("lightbulb", (2,), 0)):
        body = {"led": "led", "lightbulb": "bulb"}[name]
        at = reference(env, "static", 200)[0] == env.model.geom(body).id
        assert (unlit[at].max(1) - unlit[at].min(1)).mean() < 15, "grey when off"
        for channel in darker:
            assert (lit[at][:, brighter] - lit[at][:, channel]).mean() > 100
    changed = (lit != unlit).any(-1)
    assert 200 < changed.sum() < 1500, "nothing but the lamps changes"


def test_scenes_look_different():
    pictures = []
    for scene in SCENES:
        env = DeskEnv(scene)
        env.reset(AWAY, OPEN)
        pictures.append(env.render().astype(int))
    for i in range(4):
        for j in range(i):
            assert np.abs(pictures[i] - pictures[j]).mean() > 10
    assert len({(p.button_x, p.drawer_x, p.switch_x) for p in LAYOUTS.values()}) == 4
    assert len({tuple(p.blocks.values()) for p in LAYOUTS.values()}) == 4


def test_jitter_moves_camera_and_light_at_every_reset_and_follows_the_seed():
    shots = []
    for seed in (1, 1, 2):
        env = DeskEnv(camera_jitter=1.0, light_jitter=1.0, seed=seed)
        shots.append((env.reset(AWAY, OPEN) and env.render(), env.reset(AWAY, OPEN) and env.render()))
    np.testing.assert_array_equal(shots[0], shots[1])
    assert (shots[0][0] != shots[0][1]).any()
    assert (shots[0][0] != shots[2][0]).any()
    plain = DeskEnv(seed=7)
    plain.reset(AWAY, OPEN)
    still = DeskEnv(seed=8)
    still.reset(AWAY, OPEN)
    np.testing.assert_array_equal(plain.render(), still.render())


def test_an_unknown_renderer_or_camera_is_refused_by_name():
    with pytest.raises(ValueError, match="raycast, gl"):
        DeskEnv(renderer="eevee").render()
    with pytest.raises(ValueError, match='"static" and "gripper"'):
        DeskEnv().render("tactile")
