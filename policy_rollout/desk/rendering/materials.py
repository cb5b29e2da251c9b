"""Materials of the four scenes: a colour and a pattern each. Shapes are in `scene.py`."""

from __future__ import annotations

from dataclasses import dataclass

Colour = tuple[float, float, float]


@dataclass(frozen=True)
class Material:
    """One material. `pattern` is "plain", "wood", "check", "stripe" or "speckle"; `second` its other colour.

    `scale` is the size of one period of the pattern in metres, `glow` the fraction of emitted light (0..1).
    """

    colour: Colour
    pattern: str = "plain"
    second: Colour = (0.0, 0.0, 0.0)
    scale: float = 0.05
    glow: float = 0.0


LIGHT_OFF: Colour = (0.92, 0.92, 0.90)
LED_ON: Colour = (0.10, 0.95, 0.15)
BULB_ON: Colour = (1.0, 0.92, 0.10)

_COMMON: dict[str, Material] = {
    "handle": Material((0.30, 0.30, 0.32)),
    "dark": Material((0.13, 0.13, 0.14)),
    "hand": Material((0.90, 0.90, 0.92)),
    "finger": Material((0.62, 0.64, 0.68)),
    "led": Material(LIGHT_OFF),
    "lightbulb": Material(LIGHT_OFF),
    "block_red": Material((0.90, 0.06, 0.06)),
    "block_blue": Material((0.06, 0.10, 0.90)),
    "block_pink": Material((0.95, 0.12, 0.88)),
}


def _wood(light: Colour, dark: Colour, scale: float = 0.035) -> Material:
    return Material(light, "wood", dark, scale)


_OAK = _wood((0.66, 0.49, 0.31), (0.50, 0.34, 0.19))
_WALNUT = _wood((0.47, 0.33, 0.20), (0.35, 0.23, 0.13))
_PINE = _wood((0.86, 0.72, 0.50), (0.74, 0.57, 0.35), 0.05)
_ASH = _wood((0.74, 0.70, 0.63), (0.62, 0.57, 0.50), 0.04)
_TEAL = Material((0.30, 0.52, 0.52), "stripe", (0.26, 0.46, 0.47), 0.03)
_SAND = Material((0.80, 0.74, 0.60), "speckle", (0.70, 0.63, 0.49), 0.006)
_SLATE = Material((0.42, 0.46, 0.52), "speckle", (0.36, 0.40, 0.46), 0.006)

_SCENES: dict[str, dict[str, Material]] = {
    "A": {
        "floor": Material((0.87, 0.86, 0.82), "check", (0.76, 0.75, 0.70), 0.5),
        "table": _PINE,
        "frame": _wood((0.70, 0.55, 0.36), (0.58, 0.43, 0.26)),
        "cabinet": _wood((0.78, 0.63, 0.42), (0.66, 0.50, 0.31)),
        "inside": _wood((0.68, 0.55, 0.38), (0.58, 0.45, 0.30)),
        "door": _wood((0.70, 0.54, 0.34), (0.57, 0.41, 0.24)),
        "drawer": _wood((0.74, 0.58, 0.38), (0.62, 0.46, 0.28)),
        "drawer_inside": _PINE,
        "button": Material((0.80, 0.42, 0.08)),
    },
    "B": {
        "floor": Material((0.80, 0.83, 0.86), "check", (0.68, 0.72, 0.76), 0.4),
        "table": _SLATE,
        "frame": Material((0.32, 0.35, 0.40)),
        "cabinet": _TEAL,
        "inside": Material((0.62, 0.66, 0.66)),
        "door": Material((0.38, 0.60, 0.58), "stripe", (0.33, 0.54, 0.53), 0.03),
        "drawer": Material((0.36, 0.40, 0.46)),
        "drawer_inside": Material((0.60, 0.64, 0.68), "speckle", (0.54, 0.58, 0.62), 0.006),
        "button": Material((0.10, 0.10, 0.11)),
    },
    "C": {
        "floor": Material((0.78, 0.74, 0.70), "stripe", (0.70, 0.66, 0.62), 0.3),
        "table": _SAND,
        "frame": _ASH,
        "cabinet": _wood((0.66, 0.61, 0.53), (0.54, 0.49, 0.42)),
        "inside": Material((0.56, 0.52, 0.46)),
        "door": Material((0.70, 0.50, 0.40), "stripe", (0.64, 0.44, 0.35), 0.025),
        "drawer": _ASH,
        "drawer_inside": _SAND,
        "button": Material((0.12, 0.36, 0.16)),
    },
    "D": {
        "floor": Material((0.93, 0.93, 0.93), "check", (0.80, 0.80, 0.81), 0.45),
        "table": _OAK,
        "frame": _WALNUT,
        "cabinet": _wood((0.52, 0.37, 0.23), (0.40, 0.27, 0.16)),
        "inside": _wood((0.58, 0.43, 0.27), (0.46, 0.32, 0.18)),
        "door": _wood((0.56, 0.41, 0.25), (0.43, 0.29, 0.17)),
        "drawer": _wood((0.55, 0.39, 0.24), (0.44, 0.30, 0.18)),
        "drawer_inside": _OAK,
        "button": Material((0.05, 0.05, 0.05)),
    },
}


def materials_of(scene: str) -> dict[str, Material]:
    """Return the materials of one scene by name."""
    return {**_COMMON, **_SCENES[scene]}
