"""Import MuJoCo without OpenGL: `from policy_rollout.desk.engine import mujoco`.

`import mujoco` loads the OpenGL library that MUJOCO_GL names, and fails without one. The desk casts rays; only
the renderer "gl" needs OpenGL and loads it itself (`gl.load_opengl`). ruff refuses a direct import (TID251).
"""

from __future__ import annotations

from common.processes import environment

VARIABLE = "MUJOCO_GL"


with environment({VARIABLE: "off"}):
    import mujoco

__all__ = ["VARIABLE", "mujoco"]
