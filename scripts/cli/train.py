"""Training as a command of `blockdiff-vla`: the entry point of the objective that the configuration names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from config.loading import ConfigError, main_or_exit
from config.schema import Objective

OPTION = "--objective"


def objective_of(argv: Sequence[str]) -> tuple[Objective | None, list[str]]:
    """Return the value of `--objective`, None if it is not given, and the other arguments. Raise ConfigError."""
    rest: list[str] = []
    found: Objective | None = None
    arguments = iter(argv)
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name != OPTION:
            rest.append(argument)
            continue
        value = value if equals else next(arguments, "")
        found = next((objective for objective in get_args(Objective) if objective == value), None)
        if found is None:
            raise ConfigError(f"{OPTION} {value}: expected one of {', '.join(get_args(Objective))}")
    return found, rest


def main(argv: Sequence[str]) -> None:
    """Train as `train_*.py` does. Without `--objective`, any objective of a configuration is trained."""

    def start() -> None:
        objective, arguments = objective_of(argv)
        from train_upvla import main as train

        train(objective, arguments)

    main_or_exit(start)
