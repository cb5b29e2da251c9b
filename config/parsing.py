"""Typed values of a job from the texts of YAML files and the command line, by the annotations of `config.schema`.

`TextLoader` reads YAML without guessing types, so `training.mixed_precision=no` is the word "no" and `1e-4` is a number
in a file and on the command line.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import operator
import re
import types
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from config.schema import MISSING, Job

NULLS = frozenset({"", "null", "Null", "NULL", "~", "None"})
TRUE = frozenset({"true", "yes", "on"})
FALSE = frozenset({"false", "no", "off"})
BOUNDS = {
    "ge": (">=", operator.ge),
    "gt": (">", operator.gt),
    "le": ("<=", operator.le),
    "lt": ("<", operator.lt),
}
_REFERENCE = re.compile(r"(\\*)\$\{")


class ConfigError(ValueError):
    """An error of the user in one line: the key, the value, the allowed values. Unprintable characters are escaped."""

    def __init__(self, line: str) -> None:
        super().__init__(printable(line))


class Quoted(str):
    """Text that was quoted in its source: never null, true or false."""

    __slots__ = ()


@dataclasses.dataclass(frozen=True)
class Key:
    """A key: its dotted name, annotation and default, and the metadata that `config.fields.field` attaches to it."""

    name: str
    annotation: Any
    default: Any
    metadata: Mapping[str, Any]

    @property
    def choices(self) -> list[str]:
        """Words that the `Literal` alternatives of the annotation allow."""
        found = [get_args(m) for m in _alternatives(self.annotation) if get_origin(m) is Literal]
        return [shown(v) for values in found for v in values]

    @property
    def allowed(self) -> str:
        """The allowed values in words: `a whole number >= 1 or null`."""
        if self.metadata["allowed"]:
            return str(self.metadata["allowed"])
        bounds, parts = self._bounds(), []
        for member in _alternatives(self.annotation):
            if get_origin(member) is Literal:
                parts += [shown(v) for v in get_args(member)]
            elif get_origin(member) is list:
                items = {int: "whole numbers", float: "numbers", str: "names"}[get_args(member)[0]]
                parts.append(f"a list of {items}{bounds}")
            else:
                parts.append(
                    {
                        int: f"a whole number{bounds}",
                        float: f"a number{bounds}",
                        bool: "true or false",
                        str: "a text",
                        types.NoneType: "null",
                    }[member]
                )
        return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " or " + parts[-1]

    def _bounds(self) -> str:
        if "ge" in self.metadata and self.metadata["ge"] == self.metadata.get("le"):
            return f" equal to {self.metadata['ge']:g}"
        found = [f"{sign} {self.metadata[name]:g}" for name, (sign, _) in BOUNDS.items() if name in self.metadata]
        return f" {' and '.join(found)}" if found else ""

    def convert(self, value: Any) -> Any:
        """Return a text (or list of texts) as the annotated type.

        Raises ValueError if it does not fit the annotation or the bounds.
        """
        options, quoted = _alternatives(self.annotation), isinstance(value, Quoted)
        null = value is None or (isinstance(value, str) and not quoted and value.strip() in NULLS)
        if types.NoneType in options and null:
            return None
        for option in (str, *options) if quoted and str in options else options:  # a quoted text is a text
            try:
                result = _convert(value, option)
            except ValueError:
                continue
            numbers = [n for n in (result if isinstance(result, list) else [result]) if type(n) in (int, float)]
            bounds = [(name, within) for name, (_, within) in BOUNDS.items() if name in self.metadata]
            if all(within(number, self.metadata[name]) for name, within in bounds for number in numbers):
                return result
            break
        raise ValueError


@cache
def keys() -> dict[str, Key]:
    """Return all keys by their dotted name, in the schema's order."""
    return {key.name: key for key in _keys(Job, "")}


def _keys(cls: type, prefix: str) -> Iterator[Key]:
    hints = get_type_hints(cls)
    for field in dataclasses.fields(cls):
        name, hint = prefix + field.name, hints[field.name]
        if dataclasses.is_dataclass(hint):
            yield from _keys(hint, f"{name}.")  # type: ignore[arg-type]
        elif not field.metadata.get("internal"):
            factory = field.default_factory
            yield Key(name, hint, field.default if factory is dataclasses.MISSING else factory(), field.metadata)


def children(section: str) -> list[str]:
    """Return the names of the keys and sections directly below a section (`""`: the top level); [] for other names."""
    prefix = f"{section}." if section else ""
    return list(dict.fromkeys(name[len(prefix) :].split(".")[0] for name in keys() if name.startswith(prefix)))


def get(job: Job, key: str) -> Any:
    """Return the value of a dotted key."""
    return operator.attrgetter(key)(job)


def put(job: Job, key: str, value: Any) -> None:
    """Set the value of a dotted key."""
    section, _, leaf = key.rpartition(".")
    setattr(get(job, section) if section else job, leaf, value)


class Tree:
    """Texts by dotted key, and the source of each for error messages."""

    def __init__(self, defaults: Mapping[str, Any]) -> None:
        self.values: dict[str, Any] = {}
        self._defaults = defaults
        self._sources: dict[str, str] = {}
        self._resolved: DictConfig | None = None

    def source(self, key: str) -> str:
        """Return where the value was written: a file, `command line`, or `default`."""
        return self._sources.get(key, "default")

    def set(self, key: str, value: Any, source: str) -> None:
        """Set a value, or a section given as a dict. It replaces what was set before."""
        self._resolved = None
        if isinstance(value, dict) and value:
            for name, inner in value.items():
                self.set(f"{key}.{name}", inner, source)
            return
        if not isinstance(value, dict):
            self.values = {name: old for name, old in self.values.items() if not name.startswith(f"{key}.")}
        self.values[key], self._sources[key] = value, source

    def interpolated(self, key: str, value: Any) -> Any:
        """Return the value with its `${...}` replaced. Raises ConfigError if a reference does not resolve."""
        texts = value if isinstance(value, list) else [value]
        escaped = [len(m[1]) % 2 == 1 for t in texts if isinstance(t, str) for m in _REFERENCE.finditer(t)]
        if not escaped:
            return value
        if all(escaped):
            plain = [Quoted(_REFERENCE.sub(lambda m: m[1][: len(m[1]) // 2] + "${", t)) for t in texts]
            return plain if isinstance(value, list) else plain[0]
        try:
            resolved = self._resolved = self._resolved or self._resolve()
            OmegaConf.update(resolved, key, _plain(value))
            found = OmegaConf.select(resolved, key, throw_on_missing=True)
        except OmegaConfBaseException as error:
            raise ConfigError(
                f"{key}={shown(value)} ({self.source(key)}): {str(error).splitlines()[0]}; "
                "write ${section.key} for another key's value, \\${ for the characters themselves"
            ) from None
        if isinstance(found, DictConfig):
            raise ConfigError(f"{key}={shown(value)} ({self.source(key)}): refers to a section, not to a value")
        return OmegaConf.to_container(found) if isinstance(found, ListConfig) else as_text(found)

    def _resolve(self) -> DictConfig:
        result: dict[str, Any] = {}
        for key, value in {**self._defaults, **self.values}.items():
            *sections, leaf = key.split(".")
            inner = result
            for name in sections:
                if not isinstance(inner.get(name), dict):
                    inner[name] = {}
                inner = inner[name]
            with suppress(OmegaConfBaseException):  # a malformed text raises where it is read
                if "${" in str(value):
                    OmegaConf.create({"text": _plain(value)})
                inner[leaf] = _plain(value)
        return OmegaConf.create(result)


def _plain(value: Any) -> Any:
    """Return texts for OmegaConf, which takes no subclasses of str."""
    return [str(v) for v in value] if isinstance(value, list) else str(value)


def new_tree() -> Tree:
    """Return an empty tree whose `${...}` can also refer to keys that are not set."""
    defaults = {name: key.default for name, key in keys().items()}
    return Tree({name: value if isinstance(value, list) else as_text(value) for name, value in defaults.items()})


def build(tree: Tree, also: Collection[str] = ()) -> Job:
    """Return the job of a tree of texts, with `???` for keys that the user has to give.

    also: dotted keys that the caller reads from the same file; they are suggested for unknown keys.
    Raises ConfigError at the first wrong key.
    """
    job = Job()
    for name, value in tree.values.items():
        start = f"{name}={shown(value)} ({tree.source(name)}):"
        if name in keys():
            put(job, name, _value(tree, keys()[name], value))
        elif not children(name):
            above = name.rpartition(".")[0]
            if above in keys():
                raise ConfigError(f"{start} {above} is not a section; expected {keys()[above].allowed}")
            raise ConfigError(f"{start} no such key{_hint(name, also)}")
        elif value not in ("", {}):
            raise ConfigError(f"{start} a section; its keys are {', '.join(children(name))}")
    return job


def _value(tree: Tree, key: Key, written: Any) -> Any:
    value = tree.interpolated(key.name, written)
    if value == MISSING and not isinstance(value, Quoted):
        return MISSING
    try:
        return key.convert(value)
    except ValueError:
        hint = did_you_mean(value, key.choices) if isinstance(value, str) else ""
        text = shown(written) if value is written else f"{shown(written)}, which is {shown(value)}"
        raise ConfigError(f"{key.name}={text} ({tree.source(key.name)}): expected {key.allowed}{hint}") from None


def _hint(name: str, also: Collection[str]) -> str:
    """Return the keys that the user may have meant: of a similar name, or of the same last word in another section."""
    section, _, leaf = name.rpartition(".")
    while section and not children(section):
        section = section.rpartition(".")[0]
    known = [*keys(), *also]
    same = [other for other in known if other.rpartition(".")[2] == leaf]
    return (
        did_you_mean(name, known, cutoff=0.8)
        or (f" (did you mean {' or '.join(same)}?)" if same else "")
        or ("" if section else did_you_mean(name, children("")))
        or f"; {section or 'the top level'} has {', '.join(children(section))}"
    )


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    """Return the members of a union; the annotation itself otherwise."""
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def _convert(value: Any, option: Any) -> Any:
    """Return the value as one alternative of a union. Raises ValueError if it does not fit."""
    if get_origin(option) is list:
        return _convert_list(value, get_args(option)[0])
    if option is types.NoneType or not isinstance(value, str):
        raise ValueError
    text = value.strip()
    if get_origin(option) is Literal:
        return _convert_word(text, get_args(option))
    if option is bool:
        if text.lower() not in TRUE | FALSE:
            raise ValueError
        return text.lower() in TRUE
    if option is int or option is float:
        number = option(text)
        if option is float and not math.isfinite(number):
            raise ValueError
        return number
    unquoted_word = text.lower() in ("null", "~", "true") and not isinstance(value, Quoted)
    if not text or unquoted_word:  # such a word is most likely a mistake
        raise ValueError
    return str(value)


def _convert_word(text: str, words: tuple[Any, ...]) -> Any:
    for word in words:
        if text == word or (word is False and text.lower() in FALSE | NULLS):
            return word
    if "no" in words and text.lower() in FALSE:  # a YAML 1.1 tool that rewrites a file turns `no` into `false`
        return "no"
    raise ValueError


def _convert_list(value: Any, item: Any) -> list[Any]:
    if isinstance(value, str):
        text = value.strip() if value.strip().startswith("[") else f"[{value}]"
        value = parse_flow(text)
        if value is None and item is str and text.endswith("]"):  # YAML refuses an unquoted `*` at the start of a name
            value = [name.strip().strip("'\"") for name in text[1:-1].split(",")]
    if not isinstance(value, list):
        raise ValueError
    return [_convert(v, item) for v in value]


class TextLoader(yaml.BaseLoader):  # type: ignore[misc]
    """YAML loader that leaves all scalars as text (`Quoted` if quoted) and refuses duplicate keys."""

    def construct_scalar(self, node: Any) -> Any:
        text = super().construct_scalar(node)
        return Quoted(text) if node.style is not None else text

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen: set[str] = set()
        for name, _ in node.value:
            if isinstance(name.value, str) and name.value in seen:
                mark = name.start_mark
                raise yaml.constructor.ConstructorError(None, None, f"key {name.value!r} is given twice", mark)
            seen.add(str(name.value))
        return super().construct_mapping(node, deep=deep)


def parse_flow(text: str) -> Any:
    """Return `[1, 2]`, `{a: b}` or a quoted text of the command line as lists, dicts and texts; None if malformed."""
    try:
        return yaml.load(text, Loader=TextLoader)  # a BaseLoader: builds text, lists and dicts only
    except yaml.YAMLError:
        return None


def escape(text: str) -> str:
    """Return a text for a YAML file or Hydra in which `${` stands for itself."""
    return _REFERENCE.sub(lambda m: m[1] * 2 + "\\${", text)


def as_text(value: Any) -> str:
    """Return a value as it is written in a file or on the command line."""
    if isinstance(value, list):
        return "[" + ", ".join(as_text(v) for v in value) + "]"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return str(value)


def printable(text: str) -> str:
    """Return the text with line ends and other unprintable characters as escapes."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def shown(value: Any) -> str:
    """Return a value in one line of at most 160 characters, as the user would type it."""
    if isinstance(value, Mapping):
        text = "{" + ", ".join(f"{k}: {shown(v)}" for k, v in value.items()) + "}"
    elif isinstance(value, list):
        text = "[" + ", ".join(shown(v) for v in value) + "]"
    else:
        text = as_text(value)
    text = printable(text)
    return text if len(text) <= 160 else text[:157] + "..."


def did_you_mean(word: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """Return ` (did you mean x?)` with the most similar known word, or an empty text."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=cutoff)
    return f" (did you mean {close[0]}?)" if close else ""
