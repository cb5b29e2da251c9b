"""Is CALVIN's simulator ready? Says what is installed, what draws, and takes a step if it is given CALVIN's data."""

from __future__ import annotations

import argparse
import sys
import time
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from common.arguments import path_argument
from common.command import run_command
from policy_rollout.calvin.annotations import find_annotations
from policy_rollout.calvin.egl import Graphics, find_graphics
from policy_rollout.calvin.initial_states import INITIAL_STATES, initial_state
from policy_rollout.calvin.simulator import CalvinEnv, import_simulator, package_commit, package_folder
from policy_rollout.calvin.symbolic import thaw

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
    except (ValueError, FileNotFoundError) as error:
        print(f"policy_rollout.calvin: {error}", file=sys.stderr)
        return 2
    return 0


def check(dataset_path: Path | None) -> str:
    """Prints what it finds and returns the last line. Raises ``ValueError`` or ``FileNotFoundError``."""
    folder = package_folder()
    if folder is None:
        raise ValueError("the package calvin_env is not installed: bash scripts/install_calvin_env.sh")
    commit = package_commit()
    tested = "" if commit == TESTED_COMMIT else f" (evaluated and documented here: {TESTED_COMMIT[:7]})"
    print(f"calvin_env      {folder}, commit {commit[:7]}{tested}")
    import_simulator()
    print(f"pybullet        {_physics()}")
    print(f"its sentences   {find_annotations() or 'not beside it: give annotations=<new_playtable_validation.yaml>'}")
    graphics, complaint = find_graphics(None)
    print(f"pictures        {graphics.name if graphics else f'tiny, on the CPU: {complaint}'}")
    if dataset_path is None:
        return "calvin_env is ready; name a data set's folder to build its environment too"
    return _one_step(dataset_path, graphics or Graphics(False))


def _physics() -> str:
    """pybullet's version, after a step of it."""
    pybullet = import_module("pybullet")
    client = pybullet.connect(pybullet.DIRECT)
    pybullet.stepSimulation(physicsClientId=client)
    pybullet.disconnect(physicsClientId=client)
    try:
        return version("pybullet")
    except PackageNotFoundError:
        return "of unknown version"


def _one_step(dataset_path: Path, graphics: Graphics) -> str:
    env = CalvinEnv(dataset_path / "validation", graphics.egl, graphics.device)
    try:
        began = time.perf_counter()
        env.reset(*initial_state(thaw(INITIAL_STATES[0])))
        reset = time.perf_counter()
        for _ in range(10):
            env.step(np.array([0.0, 0, 0, 0, 0, 0, 1]), render=False)
        stepped = time.perf_counter()
        names = ", ".join(env.get_obs()["rgb_obs"])
        drawn = time.perf_counter()
    finally:
        env.close()
    told = f"{1e3 * (reset - began):.0f} ms a reset, {1e2 * (stepped - reset):.1f} ms a step without pictures"
    print(f"environment     {told}, {1e3 * (drawn - stepped):.0f} ms for the first {names}")
    return f"calvin_env is ready, and plays {dataset_path}"


if __name__ == "__main__":
    run_command(main)
