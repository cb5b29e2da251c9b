"""The desk as a MuJoCo model: one XML string per scene, written from the layout's numbers.

Collision bits exclude contacts between furniture: furniture has contype 1 and no affinity,
blocks have contype 2 and affinity 1 | 2 | 4, the hand has contype 4 and affinity 1. Decoration has neither.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from policy_rollout.desk import layout as L
from policy_rollout.desk.layout import Layout, layout_of
from policy_rollout.desk.rendering.materials import materials_of

SUBSTEPS = 8
TIMESTEP = 1.0 / 30 / SUBSTEPS
LEAN = 60.0  # degrees about x that turn (y, z) into (up along the cabinet's front, out of it)

# The position servos of the hand: stiffness, damping, largest force (N or Nm), armature.
SERVO_POS = (6000.0, 160.0, 60.0, 0.0)
SERVO_ROT = (90.0, 2.4, 6.0, 0.015)
GRIP = (1500.0, 30.0, 12.0)


def _numbers(values: Iterable[float]) -> str:
    return " ".join(f"{v:.6g}" for v in values)


def box(name: str, low: Sequence[float], high: Sequence[float], material: str, extra: str = "") -> str:
    """Return a box from its two corners in the frame of its body."""
    pos = [(a + b) / 2 for a, b in zip(low, high, strict=True)]
    half = [(b - a) / 2 for a, b in zip(low, high, strict=True)]
    return _box(name, pos, half, material, extra)


def _box(name: str, pos: Sequence[float], half: Sequence[float], material: str, extra: str = "") -> str:
    return (
        f'<geom name="{name}" type="box" pos="{_numbers(pos)}" size="{_numbers(half)}" material="{material}" {extra}/>'
    )


def _table(scene: Layout) -> str:
    (x0, x1), front = L.TABLE_X, L.TABLE_FRONT_Y
    z0, z1 = L.TABLE_Z - 0.03, L.TABLE_Z
    parts = [
        box("table_top", (x0, front, z0), (x1, L.PLANK_Y[0], z1), "table"),
        box("table_back", (x0, L.PLANK_Y[1], z0), (x1, 0.205, z1), "table"),
        box("apron_left", (x0, front + 0.01, 0.32), (x0 + 0.02, 0.2, z0), "frame", 'class="decor"'),
        box("apron_right", (x1 - 0.02, front + 0.01, 0.32), (x1, 0.2, z0), "frame", 'class="decor"'),
    ]
    # Closes the gap above an open drawer, through which the floor would be visible.
    parts.append(box("apron_back", (x0 + 0.005, -0.150, 0.345), (x1 - 0.005, -0.145, z0), "dark", 'class="decor"'))
    left, right = scene.drawer_x - L.DRAWER_HALF_WIDTH - 0.01, scene.drawer_x + L.DRAWER_HALF_WIDTH + 0.01
    parts.append(box("apron_front_left", (x0, front + 0.005, 0.325), (left, front + 0.02, z0), "frame"))
    if right < x1 - 0.01:
        parts.append(box("apron_front_right", (right, front + 0.005, 0.325), (x1, front + 0.02, z0), "frame"))
    for i, (x, y) in enumerate(((x0 + 0.03, -0.14), (x1 - 0.03, -0.14), (x0 + 0.03, 0.17), (x1 - 0.03, 0.17))):
        foot = (x + math.copysign(0.03, x), y + math.copysign(0.03, y))
        ends = _numbers((x, y, z0, foot[0], foot[1], 0.0))
        parts.append(
            f'<geom name="leg{i}" class="decor" type="capsule" fromto="{ends}" size="0.018" material="frame"/>'
        )
    ring, ring_top = L.BUTTON_RING
    parts.append(
        f'<geom name="button_ring" type="cylinder" pos="{_numbers((scene.button_x, L.BUTTON_Y, (z1 + ring_top) / 2))}" '
        f'size="{_numbers((ring, (ring_top - z1) / 2))}" material="frame"/>'
    )
    return "\n".join(parts)


def _cabinet(scene: Layout) -> str:
    (x0, x1), (o0, o1) = L.TABLE_X, scene.opening_x
    top = L.SHELF_Z
    parts = [
        box("cabinet_back", (x0, L.PLANK_Y[1], L.TABLE_Z), (x1, L.PLANK_Y[1] + 0.012, top - 0.02), "inside"),
        box("shelf", (x0 - 0.015, L.SHELF_Y[0], top - 0.022), (x1 + 0.015, L.SHELF_Y[1], top), "frame"),
        box("cabinet_left", (x0, 0.10, L.TABLE_Z), (x0 + 0.015, L.PLANK_Y[1], top - 0.02), "cabinet"),
        box("cabinet_right", (x1 - 0.015, 0.10, L.TABLE_Z), (x1, L.PLANK_Y[1], top - 0.02), "cabinet"),
    ]
    # Open above the door as well, for the wrist of a hand that reaches into the cabinet.
    parts.append(box("lintel", (x0, L.SHELF_Y[0] + 0.002, 0.602), (x1, L.SHELF_Y[0] + 0.010, top - 0.02), "frame"))
    leaning = [
        box("front_left", (x0, -0.106, -0.004), (o0 - 0.004, 0.106, 0.014), "cabinet"),
        box("front_right", (o1 + 0.004, -0.106, -0.004), (x1, 0.106, 0.014), "cabinet"),
        box(
            "switch_slot",
            (scene.switch_x - 0.008, L.SWITCH_T0 - 0.012, 0.012),
            (scene.switch_x + 0.008, L.SWITCH_T0 + L.SWITCH_RANGE[1] + 0.012, 0.0145),
            "dark",
            'class="decor"',
        ),
    ]
    origin = _numbers((0.0, *L.FRONT_ORIGIN))
    # The leaning parts are welded to the table: a body without joints, so their contacts are the table's own.
    return (
        "\n".join(parts) + f'\n<body name="front" pos="{origin}" euler="{LEAN} 0 0">' + "\n".join(leaning) + "</body>"
    )


def _plank() -> str:
    low, high = (L.TABLE_X[0], L.PLANK_Y[0], 0.41), (L.TABLE_X[1], L.PLANK_Y[1], L.PLANK_Z)
    return '<body name="plank_link">' + box("plank", low, high, "inside") + "</body>"


def _door(scene: Layout) -> str:
    t0, t1 = L.DOOR_T
    bar_t, bar_n, bar = L.DOOR_BAR_T, L.DOOR_BAR_N, L.DOOR_BAR_HALF
    post = 0.042
    low, high = L.SLIDE_RANGE
    return f"""
<body name="slide_link" pos="{_numbers((scene.door_x, *L.FRONT_ORIGIN))}" euler="{LEAN} 0 0" gravcomp="1">
  <joint name="base__slide" type="slide" axis="-1 0 0" range="{low} {high}" damping="6" frictionloss="1.5"/>
  {_box("door", (0, (t0 + t1) / 2, 0.010), (L.DOOR_HALF_WIDTH, (t1 - t0) / 2, 0.005), "door", 'mass="0.5"')}
  {_box("door_bar", (0, bar_t, bar_n), bar, "handle", 'mass="0.1"')}
  {_box("door_post_low", (0, bar_t - post, bar_n / 2 + 0.007), (0.007, 0.007, bar_n / 2 - 0.007), "handle")}
  {_box("door_post_high", (0, bar_t + post, bar_n / 2 + 0.007), (0.007, 0.007, bar_n / 2 - 0.007), "handle")}
</body>"""


def _switch(scene: Layout) -> str:
    low, high = L.SWITCH_RANGE
    pos = _numbers(L.front_point(scene.switch_x, L.SWITCH_T0, 0.0))
    return f"""
<body name="switch_link" pos="{pos}" euler="{LEAN} 0 0" gravcomp="1">
  <joint name="base__switch" type="slide" axis="0 1 0" range="{low} {high}" damping="4" frictionloss="1.0"/>
  {_box("switch_bar", (0, 0, L.SWITCH_BAR_N), L.SWITCH_BAR_HALF, "handle", 'mass="0.1"')}
  {_box("switch_post", (0, 0, L.SWITCH_BAR_N / 2), (0.007, 0.006, L.SWITCH_BAR_N / 2), "handle", 'mass="0.1"')}
</body>"""


def _button(scene: Layout) -> str:
    low, high = L.BUTTON_RANGE
    half = 0.014
    z = L.BUTTON_TOP_Z - half
    return f"""
<body name="button_link" pos="{_numbers((scene.button_x, L.BUTTON_Y, z))}" gravcomp="1">
  <joint name="base__button" type="slide" axis="0 0 -1" range="{low} {high}" damping="1.5" stiffness="120"
    springref="-0.014"/>
  <geom name="button_cap" type="cylinder" size="{L.BUTTON_RADIUS} {half}" mass="0.1" material="button"/>
</body>"""


def _drawer(scene: Layout) -> str:
    half, wall = L.DRAWER_HALF_WIDTH, L.DRAWER_WALL
    y0, y1 = L.DRAWER_Y
    z0, z1 = L.DRAWER_FLOOR_Z, L.DRAWER_RIM_Z
    bar = L.DRAWER_BAR_HALF_LENGTH
    low, high = L.DRAWER_RANGE
    posts = "".join(
        _box(
            f"drawer_post_{side}",
            (sign * (bar - 0.01), (L.DRAWER_BAR_Y + y0 - 2 * wall) / 2, L.DRAWER_BAR_Z),
            (0.007, (y0 - 2 * wall - L.DRAWER_BAR_Y) / 2, 0.007),
            "handle",
            'mass="0.02"',
        )
        for side, sign in (("left", -1), ("right", 1))
    )
    ends = _numbers((-bar, L.DRAWER_BAR_Y, L.DRAWER_BAR_Z, bar, L.DRAWER_BAR_Y, L.DRAWER_BAR_Z))
    return f"""
<body name="drawer_link" pos="{scene.drawer_x} 0 0" gravcomp="1">
  <joint name="base__drawer" type="slide" axis="0 -1 0" range="{low} {high}" damping="6" frictionloss="1.5"/>
  {box("drawer_floor", (-half, y0, z0 - 0.012), (half, y1, z0), "drawer_inside", 'mass="0.4"')}
  {box("drawer_left", (-half, y0, z0), (-half + 2 * wall, y1, z1), "drawer", 'mass="0.1"')}
  {box("drawer_right", (half - 2 * wall, y0, z0), (half, y1, z1), "drawer", 'mass="0.1"')}
  {box("drawer_back", (-half, y1, z0), (half, y1 + 2 * wall, z1), "drawer", 'mass="0.1"')}
  {box("drawer_front", (-half, y0 - 2 * wall, z0 - 0.016), (half, y0, z1 + 0.004), "drawer", 'mass="0.2"')}
  <geom name="drawer_bar" type="capsule" fromto="{ends}" size="{L.DRAWER_BAR_RADIUS}" mass="0.05" material="handle"/>
  {posts}
</body>"""


def _lights(scene: Layout) -> str:
    led, bulb = scene.led, scene.bulb
    return f"""
<body name="led_link" pos="{_numbers(led)}">
  {box("led", (-0.075, -0.026, 0.0), (0.075, 0.026, 0.014), "led")}
</body>
<body name="light_link" pos="{_numbers(bulb)}">
  <geom name="bulb_socket" type="cylinder" pos="0 0 0.002" size="0.016 0.002" material="handle"/>
  <geom name="bulb" type="sphere" pos="0 0 {L.BULB_RADIUS}" size="{L.BULB_RADIUS}" material="lightbulb"/>
</body>"""


def _block(name: str, size: L.Size, spot: float) -> str:
    half = _numbers([s / 2 for s in size])
    return f"""
<body name="{name}" pos="{spot} -0.12 0.46">
  <freejoint name="{name}"/>
  <geom name="{name}" class="block" type="box" size="{half}" mass="0.1" material="{name}"/>
</body>"""


def _finger(side: str, sign: int) -> str:
    half_x, half_y = L.FINGER_HALF
    z0, z1 = L.FINGER_TIP - L.FINGER_LENGTH, L.FINGER_TIP
    middle = z1 - 0.030
    tip = (0, sign * half_y, (middle + z1) / 2)
    upper = (0, sign * (half_y + 0.003), (z0 + middle) / 2)
    return f"""
<body name="finger_{side}" gravcomp="1">
  <joint name="finger_{side}" type="slide" axis="0 {sign} 0" range="0 {L.GRIPPER_RANGE[1] / 2}" damping="2"/>
  {_box(f"finger_{side}_tip", tip, (half_x, half_y, (z1 - middle) / 2), "finger", 'mass="0.05" class="pad"')}
  {_box(f"finger_{side}", upper, (half_x, half_y, (middle - z0) / 2), "hand", 'mass="0.05" class="hand"')}
</body>"""


def _hand() -> str:
    armature = SERVO_ROT[3]
    moves = "".join(
        f'<joint name="hand_{a}" type="slide" axis="{v}"/>' for a, v in (("x", "1 0 0"), ("y", "0 1 0"), ("z", "0 0 1"))
    )
    # z first: a chain of hinges about z, y, x is exactly the extrinsic xyz Euler angles of CALVIN's robot_obs.
    turns = "".join(
        f'<joint name="hand_{a}" type="hinge" axis="{v}" armature="{armature}"/>'
        for a, v in (("yaw", "0 0 1"), ("pitch", "0 1 0"), ("roll", "1 0 0"))
    )
    palm = L.PALM_CLEARANCE
    px, py = L.PALM_HALF
    wrist = _numbers((0, 0, -palm - 0.115, 0, 0, -palm - 0.055))
    ring = _numbers((0, 0, -palm - 0.130, 0, 0, -palm - 0.115))
    lens = box("wrist_camera", (-0.045, -0.03, -palm - 0.045), (-0.027, 0.03, -palm - 0.025), "dark", 'class="decor"')
    return f"""
<body name="hand" gravcomp="1">
  {moves}{turns}
  {box("palm", (-px, -py, -palm - 0.055), (px, py, -palm), "hand", 'mass="0.6" class="hand"')}
  <geom name="wrist" class="hand" type="cylinder" fromto="{wrist}" size="0.034" mass="0.3" material="hand"/>
  <geom name="wrist_ring" class="decor" type="cylinder" fromto="{ring}" size="0.027" material="dark"/>
  {lens}
  {_finger("left", 1)}{_finger("right", -1)}
</body>"""


def _actuators() -> str:
    def servo(joint: str, gains: tuple[float, float, float, float]) -> str:
        kp, kv, force, _ = gains
        return f'<position name="{joint}" joint="{joint}" kp="{kp}" kv="{kv}" forcerange="{-force} {force}"/>'

    kp, kv, force = GRIP
    lines = [servo(f"hand_{a}", SERVO_POS) for a in ("x", "y", "z")]
    lines += [servo(f"hand_{a}", SERVO_ROT) for a in ("roll", "pitch", "yaw")]
    lines.append(f'<position name="grip" tendon="width" kp="{kp}" kv="{kv}" forcerange="{-force} {force}"/>')
    return "\n".join(lines)


def desk_xml(scene: str) -> str:
    """Return the MuJoCo model of one scene ("A", "B", "C" or "D") as an XML string."""
    layout = layout_of(scene)
    materials = "\n".join(
        f'<material name="{name}" rgba="{_numbers((*material.colour, 1.0))}" specular="0.2" shininess="0.3"/>'
        for name, material in materials_of(scene).items()
    )
    blocks = "".join(_block(name, layout.blocks[name], 0.0 + 0.12 * i) for i, name in enumerate(L.BLOCKS))
    return f"""
<mujoco model="desk_{scene}">
  <compiler angle="degree" autolimits="true"/>
  <option timestep="{TIMESTEP:.10g}" integrator="implicitfast" cone="elliptic" impratio="5" jacobian="dense"
    iterations="30" tolerance="1e-8" gravity="0 0 -9.81"/>
  <size memory="4M"/>
  <visual><global offwidth="1280" offheight="1280"/><quality shadowsize="2048"/><map znear="0.005" zfar="20"/>
    <headlight ambient="0.45 0.45 0.45" diffuse="0.25 0.25 0.25" specular="0 0 0"/></visual>
  <statistic extent="1" center="0 0 0.4"/>
  <asset>{materials}</asset>
  <default>
    <joint solreflimit="0.0085 1" solimplimit="0.98 0.999 0.0005"/>
    <geom contype="1" conaffinity="0" friction="0.6 0.005 0.0001" solref="0.008 1" solimp="0.95 0.99 0.001"
      density="300" group="0"/>
    <default class="decor"><geom contype="0" conaffinity="0" group="1"/></default>
    <default class="block"><geom contype="2" conaffinity="7" friction="0.6 0.01 0.0005" condim="4" group="2"/></default>
    <default class="hand"><geom contype="4" conaffinity="1" group="3"/></default>
    <default class="pad"><geom contype="4" conaffinity="1" friction="1.2 0.02 0.0005" condim="4" priority="1"
      group="3"/></default>
  </default>
  <worldbody>
    <light name="sun" pos="1.2 -1.6 3.2" dir="-0.3 0.4 -0.8" diffuse="0.55 0.55 0.55" castshadow="true"/>
    <geom name="floor" type="plane" size="6 6 0.1" material="floor"/>
    <body name="base_link">
{_table(layout)}
{_cabinet(layout)}
    </body>
{_plank()}{_door(layout)}{_switch(layout)}{_button(layout)}{_drawer(layout)}{_lights(layout)}
{blocks}
{_hand()}
  </worldbody>
  <tendon>
    <fixed name="width"><joint joint="finger_left" coef="1"/><joint joint="finger_right" coef="1"/></fixed>
  </tendon>
  <equality><joint joint1="finger_left" joint2="finger_right" solref="0.006 1"/></equality>
  <actuator>
{_actuators()}
  </actuator>
</mujoco>"""
