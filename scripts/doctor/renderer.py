"""Compare images of the desk with stored ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from scripts.doctor.findings import Finding

REFERENCE = Path(__file__).with_name("desk_reference.png")
"""Static and gripper image of scene D, seed 0; tests/scripts/test_doctor.py writes it if it is run as a script."""
SIZE, SCENE, SEED = 64, "D", 0
LEVELS = 8
"""Difference of a colour channel (of 255) up to which two pixels count as equal: rounding of another processor."""
SHARE = 0.01
"""Share of pixels that may differ by more, at edges of objects."""


def draw_desk() -> Any:
    """Return the images [64, 128, 3] uint8 of both cameras at a fixed start."""
    import numpy as np

    from policy_rollout.desk import DeskEnv

    env = DeskEnv(SCENE, "raycast", SIZE, SIZE, seed=SEED)
    try:
        env.reset(seed=SEED)
        return np.concatenate([env.render("static"), env.render("gripper")], axis=1)
    finally:
        env.close()


def check_renderer() -> Finding:
    """Draw the desk and compare its images with the reference."""
    try:
        import numpy as np
        from PIL import Image

        image = draw_desk()
    except (ImportError, OSError, ValueError, RuntimeError) as error:
        line = " ".join(str(error).split())
        return Finding(
            "renderer", "error", f"the desk cannot be drawn: {line}", "pip install -r requirements_minimal.txt"
        )
    with Image.open(REFERENCE) as file:
        expected = np.asarray(file.convert("RGB"))
    return compare(image, expected)


def compare(image: Any, expected: Any) -> Finding:
    """Return a finding on two images [H, W, 3] uint8."""
    import numpy as np

    difference = np.abs(image.astype(int) - expected.astype(int)).max(axis=2)
    share, largest = float((difference > LEVELS).mean()), int(difference.max())
    facts = {"mean": [round(float(v), 3) for v in image.mean(axis=(0, 1))], "largest": largest, "share": share}
    if largest == 0:
        return Finding("renderer", "ok", "the desk's images are identical to the reference", facts=facts)
    means = ["/".join(f"{v:.1f}" for v in one.mean(axis=(0, 1))) for one in (image, expected)]
    text = (
        f"{share:.2%} of the pixels differ by more than {LEVELS} of 255, at most {largest}; mean colour {means[0]}, "
        f"reference {means[1]}"
    )
    if share <= SHARE:
        return Finding("renderer", "note", f"the desk's images are equal up to rounding: {text}", facts=facts)
    remedy = "install the versions in requirements_minimal.txt (mujoco, numpy); results on the desk are not comparable"
    return Finding("renderer", "warning", f"the desk's images differ from the reference: {text}", remedy, facts)
