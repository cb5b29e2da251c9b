"""Check CALVIN's simulator: print what is installed and what renders; with CALVIN's data also run a few steps."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from common.arguments import path_argument
from common.command import print_next, run_command
from policy_rollout.calvin.egl import Graphics, find_graphics
from policy_rollout.calvin.installation import check_files, find_annotations, find_split, package_commit, package_folder
from policy_rollout.calvin.simulator import import_simulator
from policy_rollout.calvin.trial import try_environment

TESTED_COMMIT = "797142c588c21e76717268b7b430958dbd13bf48"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m policy_rollout.calvin", description=__doc__)
    parser.add_argument(
        "dataset_path",
        nargs="?",
        type=path_argument,
        help="task_ABC_D, task_D_D, ...; its validation configuration is enough",
    )
    arguments = parser.parse_args(argv)
    try:
        print(check(arguments.dataset_path))
        where = arguments.dataset_path or "DATASET"
        print_next("blockdiff-vla rollout checkpoint=RUN dataset_path={where} num_sequences=10", where=where)
    except (ValueError, FileNotFoundError) as error:
        print(f"policy_rollout.calvin: {error}", file=sys.stderr)
        return 2
    return 0


def check(dataset_path: Path | None) -> str:
    """Print the checks and return the last line. Raises ``ValueError`` or ``FileNotFoundError``."""
    folder = package_folder()
    if folder is None:
        raise ValueError("the package calvin_env is not installed: bash scripts/install_calvin_env.sh")
    split = None if dataset_path is None else find_split(dataset_path)
    commit = package_commit()
    tested = "" if commit == TESTED_COMMIT else f" (evaluated and documented here: {TESTED_COMMIT[:7]})"
    print(f"calvin_env      {folder}, commit {commit if commit.startswith('unknown') else commit[:7]}{tested}")
    import_simulator()
    check_files(sorted((folder / "data").rglob("*")))
    print(f"pybullet        {_physics()}")
    print(f"instructions    {find_annotations() or 'not found: set annotations=<new_playtable_validation.yaml>'}")
    graphics, problem = find_graphics(None)
    print(f"images          {graphics.name if graphics else f'tiny, on the CPU: {problem}'}")
    if split is None:
        return "calvin_env is ready; name the folder of a dataset to also build its environment"
    trial = try_environment(split, graphics or Graphics(False))
    steps = f"{1e3 * trial.reset:.0f} ms per reset, {1e3 * trial.step:.1f} ms per step without images"
    print(f"environment     {steps}, {1e3 * trial.draw:.0f} ms for {', '.join(trial.images)}")
    return f"calvin_env is ready and runs {dataset_path}"


def _physics() -> str:
    """Run a step of pybullet and return its version."""
    pybullet = import_module("pybullet")
    client = pybullet.connect(pybullet.DIRECT)
    pybullet.stepSimulation(physicsClientId=client)
    pybullet.disconnect(physicsClientId=client)
    try:
        return version("pybullet")
    except PackageNotFoundError:
        return "of unknown version"


if __name__ == "__main__":
    run_command(main)
