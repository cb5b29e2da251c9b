"""argv -> Job: schema <- `defaults:` list <- file <- command line, with errors in the user's words.

    job = load_job(["config=./config/tiny_bdvla.yaml", "training.max_train_steps=20"], objective="bd")

`preset=24gb` reads `config/presets/24gb.yaml` over the file; several are split by commas, and a path is taken too.

A file may have `defaults: [base, fragment]`: these files (of its own folder, else of the project's `config/`) are read
first, in order, and the file's own keys win over theirs. `${section.key}` and `${oc.env:NAME}` are OmegaConf's.
Relative paths mean the current folder first, then the project's, so that the embedded models are found from anywhere.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from typing import Any

import yaml

from common.launcher_errors import report_error, wait_for_first_process
from config import files
from config.build import build, keys, new_tree, plain
from config.checks import check_across, check_paths, default_validation, without_effect
from config.command_line import parse_argument, unquoted
from config.help import SCRIPTS, help_text
from config.schema import Job, Objective
from config.values import NULLS, ConfigError, parse_flow, shown

USAGE = "config=<file> or section.key=value"

__all__ = ["ConfigError", "load_job", "main_or_exit", "to_yaml"]


def load_job(argv: Sequence[str] | None = None, objective: Objective | None = None, paths: bool = True) -> Job:
    """Read the job that a command line describes.

    argv: the arguments after the script's name (default: this process's). objective: the text objective of the entry
    point; a job of another one is refused with the right command. paths: what will be read has to exist, and relative
    paths become absolute. Raises ConfigError with one line for the user. `--help` prints the keys and exits with 0.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if {"-h", "--help"} & set(argv):
        print(help_text(objective))
        raise SystemExit(0)
    config, presets, overrides = _split(argv, objective)
    tree = new_tree()
    path = files.find(config)
    for file in [path, *(files.find_preset(name) for name in presets)]:
        files.read_into(tree, file)
    for name, text in overrides:
        tree.set(name, _override(name, text), "command line")
    job = build(tree)
    job.config_path = str(path)
    if objective is not None and job.training.text_objective != objective:
        right = SCRIPTS[job.training.text_objective]
        raise ConfigError(
            f"training.text_objective={job.training.text_objective} ({tree.source('training.text_objective')}): "
            f"{SCRIPTS[objective]} trains {objective}; run: python {right} {shlex.join(argv)}"
        )
    job.default_validation = default_validation(job, tree, path)
    check_across(job, tree)
    job.without_effect = without_effect(job, tree)
    if paths:
        check_paths(job, tree)
    return job


def to_yaml(job: Job) -> str:
    """The resolved configuration as text; `load_job` of it gives an equal Job."""
    return str(yaml.dump(plain(job), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120))


def main_or_exit(main: Callable[[], object]) -> None:
    """Run an entry point; a ConfigError becomes one line on stderr and exit code 2.

    Under a launcher the first process reports the line once, and so it does for a SystemExit with a text.
    """
    try:
        main()
    except ConfigError as error:
        report_error(f"config error: {error}")
        raise SystemExit(2) from None
    except SystemExit as end:
        if isinstance(end.code, str):
            report_error(end.code)
            raise SystemExit(1) from None
        if end.code in (1, 2):  # an error that another process reports
            wait_for_first_process()
        raise


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]
    """Writes texts so that `files.read_into` reads the same text again."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    style = '"' if text in NULLS or not text.isprintable() else None  # plain YAML folds unusual line ends
    return dumper.represent_scalar("tag:yaml.org,2002:str", files.escape(text), style=style)


_Dumper.add_representer(str, _text)


def _split(argv: list[str], objective: Objective | None) -> tuple[str, list[str], list[tuple[str, str]]]:
    """The config file, the presets, and (dotted key, text) for each override."""
    config, overrides = None, []
    presets: list[str] = []
    for argument in argv:
        if argument.lstrip().startswith(("hydra.", "hydra/", "sweep.")):
            raise ConfigError(f"argument {shown(argument)}: belongs to a sweep; add --multirun, or leave it out")
        name, text = parse_argument(argument, (*keys(), "config", "preset"), USAGE)
        if name == "preset":
            presets += [preset.strip() for preset in unquoted(text).split(",") if preset.strip() not in NULLS]
        elif name != "config":
            overrides.append((name, text))
        elif config is not None:
            raise ConfigError(f"config={shown(text)}: config= is given twice, first as {shown(config)}")
        else:
            config = unquoted(text)
    if not config:
        which = objective or "ar"
        raise ConfigError(
            f"config=<file> is missing, e.g. python {SCRIPTS[which]} config=./config/tiny_{which}vla.yaml"
        )
    return config, presets, overrides


def _override(name: str, text: str) -> Any:
    """A command-line value: text as it is, one layer of quotes taken off; `{key: value}` for a section."""
    if any(key.startswith(f"{name}.") for key in keys()):
        section = parse_flow(text)
        return section if isinstance(section, dict) else text
    return unquoted(text)
