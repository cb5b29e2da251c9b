"""Progress bars in terminals and log files, and the last line of commands."""

from __future__ import annotations

import ast
import io
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import ones

from common import command
from common.command import as_parts, bytes_bar, phase_bar, print_next, progress_bar
from models.pretrained.weights_io import files_sha256, require_finite
from scripts.cli.__main__ import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("common", "config", "models", "training", "policy_rollout", "preprocess_data", "scripts", "benchmarks")

WITHOUT_NEXT = {
    "doctor": "each finding names its remedy",
    "memory": "prints an estimate",
    "eval table": "prints a table, which may be redirected to a file",
    "ask": "prints answers",
    "mask": "prints or writes one drawing",
    "desk": "prints or writes what it was asked for",
    "serve": "runs until it is stopped",
    "robot": "runs until it is stopped, and ends with its report",
}
"""Commands that end with their result alone."""


class Stream(io.StringIO):
    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


@pytest.fixture(params=[True, False], ids=["terminal", "log"])
def terminal(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def test_a_bar_has_count_and_remaining_time_and_a_short_one_is_not_in_a_log(
    terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    stderr = Stream(terminal)
    monkeypatch.setattr(sys, "stderr", stderr)
    assert list(progress_bar(range(3), desc="frames", unit="frame", mininterval=0)) == [0, 1, 2]
    shown = stderr.getvalue()
    if terminal:
        assert "frames: 100%" in shown
        assert "3/3 [00:00<00:00" in shown
    else:
        assert shown == ""


def test_a_long_bar_prints_few_lines_in_a_log(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Stream(terminal=False)
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(command, "LOG_SECONDS", 0.05)
    clock = 0.0

    def seconds() -> float:
        return clock

    with progress_bar(total=1000, desc="frames") as bar:
        bar._time = seconds  # a clock that this test moves
        bar.start_t = bar.last_print_t = 0.0
        for _ in range(1000):
            clock += 0.001
            bar.update()
    lines = [line for line in stream.getvalue().split("\r") if line.strip()]
    assert 2 <= len(lines) <= 25
    assert "1000/1000" in lines[-1]


def test_a_phase_that_takes_less_than_a_second_shows_nothing(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = Stream(terminal)
    monkeypatch.setattr(sys, "stderr", stderr)
    assert list(phase_bar(range(3), desc="checking")) == [0, 1, 2]
    assert stderr.getvalue() == ""


def test_one_process_of_several_shows_the_bar_of_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    for rank, hidden in (("0", False), ("1", True)):
        monkeypatch.setenv("RANK", rank)
        with bytes_bar("reading", 10) as bar:
            assert bar.disable is hidden


def test_reading_and_hashing_of_weights_count_all_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: dict[str, list[int]] = {}

    class Bar:
        def __init__(self, what: str, size: int) -> None:
            self.sizes = counted.setdefault(what.split()[0], [size, 0])

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *_: object) -> None: ...

        def update(self, size: int) -> None:
            self.sizes[1] += size

    monkeypatch.setattr("models.pretrained.weights_io.bytes_bar", Bar)
    file = tmp_path / "model.bin"
    file.write_bytes(bytes(5_000_000))
    files_sha256(file)
    require_finite({"a": ones(3, 4), "b": ones(5)}, file)
    assert counted == {"checksum": [5_000_000, 5_000_000], "reading": [68, 68]}


def test_the_last_line_quotes_paths_and_leaves_stdout_to_the_result(capsys: pytest.CaptureFixture[str]) -> None:
    print_next("blockdiff-vla report {folder}", folder=Path("my results"))
    assert capsys.readouterr() == ("", "next: blockdiff-vla report 'my results'\n")


def calls_of(file: Path, name: str) -> Iterator[int]:
    """Yield the lines of a file that call a function of this name."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name:
            yield node.lineno


def test_all_bars_are_made_by_one_function() -> None:
    files = [file for name in PACKAGES for file in (ROOT / name).rglob("*.py")]
    own = [f"{file.relative_to(ROOT)}:{line}" for file in files for line in calls_of(file, "tqdm")]
    assert [line.split(":")[0] for line in own] == ["common/command.py"]


def test_every_command_ends_with_what_to_do_next() -> None:
    assert set(WITHOUT_NEXT) < set(COMMANDS)
    modules = {name: command.module for name, command in COMMANDS.items()}
    modules["train"] = "training.trainer"  # the loop of all entry points, which scripts.cli.train starts
    for name, module in modules.items():
        file = ROOT / f"{module.replace('.', '/')}.py"
        assert (name in WITHOUT_NEXT) is not any(calls_of(file, "print_next")), name


def test_commands_that_are_parts_of_another_do_not_say_what_to_do_next(capsys: pytest.CaptureFixture[str]) -> None:
    part = [sys.executable, "-c", "from common.command import print_next; print_next('in a process')"]
    with as_parts(), as_parts():
        print_next("inside")
        assert not subprocess.run(part, cwd=ROOT, check=True, capture_output=True).stderr
    print_next("outside")
    assert capsys.readouterr().err == "next: outside\n"
    assert subprocess.run(part, cwd=ROOT, check=True, capture_output=True).stderr == b"next: in a process\n"
