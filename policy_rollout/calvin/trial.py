"""Build CALVIN's environment once in a separate process, before a model is loaded.

Worker processes would report a missing package, a missing mesh or a driver that ends the process only after the model
was loaded, and with a traceback.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from policy_rollout.calvin.egl import Graphics

TIMEOUT = 300.0
"""Seconds after which building the environment has failed."""
RESULT = "TRIAL "


@dataclass(frozen=True)
class Trial:
    """Durations in seconds: a reset, one control step without images, the first images."""

    reset: float
    step: float
    draw: float
    images: tuple[str, ...]


def try_environment(split: Path, graphics: Graphics) -> Trial:
    """Build the environment of a validation folder, take ten steps and draw. Raise ``ValueError`` in one line if that
    does not work."""
    command = [sys.executable, "-m", __name__, str(split), json.dumps([graphics.egl, graphics.device])]
    paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=TIMEOUT,
            check=False,
            env={**os.environ, "PYTHONPATH": paths},
        )
    except subprocess.TimeoutExpired as error:
        raise ValueError(f"calvin_env did not build the environment of {split} within {TIMEOUT:.0f} s") from error
    results = [line.removeprefix(RESULT) for line in done.stdout.splitlines() if line.startswith(RESULT)]
    if done.returncode == 0 and results:
        measured = json.loads(results[-1])
        return Trial(measured["reset"], measured["step"], measured["draw"], tuple(measured["images"]))
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    if done.returncode == 2:
        raise ValueError(last)
    raise ValueError(f"calvin_env cannot build the environment of {split} (exit code {done.returncode}: {last})")


def main(split: str, graphics: str) -> int:
    """Run the trial in this process and print its result."""
    from policy_rollout.calvin.initial_states import INITIAL_STATES, initial_state
    from policy_rollout.calvin.simulator import CalvinEnv
    from policy_rollout.calvin.symbolic import thaw

    try:
        env = CalvinEnv(Path(split), *json.loads(graphics))
    except (ValueError, FileNotFoundError) as error:
        print(error, file=sys.stderr)
        return 2
    began = time.perf_counter()
    env.reset(*initial_state(thaw(INITIAL_STATES[0])))
    reset = time.perf_counter()
    for _ in range(10):
        env.step(np.array([0.0, 0, 0, 0, 0, 0, 1]), render=False)
    stepped = time.perf_counter()
    images = list(env.get_obs()["rgb_obs"])
    drawn = time.perf_counter()
    env.close()
    measured = {"reset": reset - began, "step": (stepped - reset) / 10, "draw": drawn - stepped, "images": images}
    print(f"\n{RESULT}{json.dumps(measured)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
