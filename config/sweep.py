"""`--multirun`: one run for every combination of the values given with commas, through Hydra's sweeper and launchers.

    python train_upvla.py -m config=./config/tiny_arvla.yaml training.seed=0,1,2 training.text_objective=ar,mdm,bd

Hydra parses the values, makes the combinations and hands them to a launcher (its own, one after the other; joblib,
several at once; submitit, as Slurm jobs). Every combination is read and checked as a single run would be before the
first one starts; each run is then a process of its own (`config.sweep_run`), started by the script of its objective.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.environment import environment
from common.files import reason_of
from common.folder_lock import FolderBusy, hold
from common.processes import process_rank, shown_variables
from config.build import keys, plain
from config.command_line import hydra_quoted, is_sweep, parse_argument, unquoted
from config.files import PROJECT_DIR
from config.help import SCRIPTS
from config.identity import difference, settings_in, settings_of
from config.load import USAGE, load_job, to_yaml
from config.schema import Job, Objective
from config.sweep_run import Plan, digest, name_of, run_one
from config.sweep_table import write_table
from config.values import ConfigError, shown

FLAGS = ("-m", "--multirun")
NOT_KEYS = ("config", "preset")
"""What can be swept although it is no key of a run."""
PLUGINS = {"submitit": "hydra_submitit_launcher", "joblib": "hydra_joblib_launcher"}
APP = "blockdiff_vla_sweep"


@dataclass(frozen=True)
class Request:
    """A command line taken apart: what every run has, what differs, what is Hydra's own."""

    fixed: list[str]
    swept: list[str]
    hydra: list[str]
    launch: str | None

    @property
    def names(self) -> list[str]:
        return [argument.partition("=")[0] for argument in self.swept]


def wants_sweep(argv: Sequence[str] | None) -> bool:
    argv = sys.argv[1:] if argv is None else argv
    return bool(set(FLAGS) & set(argv)) and not {"-h", "--help"} & set(argv)


def sweep(argv: Sequence[str] | None, objective: Objective | None) -> None:
    """Run a sweep to its end and print its table. ConfigError before the first run starts if one of them cannot be;
    SystemExit(1) after the last one has ended if one of them failed."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        place = process_rank(os.environ)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if place.world > 1:
        raise ConfigError(
            f"--multirun: {shown_variables(os.environ, place.variables)} in the environment, but a sweep is started "
            'with python alone; its runs take several processes by sweep.launch="accelerate launch --config_file ..."'
        )
    request = take_apart(argv)
    combinations = expand(request)
    jobs = [_checked(request, values, objective) for values in combinations]
    folder = _folder(request, jobs[0])
    names = [name_of(values) for values in combinations]
    plan = Plan(
        fixed=tuple(request.fixed),
        folder=str(folder),
        launch=tuple(_words(request.launch)),
        digests={name: digest(to_yaml(job)) for name, job in zip(names, jobs, strict=True)},
        scripts={name: SCRIPTS[job.training.text_objective] for name, job in zip(names, jobs, strict=True)},
    )
    for name, job in zip(names, jobs, strict=True):
        _require_same_settings(folder / name, job)
    with ExitStack() as held:
        try:
            held.enter_context(hold(folder, "a sweep", "experiment.output_dir="))
        except FolderBusy as error:
            raise ConfigError(str(error)) from error
        except OSError as error:
            raise ConfigError(f"experiment.output_dir={folder}: cannot be written to ({reason_of(error)})") from error
        print(f"sweep of {len(names)} runs over {', '.join(request.names) or 'nothing'}: {folder}", flush=True)
        _hand_to_hydra(request, plan)
        failed = write_table(folder, names, combinations)
    if failed:
        raise SystemExit(1)


def _require_same_settings(run: Path, job: Job) -> None:
    """Raise ConfigError where the folder of a run holds one with other settings, which would be continued, or whose
    results would stand in this sweep's table."""
    held = settings_in(run / "config.yaml")
    other = None if held is None else difference(held, settings_of(job))
    if other is not None:
        raise ConfigError(
            f"experiment.output_dir={run.parent}: the run {run.name} there was made with {other}; give another "
            "experiment.output_dir (or hydra.sweep.dir), or move the folder away; no run of the sweep was started"
        )


def take_apart(argv: Sequence[str]) -> Request:
    """Sort a command line. What Hydra's parser reads as several values is swept; the rest stays as it was typed."""
    fixed: list[str] = []
    swept: list[str] = []
    own: list[str] = []
    launch = None
    for argument in (a for a in argv if a not in FLAGS):
        name, _, text = argument.partition("=")
        name = name.strip()
        if name.startswith(("hydra.", "hydra/", "+hydra", "~hydra")):
            own.append(argument)
        elif name == "sweep.launch":
            launch = text
        else:
            parse_argument(argument, (*keys(), *NOT_KEYS), USAGE)
            (swept if is_sweep(argument) else fixed).append(argument)
    _check_own(own)
    return Request(fixed, swept, own, launch)


def expand(request: Request) -> list[list[str]]:
    """Every combination of the swept values, as `key=value` texts, in the order in which Hydra runs them."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    if any(argument.startswith("hydra/sweeper=") for argument in request.hydra):
        raise ConfigError(
            "hydra/sweeper: only Hydra's basic sweeper is used, whose runs are all known and checked first"
        )
    try:
        batches = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(request.swept), None)
    except HydraException as error:
        raise ConfigError(f"--multirun: {str(error).splitlines()[0]}") from None
    return [list(values) for batch in batches for values in batch]


def _checked(request: Request, values: Sequence[str], objective: Objective | None) -> Job:
    """The job of one combination, checked like a single run's."""
    # Where the objective is swept, each run is started by its own script; else this one has to be the right one.
    free = any(name in ("config", "training.text_objective") for name in request.names)
    try:
        return load_job([*request.fixed, *map(plain_text, values)], None if free else objective)
    except ConfigError as error:
        told = f" (in the run {shown(' '.join(values))})" if values else ""
        raise ConfigError(f"{error}{told}; no run of the sweep was started") from None


def plain_text(value: str) -> str:
    """`key=value` of Hydra's writing as a command line has it: a quoted or escaped text is the text itself."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    found = OverridesParser.create().parse_override(value).value()
    return f"{value.partition('=')[0]}={found}" if isinstance(found, str) else value


def _folder(request: Request, first: Job) -> Path:
    """Where the runs go: hydra.sweep.dir, else experiment.output_dir as given, else beside a single run's."""
    for argument in request.hydra:
        if argument.startswith("hydra.sweep.dir="):
            return Path(os.path.expanduser(unquoted(argument.partition("=")[2]))).absolute()
    given = any(argument.startswith("experiment.output_dir=") for argument in request.fixed)
    output = Path(first.experiment.output_dir)
    return (output if given else output.with_name(f"{output.name}_sweep")).absolute()


def _words(text: str | None) -> list[str]:
    import shlex

    return [] if text is None else [os.path.expanduser(word) for word in shlex.split(text)]


def _check_own(own: Sequence[str]) -> None:
    """What of Hydra's own settings cannot be had."""
    for argument in own:
        name, _, launcher = argument.partition("=")
        if name.startswith("hydra.sweep.") and name != "hydra.sweep.dir":
            raise ConfigError(
                f"{argument}: the folders of the runs are named after what is swept; allowed here is hydra.sweep.dir"
            )
        for word, package in PLUGINS.items():
            if name == "hydra/launcher" and word in launcher and _is_missing(package):
                raise ConfigError(
                    f"hydra/launcher={launcher}: needs a package of requirements-optional.txt "
                    f"(pip install {package.replace('_', '-')}); without it runs go one after the other"
                )


def _is_missing(plugin: str) -> bool:
    return (
        importlib.util.find_spec("hydra_plugins") is None or importlib.util.find_spec(f"hydra_plugins.{plugin}") is None
    )


def _hand_to_hydra(request: Request, plan: Plan) -> None:
    """Let Hydra sweep: its launcher calls `task` once a run, here or in a job of its own."""
    import hydra
    from hydra.core.config_store import ConfigStore
    from hydra.core.hydra_config import HydraConfig

    def task(_: Any) -> int:
        return run_one(plan, [plain_text(value) for value in HydraConfig.get().overrides.task])

    ConfigStore.instance().store(name=APP, node={**dict.fromkeys(NOT_KEYS), **plain(Job())})
    quiet = ["hydra/job_logging=none", "hydra/hydra_logging=none", "hydra.output_subdir=null"]
    where = [f"hydra.sweep.dir={hydra_quoted(plan.folder)}", "hydra.sweep.subdir=."]
    own = [argument for argument in request.hydra if not argument.startswith("hydra.sweep.")]
    variables = {
        # A launcher that starts Python anew has to find this package.
        "PYTHONPATH": os.pathsep.join(filter(None, [str(PROJECT_DIR), os.environ.get("PYTHONPATH")])),
        "HYDRA_FULL_ERROR": "1",  # so that errors come here, and not as a page from Hydra
    }
    kept, sys.argv = sys.argv, [sys.argv[0], "--multirun", *quiet, *where, *own, *request.swept]
    try:
        with environment(variables):
            hydra.main(version_base="1.3", config_path=None, config_name=APP)(task)()
    except _launcher_errors() as error:
        raise ConfigError(f"--multirun: {' '.join(str(error).split())[:400]}") from error
    finally:
        sys.argv = kept


def _launcher_errors() -> tuple[type[Exception], ...]:
    """What says that Hydra or its launcher cannot do what was asked: an unknown launcher, a partition that is none."""
    from hydra.errors import HydraException

    if importlib.util.find_spec("submitit") is None:
        return (HydraException,)
    from submitit.core.utils import FailedJobError

    return (HydraException, FailedJobError)
