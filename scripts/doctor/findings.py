"""A finding of the doctor, its text and its JSON without names of users and hosts."""

from __future__ import annotations

import getpass
import re
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from common.files import PROJECT_DIR

Level = Literal["ok", "note", "warning", "error"]
LEVELS: tuple[Level, ...] = ("ok", "note", "warning", "error")
NAME_WIDTH = 13
"""Width of the names of checks."""
FORMAT = 1
"""Version of the JSON."""


@dataclass(frozen=True)
class Finding:
    """The result of a check.

    ``level``: ``error``: a run would fail; ``warning``: it may fail or be wrong; ``note``: something is absent that
    some commands need. ``remedy``: what to do, empty if nothing. ``facts``: values for the JSON.
    """

    check: str
    level: Level
    text: str
    remedy: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)


def lines(findings: Iterable[Finding]) -> Iterator[str]:
    """Yield the text of each finding for a terminal as soon as it is there, and a last line with their counts."""
    width, seen = NAME_WIDTH, []
    for finding in findings:
        seen.append(finding)
        yield f"{finding.level:7}  {finding.check:{width}}  {finding.text}"
        if finding.remedy:
            yield f"{'':7}  {'':{width}}  -> {finding.remedy}"
    yield summary(seen)


def summary(findings: Iterable[Finding]) -> str:
    """Return the counts of errors and warnings in one line."""
    levels = [finding.level for finding in findings]
    counts = [f"{levels.count(level)} {level}{'s' if levels.count(level) != 1 else ''}" for level in LEVELS[:0:-1]]
    return f"{len(levels)} checks: {', '.join(counts)}"


def report(findings: Sequence[Finding]) -> dict[str, Any]:
    """Return the findings as a JSON object. Names of users and hosts, and home folders, are replaced."""
    rows = [
        {"check": f.check, "level": f.level, "text": f.text, "remedy": f.remedy, "facts": dict(f.facts)}
        for f in findings
    ]
    clean = _redacted({"format": FORMAT, "summary": summary(findings), "findings": rows}, _private_names())
    assert isinstance(clean, dict)
    return clean


def _private_names() -> list[tuple[re.Pattern[str], str]]:
    """Return patterns of private names with their replacements, longest paths first."""
    folders = {str(PROJECT_DIR): "<project>"}
    for path in (Path.home(), Path.home().resolve()):
        if len(path.parts) > 1:
            folders.setdefault(str(path), "~")
    found = [(re.compile(rf"{re.escape(folder)}(?![\w.-])"), name) for folder, name in folders.items()]
    found.sort(key=lambda pair: -len(pair[0].pattern))
    found.append((re.compile(r"/(home|[Uu]sers)/[^/\s'\",:;]+"), r"/\1/<user>"))
    for name, shown in ((socket.gethostname(), "<host>"), (_user(), "<user>")):
        for part in {name, name.partition(".")[0]} - {"", "localhost"}:
            found.append((re.compile(rf"(?<![\w.-]){re.escape(part)}(?![\w-])"), shown))
    return found


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # a user id without an entry, as in containers
        return ""


def _redacted(value: Any, patterns: Sequence[tuple[re.Pattern[str], str]]) -> Any:
    if isinstance(value, str):
        for pattern, replacement in patterns:
            value = pattern.sub(replacement, value)
        return value
    if isinstance(value, Mapping):
        return {name: _redacted(part, patterns) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_redacted(part, patterns) for part in value]
    return value
