"""A tree of texts as a `Job`: every key known, every value of its type and within its bounds."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Iterator
from functools import cache
from typing import Any, get_type_hints

from config.files import Tree, as_text
from config.knob import MISSING
from config.schema import Job
from config.values import ConfigError, Quoted, Wrong, allowed, choices, convert, did_you_mean, is_section, shown


@dataclasses.dataclass(frozen=True)
class Key:
    """One knob: its dotted name, annotation, default and what `config.knob.key` said about it."""

    name: str
    annotation: Any
    default: Any
    metadata: Any

    @property
    def allowed(self) -> str:
        return allowed(self.annotation, self.metadata)


@cache
def keys() -> dict[str, Key]:
    """Every key there is by its dotted name, in the schema's order."""
    return {key.name: key for key in _keys(Job, "")}


def _keys(cls: type, prefix: str) -> Iterator[Key]:
    hints = get_type_hints(cls)
    for field in dataclasses.fields(cls):
        name, hint = prefix + field.name, hints[field.name]
        if is_section(hint):
            yield from _keys(hint, name + ".")
        elif not field.metadata.get("hidden"):
            factory = field.default_factory
            yield Key(name, hint, field.default if factory is dataclasses.MISSING else factory(), field.metadata)


def get(job: Job, dotted: str) -> Any:
    """The value of a dotted key."""
    value: Any = job
    for name in dotted.split("."):
        value = getattr(value, name)
    return value


def put(job: Job, dotted: str, value: Any) -> None:
    """Set the value of a dotted key."""
    section, _, leaf = dotted.rpartition(".")
    setattr(get(job, section) if section else job, leaf, value)


def plain(section: Any, texts: bool = False) -> dict[str, Any]:
    """A section as nested dicts, without what is not a key; `texts`: leaves as they are written."""
    result: dict[str, Any] = {}
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if dataclasses.is_dataclass(value):
            result[field.name] = plain(value, texts)
        elif not field.metadata.get("hidden"):
            result[field.name] = as_text(value) if texts and not isinstance(value, list) else value
    return result


def new_tree() -> Tree:
    """An empty tree whose `${...}` can also refer to keys nobody set."""
    return Tree(plain(Job(), texts=True))


def build(tree: Tree, also: Collection[str] = ()) -> Job:
    """The job a tree of texts describes; `???` where the user has to choose. ConfigError at the first wrong key.

    also: dotted keys that are valid in the same file and read by the caller; they are suggested for unknown keys.
    """
    job: Job = _section(Job, tree.values, "", tree, also)
    return job


def _section(cls: type, values: dict[str, Any], prefix: str, tree: Tree, also: Collection[str]) -> Any:
    hints = get_type_hints(cls)
    known = {f.name: f for f in dataclasses.fields(cls) if not f.metadata.get("hidden")}
    given: dict[str, Any] = {}
    for name, value in values.items():
        dotted = f"{prefix}{name}"
        if name not in known:
            raise ConfigError(
                f"{dotted}={shown(value)} ({tree.source(dotted)}): no such key{_hint(dotted, known, also)}"
            )
        if not is_section(hints[name]):
            given[name] = _value(tree, keys()[dotted], value)
        elif isinstance(value, dict):
            given[name] = _section(hints[name], value, f"{dotted}.", tree, also)
        elif value != "":  # `training:` with nothing below it is an empty section
            inside = ", ".join(f.name for f in dataclasses.fields(hints[name]))
            raise ConfigError(f"{dotted}={shown(value)} ({tree.source(dotted)}): a section; its keys are {inside}")
    return cls(**given)


def _value(tree: Tree, key: Key, written: Any) -> Any:
    value = tree.interpolated(key.name, written)
    if value == MISSING and not isinstance(value, Quoted):
        return MISSING
    try:
        return convert(value, key.annotation, key.metadata)
    except Wrong:
        hint = did_you_mean(value, choices(key.annotation)) if isinstance(value, str) else ""
        said = shown(written) if value is written else f"{shown(written)}, which is {shown(value)}"
        raise ConfigError(f"{key.name}={said} ({tree.source(key.name)}): expected {key.allowed}{hint}") from None


def _hint(dotted: str, siblings: Iterable[str], also: Collection[str]) -> str:
    """What the user may have meant: a key spelled like it, or one of the same last word in another section."""
    section, _, leaf = dotted.rpartition(".")
    same = [name for name in (*keys(), *also) if name.rpartition(".")[2] == leaf]
    if same:
        return f" (did you mean {' or '.join(same)}?)"
    dot = "." if section else ""
    here = [*(f"{section}{dot}{name}" for name in siblings), *(name for name in also if name.startswith(section + dot))]
    close = did_you_mean(dotted, here, cutoff=0.8 if section else 0.6)
    return (
        close or did_you_mean(dotted, keys(), cutoff=0.8) or f"; {section or 'the top level'} has {', '.join(siblings)}"
    )
