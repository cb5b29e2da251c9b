from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.parity.vision import CHECKS
from tests.parity.where import parity_dir


@pytest.mark.parity
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_images_and_their_networks_equal_the_original(check: Callable[[Path], dict[str, float]]) -> None:
    print(check.__name__, check(parity_dir()))
