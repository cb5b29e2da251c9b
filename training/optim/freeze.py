"""Which parameters are trained: by name patterns, with an error for one that names nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from torch import nn

from config.parsing import did_you_mean, shown


def matching(names: Iterable[str], patterns: Sequence[str], key: str) -> set[str]:
    """The names that any of the patterns fits (``*`` stands for anything, dots too; capital letters count).

    A pattern that fits none raises ``ValueError`` naming the config ``key`` and what there is.
    """
    names, found = list(names), set()
    for pattern in patterns:
        fits = {name for name in names if fnmatchcase(name, pattern)}
        if not fits:
            hint = did_you_mean(pattern, names)
            there = ", ".join(groups(names))
            raise ValueError(f"{key}={shown(list(patterns))}: {pattern} fits no parameter{hint}; there are {there}")
        found |= fits
    return found


def groups(names: Iterable[str]) -> list[str]:
    """Patterns that together fit all names: each name up to its first number, or without its last part."""
    found: dict[str, None] = {}
    for name in names:
        parts = name.split(".")
        number = next((i for i, part in enumerate(parts) if part.isdigit()), len(parts) - 1)
        found[".".join(parts[:number]) + ".*"] = None
    return list(found)


def freeze(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Stop training what ``training.freeze`` names. Returns a note for the user; ``ValueError`` if nothing is left."""
    if not patterns:
        return []
    parameters = dict(model.named_parameters())
    names = matching(parameters, patterns, "training.freeze")
    for name in names:
        parameters[name].requires_grad_(False)
    if not any(p.requires_grad for p in parameters.values()):
        raise ValueError(f"training.freeze={shown(list(patterns))}: nothing is left to train")
    count = sum(parameters[name].numel() for name in names)
    return [f"training.freeze: {len(names)} of {len(parameters)} tensors rest ({count:,} numbers)"]
