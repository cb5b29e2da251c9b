"""``status.json`` in the output folder: what became of a run, for scripts that cannot see its exit code.

(``accelerate launch`` turns every exit code but 0 into 1. A run that was killed leaves ``running``.)
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Literal

from common.files import write_json

STATUS_FILE = "status.json"
State = Literal["running", "preempted", "stopped", "finished"]
"""``preempted``: asked to stop, and the same command goes on. ``stopped``: somebody has to look what is wrong."""


def write_status(output_dir: Path, state: State, step: int, checkpoint: Path | None, reason: str = "") -> None:
    """Only rank 0 calls this. Says nothing of a disk that is full: whoever stops for that has said so."""
    record = {
        "state": state,
        "step": step,
        "checkpoint": None if checkpoint is None else str(checkpoint),
        "reason": reason,
    }
    with suppress(OSError):
        write_json(output_dir / STATUS_FILE, record, indent=1)
