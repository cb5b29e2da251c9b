"""Errors under torchrun and accelerate launch: one process reports, and the launcher prints it at the end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from common.command import ERROR_FILE, PATIENCE
from config.loading import main_or_exit
from config.parsing import ConfigError


@pytest.fixture
def waited(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that are waited, without waiting."""
    seconds: list[float] = []
    monkeypatch.setattr("common.command.time.sleep", seconds.append)
    for name in ("RANK", "LOCAL_RANK", ERROR_FILE):
        monkeypatch.delenv(name, raising=False)
    return seconds


def fail(error: BaseException) -> int | str | None:
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as end:
        main_or_exit(main)
    return end.value.code


def test_without_a_launcher_an_error_is_printed_at_once(
    waited: list[float], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")  # a Slurm step, or a leftover
    assert fail(ConfigError("a.b=3: wrong")) == 2
    assert fail(SystemExit("stopped: no room")) == 1
    assert capsys.readouterr().err == "config error: a.b=3: wrong\nstopped: no room\n"
    assert sum(waited) == 0


@pytest.mark.parametrize(("rank", "local_rank", "turns"), [(0, 0, 0), (1, 1, 2), (8, 0, 1), (9, 1, 2)])
@pytest.mark.parametrize(
    ("error", "code", "line"),
    [(ConfigError("a.b=3: wrong"), 2, "config error: a.b=3: wrong"), (SystemExit("no room"), 1, "no room")],
)
def test_a_launcher_gets_the_line_and_prints_it_last(
    waited: list[float],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    rank: int,
    local_rank: int,
    turns: int,
    error: BaseException,
    code: int,
    line: str,
) -> None:
    file = tmp_path / "error.json"
    for name, value in (("RANK", rank), ("LOCAL_RANK", local_rank), (ERROR_FILE, file)):
        monkeypatch.setenv(name, str(value))
    assert fail(error) == code
    assert capsys.readouterr().err == ""
    assert sum(waited) == turns * PATIENCE
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

    failure = ProcessFailure(local_rank=local_rank, pid=1, exitcode=code, error_file=str(file))
    shown = str(ChildFailedError("train_upvla.py", {rank: failure})).strip().splitlines()
    assert shown[-2].endswith(line)
    assert sum(line in one for one in shown) == 1
    assert json.loads(file.read_text(encoding="utf-8"))["message"]["message"] == line


def test_a_launcher_without_a_folder_for_errors_loses_none(
    waited: list[float], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv(ERROR_FILE, str(tmp_path / "gone" / "error.json"))
    assert fail(ConfigError("a.b=3: wrong")) == 2
    assert capsys.readouterr().err == "config error: a.b=3: wrong\n"


@pytest.mark.parametrize(("code", "turns"), [(2, 2), (1, 2), (0, 0), (75, 0), (None, 0)])
def test_a_process_that_leaves_the_error_to_the_first_one_does_not_end_before_it(
    waited: list[float], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: int | None, turns: int
) -> None:
    for name, value in (("RANK", "1"), ("LOCAL_RANK", "1"), (ERROR_FILE, str(tmp_path / "error.json"))):
        monkeypatch.setenv(name, value)
    assert fail(SystemExit(code)) == code
    assert sum(waited) == turns * PATIENCE
    assert not (tmp_path / "error.json").exists()
