"""The command line of the evaluation: the grammar of training (`config.command_line`), translated for Hydra."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence

import yaml

from common.files import PROJECT_DIR, display
from config.command_line import hydra_quoted, is_sweep, parse_argument, require_known, unquoted
from config.parsing import NULLS, ConfigError, Quoted, TextLoader, Tree, shown

CONFIG = PROJECT_DIR / "policy_conf" / "calvin_evaluate_upvla.yaml"
USAGE = "key=value"
NUMBERS = frozenset(
    {"num_sequences", "ep_len", "replan_every", "ensemble", "margin", "parallel", "workers", "num_videos"}
    | {"save_rollout_as_video", "log_wandb"}
)
"""Keys whose value is a number, true or false, or null. All other values are text or null."""
OTHER_NAMES = {"output_dir": "log_dir"}
"""Names that other commands have for a key, and the key."""
SWEEPS = frozenset({"-m", "--multirun"})
HELP = frozenset({"-h", "--help"})
FLAGS = SWEEPS | {"--hydra-help", "--version", "--resolve", "-r", "--run"}
FLAGS_WITH_VALUE = frozenset({"-c", "--cfg", "-p", "--package", "-i", "--info"})
"""Hydra's own flags that this command passes on."""


HELP_TEXT = """\
usage: python -m policy_rollout.calvin_evaluate_upvla checkpoint=<folder or hub id> [key=value ...]

Run CALVIN's official chains of tasks with a policy, and write results.json, report.html and videos to log_dir.

examples:
  python -m policy_rollout.calvin_evaluate_upvla environment=desk checkpoint=assets/desk_policy num_sequences=20
  python -m policy_rollout.calvin_evaluate_upvla dataset_path=$CALVIN_DATA_ROOT checkpoint=outputs/mine device=0
  torchrun --nproc-per-node 8 -m policy_rollout.calvin_evaluate_upvla ... log_dir=rollout_outputs/mine

After a kill or an interrupt, the same command with the same log_dir resumes. --multirun runs all combinations of
comma-separated values; --cfg job prints the values of a command line. docs/evaluation.md has more.

keys (default in brackets):
"""


def help_text() -> str:
    """Return the text of ``--help``: every key with its default and the comment in the yaml."""
    lines = CONFIG.read_text(encoding="utf-8").partition("\nhydra:")[0].splitlines()
    shown = []
    for line in lines:
        code, _, comment = line.partition("#")
        name, colon, default = code.strip().partition(": ")
        if colon:
            shown.append(f"  {name}  [{default.strip()}]")
            shown += textwrap.wrap(comment.strip(), 112, initial_indent=" " * 6, subsequent_indent=" " * 6)
        else:
            shown += textwrap.wrap(comment.strip(), 118) or [""]
    return HELP_TEXT + "\n".join(shown)


def keys() -> list[str]:
    """Return the keys of policy_conf/calvin_evaluate_upvla.yaml, in its order."""
    return list(_defaults())


def hydra_arguments(argv: Sequence[str]) -> list[str]:
    """Return the arguments for Hydra that mean what `argv` means in the grammar of training.

    Values are resolved (`${...}`), paths may hold any character, and unknown keys are refused. Hydra's own flags and
    `hydra.*` keys are passed on. Raises ConfigError.
    """
    tree, known = Tree({}), keys()
    for name, default in _defaults().items():
        tree.set(name, default, display(CONFIG))
    passed: list[str] = []
    given: dict[str, str] = {}
    swept: dict[str, str] = {}
    arguments = iter(argv)
    for argument in arguments:
        flag = argument.partition("=")[0]
        if flag in FLAGS or (flag in FLAGS_WITH_VALUE and "=" in argument):
            passed.append(argument)
        elif flag in FLAGS_WITH_VALUE:
            passed += [argument, *([value] if (value := next(arguments, None)) is not None else [])]
        elif re.match(r"[+~]*hydra[./]", argument):
            passed.append(argument)
        else:
            name, text = parse_argument(argument, known, USAGE)
            name = OTHER_NAMES.get(name, name)
            require_known(name, text, known)
            if SWEEPS & set(argv) and is_sweep(argument):
                swept[name] = argument
                continue
            given[name] = text
            tree.set(name, unquoted(text), "command line")
    return [*passed, *(f"{name}={_for_hydra(tree, name)}" for name in given if name not in swept), *swept.values()]


def _for_hydra(tree: Tree, name: str) -> str:
    """Return the value of a given key in Hydra's grammar."""
    written = tree.values[name]
    value = tree.interpolated(name, written)
    if not isinstance(value, str):
        raise ConfigError(f"{name}={shown(written)} ({tree.source(name)}): expected one value, not a list")
    if value.strip() in NULLS and not isinstance(value, Quoted):
        return "null"
    if name in NUMBERS and re.fullmatch(r"[\w.+-]+", value):
        return value
    return hydra_quoted(value)


def _defaults() -> dict[str, str]:
    content = yaml.load(CONFIG.read_text(encoding="utf-8"), Loader=TextLoader)
    return {name: value for name, value in content.items() if name not in ("hydra", "defaults")}
