"""From text to typed values: what a key's annotation and bounds in `config.schema` allow, said and enforced.

YAML scalars and command-line values both arrive here as text (`config.files` reads YAML without guessing types), so
`training.mixed_precision=no` is the word "no" and `1e-4` is a number, whichever way they were given.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
from collections.abc import Iterable, Mapping
from typing import Any, Literal, Union, get_args, get_origin

import yaml

NULLS = frozenset({"", "null", "Null", "NULL", "~", "None"})
TRUE = frozenset({"true", "yes", "on"})
FALSE = frozenset({"false", "no", "off"})


class ConfigError(ValueError):
    """One line for the user: the key, the value, what is allowed. What cannot be printed is shown escaped."""

    def __init__(self, line: str) -> None:
        super().__init__(printable(line))


class Quoted(str):
    """Text that was quoted where it was written: never null, true or false."""

    __slots__ = ()


class Wrong(ValueError):
    """A value that does not fit its key's annotation or bounds."""


def printable(text: str) -> str:
    """The text on one line, with line ends and whatever else has no image as escapes."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def shown(value: Any) -> str:
    """A value on one line, as the user would type it, cut if very long."""
    if isinstance(value, list):
        text = "[" + ", ".join(shown(v) for v in value) + "]"
    elif isinstance(value, Mapping):
        text = "{" + ", ".join(f"{k}: {shown(v)}" for k, v in value.items()) + "}"
    elif value is None:
        text = "null"
    elif isinstance(value, bool):
        text = str(value).lower()
    else:
        text = str(value)
    text = printable(text)
    return text if len(text) <= 160 else text[:157] + "..."


def members(annotation: Any) -> tuple[Any, ...]:
    """The alternatives of a union; the annotation itself otherwise."""
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def choices(annotation: Any) -> list[str]:
    """Words a Literal allows (of a union: all of them)."""
    found = [get_args(m) for m in members(annotation) if get_origin(m) is Literal]
    return [shown(v) for values in found for v in values]


def allowed(annotation: Any, metadata: Mapping[str, Any]) -> str:
    """In words: `a whole number >= 1, or null`."""
    if metadata.get("says"):
        return str(metadata["says"])
    parts = []
    for member in members(annotation):
        if get_origin(member) is Literal:
            parts += [shown(v) for v in get_args(member)]
        elif get_origin(member) is list:
            items = {int: "whole numbers", float: "numbers", str: "names"}[get_args(member)[0]]
            parts.append(f"a list of {items}" + _bounds(metadata))
        elif member is type(None):
            parts.append("null")
        else:
            words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
            parts.append(words[member] + (_bounds(metadata) if member in (int, float) else ""))
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " or " + parts[-1]


def _bounds(metadata: Mapping[str, Any]) -> str:
    low, high = metadata.get("at_least"), metadata.get("at_most")
    if low is not None and low == high:
        return f" equal to {low:g}"
    signs = {"at_least": ">=", "above": ">", "at_most": "<=", "below": "<"}
    found = [f"{sign} {metadata[name]:g}" for name, sign in signs.items() if name in metadata]
    return (" " + " and ".join(found)) if found else ""


def convert(value: Any, annotation: Any, metadata: Mapping[str, Any]) -> Any:
    """A text (or list of texts) as the annotated type, within its bounds; `Wrong` otherwise."""
    options = members(annotation)
    plain = isinstance(value, str) and not isinstance(value, Quoted)
    if type(None) in options and (value is None or (plain and value.strip() in NULLS)):
        return None
    # A quoted text is a text wherever a text is allowed.
    order = (str, *options) if isinstance(value, Quoted) and str in options else sorted(options, key=_eagerness)
    for option in order:
        fits, result = _convert_one(value, option, plain)
        if fits:
            _check_bounds(result, metadata)
            return result
    raise Wrong


def _eagerness(option: Any) -> int:
    """Narrow types first, text last: `resume_from_checkpoint=100` is a step, `latest` a text."""
    if get_origin(option) is Literal:
        return 0
    return {bool: 1, int: 2, float: 3, str: 5}.get(option, 4)


def _convert_one(value: Any, option: Any, plain: bool) -> tuple[bool, Any]:
    """(fits, converted) for one alternative of a union."""
    if get_origin(option) is Literal:
        return _word(value, get_args(option))
    if get_origin(option) is list:
        return _list(value, get_args(option)[0])
    if option is type(None) or not isinstance(value, str):
        return False, None
    text = value.strip()
    if option is bool:
        return text.lower() in TRUE | FALSE, text.lower() in TRUE
    if option is int or option is float:
        try:
            number = option(text)
        except ValueError:
            return False, None
        return math.isfinite(number), number
    if plain and text.lower() in ("null", "~", "true"):  # a slip unless quoted
        return False, None
    return bool(text), str(value)


def _word(value: Any, words: tuple[Any, ...]) -> tuple[bool, Any]:
    if not isinstance(value, str):
        return False, None
    text = value.strip()
    for word in words:
        if text == word or (word is False and text.lower() in FALSE | NULLS):
            return True, word
    # A YAML 1.1 tool that rewrites a file turns the word `no` into `false`.
    return ("no" in words and text.lower() in FALSE), "no"


def _list(value: Any, item: Any) -> tuple[bool, Any]:
    if isinstance(value, str):
        listed = value.strip() if value.strip().startswith("[") else f"[{value}]"
        found = parse_flow(listed)
        if found is None and item is str and listed.endswith("]"):  # YAML refuses a bare `*` in front of a name
            found = [name.strip().strip("'\"") for name in listed[1:-1].split(",")]
        value = found
    if not isinstance(value, list):
        return False, None
    results = [_convert_one(v, item, True) for v in value]
    return all(fits for fits, _ in results), [result for _, result in results]


def _check_bounds(value: Any, metadata: Mapping[str, Any]) -> None:
    for number in value if isinstance(value, list) else [value]:
        if isinstance(number, bool) or not isinstance(number, int | float):
            continue
        if not (
            metadata.get("at_least", number) <= number <= metadata.get("at_most", number)
            and ("above" not in metadata or number > metadata["above"])
            and ("below" not in metadata or number < metadata["below"])
        ):
            raise Wrong


class TextLoader(yaml.BaseLoader):  # type: ignore[misc]
    """YAML whose scalars all stay text (`Quoted` if quoted); a key given twice is an error."""

    def construct_scalar(self, node: Any) -> Any:
        text = super().construct_scalar(node)
        return Quoted(text) if node.style is not None else text

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen: set[Any] = set()
        for name_node, _ in node.value:
            name = name_node.value
            if isinstance(name, str) and name in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {name!r} is given twice", name_node.start_mark
                )
            seen.add(name if isinstance(name, str) else id(name_node))
        return super().construct_mapping(node, deep=deep)


def parse_flow(text: str) -> Any:
    """`[1, 2]`, `{a: b}` or a quoted text from the command line; None if it is not well formed."""
    try:
        return yaml.load(text, Loader=TextLoader)  # a BaseLoader: builds text, lists and dicts only
    except yaml.YAMLError:
        return None


def did_you_mean(word: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """` (did you mean x?)`, or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=cutoff)
    return f" (did you mean {close[0]}?)" if close else ""


def is_section(cls: Any) -> bool:
    return isinstance(cls, type) and dataclasses.is_dataclass(cls)
