"""The grammar of `key=value` command lines: training, evaluation and sweeps.

A value is text as the shell passes it. Spaces, `=`, parentheses, commas and letters of any script are literal, and one
layer of quotes is removed. Prefixes of other grammars (`--key=`, `+key=`, `++key=`, `~key`) are refused.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Iterable

from config.parsing import ConfigError, Quoted, did_you_mean, escape, parse_flow, shown

PREFIXES = "-+~"


def parse_argument(argument: str, known: Collection[str], usage: str) -> tuple[str, str]:
    """Return (key, text) of one argument; the key itself is not checked.

    known: keys that are suggested for an argument with a prefix. usage: the form of an argument. Raises ConfigError.
    """
    name, equals, text = (part.strip() for part in argument.partition("="))
    if any("\udc80" <= letter <= "\udcff" for letter in argument):  # undecodable bytes, as Python keeps them
        encoding = sys.getfilesystemencoding()
        raise ConfigError(
            f"argument {shown(argument)}: not a text in this locale's encoding ({encoding}); set PYTHONUTF8=1"
        )
    if name[:1] and name[0] in PREFIXES:
        bare = name.lstrip(PREFIXES)
        prefix = name[: len(name) - len(bare)]
        if bare in known:
            right = shown(f"{bare}={text}") if equals else f"{bare}=<value>"
            hint = ""
        else:
            right, hint = usage, did_you_mean(bare, known)
        raise ConfigError(f"argument {shown(argument)}: expected {right}, without a leading {prefix}{hint}")
    if not equals or not name:
        raise ConfigError(f"argument {shown(argument)}: expected {usage} (see --help)")
    return name, text


def require_known(name: str, text: str, known: Iterable[str]) -> None:
    """Raise ConfigError with the nearest known key if `name` is not one of them."""
    names = list(known)
    if name not in names:
        hint = did_you_mean(name, names) or f"; the keys are {', '.join(names)}"
        raise ConfigError(f"{name}={shown(text)} (command line): no such key{hint}")


def hydra_quoted(text: str) -> str:
    """Return the text as a value of Hydra's override grammar that means exactly this text, `${` included."""
    escaped = re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), escape(text))
    return f"'{escaped}'"


def is_sweep(argument: str) -> bool:
    """Return True if Hydra's parser reads several values in `key=value`. Text that it cannot parse is one value."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return bool(OverridesParser.create().parse_override(argument).is_sweep_override())
    except HydraException:
        return False


def unquoted(text: str) -> str:
    """Return the text without one layer of quotes; `Quoted` if there was one."""
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        quoted = parse_flow(text)
        if isinstance(quoted, Quoted):
            return quoted
    return text
