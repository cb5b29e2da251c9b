"""A list of texts that stays small and is shared by forked data workers."""

from __future__ import annotations

from array import array


class Strings:
    """Many texts in two arrays: a process that forks does not copy them, and a million cost what their bytes cost."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._ends = array("q", [0])

    def append(self, text: str) -> None:
        self._bytes += text.encode()
        self._ends.append(len(self._bytes))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self._bytes[self._ends[index] : self._ends[index + 1]].decode()
