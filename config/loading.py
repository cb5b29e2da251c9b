"""Load a job: schema <- `defaults:` list <- file <- presets <- command line.

    job = load_job(["config=./config/tiny_bdvla.yaml", "training.max_train_steps=20"], objective="bd")

A file may have `defaults: [base, fragment]`: these files (of its own folder, otherwise of the project's `config/`) are
read first, in order, and the file's own keys override theirs. `${section.key}` and `${oc.env:NAME}` are OmegaConf's.
Relative paths start at the current folder, or at the project's if nothing exists there.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from common.command import report_error, wait_for_first_process
from common.files import CONFIG_DIR, PROJECT_DIR, display, reason_of
from config.cli_help import PRESET_DIR, SCRIPTS, help_text, presets
from config.command_line import parse_argument, unquoted
from config.parsing import (
    NULLS,
    ConfigError,
    TextLoader,
    Tree,
    build,
    children,
    did_you_mean,
    escape,
    keys,
    new_tree,
    parse_flow,
    shown,
)
from config.schema import Job, Objective
from config.validation import check_across, check_paths, default_validation, path_problems, without_effect

USAGE = "config=<file> or section.key=value"
MAX_NESTING = 100
"""Maximum depth of brackets in a configuration file: PyYAML takes minutes for a few thousand."""

__all__ = ["ConfigError", "inspect_job", "load_job", "main_or_exit", "to_yaml"]


def load_job(argv: Sequence[str] | None = None, objective: Objective | None = None, paths: bool = True) -> Job:
    """Return the job that a command line describes. `--help` prints the keys and exits with code 0.

    Args:
        argv: the arguments after the script's name; by default those of this process.
        objective: the text objective of the entry point. A job of another one is refused with the right command.
        paths: check that all paths that will be read exist, and make relative ones absolute.

    Raises:
        ConfigError: in one line, at the first mistake.
    """
    job, tree = _compose(argv, objective)
    if paths:
        check_paths(job, tree)
    return job


def inspect_job(argv: Sequence[str]) -> tuple[Job, list[ConfigError]]:
    """Return the job of a command line, and the error of each path that is wrong. Raises ConfigError for keys."""
    job, tree = _compose(argv, None)
    return job, list(path_problems(job, tree))


def _compose(argv: Sequence[str] | None, objective: Objective | None) -> tuple[Job, Tree]:
    argv = list(sys.argv[1:] if argv is None else argv)
    if {"-h", "--help"} & set(argv):
        print(help_text(objective))
        raise SystemExit(0)
    config, preset_names, overrides = _split(argv, objective)
    tree = new_tree()
    path = find(config)
    for file in [path, *map(_find_preset, preset_names)]:
        read_into(tree, file)
    for name, text in overrides:
        section = parse_flow(text) if children(name) else None
        tree.set(name, section if isinstance(section, dict) else unquoted(text), "command line")
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
    return job, tree


def to_yaml(job: Job) -> str:
    """Return the resolved configuration as YAML; `load_job` of it returns an equal job."""
    settings = dataclasses.asdict(job)
    for field in dataclasses.fields(job):
        if field.metadata.get("internal"):
            del settings[field.name]
    return str(yaml.dump(settings, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120))


def main_or_exit(main: Callable[[], object]) -> None:
    """Run an entry point; a ConfigError becomes one line on stderr and exit code 2.

    Under a launcher only the first process prints the line, also for a SystemExit with a text.
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


def find(text: str) -> Path:
    """Return the file of `config=`, relative to the current folder or the project's. Raises ConfigError."""
    for folder in (Path.cwd(), PROJECT_DIR):
        path = (folder / os.path.expanduser(text)).resolve()
        if path.is_file():
            return path
        if path.is_dir():
            raise ConfigError(f"config={shown(text)}: is a folder; give the .yaml file in it")
    stems = sorted(path.stem for path in CONFIG_DIR.glob("*.yaml"))
    names = [f"config=./config/{stem}.yaml" for stem in stems]
    hint = did_you_mean(f"config=./config/{Path(text).stem}.yaml", names, cutoff=0.85)
    raise ConfigError(f"config={shown(text)}: no such file{hint or '; config/ has ' + ', '.join(stems)}")


def read_into(tree: Tree, path: Path) -> None:
    """Merge a file, after those of its `defaults:` list, into the tree. Raises ConfigError."""
    for file, content in _composed(path, ()):
        for name, value in content.items():
            tree.set(name, value, display(file))


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]
    """YAML dumper of texts that `TextLoader` reads back unchanged."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    style = '"' if text in NULLS or not text.isprintable() else None  # unquoted YAML folds unusual line ends
    return dumper.represent_scalar("tag:yaml.org,2002:str", escape(text), style=style)


_Dumper.add_representer(str, _represent_text)


def _split(argv: list[str], objective: Objective | None) -> tuple[str, list[str], list[tuple[str, str]]]:
    """Return the config file, the presets, and (dotted key, text) of each override."""
    config, overrides = None, []
    preset_names: list[str] = []
    for argument in argv:
        if argument.lstrip().startswith(("hydra.", "hydra/", "sweep.")):
            raise ConfigError(f"argument {shown(argument)}: belongs to a sweep; add --multirun, or leave it out")
        name, text = parse_argument(argument, (*keys(), "config", "preset"), USAGE)
        if name == "preset":
            preset_names += [preset.strip() for preset in unquoted(text).split(",") if preset.strip() not in NULLS]
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
    return config, preset_names, overrides


def _find_preset(name: str) -> Path:
    for path in (PRESET_DIR / f"{name}.yaml", Path(os.path.expanduser(name))):
        if path.is_file():
            return path.resolve()
    raise ConfigError(f"preset={shown(name)}: no such preset; there are {', '.join(presets())}, or give a .yaml file")


def _composed(path: Path, parents: tuple[Path, ...]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield (file, its own keys) in merge order."""
    if path in parents:
        circle = " -> ".join(display(p) for p in [*parents[parents.index(path) :], path])
        raise ConfigError(f"defaults={path.stem} ({display(parents[-1])}): files include each other: {circle}")
    content = _read(path)
    defaults = content.pop("defaults", [])
    if isinstance(defaults, str) and defaults:
        defaults = [defaults]
    if not isinstance(defaults, list) or not all(isinstance(name, str) and name for name in defaults):
        raise ConfigError(f"defaults={shown(defaults)} ({display(path)}): expected a list of file names, e.g. [base]")
    for name in defaults:
        yield from _composed(_find_default(name, path), (*parents, path))
    yield path, content


def _find_default(name: str, parent: Path) -> Path:
    """Return the file of an entry of a `defaults:` list. In a file of the same name it is the project's file."""
    file = name if name.endswith((".yaml", ".yml")) else f"{name}.yaml"
    candidates = [(folder / os.path.expanduser(file)).resolve() for folder in (parent.parent, CONFIG_DIR)]
    for path in candidates:
        if path.is_file() and (path != parent or path == candidates[-1]):
            return path
    hint = did_you_mean(name, sorted({p.stem for folder in (parent.parent, CONFIG_DIR) for p in folder.glob("*.yaml")}))
    raise ConfigError(f"defaults={shown(name)} ({display(parent)}): no {file} in {parent.parent} or {CONFIG_DIR}{hint}")


def _read(path: Path) -> dict[str, Any]:
    start = f"config={display(path)}"
    try:
        text = path.read_text(encoding="utf-8")
        depth = deepest = 0
        for bracket in re.findall(r"[\[\]{}]", text):
            depth = depth + 1 if bracket in "[{" else max(depth - 1, 0)
            deepest = max(deepest, depth)
        if deepest > MAX_NESTING:
            raise ConfigError(f"{start}: not a configuration: brackets are nested {deepest} deep")
        content = yaml.load(text, Loader=TextLoader)  # builds text, lists and dicts only
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        position = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = " ".join(p for p in (error.context, error.problem) if p)
        raise ConfigError(f"{start}{position}: not valid YAML: {problem}") from None
    except RecursionError:
        raise ConfigError(f"{start}: not a configuration: it is nested too deeply") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{start}: not valid YAML: {str(error).splitlines()[0]}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{start}: not a text file in UTF-8 ({error.reason} at byte {error.start})") from None
    except OSError as error:
        raise ConfigError(f"{start}: cannot be read: {reason_of(error)}") from None
    if content in (None, ""):
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{start}: expected sections with keys (training:, model:, ...), found {shown(content)}")
    return content
