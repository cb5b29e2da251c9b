"""Writing whole files with the umask's permissions, and deleting without ending anything."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from common.files import give_usual_mode, reason_of, remove, retire, write_text


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_a_file_has_the_permissions_that_the_umask_gives(tmp_path: Path, mask: int) -> None:
    private = tmp_path / "private"
    before = os.umask(mask)
    try:
        write_text(tmp_path / "below" / "text", "é")
        private.touch(0o600)
        give_usual_mode(private)
    finally:
        os.umask(before)
    for file in (tmp_path / "below" / "text", private):
        assert file.stat().st_mode & 0o777 == 0o666 & ~mask
    assert (tmp_path / "below" / "text").read_bytes() == "é".encode()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["below", "private"]


def test_a_write_that_fails_leaves_the_older_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text(tmp_path / "text", "old")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        write_text(tmp_path / "text", "new")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_what_cannot_be_deleted_is_a_reason_and_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, link = tmp_path / "folder", tmp_path / "link"
    folder.mkdir()
    link.symlink_to(folder)
    assert retire(link) is not None
    assert link.is_symlink()
    assert remove(link) is None
    assert folder.is_dir()
    assert remove(tmp_path / "nothing") is None
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda path: (_ for _ in ()).throw(OSError(16, "Device or resource busy")))
        assert remove(folder) == "Device or resource busy"
    assert retire(folder) is None
    assert list(tmp_path.iterdir()) == []


def test_a_reason_is_never_none() -> None:
    assert reason_of(OSError("Cannot call rmtree on a symbolic link")) == "Cannot call rmtree on a symbolic link"
    assert reason_of(OSError(28, "No space left on device")) == "No space left on device"
    assert reason_of(OSError()) == "OSError"
