"""Write ``status.json`` in the output folder: the state of a run, for scripts that cannot read its exit code.

(``accelerate launch`` turns every exit code except 0 into 1. A killed run leaves ``running``.)
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Literal

from common.files import write_json

STATUS_FILE = "status.json"
State = Literal["running", "preempted", "stopped", "finished"]
"""``preempted``: stopped by a signal, and the same command resumes. ``stopped``: a problem needs a user."""


def write_status(output_dir: Path, state: State, step: int, checkpoint: Path | None, reason: str = "") -> None:
    """Write the status; only rank 0 calls this. Write errors are ignored: the caller reports a full disk."""
    record = {
        "state": state,
        "step": step,
        "checkpoint": None if checkpoint is None else str(checkpoint),
        "reason": reason,
    }
    with suppress(OSError):
        write_json(output_dir / STATUS_FILE, record, indent=1)
