"""How every command of the project is run."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Callable
from io import TextIOWrapper
from typing import NoReturn, TextIO

SIGPIPE_EXIT = 141
"""Exit code that a shell shows for a process ended by SIGPIPE."""


def run_command(main: Callable[[], object]) -> NoReturn:
    """Run the main function of a command and exit with the code that it returns.

    If the reader of stdout or stderr closes it (`... --help | head`), the command ends without a traceback, with
    SIGPIPE_EXIT. A broken pipe to anything else is raised.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a terminal of another encoding gets escapes, not a traceback
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            code = main()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        closed = [stream for stream in (sys.stdout, sys.stderr) if _reader_is_gone(stream)]
        if not closed:
            raise
        for stream in closed:  # the interpreter flushes both once more at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        code = SIGPIPE_EXIT
    sys.exit(code if isinstance(code, int) else None)


def _reader_is_gone(stream: TextIO) -> bool:
    poll = select.poll()
    poll.register(stream.fileno(), 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
