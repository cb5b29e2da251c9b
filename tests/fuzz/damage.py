"""Ways to damage a file's bytes, all drawn from one generator."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

Damage = Callable[[bytes, np.random.Generator, Mapping[str, bytes]], bytes]


def _cut(whole: bytes, rng: np.random.Generator, others: Mapping[str, bytes]) -> bytes:
    return whole[: int(rng.integers(len(whole)))]


def _flip(whole: bytes, rng: np.random.Generator, others: Mapping[str, bytes]) -> bytes:
    damaged = bytearray(whole)
    damaged[rng.integers(len(whole))] ^= 1 << int(rng.integers(8))
    return bytes(damaged)


def _flip_in_front(whole: bytes, rng: np.random.Generator, others: Mapping[str, bytes]) -> bytes:
    """Headers are short, and most of what can go wrong begins there."""
    damaged = bytearray(whole)
    damaged[rng.integers(min(len(whole), 128))] ^= 1 << int(rng.integers(8))
    return bytes(damaged)


def _flip_at_end(whole: bytes, rng: np.random.Generator, others: Mapping[str, bytes]) -> bytes:
    """Directories of zips and footers are at the end."""
    damaged = bytearray(whole)
    damaged[len(whole) - 1 - int(rng.integers(min(len(whole), 128)))] ^= 1 << int(rng.integers(8))
    return bytes(damaged)


def _flip_many(whole: bytes, rng: np.random.Generator, others: Mapping[str, bytes]) -> bytes:
    damaged = bytearray(whole)
    for _ in range(int(rng.integers(2, 30))):
        damaged[rng.integers(len(whole))] ^= 1 << int(rng.integers(8))
    return bytes(damaged)


def _erase(whole: bytes, rng: np.random.Generator, others: Mapping[str, bytes]) -> bytes:
    """A sector of zeros, as a crashed disk leaves it."""
    start = int(rng.integers(len(whole)))
    length = int(rng.integers(1, max(len(whole) // 4, 2)))
    return whole[:start] + bytes(min(length, len(whole) - start)) + whole[start + length :]


def _lose(whole: bytes, rng: np.random.Generator, others: Mapping[str, bytes]) -> bytes:
    start = int(rng.integers(len(whole)))
    return whole[:start] + whole[start + int(rng.integers(1, 64)) :]


def _append(whole: bytes, rng: np.random.Generator, others: Mapping[str, bytes]) -> bytes:
    return whole + rng.bytes(int(rng.integers(1, 200)))


def _noise(whole: bytes, rng: np.random.Generator, others: Mapping[str, bytes]) -> bytes:
    return rng.bytes(int(rng.integers(1, len(whole) + 1)))


def _text(whole: bytes, rng: np.random.Generator, others: Mapping[str, bytes]) -> bytes:
    pages = [
        b"",
        b"\n",
        b"null",
        b"[]",
        b"{}",
        b"0",
        b'"x"',
        b"<html>not found</html>",
        b"[[[[",
        b"{\x00}",
        b"[" * 5000,
    ]
    return pages[int(rng.integers(len(pages)))]


def _other(whole: bytes, rng: np.random.Generator, others: Mapping[str, bytes]) -> bytes:
    """A whole file of another kind, under this one's name."""
    names = sorted(others)
    return others[names[int(rng.integers(len(names)))]]


DAMAGES: dict[str, Damage] = {
    "cut off": _cut,
    "a bit flipped": _flip,
    "a bit flipped in front": _flip_in_front,
    "a bit flipped at the end": _flip_at_end,
    "bits flipped": _flip_many,
    "erased": _erase,
    "bytes lost": _lose,
    "bytes appended": _append,
    "noise": _noise,
    "other text": _text,
    "another kind": _other,
}
