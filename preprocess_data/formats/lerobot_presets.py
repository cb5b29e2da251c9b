"""Conventions that a LeRobot data set does not declare: options that state them, and presets of known data sets."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from models.pretrained.model_config import IMAGE_ROTATIONS
from preprocess_data.formats.lerobot import LerobotData
from preprocess_data.formats.lerobot_state import NO_STATE

ROTATIONS = ("euler_xyz", "axis_angle")
KINDS = ("relative", "relative_to_measured")
PRESETS: dict[str, dict[str, Any]] = {
    # openpi's and lerobot's conversions of LIBERO: the commands of robosuite's controller OSC_POSE as recorded, where
    # +-1 is 0.05 m and 0.5 rad, added to the measured pose, and +1 closes the gripper. The state is position, rotation
    # vector and the joints of both fingers, in metres.
    "libero": {
        "position_unit": 0.05,
        "rotation_unit": 0.5,
        "action_kind": "relative_to_measured",
        "action_rotation": "axis_angle",
        "gripper_inverted": True,
        "state_groups": ["position=0,1,2,6,7", "rotation=3,4,5"],
        "state_rotation": "axis_angle",
        "image_rotation": 180,
    },
}
COLUMNS: dict[str, dict[str, tuple[str, ...]]] = {
    "libero": {
        "camera": ("image", "observation.images.image"),
        "second_camera": ("wrist_image", "observation.images.image2", "observation.images.wrist_image"),
        "action_key": ("actions", "action"),
        "state_key": ("state", "observation.state"),
    },
}
"""Names of columns in the data sets of a preset; the first that exists is used."""


def add_convention_options(group: argparse._ArgumentGroup) -> None:
    """Add the options of conventions, and ``--preset``, which gives them other defaults."""
    add = group.add_argument
    add("--preset", choices=tuple(PRESETS), help="conventions and columns of a data set; other options override it")
    add("--action-kind", choices=KINDS, default=KINDS[0], help="added to the last target, or to the measured pose")
    add(
        "--action-rotation",
        choices=ROTATIONS,
        default=ROTATIONS[0],
        help="rotation of relative actions (default euler_xyz); axis_angle: the 7 numbers are taken in their order",
    )
    add("--state-rotation", choices=ROTATIONS, default=ROTATIONS[0], help="rotation in --state-groups")
    add(
        "--image-rotation",
        type=int,
        choices=IMAGE_ROTATIONS,
        default=0,
        help="degrees by which the images are rotated against those of their camera; declared, not changed (default 0)",
    )


def parse_with_preset(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options, with the defaults of ``--preset``. Raises ValueError if the data set lacks its columns."""
    options = parser.parse_args(argv)
    if options.preset is None or options.source is None:
        return options
    chosen = PRESETS[options.preset]
    if options.state_key == NO_STATE:
        chosen = {**chosen, "state_groups": []}
    parser.set_defaults(**chosen, **_columns(options.preset, options.source))
    return parser.parse_args(argv)


def _columns(preset: str, source: Path) -> Mapping[str, str]:
    features = LerobotData(source).features
    found = {}
    for option, names in COLUMNS[preset].items():
        name = next((name for name in names if name in features), None)
        if name is not None:
            found[option] = name
        elif option != "second_camera":
            flag = option.replace("_", "-")
            raise ValueError(
                f"--preset {preset}: {source} has none of {', '.join(names)}, it has {', '.join(features)}; name the "
                f"column by --{flag} without a preset"
            )
    return found
