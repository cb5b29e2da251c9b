"""An embedded desk with CALVIN's interface: MuJoCo physics, ray-cast images, no OpenGL.

`DeskEnv` is the environment; `LAYOUTS` has the layouts of the four scenes A, B, C and D.
"""

from __future__ import annotations

from policy_rollout.desk.env import DeskEnv
from policy_rollout.desk.layout import BLOCKS, LAYOUTS, SCENES, Layout

__all__ = ["BLOCKS", "LAYOUTS", "SCENES", "DeskEnv", "Layout"]
