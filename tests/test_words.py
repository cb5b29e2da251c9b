"""Names and first docstring lines use the terms of CONTRIBUTING.md's glossary."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("benchmarks", "common", "config", "models", "policy_rollout", "preprocess_data", "scripts", "training")
FILES = sorted([*ROOT.glob("*.py"), *(file for name in PACKAGES for file in (ROOT / name).rglob("*.py"))])

BANNED = {
    "picture": "image",
    "pictures": "images",
    "told": "a noun: report, note, message",
    "tell": "log, print, return or raise",
    "tells": "logs, prints, returns or raises",
    "say": "log, print, return or raise",
    "says": "states, logs, prints",
    "said": "a noun: message, output, answer",
    "looked": "checked, read",
    "looking": "checking, reading",
    "judge": "evaluate, verdict",
    "judges": "evaluates",
    "judged": "evaluated",
    "beside": "a noun; or next to",
    "whoever": "the subject",
    "nobody": "no process, no caller",
    "somebody": "a process, a caller, a user",
    "whatever": "any",
}
FIXED = {
    "picture_gap": "a metric's name in metrics.jsonl",
    "shuffle_pictures": "an option of scripts/eval_vqa.py",
    "no_picture": "an option of scripts/generate_text.py",
    "looked": "a key of the answers that scripts/eval_vqa.py stores",
    "picture": "an option of scripts/generate_text.py",
    "pictures": "an option of preprocess_data/export_lerobot.py",
}
"""Names that commands and files have promised."""


def words(name: str) -> set[str]:
    """Return the lower-case words of an identifier in snake_case or CamelCase."""
    return set(re.findall(r"[a-z]+", re.sub(r"([A-Z])", r"_\1", name).lower())) | {name.lower()}


def found_in(source: str) -> Iterator[str]:
    """Yield a message for each defined name and each first docstring line with a banned word."""
    for node in ast.walk(ast.parse(source)):
        name = None
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = node.name
        elif isinstance(node, ast.arg):
            name = node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            name = node.id
        if name is not None and name not in FIXED:
            for word in sorted(words(name) & BANNED.keys()):
                yield f"{node.lineno}: the name {name}: for {word!r} write {BANNED[word]}"  # type: ignore[attr-defined]
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module):
            first = (ast.get_docstring(node) or "").split("\n")[0]
            for word in sorted(set(re.findall(r"[a-z]+", first.lower())) & BANNED.keys()):
                yield f"{getattr(node, 'lineno', 1)}: the docstring {first!r}: for {word!r} write {BANNED[word]}"


def test_names_and_first_docstring_lines_use_the_glossary() -> None:
    messages = [
        f"{file.relative_to(ROOT)}:{message}"
        for file in FILES
        for message in found_in(file.read_text(encoding="utf-8"))
    ]
    assert not messages, "\n".join(messages)


@pytest.mark.parametrize(
    ("source", "word"),
    [
        ("def load_picture(): ...", "picture"),
        ("class ToldOnce: ...", "told"),
        ("def f(judged): ...", "judged"),
        ("said = 1", "said"),
        ('def f():\n    """What nobody reads."""', "nobody"),
    ],
)
def test_a_banned_word_is_found(source: str, word: str) -> None:
    (message,) = found_in(source)
    assert repr(word) in message
