"""Settings of the page, checked before any model is loaded. Imports neither gradio nor torch."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec

REMEDY = "--web needs the package gradio: pip install -e '.[web]' in the project's folder"
OBJECTIVES = ("ar", "mdm", "bd")


@dataclass(frozen=True)
class Choices:
    """What the page offers and starts with. ``tasks``: in the order of the list; ``instruction``: the first text."""

    tasks: tuple[str, ...]
    instruction: str
    scene: str
    seed: int
    model: str


@dataclass(frozen=True)
class WebSettings:
    """Where and for whom the page is served.

    ``port``: 0 selects a free one; ``max_sessions``: open pages; ``timeout``: seconds after which an idle page is
    closed; ``text_models``: checkpoints by objective.
    """

    host: str
    port: int
    max_sessions: int
    timeout: float
    text_models: Mapping[str, str] = field(default_factory=dict)


def require_gradio() -> None:
    """Raise ``ValueError`` with the remedy if gradio is not installed."""
    if find_spec("gradio") is None:
        raise ValueError(REMEDY)


def free_port(host: str, port: int) -> int:
    """Return ``port``, or a free one for 0. Raises ``ValueError`` if the address cannot be used."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            remedy = "give another --port, or --port 0 for a free one"
            raise ValueError(f"--host {host} --port {port}: {reason}; {remedy}") from None
        return int(probe.getsockname()[1])


def parse_text_models(text: str) -> dict[str, str]:
    """Return the checkpoints of ``ar=DIR,mdm=DIR,bd=DIR`` by objective, each optional. Raises ``ValueError``."""
    found: dict[str, str] = {}
    for pair in text.split(","):
        objective, _, checkpoint = (part.strip() for part in pair.partition("="))
        if objective not in OBJECTIVES or not checkpoint or objective in found:
            raise ValueError(f"--text-models {text}: expected ar=DIR,mdm=DIR,bd=DIR, each at most once, found {pair!r}")
        found[objective] = checkpoint
    return found
