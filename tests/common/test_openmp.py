"""Importing a package of the project limits how long OpenMP's threads spin, unless the user has set it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = "import common, os, sys; print(os.environ['GOMP_SPINCOUNT'], 'torch' in sys.modules)"


@pytest.mark.parametrize(("given", "expected"), [(None, "2000"), ("7", "7")])
def test_the_limit_is_set_before_torch_is_loaded(pytestconfig: pytest.Config, given: str | None, expected: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    environment |= {} if given is None else {"GOMP_SPINCOUNT": given}
    root = Path(pytestconfig.rootpath)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=root, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [expected, "False"]
