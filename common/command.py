"""Run the main function of a command: exit codes, messages of errors, closed pipes."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Callable
from functools import wraps
from io import TextIOWrapper
from typing import NoReturn, ParamSpec, TextIO

P = ParamSpec("P")
USER_ERROR = 2
"""Exit code of a command that was given something wrong."""

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


def report_errors(name: str) -> Callable[[Callable[P, int]], Callable[P, int]]:
    """Return a decorator of main functions: errors of the user are printed as `name: message`, and 2 is returned.

    Errors of the user are ValueError and OSError, except for a broken pipe, which ``run_command`` handles.
    """

    def decorate(main: Callable[P, int]) -> Callable[P, int]:
        @wraps(main)
        def run(*args: P.args, **kwargs: P.kwargs) -> int:
            try:
                return main(*args, **kwargs)
            except BrokenPipeError:
                raise
            except (ValueError, OSError) as error:
                print(f"{name}: {error}", file=sys.stderr)
                return USER_ERROR

        return run

    return decorate


def _reader_is_gone(stream: TextIO) -> bool:
    poll = select.poll()
    poll.register(stream.fileno(), 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
