"""The symptoms in docs/troubleshooting.md are parts of messages that the code has."""

from __future__ import annotations

import ast
import re
from functools import cache

import pytest

from common.files import PROJECT_DIR

PACKAGES = ("common", "config", "models", "policy_rollout", "preprocess_data", "scripts", "training")
PAGE = PROJECT_DIR / "docs" / "troubleshooting.md"


@cache
def texts() -> str:
    """Return the fixed parts of all strings in the code, those of one f-string joined."""
    found = []
    for package in PACKAGES:
        for file in sorted((PROJECT_DIR / package).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    parts = (part.value if isinstance(part, ast.Constant) else "\0" for part in node.values)
                    found.append("".join(map(str, parts)))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
    return "\n".join(found)


def symptoms() -> list[str]:
    section = PAGE.read_text(encoding="utf-8").split("## Messages", 1)[1].split("\n## ", 1)[0]
    return re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE)


def test_there_are_at_least_twenty() -> None:
    assert len(symptoms()) >= 20


@pytest.mark.parametrize("symptom", symptoms())
def test_a_symptom_is_part_of_a_message(symptom: str) -> None:
    assert symptom in texts()
