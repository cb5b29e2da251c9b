"""Where the numbers of the original system lie."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

VARIABLE = "BLOCKDIFF_PARITY_DIR"
BESIDE_THE_CHECKOUT = Path(__file__).resolve().parents[3] / "shared" / "parity"


def parity_dir() -> Path:
    """The parity directory, or skip the calling test and say why.

    A directory that was asked for by name and does not exist fails the test instead: that is a typing error.
    """
    asked = os.environ.get(VARIABLE)
    if asked:
        path = Path(asked).expanduser()
        if not path.is_dir():
            pytest.fail(f"{VARIABLE}={asked} is not a directory")
        return path
    if not BESIDE_THE_CHECKOUT.is_dir():
        pytest.skip(f"no parity data: set {VARIABLE} (looked for {BESIDE_THE_CHECKOUT})")
    return BESIDE_THE_CHECKOUT
