"""The layout of a scene of the real CALVIN, read from the descriptions and meshes that its configuration names.

Nothing is measured by hand: joints, their travel, handles and surfaces come from the table's URDF and its collision
meshes, block sizes from the blocks' URDFs, the hand from the robot's URDF, spaces for blocks from the configuration.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from policy_rollout.calvin.scenes.configuration import data_folder
from policy_rollout.calvin.scenes.geometry import Link, read_box, read_links
from policy_rollout.desk.layout import FRONT_OUT, FRONT_UP, Furniture, Hand, Layout, Size

Array = npt.NDArray[np.float64]

BAR_DEPTH = 0.025
"""Metres: the bar of a handle are the vertices at most this far from the outermost one."""
RESPONSE = 0.5
"""Part of the way to its target that the arm covers in a control step. Measured: the first unit action moves the tcp by
1.0 cm, and half of the distance that is left follows in each step without an action."""
FAR_TILT = 0.9
"""rad. The inverse kinematics of a vertical hand is off by more than 5 cm at the switch of scene D, with this
tilt by less than 1 cm."""
_SPACE_MARGIN = 0.03  # metres, from the edge of a surface of the cabinet to the centre of a random block, along x
_CABINET_DEPTH = 0.012  # metres, of random block centres around the middle of such a surface, along y


def read_layout(config: Any, scene: str) -> Layout:
    """Return the layout of the scene that a configuration describes.

    `scene`: its name. Raises ``ValueError`` naming a file that cannot be read or lacks a part.
    """
    data, scale = data_folder(config), float(config.scene.global_scaling)
    table = config.scene.objects.fixed_objects.table
    file = data / str(table.file)
    links = read_links(file, data, scale)
    wanted = ("base_link", "button_link", "switch_link", "slide_link", "drawer_link", "plank_link")
    if missing := [name for name in wanted if name not in links]:
        raise ValueError(f"{file} has no link {', '.join(missing)}")
    base, button, switch, slide, drawer, plank = (links[name] for name in wanted)
    hand = _read_hand(config, data)
    blocks = {
        str(name): read_box(data / str(block.file), scale)
        for name, block in config.scene.objects.movable_objects.items()
    }
    door_low, door_high = slide.points.min(0), slide.points.max(0)
    return Layout(
        name=scene,
        button_x=float(button.origin[0]),
        switch_x=float(switch.origin[0]),
        door_x=float(door_low[0] + door_high[0]) / 2,
        drawer_x=float(drawer.origin[0]),
        opening_x=(float(plank.points[:, 0].min()), float(plank.points[:, 0].max())),
        blocks=blocks,
        hand=hand,
        furniture=_furniture(base, button, switch, slide, drawer, plank, blocks),
        spaces=_spaces(config, slide, blocks),
    )


def _furniture(
    base: Link, button: Link, switch: Link, slide: Link, drawer: Link, plank: Link, blocks: dict[str, Size]
) -> Furniture:
    front = (float(slide.origin[1]), float(slide.origin[2]))
    door_bar, door_half = _bar_on_front(slide, front)
    switch_bar, switch_half = _bar_on_front(switch, front)
    bar = drawer.points[drawer.points[:, 1] < drawer.points[:, 1].min() + BAR_DEPTH]
    (_, y0, z0), (_, y1, z1) = bar.min(0), bar.max(0)
    inside = _drawer_inside(drawer)
    top = button.points.max(0)
    radius = float(top[0] - button.origin[0])
    plate = slide.points.max(0)[0] - slide.points.min(0)[0]
    table_top = float(button.origin[2])
    return Furniture(
        table_z=float(plank.points[:, 2].max()),
        table_x=(float(base.points[:, 0].min()), float(base.points[:, 0].max())),
        table_front_y=float(base.points[:, 1].min()),
        plank_z=float(plank.points[:, 2].max()),
        plank_y=(float(plank.points[:, 1].min()), float(plank.points[:, 1].max())),
        front_origin=front,
        slide_travel=slide.travel,
        drawer_travel=drawer.travel,
        switch_travel=switch.travel,
        door_half_width=float(plate) / 2,
        door_bar=door_bar,
        door_bar_half=door_half,
        switch_bar=switch_bar,
        switch_bar_half=switch_half,
        button_y=float(button.origin[1]),
        button_top_z=float(top[2]),
        button_ring=(radius, table_top),
        drawer_half_width=float(inside[1][0] - inside[0][0]) / 2,
        drawer_wall=0.0,
        drawer_y=(float(inside[0][1]), float(inside[1][1])),
        drawer_floor_z=float(inside[0][2]),
        drawer_rim_z=float(inside[1][2]),
        drawer_bar=(float(y0 + y1) / 2, float(z0 + z1) / 2),
        drawer_bar_half=(float(y1 - y0) / 2, float(z1 - z0) / 2),
        block_height=next(iter(blocks.values()))[2],
    )


def _bar_on_front(link: Link, front: tuple[float, float]) -> tuple[tuple[float, float], Size]:
    """Return (t, n) of the centre of a handle's bar on the leaning front, and its half sizes along x, t, n."""
    yz = link.points[:, 1:] - np.array(front)
    on_front = np.c_[link.points[:, 0], yz @ np.array(FRONT_UP), yz @ np.array(FRONT_OUT)]
    bar = on_front[on_front[:, 2] > on_front[:, 2].max() - BAR_DEPTH]
    low, high = bar.min(0), bar.max(0)
    (_, t, n), (hx, ht, hn) = ((low + high) / 2).tolist(), ((high - low) / 2).tolist()
    return (t, n), (hx, ht, hn)


def _drawer_inside(drawer: Link) -> tuple[Array, Array]:
    """Return lower and upper corner of the inside of the closed drawer: what is above its floor, up to its rim.

    The floor is the part with the largest horizontal area.
    """
    floor = max(drawer.parts, key=lambda part: float(np.prod(np.ptp(part[:, :2], axis=0))))
    (x0, y0, _), (x1, y1, top) = floor.min(0), floor.max(0)
    return np.array([x0, y0, top]), np.array([x1, y1, drawer.points[:, 2].max()])


def _spaces(config: Any, slide: Link, blocks: dict[str, Size]) -> dict[str, tuple[Array, Array]]:
    """Return the ranges of random block centres: the configuration's surfaces, narrower in the cabinet.

    On the table no block touches the door: pushed away from it, it would lose a contact, and the oracle refuses that.
    """
    plate = max(slide.parts, key=lambda part: float(np.ptp(part[:, 0])))
    clear_y = float(plate[:, 1].min()) - max(float(np.hypot(*size[:2])) for size in blocks.values()) / 2
    spaces = {}
    for name, (low, high) in config.scene.surfaces.items():
        corners = np.array(list(low)), np.array(list(high))
        if name == "table":
            corners[1][1] = min(corners[1][1], clear_y)
        else:
            middle = float(corners[0][1] + corners[1][1]) / 2
            corners[0][:2] = corners[0][0] + _SPACE_MARGIN, middle - _CABINET_DEPTH
            corners[1][:2] = corners[1][0] - _SPACE_MARGIN, middle + _CABINET_DEPTH
        spaces[str(name)] = corners
    return spaces


def _read_hand(config: Any, data: Path) -> Hand:
    """Return the sizes of the hand, from the robot's description."""
    file = data / str(config.robot.filename)
    links = read_links(file, data)
    wanted = ("tcp", "panda_hand", "panda_leftfinger")
    if missing := [name for name in wanted if name not in links]:
        raise ValueError(f"{file} has no link {', '.join(missing)}")
    tcp, palm, finger = (links[name] for name in wanted)
    tip, body = tcp.local(finger.points), tcp.local(palm.points)
    near = tip[tip[:, 2] > tip[:, 2].max() - 0.12]
    outer = float(np.abs(near[:, 1]).max())
    return Hand(
        finger_tip=float(tip[:, 2].max()),
        finger_half=(float(np.abs(near[:, 0]).max()), outer / 2),
        palm_half=(float(np.abs(body[:, 0]).max()), float(np.abs(body[:, 1]).max())),
        open_width=2 * float(config.robot.gripper_joint_limits[1]),
        far_tilt=FAR_TILT,
        response=RESPONSE,
    )
