"""MuJoCo, imported without OpenGL: `from policy_rollout.desk.engine import mujoco`.

`import mujoco` loads the OpenGL library that MUJOCO_GL names, and fails where there is none. The desk casts rays; only
the renderer "gl" needs OpenGL and loads it itself (`gl.load_opengl`). ruff refuses a direct import (TID251).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

VARIABLE = "MUJOCO_GL"


@contextmanager
def _without_opengl() -> Iterator[None]:
    """Set MUJOCO_GL to "off", and back afterwards."""
    asked = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = "off"
    try:
        yield
    finally:
        del os.environ[VARIABLE]
        if asked is not None:
            os.environ[VARIABLE] = asked


with _without_opengl():
    import mujoco

__all__ = ["VARIABLE", "mujoco"]
