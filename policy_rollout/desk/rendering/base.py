"""Interface of a renderer, and the image that it returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from policy_rollout.desk.rendering.cameras import Jitter, View


@dataclass(frozen=True)
class RenderedImage:
    """Colours (S, S, 3) uint8 and distance along the optical axis (S, S) float32 in metres."""

    rgb: npt.NDArray[np.uint8]
    depth: npt.NDArray[np.float32]


class Renderer(Protocol):
    """Draws images of one model. `led`, `bulb`: 1 if the light is on."""

    def render(self, data: Any, view: View, size: int, led: int, bulb: int, jitter: Jitter) -> RenderedImage: ...

    def close(self) -> None: ...
