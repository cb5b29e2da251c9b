"""The build backend of pyproject.toml: setuptools, for editable installs only.

The packages of this project have common names (config, models, training, ...). A wheel would put them into
site-packages, where they clash with other distributions. An editable install adds one line to a .pth file: the
repository root at the end of ``sys.path``.
"""

from __future__ import annotations

import sys
from typing import NoReturn

from setuptools.build_meta import (
    build_editable,
    get_requires_for_build_editable,
    prepare_metadata_for_build_editable,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
]

EDITABLE_ONLY = (
    "blockdiff-vla has no wheel, because its package names (config, models, ...) would clash with others in "
    "site-packages: install it from its checkout with pip install -e ."
)


def _refuse(*_arguments: object, **_settings: object) -> NoReturn:
    """Print why a build that is not editable is refused, and exit."""
    print(EDITABLE_ONLY, file=sys.stderr)
    sys.exit(1)


get_requires_for_build_wheel = build_wheel = _refuse
get_requires_for_build_sdist = build_sdist = _refuse
