"""A short run of the fuzzer over every kind of file (python -m tests.fuzz does long ones), and of the fuzzer itself."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from tests.fuzz.__main__ import main
from tests.fuzz.damage import DAMAGES
from tests.fuzz.harness import Hang, limited, try_kind
from tests.fuzz.kinds import Kind, kinds

EVERY = kinds()
GOOD = {kind.name: kind.good for kind in EVERY}


@pytest.mark.parametrize("kind", EVERY, ids=lambda kind: kind.name)
def test_a_damaged_file_gives_its_content_or_one_error_that_names_it(kind: Kind) -> None:
    outcome = try_kind(kind, GOOD, count=2 * len(DAMAGES), seed=20)
    assert outcome.failures == []
    assert outcome.counts["refused"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", EVERY, ids=lambda kind: kind.name)
def test_many_damaged_files_of_every_kind(kind: Kind) -> None:
    assert try_kind(kind, GOOD, count=40 * len(DAMAGES), seed=21).failures == []


def careless(error: BaseException) -> Any:
    def read(path: Path) -> Any:
        if path.read_bytes() != b"good content":
            raise error
        return 1

    return read


@pytest.mark.parametrize(
    ("read", "complaint"),
    [
        (careless(KeyError("x")), "KeyError"),
        (careless(ValueError("bad")), "does not name the file"),
        (careless(ValueError("file.x is bad\nin two ways")), "not one line"),
        (careless(Hang("still reading")), "Hang"),
        (lambda path: path.read_bytes(), "changed without complaint"),
    ],
)
def test_the_fuzzer_sees_every_way_to_do_it_wrong(read: Any, complaint: str) -> None:
    outcome = try_kind(Kind("x", b"good content", "file.x", read, checked=True), {"x": b"y"}, count=22, seed=0)
    assert outcome.counts["FAILED"] >= 18
    assert complaint in outcome.failures[0]


def test_a_read_that_does_not_end_is_ended() -> None:
    with pytest.raises(Hang), limited(0.05):
        time.sleep(5)


def test_the_command_counts_what_it_tried(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--count", "22", "--only", "npy"]) == 0
    last = capsys.readouterr().out.strip().splitlines()[-2].split()
    assert last[:2] == ["all", "88"]
