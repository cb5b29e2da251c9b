"""Select the trained parameters by name patterns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from torch import nn

from config.parsing import did_you_mean, shown


def matching(names: Iterable[str], patterns: Sequence[str], key: str) -> set[str]:
    """Return the names that match any of the patterns (``*`` matches anything, dots too; case-sensitive).

    Raises ValueError with the config ``key`` and the existing names for a pattern that matches none.
    """
    names, found = list(names), set()
    for pattern in patterns:
        matches = {name for name in names if fnmatchcase(name, pattern)}
        if not matches:
            hint = did_you_mean(pattern, names)
            existing = ", ".join(groups(names))
            raise ValueError(f"{key}={shown(list(patterns))}: {pattern} fits no parameter{hint}; there are {existing}")
        found |= matches
    return found


def groups(names: Iterable[str]) -> list[str]:
    """Return patterns that together match all names: each name up to its first number, or without its last part."""
    found: dict[str, None] = {}
    for name in names:
        parts = name.split(".")
        number = next((i for i, part in enumerate(parts) if part.isdigit()), len(parts) - 1)
        found[".".join(parts[:number]) + ".*"] = None
    return list(found)


def freeze(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Freeze the parameters of ``training.freeze``. Returns a note; raises ValueError if none is left to train."""
    if not patterns:
        return []
    parameters = dict(model.named_parameters())
    names = matching(parameters, patterns, "training.freeze")
    for name in names:
        parameters[name].requires_grad_(False)
    if not any(p.requires_grad for p in parameters.values()):
        raise ValueError(f"training.freeze={shown(list(patterns))}: nothing is left to train")
    count = sum(parameters[name].numel() for name in names)
    return [f"training.freeze: {len(names)} of {len(parameters)} tensors are frozen ({count:,} numbers)"]
