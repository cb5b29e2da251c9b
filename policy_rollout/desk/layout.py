"""The layouts of the four scenes.

World frame as in CALVIN: metres, x to the right and y away from a viewer in front of the desk, z up, table surface at
z = 0.44. The sizes and places were chosen so that CALVIN's thresholds and its 192 official initial states
make sense here; the furniture itself is our own.

The cabinet's front leans back by 30 degrees, so that a hand that comes straight down reaches handles and compartments.
Points on it are given by `(x, t, n)`: `t` metres up along the front, `n` metres out of it, towards the hand.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Size = tuple[float, float, float]

SCENES = ("A", "B", "C", "D")
BLOCKS = ("block_red", "block_blue", "block_pink")

# Table and cabinet.
TABLE_Z = 0.44
TABLE_X = (-0.44, 0.44)
TABLE_FRONT_Y = -0.175
PLANK_Z = 0.441  # the floor of the cabinet's compartments, 1 mm above the table as in CALVIN's recordings
PLANK_Y = (0.03, 0.158)
SHELF_Z = 0.648  # top of the cabinet, where the two lights stand
SHELF_Y = (0.140, 0.205)
BULB_RADIUS = 0.025  # no larger, and at the shelf's edge, or the static camera would see half of it
FRONT_ORIGIN = (0.075, 0.535)  # (y, z) of the leaning front at t = 0
FRONT_UP = (0.5, math.sqrt(0.75))  # its upward direction in (y, z)
FRONT_OUT = (-math.sqrt(0.75), 0.5)  # its outward normal in (y, z)

# Joints: range in metres; the light of a switch is on above the middle, as in CALVIN.
SLIDE_RANGE = (0.0, 0.28)  # positive is to the left (-x)
DRAWER_RANGE = (0.0, 0.22)  # positive is open (-y)
BUTTON_RANGE = (0.0, 0.02)  # positive is pressed (-z)
SWITCH_RANGE = (0.0, 0.088)  # positive is up along the cabinet's front
BUTTON_THRESHOLD = 0.01
SWITCH_THRESHOLD = 0.044

# Door: a plate with a vertical bar on two posts. Bar centre (0, DOOR_BAR_T, DOOR_BAR_N) from the door's centre.
DOOR_HALF_WIDTH = 0.125
DOOR_T = (-0.104, 0.070)
DOOR_BAR_T = -0.010
DOOR_BAR_N = 0.062
DOOR_BAR_HALF = (0.008, 0.052, 0.008)

# Switch: a horizontal bar on a post. Bar centre at t = SWITCH_T0 + joint.
SWITCH_T0 = -0.046
SWITCH_BAR_N = 0.055
SWITCH_BAR_HALF = (0.045, 0.010, 0.010)

# Button: a cap that stands on a ring.
BUTTON_Y = -0.12
BUTTON_RADIUS = 0.025
BUTTON_TOP_Z = 0.475
BUTTON_RING = (0.036, 0.452)  # radius, top

# Drawer: y and z for the closed drawer.
DRAWER_HALF_WIDTH = 0.175
DRAWER_WALL = 0.006  # half thickness
DRAWER_Y = (-0.170, 0.035)  # inner front wall, inner back wall
DRAWER_FLOOR_Z = 0.332
DRAWER_RIM_Z = 0.402
DRAWER_BAR_Y = -0.252
DRAWER_BAR_Z = 0.365
DRAWER_BAR_HALF_LENGTH = 0.085
DRAWER_BAR_RADIUS = 0.008

# Hand, in the frame of the tool centre point (tcp): z points out of the fingers, y is the way they open.
FINGER_TIP = 0.012  # the fingers end this far beyond the tcp
FINGER_LENGTH = 0.088
FINGER_HALF = (0.010, 0.006)  # along x, along y; the inner face of a finger is at y = +-width / 2
GRIPPER_RANGE = (0.0, 0.08)
PALM_HALF = (0.027, 0.066)  # along x, along y
PALM_CLEARANCE = FINGER_LENGTH - FINGER_TIP  # the palm starts this far above the tcp

BLOCK_HEIGHT = 0.04
BIG: Size = (0.08, 0.04, BLOCK_HEIGHT)
MIDDLE: Size = (0.056, 0.04, BLOCK_HEIGHT)
SMALL: Size = (0.04, 0.04, BLOCK_HEIGHT)

# Limits of the tcp's target. At the lowest z the finger tips touch the drawer's floor.
WORKSPACE = ((-0.44, -0.56, 0.335), (0.44, 0.16, 0.76))
HOME_TCP = (0.02586, -0.23131, 0.57128)
HOME_EULER = (3.09045, -0.02909, 1.50012)


def front_point(x: float, t: float, n: float, origin: tuple[float, float] = FRONT_ORIGIN) -> Array:
    """Return the world position (3,) of a point `t` up along the cabinet's leaning front and `n` out of it.

    `origin`: (y, z) of the front at t = 0.
    """
    y = origin[0] + t * FRONT_UP[0] + n * FRONT_OUT[0]
    z = origin[1] + t * FRONT_UP[1] + n * FRONT_OUT[1]
    return np.array([x, y, z])


@dataclass(frozen=True)
class Hand:
    """Sizes of the hand, metres, in the frame of the tcp, and how it follows its target. Defaults: the desk's."""

    finger_tip: float = FINGER_TIP
    finger_half: tuple[float, float] = FINGER_HALF
    palm_half: tuple[float, float] = PALM_HALF
    open_width: float = GRIPPER_RANGE[1]
    far_tilt: float = 0.0
    """Tilt in rad with which the hand reaches the far side of the cabinet; 0: a vertical hand reaches everything."""
    response: float | None = None
    """Part of the distance to its target that the tcp covers in a control step; None: all of it, as on the desk."""

    @property
    def closed_half(self) -> float:
        """Half width of the closed fingers along y."""
        return 2 * self.finger_half[1]


@dataclass(frozen=True)
class Furniture:
    """Sizes and places that all scenes of one world share, metres. The defaults are the desk's.

    Bars are the parts of handles that the fingers touch: `door_bar` is (t, n) of its centre, `switch_bar` the same for
    the switch at joint 0, `drawer_bar` (y, z) of the closed drawer. A half size is along (x, t, n), or (y, z).
    """

    table_z: float = TABLE_Z
    table_x: tuple[float, float] = TABLE_X
    table_front_y: float = TABLE_FRONT_Y
    plank_z: float = PLANK_Z
    plank_y: tuple[float, float] = PLANK_Y
    front_origin: tuple[float, float] = FRONT_ORIGIN
    slide_travel: float = SLIDE_RANGE[1]
    drawer_travel: float = DRAWER_RANGE[1]
    switch_travel: float = SWITCH_RANGE[1]
    door_half_width: float = DOOR_HALF_WIDTH
    door_bar: tuple[float, float] = (DOOR_BAR_T, DOOR_BAR_N)
    door_bar_half: Size = DOOR_BAR_HALF
    switch_bar: tuple[float, float] = (SWITCH_T0, SWITCH_BAR_N)
    switch_bar_half: Size = SWITCH_BAR_HALF
    button_y: float = BUTTON_Y
    button_top_z: float = BUTTON_TOP_Z
    button_ring: tuple[float, float] = BUTTON_RING
    drawer_half_width: float = DRAWER_HALF_WIDTH
    drawer_wall: float = DRAWER_WALL  # half thickness
    drawer_y: tuple[float, float] = DRAWER_Y
    drawer_floor_z: float = DRAWER_FLOOR_Z
    drawer_rim_z: float = DRAWER_RIM_Z
    drawer_bar: tuple[float, float] = (DRAWER_BAR_Y, DRAWER_BAR_Z)
    drawer_bar_half: tuple[float, float] = (DRAWER_BAR_RADIUS, DRAWER_BAR_RADIUS)
    block_height: float = BLOCK_HEIGHT


@dataclass(frozen=True)
class Layout:
    """One scene. All points are world positions (3,) in metres; the `_at` methods take the joint's position."""

    name: str
    button_x: float
    switch_x: float
    door_x: float  # centre of the closed (joint 0) door
    drawer_x: float
    opening_x: tuple[float, float]  # the cabinet is open between these; the rest has a fixed front
    blocks: dict[str, Size] = field(default_factory=dict)  # full edge lengths
    hand: Hand = Hand()
    furniture: Furniture = Furniture()
    spaces: dict[str, tuple[Array, Array]] | None = None  # ranges of random block centres; None: those of the desk

    @property
    def button(self) -> Array:
        """Middle of the button's top when it is not pressed."""
        return np.array([self.button_x, self.furniture.button_y, self.furniture.button_top_z])

    def door_handle_at(self, slide: float) -> Array:
        """Return the centre of the sliding door's bar, which runs up along the leaning front."""
        return front_point(self.door_x - slide, *self.furniture.door_bar, self.furniture.front_origin)

    def switch_handle_at(self, switch: float) -> Array:
        """Return the centre of the switch's bar, which runs along x."""
        t, n = self.furniture.switch_bar
        return front_point(self.switch_x, t + switch, n, self.furniture.front_origin)

    def drawer_handle_at(self, drawer: float) -> Array:
        """Return the centre of the drawer's bar, which runs along x; fingers fit behind it."""
        y, z = self.furniture.drawer_bar
        return np.array([self.drawer_x, y - drawer, z])

    def drawer_space_at(self, drawer: float) -> tuple[Array, Array]:
        """Return lower and upper corner of the drawer's inside that is not under the table."""
        f = self.furniture
        low = [self.drawer_x - f.drawer_half_width + 2 * f.drawer_wall, f.drawer_y[0] - drawer, f.drawer_floor_z]
        high = [self.drawer_x + f.drawer_half_width - 2 * f.drawer_wall, f.table_front_y, f.drawer_rim_z]
        return np.array(low), np.array(high)

    @property
    def led(self) -> Array:
        return np.array([self.button_x, 0.172, SHELF_Z])

    @property
    def bulb(self) -> Array:
        return np.array([self.switch_x, SHELF_Y[0] + 0.016, SHELF_Z])

    @property
    def compartments(self) -> dict[str, tuple[Array, Array]]:
        """Ranges of a block's centre in the cabinet: lower and upper corner, z of a resting block.

        `slider_right` is behind the door at joint 0, `slider_left` at the end of its travel. The palm of a hand that
        grasps a block there fits between the door and the fixed fronts.
        """
        if self.spaces is not None:
            return {name: space for name, space in self.spaces.items() if name != "table"}
        z = PLANK_Z + BLOCK_HEIGHT / 2
        spots = {"slider_right": self.door_x, "slider_left": self.door_x - SLIDE_RANGE[1]}
        return {k: (np.array([x - 0.055, 0.088, z]), np.array([x + 0.055, 0.100, z])) for k, x in spots.items()}

    @property
    def table_space(self) -> tuple[Array, Array]:
        """Range of random block centres on the table (CALVIN's ranges, clear of the button)."""
        if self.spaces is not None:
            return self.spaces["table"]
        z = TABLE_Z + BLOCK_HEIGHT / 2
        low, high = 0.0, 0.35
        if self.button_x > 0.15:
            low, high = -0.12, self.button_x - 0.085
        return np.array([low, -0.145, z]), np.array([high, -0.045, z])

    def surfaces(self) -> dict[str, tuple[Array, Array]]:
        return {"table": self.table_space, **self.compartments}


def _blocks(red: Size, blue: Size, pink: Size) -> dict[str, Size]:
    return dict(zip(BLOCKS, (red, blue, pink), strict=True))


LAYOUTS: dict[str, Layout] = {
    "A": Layout("A", -0.28, 0.335, 0.04, 0.10, (-0.370, 0.170), _blocks(BIG, MIDDLE, SMALL)),
    "B": Layout("B", 0.34, -0.388, 0.12, 0.17, (-0.332, 0.250), _blocks(SMALL, BIG, MIDDLE)),
    "C": Layout("C", -0.20, -0.386, 0.10, 0.06, (-0.334, 0.230), _blocks(BIG, SMALL, MIDDLE)),
    "D": Layout("D", -0.12, 0.30, 0.04, 0.18, (-0.370, 0.170), _blocks(MIDDLE, SMALL, BIG)),
}


def layout_of(scene: str) -> Layout:
    """Return the layout of a scene. Raises ValueError for an unknown name."""
    if scene not in LAYOUTS:
        raise ValueError(f"scene is {scene!r}; the desk has the scenes {', '.join(SCENES)}")
    return LAYOUTS[scene]
