"""Build everything that a training run needs from its configuration."""

from __future__ import annotations

from training.build.components import Components
from training.build.setup import setup

__all__ = ["Components", "setup"]
