"""Run the main function of a command: exit codes, messages of errors, closed pipes, progress, the last line."""

from __future__ import annotations

import json
import os
import select
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from io import TextIOWrapper
from pathlib import Path
from typing import Any, NoReturn, ParamSpec, TextIO

P = ParamSpec("P")
USER_ERROR = 2
"""Exit code of a command that was given something wrong."""

SIGPIPE_EXIT = 141
"""Exit code that a shell shows for a process ended by SIGPIPE."""
ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
"""Set by torchrun and accelerate launch: what a failed process writes there ends the launcher's own output."""
PATIENCE = 5.0
"""Seconds in which the first process, and then the first one of this machine, may fail with the same error."""
LOG_SECONDS = 10.0
"""Seconds before the first line of a progress bar in a log file, and between two lines."""
PART = "BLOCKDIFF_PART_OF_A_COMMAND"
"""Set in the environment while a command runs others, which then have no last line."""


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


def progress_bar(iterable: Iterable[Any] | None = None, **options: Any) -> Any:
    """Return a tqdm bar (count, rate, remaining time) on stderr; ``options`` are those of tqdm.

    If stderr is no terminal, a bar that takes less than LOG_SECONDS prints nothing, and others few lines.
    """
    from tqdm import tqdm

    log = not sys.stderr.isatty()
    options = {"dynamic_ncols": True, **options}
    if log:
        options |= {"delay": LOG_SECONDS, "mininterval": LOG_SECONDS}
    return tqdm(iterable, **options)


def phase_bar(iterable: Iterable[Any] | None = None, **options: Any) -> Any:
    """Return a progress bar of a part of a command: it appears after a second and is cleared at its end."""
    return progress_bar(iterable, **{"delay": 1.0, "leave": False, **options})


def bytes_bar(what: str, size: int) -> Any:
    """Return the bar of a phase that reads or writes ``size`` bytes; of several processes, the first one shows it."""
    hidden = any(os.environ.get(name, "0") not in ("", "0") for name in ("RANK", "SLURM_PROCID"))
    return phase_bar(desc=what, total=size, unit="B", unit_scale=True, disable=hidden)


def print_next(step: str, **paths: Path | str) -> None:
    """Print the last line of a command on stderr: what its user does next with the result; nothing in ``as_parts``.

    ``paths``: values of ``{name}`` in ``step``, which are quoted for a shell.
    """
    if PART in os.environ:
        return
    if paths:
        step = step.format(**{name: shlex.quote(str(path)) for name, path in paths.items()})
    sys.stdout.flush()
    print(f"next: {step}", file=sys.stderr)


@contextmanager
def as_parts() -> Iterator[None]:
    """Run other commands as parts of this one, in this process or in others, without their last lines."""
    outer = os.environ.get(PART)
    os.environ[PART] = "1"
    try:
        yield
    finally:
        if outer is None:
            del os.environ[PART]


def _reader_is_gone(stream: TextIO) -> bool:
    poll = select.poll()
    poll.register(stream.fileno(), 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


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
