"""`--multirun`: one run for each combination of comma-separated values, and a table of their results.

    python train_upvla.py -m config=./config/tiny_arvla.yaml training.seed=0,1,2 training.text_objective=ar,mdm,bd

Hydra's parser reads the values. Every combination is loaded and checked as a single run would be before the first one
starts. Each run is then a process of its own (`config.sweep_worker`), started by the script of its objective: one after
the other, several at once (`hydra/launcher=joblib`), or as Slurm jobs (`hydra/launcher=submitit_slurm`).
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.files import PROJECT_DIR, reason_of, write_text
from common.folder_lock import FolderBusy, hold
from common.processes import environment, process_rank, shown_variables
from config.cli_help import SCRIPTS
from config.command_line import is_sweep, parse_argument, unquoted
from config.identity import difference, settings_in, settings_of
from config.loading import USAGE, load_job, to_yaml
from config.parsing import ConfigError, keys, shown
from config.schema import Job, Objective
from config.sweep_worker import LOG, Run, digest, execute, forward_sigterm, name_of, read_record, run_job

FLAGS = ("-m", "--multirun")
LAUNCHERS = ("basic", "joblib", "submitit_local", "submitit_slurm")
METRICS = "metrics.jsonl"
COLUMNS = (
    "total/loss",
    "image/loss",
    "action/loss",
    "text/loss",
    "text/nats_per_token",
    "validation/action/mae",
    "validation/text/nats_per_token",
)
"""Metrics of the table. Of text only `nats_per_token` is comparable between objectives (docs/algorithm.md)."""


@dataclass(frozen=True)
class Request:
    """The arguments of a sweep: those of all runs, those with several values, and the settings of the sweep itself."""

    fixed: list[str]
    swept: list[str]
    launch: str
    launcher: str
    launcher_settings: dict[str, Any]
    folder: str | None

    @property
    def names(self) -> list[str]:
        return [argument.partition("=")[0] for argument in self.swept]


def wants_sweep(argv: Sequence[str] | None) -> bool:
    """Return True if the command line starts a sweep."""
    argv = sys.argv[1:] if argv is None else argv
    return bool(set(FLAGS) & set(argv)) and not {"-h", "--help"} & set(argv)


def sweep(argv: Sequence[str] | None, objective: Objective | None) -> None:
    """Run a sweep and print its table.

    Raises:
        ConfigError: before the first run starts, if one of the runs has a mistake.
        SystemExit: with code 1 after the last run, if one of them failed.
    """
    argv = sys.argv[1:] if argv is None else argv
    try:
        process = process_rank(os.environ)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if process.world > 1:
        raise ConfigError(
            f"--multirun: {shown_variables(os.environ, process.variables)} in the environment, but a sweep is started "
            'with python alone; its runs take several processes by sweep.launch="accelerate launch --config_file ..."'
        )
    request = take_apart(argv)
    combinations = expand(request)
    jobs = [_load(request, values, objective) for values in combinations]
    folder = _folder(request, jobs[0])
    runs = [_plan(request, values, job, folder) for values, job in zip(combinations, jobs, strict=True)]
    try:
        with hold(folder, "a sweep", "experiment.output_dir="):
            print(f"sweep of {len(runs)} runs over {', '.join(request.names) or 'nothing'}: {folder}", flush=True)
            _execute_all(request, runs, folder)
            failed = write_table(folder, runs)
    except FolderBusy as error:
        raise ConfigError(str(error)) from error
    except OSError as error:
        raise ConfigError(f"experiment.output_dir={folder}: cannot be written to ({reason_of(error)})") from error
    if failed:
        raise SystemExit(1)


def take_apart(argv: Sequence[str]) -> Request:
    """Sort the arguments of a sweep. Raises ConfigError."""
    fixed: list[str] = []
    swept: list[str] = []
    launch, launcher, launcher_settings, folder = "", "basic", {}, None
    for argument in (a for a in argv if a not in FLAGS):
        name, _, text = (part.strip() for part in argument.partition("="))
        if name == "hydra.sweep.dir":
            folder = unquoted(text)
        elif name == "sweep.launch":
            launch = text
        elif name == "hydra/launcher":
            launcher = text
        elif name.lstrip("+").startswith("hydra.launcher."):
            launcher_settings[name.lstrip("+").removeprefix("hydra.launcher.")] = _override(argument).value()
        elif name.lstrip("+~").startswith(("hydra.", "hydra/", "sweep.")):
            allowed = "sweep.launch, hydra.sweep.dir, hydra/launcher and hydra.launcher.<setting>"
            raise ConfigError(f"argument {shown(argument)}: no such setting of a sweep; allowed are {allowed}")
        else:
            parse_argument(argument, (*keys(), "config", "preset"), USAGE)
            (swept if is_sweep(argument) else fixed).append(argument)
    if launcher not in LAUNCHERS:
        raise ConfigError(f"hydra/launcher={shown(launcher)}: no such launcher; allowed are {', '.join(LAUNCHERS)}")
    if launcher.startswith("submitit") and importlib.util.find_spec("submitit") is None:
        raise ConfigError(
            f"hydra/launcher={launcher}: needs a package of requirements-optional.txt (pip install submitit); without "
            "it runs go one after the other"
        )
    return Request(fixed, swept, launch, launcher, launcher_settings, folder)


def expand(request: Request) -> list[list[str]]:
    """Return every combination of the swept values, typed as for a single run; the last key varies fastest."""
    from hydra.errors import HydraException

    choices = []
    for argument in request.swept:
        try:
            override = _override(argument)
            if not override.is_discrete_sweep():
                raise ConfigError(f"--multirun: {shown(argument)}: expected a list of values, choice() or range()")
            choices.append(
                [_typed(f"{override.get_key_element()}={text}") for text in override.sweep_string_iterator()]
            )
        except HydraException as error:
            raise ConfigError(f"--multirun: {str(error).splitlines()[0]}") from None
    return [list(values) for values in itertools.product(*choices)]


def _override(argument: str) -> Any:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return OverridesParser.create().parse_override(argument.lstrip("+"))


def _typed(value: str) -> str:
    """Return `key=value` of Hydra's grammar as it is typed for a single run: without quotes and escapes."""
    found = _override(value).value()
    return f"{value.partition('=')[0]}={found}" if isinstance(found, str) else value


def _load(request: Request, values: Sequence[str], objective: Objective | None) -> Job:
    """Return the job of one combination, checked like that of a single run. Raises ConfigError."""
    # If the objective is swept, each run is started by its own script; otherwise it has to be that of this script.
    any_objective = bool({"config", "training.text_objective"} & set(request.names))
    try:
        return load_job([*request.fixed, *values], None if any_objective else objective)
    except ConfigError as error:
        run = f" (in the run {shown(' '.join(values))})" if values else ""
        raise ConfigError(f"{error}{run}; no run of the sweep was started") from None


def _folder(request: Request, first: Job) -> Path:
    """Return hydra.sweep.dir, otherwise experiment.output_dir if given, otherwise `<its default>_sweep`."""
    if request.folder is not None:
        return Path(os.path.expanduser(request.folder)).absolute()
    output = Path(first.experiment.output_dir)
    given = any(argument.startswith("experiment.output_dir=") for argument in request.fixed)
    return (output if given else output.with_name(f"{output.name}_sweep")).absolute()


def _plan(request: Request, values: Sequence[str], job: Job, folder: Path) -> Run:
    """Return the run of one combination.

    Raises ConfigError if its folder holds a run of other settings: it would be resumed, or its results would be in the
    table of this sweep.
    """
    run = folder / name_of(values)
    settings = settings_in(run / "config.yaml")
    other = None if settings is None else difference(settings, settings_of(job))
    if other is not None:
        raise ConfigError(
            f"experiment.output_dir={run.parent}: the run {run.name} there was made with {other}; give another "
            "experiment.output_dir (or hydra.sweep.dir), or move the folder away; no run of the sweep was started"
        )
    starter = [os.path.expanduser(word) for word in shlex.split(request.launch)] or [sys.executable]
    script = str(PROJECT_DIR / SCRIPTS[job.training.text_objective])
    command = (*starter, script, *request.fixed, *values, f"experiment.output_dir={run}")
    return Run(tuple(values), run, command, digest(to_yaml(job)))


def _execute_all(request: Request, runs: Sequence[Run], folder: Path) -> None:
    if request.launcher.startswith("submitit"):
        _submit(request, runs, folder)
        return
    several = int(request.launcher_settings.get("n_jobs", -1)) if request.launcher == "joblib" else 1
    with forward_sigterm() as processes, ThreadPoolExecutor(several if several > 0 else os.cpu_count()) as pool:
        try:
            list(pool.map(lambda run: 143 if processes.stopped else execute(run, processes), runs))
        except KeyboardInterrupt:
            processes.stopped = True  # runs that are still waiting are not started
            raise


def _submit(request: Request, runs: Sequence[Run], folder: Path) -> None:
    """Execute all runs as one submitit job array and wait for it. Raises ConfigError if it cannot be submitted."""
    import submitit
    from submitit.core.utils import FailedJobError

    cluster = request.launcher.removeprefix("submitit_")
    general = ("timeout_min", "cpus_per_task", "gpus_per_node", "tasks_per_node", "mem_gb", "nodes", "name")
    parameters: dict[str, Any] = {"timeout_min": 60, "nodes": 1, "tasks_per_node": 1, "name": "blockdiff_vla_sweep"}
    if cluster == "slurm":
        parameters["slurm_signal_delay_s"] = 120
    for name, value in request.launcher_settings.items():
        parameters[name if name in (*general, "stderr_to_stdout") else f"{cluster}_{name}"] = value
    retries = {name: parameters.pop(name) for name in ("slurm_max_num_timeout",) if name in parameters}
    # A job starts Python anew and has to find this package.
    path = os.pathsep.join(filter(None, [str(PROJECT_DIR), os.environ.get("PYTHONPATH")]))
    with environment({"PYTHONPATH": path}):
        try:
            executor = submitit.AutoExecutor(f"{folder}/.submitit/%j", cluster=cluster, **retries)
            executor.update_parameters(**parameters)
            jobs = executor.map_array(run_job, runs)
        except (FailedJobError, NameError, RuntimeError, TypeError, ValueError) as error:
            raise ConfigError(f"--multirun: {' '.join(str(error).split())[:400]}") from error
        for job in jobs:
            job.wait()


def write_table(folder: Path, runs: Sequence[Run]) -> int:
    """Write `sweep.json` and `sweep.md`, print the table, and return the number of failed runs."""
    rows = [_row(run) for run in runs]
    text = _markdown(rows)
    write_text(folder / "sweep.json", json.dumps(rows, indent=1) + "\n")
    write_text(folder / "sweep.md", text)
    failed = [row for row in rows if row["state"] != "done"]
    print(
        f"\n{text}\n{len(rows) - len(failed)} of {len(rows)} runs done: {folder / 'sweep.md'}, {folder / 'sweep.json'}"
    )
    for row in failed:
        print(f"  {row['state']}: {Path(row['folder']) / LOG}{': ' + row['said'] if row['said'] else ''}")
    if failed:
        print("the same command again skips the finished runs and continues the others")
    return len(failed)


def _row(run: Run) -> dict[str, Any]:
    record, metrics = read_record(run.folder), last_metrics(run.folder / METRICS)
    code = record.get("exit")
    return {
        "overrides": {value.partition("=")[0]: value.partition("=")[2] for value in run.values},
        "state": "done" if code == 0 else "not finished" if code is None else f"failed (exit {code})",
        "steps": int(metrics.pop("step", 0)),
        "seconds": record.get("seconds"),
        "metrics": metrics,
        "said": record.get("said", ""),
        "name": run.folder.name,
        "folder": str(run.folder),
    }


def last_metrics(file: Path) -> dict[str, float]:
    """Return the last value of every metric of a run, and its last step."""
    found: dict[str, float] = {}
    if not file.is_file():
        return found
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:  # a killed run wrote half of its last line
            continue
        found |= {tag: value for tag, value in record.items() if isinstance(value, int | float)}
    return found


def _markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    tags = [tag for tag in COLUMNS if any(tag in row["metrics"] for row in rows)]
    header = [*rows[0]["overrides"], *tags, "steps", "seconds", "state", "folder"]
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    for row in rows:
        numbers = [f"{row['metrics'][tag]:.4g}" if tag in row["metrics"] else "" for tag in tags]
        seconds = "" if row["seconds"] is None else f"{row['seconds']:.0f}"
        cells = [*row["overrides"].values(), *numbers, str(row["steps"]), seconds, row["state"], row["name"]]
        lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    return "\n".join(lines) + "\n"
