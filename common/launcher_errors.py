"""Report the one line of an error where several processes of a launcher meet the same one."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
"""Set by torchrun and accelerate launch: what a failed process writes there ends the launcher's own output."""
PATIENCE = 5.0
"""Seconds in which the first process, and then the first one of this machine, may fail with the same error."""


def report_error(line: str) -> None:
    """Print an error on stderr, or where a launcher prints it after its own traceback, leave it to the launcher."""
    wait_for_first_process()
    file = os.environ.get(ERROR_FILE)
    if not file:
        print(line, file=sys.stderr)
        return
    content = {"message": {"message": line, "extraInfo": {"timestamp": str(int(time.time()))}}}
    try:
        Path(file).write_text(json.dumps(content), encoding="utf-8")
    except OSError:
        print(line, file=sys.stderr)


def wait_for_first_process() -> None:
    """Let the first process of a launcher report an error that all of them have: the launcher ends the others then.

    A process that still runs after that has an error of its own.
    """
    if os.environ.get(ERROR_FILE):
        later = [os.environ.get(name, "0") not in ("", "0") for name in ("RANK", "LOCAL_RANK")]
        time.sleep(PATIENCE * sum(later))
