"""The directory of the original's numbers, as a fixture."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.parity.where import parity_dir


@pytest.fixture(scope="session")
def parity() -> Path:
    return parity_dir()
