"""Write the requirements files from the dependencies in pyproject.toml, the only list.

make requirements        # or: python scripts/dev/write_requirements.py
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
HEADER = "# Written by `make requirements` from pyproject.toml, the only list of dependencies. Do not edit.\n"
FILES: dict[str, tuple[str, ...]] = {
    "requirements_minimal.txt": ("dependencies", "serve"),
    "requirements.txt": ("requirements_minimal.txt", "train"),
    "requirements-optional.txt": ("optional",),
    "requirements-lerobot.txt": ("lerobot",),
    "requirements-calvin.txt": ("calvin",),
}
"""Content of each file: ``dependencies``, extras, and other files."""


def contents() -> dict[str, str]:
    """Return the text of every requirements file by its name."""
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lists: dict[str, list[str]] = {"dependencies": project["dependencies"], **project["optional-dependencies"]}
    lists |= {name: [f"-r {name}"] for name in FILES}
    return {
        name: HEADER + "".join(f"{line}\n" for part in parts for line in lists[part]) for name, parts in FILES.items()
    }


def main() -> None:
    """Write the requirements files that differ into the repository root."""
    for name, text in contents().items():
        file = ROOT / name
        if not file.is_file() or file.read_text(encoding="utf-8") != text:
            file.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
