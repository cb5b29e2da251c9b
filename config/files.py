"""Configuration files: found, read, composed by their `defaults:` lists, merged into one tree of texts."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from common.files import reason_of
from config.values import ConfigError, Quoted, TextLoader, shown

CONFIG_DIR = Path(__file__).resolve().parent
PROJECT_DIR = CONFIG_DIR.parent
PRESET_DIR = CONFIG_DIR / "presets"
DEEPEST = 100
"""Brackets within brackets in a configuration file."""

_REFERENCE = re.compile(r"(\\*)\$\{")


class Tree:
    """Nested sections of texts, and for every key where its value was written (for error messages)."""

    def __init__(self, base: dict[str, Any]) -> None:
        self.values: dict[str, Any] = {}
        self._base = base
        self._sources: dict[str, str] = {}
        self._resolved: DictConfig | None = None

    def source(self, dotted: str) -> str:
        """Where the value was written: a file, the command line, or `default`."""
        above = dotted
        while above:
            if above in self._sources:
                return self._sources[above]
            above = above.rpartition(".")[0]
        below = (source for name, source in self._sources.items() if name.startswith(f"{dotted}."))
        return next(below, "default")  # a section that came with its first key

    def set(self, dotted: str, value: Any, source: str) -> None:
        """Put a value (or a section) at a dotted key; later calls win."""
        section = self.values
        *sections, leaf = dotted.split(".")
        for name in sections:
            if not isinstance(section.get(name), dict):
                section[name] = {}
            section = section[name]
        if isinstance(value, dict):
            section.setdefault(leaf, {})
            for name, inner in value.items():
                self.set(f"{dotted}.{name}", inner, source)
        else:
            section[leaf] = value
        self._sources[dotted] = source
        self._resolved = None

    def interpolated(self, dotted: str, value: Any) -> Any:
        """The value with its `${...}` replaced; ConfigError if a reference leads nowhere."""
        texts = value if isinstance(value, list) else [value]
        kinds = [len(m[1]) % 2 for t in texts if isinstance(t, str) for m in _REFERENCE.finditer(t)]
        if not kinds:
            return value
        if all(kinds):  # only escaped ones, `\${`
            plain = [_REFERENCE.sub(lambda m: m[1][: len(m[1]) // 2] + "${", t) for t in texts]
            return [Quoted(t) for t in plain] if isinstance(value, list) else Quoted(plain[0])
        try:
            OmegaConf.create({"texts": [str(t) for t in texts]})
            if self._resolved is None:
                self._resolved = OmegaConf.create(_plain(_merged(self._base, self.values)))
            found = OmegaConf.select(self._resolved, dotted, throw_on_missing=True)
        except OmegaConfBaseException as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(
                f"{dotted}={shown(value)} ({self.source(dotted)}): {reason}; "
                "write ${section.key} for another key's value, \\${ for the characters themselves"
            ) from None
        if isinstance(found, DictConfig):
            raise ConfigError(f"{dotted}={shown(value)} ({self.source(dotted)}): refers to a section, not to a value")
        return OmegaConf.to_container(found) if isinstance(found, ListConfig) else as_text(found)


def escape(text: str) -> str:
    """A text in which `${` means itself, for a YAML file."""
    return _REFERENCE.sub(lambda m: m[1] * 2 + "\\${", text)


def as_text(value: Any) -> str:
    """A value as it is written in a file or on the command line."""
    if isinstance(value, list):
        return "[" + ", ".join(as_text(v) for v in value) + "]"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return str(value)


def find(text: str) -> Path:
    """The file `config=` names: as given, seen from the current folder, else from the project's."""
    for folder in (Path.cwd(), PROJECT_DIR):
        path = (folder / os.path.expanduser(text)).resolve()
        if path.is_file():
            return path
        if path.is_dir():
            raise ConfigError(f"config={shown(text)}: is a folder; name the .yaml file in it")
    stems = sorted(p.stem for p in CONFIG_DIR.glob("*.yaml"))
    close = difflib.get_close_matches(Path(text).stem, stems, n=1)
    hint = f"did you mean config=./config/{close[0]}.yaml?" if close else f"config/ has {', '.join(stems)}"
    raise ConfigError(f"config={shown(text)}: no such file; {hint}")


def find_preset(name: str) -> Path:
    """The file `preset=` names: one of `config/presets`, or a path."""
    for path in (PRESET_DIR / f"{name}.yaml", Path(os.path.expanduser(name))):
        if path.is_file():
            return path.resolve()
    raise ConfigError(f"preset={shown(name)}: no such preset; there are {', '.join(presets())}, or give a .yaml file")


def presets() -> list[str]:
    return sorted(path.stem for path in PRESET_DIR.glob("*.yaml"))


def read_into(tree: Tree, path: Path) -> None:
    """Merge a file, its `defaults:` first, into the tree."""
    for file, content in _composed(path, ()):
        for name, value in content.items():
            tree.set(name, value, display(file))


def display(path: Path) -> str:
    """A path as short as it can be said from here."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def _composed(path: Path, chain: tuple[Path, ...]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """(file, its own keys) in merge order."""
    if path in chain:
        circle = " -> ".join(display(p) for p in [*chain[chain.index(path) :], path])
        raise ConfigError(
            f"defaults={path.stem} ({display(chain[-1])}): files include each other in a circle: {circle}"
        )
    content = _read(path)
    defaults = content.pop("defaults", [])
    if isinstance(defaults, str) and defaults:
        defaults = [defaults]
    if not isinstance(defaults, list) or not all(isinstance(name, str) and name for name in defaults):
        raise ConfigError(f"defaults={shown(defaults)} ({display(path)}): expected a list of file names, e.g. [base]")
    for name in defaults:
        yield from _composed(_find_default(name, path), (*chain, path))
    yield path, content


def _find_default(name: str, user: Path) -> Path:
    """A file named in a `defaults:` list. A file never includes itself: its own name means the project's file."""
    file = name if name.endswith((".yaml", ".yml")) else f"{name}.yaml"
    candidates = [(folder / os.path.expanduser(file)).resolve() for folder in (user.parent, CONFIG_DIR)]
    for path in candidates:
        if path.is_file() and (path != user or path == candidates[-1]):
            return path
    stems = sorted({p.stem for folder in (user.parent, CONFIG_DIR) for p in folder.glob("*.yaml")})
    close = difflib.get_close_matches(name, stems, n=1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    raise ConfigError(f"defaults={shown(name)} ({display(user)}): no {file} in {user.parent} or {CONFIG_DIR}{hint}")


def _read(path: Path) -> dict[str, Any]:
    where = display(path)
    try:
        text = path.read_text(encoding="utf-8")
        if _depth(text) > DEEPEST:  # the parser takes minutes for a few thousand
            raise ConfigError(f"config={where}: not a configuration: brackets are nested {_depth(text)} deep")
        content = yaml.load(text, Loader=TextLoader)  # builds text, lists and dicts only
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = " ".join(p for p in (error.context, error.problem) if p)
        raise ConfigError(f"config={where}{place}: not valid YAML: {problem}") from None
    except RecursionError:
        raise ConfigError(f"config={where}: not a configuration: it is nested too deeply") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"config={where}: not valid YAML: {str(error).splitlines()[0]}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"config={where}: not a text file in UTF-8 ({error.reason} at byte {error.start})") from None
    except OSError as error:
        raise ConfigError(f"config={where}: cannot be read: {reason_of(error)}") from None
    if content is None or content == "":
        return {}
    if not isinstance(content, dict):
        raise ConfigError(
            f"config={where}: expected sections with keys (training:, model:, ...), found {shown(content)}"
        )
    return content


def _depth(text: str) -> int:
    """How deep brackets are nested, those in comments and texts too."""
    depth = deepest = 0
    for mark in re.findall(r"[\[\]{}]", text):
        depth = depth + 1 if mark in "[{" else max(depth - 1, 0)
        deepest = max(deepest, depth)
    return deepest


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for name, value in over.items():
        old = result.get(name)
        result[name] = _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result


def _plain(tree: dict[str, Any]) -> dict[str, Any]:
    """Only what OmegaConf takes; a text whose `${` cannot be parsed is left out (its own key reports it)."""
    result: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            result[name] = _plain(value)
        elif isinstance(value, list):
            result[name] = [str(v) for v in value if _parses(str(v))]
        elif _parses(str(value)):
            result[name] = str(value)
    return result


def _parses(text: str) -> bool:
    if "${" not in text:
        return True
    try:
        OmegaConf.create({"text": text})
    except OmegaConfBaseException:
        return False
    return True
