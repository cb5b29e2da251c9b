"""The command line of `policy_rollout/policy_upvla.py` (model, robot, limits), and the log of a run."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.arguments import path_argument, whole
from common.files import PROJECT_DIR
from common.text import check_text
from policy_rollout.policies.interface import ActionConvention, Policy, state_read_by
from policy_rollout.policies.model_options import add_model_options, require_model_options
from policy_rollout.robot.arms import make_guard
from policy_rollout.robot.interface import Command, Robot, RobotObservation
from policy_rollout.robot.rate import RealClock
from policy_rollout.robot.safety import SafetyLimits

TOKEN_VARIABLE = "BLOCKDIFF_SERVE_TOKEN"

DESCRIPTION = """\
Controls a robot with a model, or computes the actions for recorded frames without a robot (the default). The model
runs in this process (--checkpoint) or in policy_rollout.serve (--server). It computes the next chunk while the
previous one is executed; actions that are outdated when a chunk arrives are skipped."""
EPILOG = """\
examples:
  dry run on the bundled frames, with a log of every step:
    python -m policy_rollout.policy_upvla --checkpoint assets/desk_policy --output outputs/dry_run.jsonl
  dry run on a video of your own table, the model on another machine:
    python -m policy_rollout.policy_upvla --server ws://gpu:8000 --recorded table.mp4 \\
        --instruction "open the drawer"
  your robot, slow, in a workspace of 30 x 40 x 25 cm:
    python -m policy_rollout.policy_upvla --server ws://gpu:8000 --robot my_robot:connect \\
        --instruction "open the drawer" --workspace 0.3 0.6 -0.2 0.2 0.05 0.3 --max-step-m 0.005 --steps 300

--robot names a function without arguments that returns an object with observe(), act(command) and stop()
(policy_rollout/robot/interface.py). Read the safety section of docs/serving.md before the first run."""


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m policy_rollout.policy_upvla",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    who = made.add_argument_group("the model: in this process, or on a server")
    add_model_options(who)
    who.add_argument("--server", help="address of policy_rollout.serve, e.g. ws://127.0.0.1:8000")
    made.add_argument("--device", default="auto", help="for --checkpoint: auto (default), cpu, cuda, cuda:<n>")
    made.add_argument("--token", help=f"for --server; better in the variable {TOKEN_VARIABLE}")
    body = made.add_argument_group("the robot (one of --robot and --recorded)")
    body.add_argument("--robot", metavar="MODULE:FUNCTION", help="your robot: the function that connects to it")
    body.add_argument(
        "--recorded",
        type=path_argument,
        default=PROJECT_DIR / "dummy_data" / "calvin" / "validation",
        help="dry run on a raw CALVIN split, a folder of images or a video (default: the bundled recording)",
    )
    body.add_argument(
        "--window", type=whole(0), default=0, help="number of the annotated window of a split (default: 0)"
    )
    body.add_argument("--instruction", help="the task in words (default for a split: its annotation)")
    time_ = made.add_argument_group("time")
    time_.add_argument("--rate", type=float, help="control steps per second (default: the model's, usually 30)")
    time_.add_argument("--steps", type=int, help="end after this many (default: until the images end)")
    time_.add_argument("--synchronous", action="store_true", help="stand still while the model computes")
    time_.add_argument("--replan-every", type=int, help="actions executed before the next chunk (default: as many as "
                       "the model's speed allows)")  # fmt: skip
    time_.add_argument("--ensemble", type=float, help="average overlapping chunks with exp(-m * age) (default: none)")
    safety = made.add_argument_group("limits")
    safety.add_argument(
        "--workspace",
        type=float,
        nargs=6,
        metavar=("X0", "X1", "Y0", "Y1", "Z0", "Z1"),
        help="limit targets to this box, metres (default: none; the robot has to measure its pose)",
    )
    safety.add_argument(
        "--max-step-m", type=float, help="largest translation of a step (default: the model's full step)"
    )
    safety.add_argument(
        "--max-step-rad", type=float, help="largest rotation of a step (default: the model's full step)"
    )
    safety.add_argument(
        "--max-lead-m", type=float, help="largest distance of a target from the measured hand (default: none)"
    )
    safety.add_argument("--max-age-ms", type=float, default=200, help="older images stop the robot (default: 200)")
    safety.add_argument("--max-plan-age-ms", type=float, default=1000, help="older plans are discarded (default: 1000)")
    safety.add_argument(
        "--patience-s", type=float, default=2, help="longest such stop before the run ends (default: 2)"
    )
    safety.add_argument(
        "--gripper-hysteresis", type=float, default=0, help="0..1; weaker commands are ignored (default: 0)"
    )
    made.add_argument("--output", type=path_argument, help="write every step as a line of JSON")
    return made


def limits_of(options: argparse.Namespace) -> SafetyLimits:
    """Return the safety limits. Raises `ValueError` for an impossible one."""
    box = options.workspace
    return SafetyLimits(
        workspace=None if box is None else ((box[0], box[2], box[4]), (box[1], box[3], box[5])),
        max_step_m=options.max_step_m,
        max_step_rad=options.max_step_rad,
        max_lead_m=options.max_lead_m,
        max_age_s=options.max_age_ms / 1000,
        max_plan_age_s=options.max_plan_age_ms / 1000,
        patience_s=options.patience_s,
        gripper_hysteresis=options.gripper_hysteresis,
    )


def make_policy(options: argparse.Namespace) -> Policy:
    """Load the model, or connect to the server."""
    if options.server is not None:
        if options.checkpoint is not None or options.model_config is not None:
            raise ValueError("--server runs its own model; leave out --checkpoint and --model-config")
        from policy_rollout.robot.remote import RemotePolicy

        return RemotePolicy(options.server, options.token or os.environ.get(TOKEN_VARIABLE))
    require_model_options(options)
    from policy_rollout.policies.upvla import UPVLAPolicy  # torch

    policy = UPVLAPolicy.from_config(options.model_config, options.device, options.checkpoint)
    policy.warm_up()
    return policy


def make_robot(options: argparse.Namespace, policy: Policy) -> tuple[Robot, str]:
    """Return the robot and the instruction. Raises `ValueError` for an unknown name or a missing instruction."""
    try:
        check_text(options.instruction or "")
    except ValueError as error:
        raise ValueError(f"--instruction: {error}") from None
    if options.robot is None:
        from policy_rollout.robot.recorded import RecordedRobot, open_recording

        recording = open_recording(options.recorded, policy.cameras, options.window)
        instruction = options.instruction or recording.instruction
        if not instruction:
            raise ValueError(f"{options.recorded} has no instruction; give --instruction")
        if (state := state_read_by(policy)) is not None:
            state.check(recording.frame(0).get("state"), f"{options.recorded}: state")
        return RecordedRobot(recording, options.rate or policy.convention.rate_hz, RealClock()), instruction
    if not options.instruction:
        raise ValueError("a robot needs an instruction; give --instruction")
    module, colon, name = options.robot.partition(":")
    if not colon:
        raise ValueError(f"--robot {options.robot}: give MODULE:FUNCTION, e.g. my_robot:connect")
    sys.path.insert(0, os.getcwd())
    try:
        connect = getattr(importlib.import_module(module), name)
    except (ModuleNotFoundError, AttributeError) as error:
        raise ValueError(f"--robot {options.robot}: {error}") from None
    robot: Robot = connect()
    missing = [method for method in ("observe", "act", "stop") if not callable(getattr(robot, method, None))]
    if missing:
        raise ValueError(f"--robot {options.robot} returned something without {', '.join(missing)}()")
    return robot, options.instruction


class StepLog:
    """Writes every step as a line of JSON: the command, or the reason for a stop."""

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._start = time.monotonic()
        self._partial = None if file is None else file.with_name(f".{file.name}.partial")
        if file is not None and self._partial is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            self._stream = self._partial.open("w", encoding="utf-8")

    def __call__(self, step: int, observation: RobotObservation | None, command: Command | None, reason: str) -> None:
        if self._file is None:
            return
        line: dict[str, Any] = {"step": step, "seconds": round(time.monotonic() - self._start, 4)}
        if command is not None:
            line |= {
                "target": _rounded(command.pose),
                "moved": _rounded(command.step),
                "gripper": np.asarray(command.gripper).tolist(),
            }
        if observation is not None and observation.pose is not None:
            line |= {"measured": _rounded(observation.pose)}
        if reason:
            line |= {"why": reason, "stop": command is None}
        self._stream.write(json.dumps(line) + "\n")

    def close(self) -> None:
        if self._file is not None and self._partial is not None:
            self._stream.close()
            os.replace(self._partial, self._file)


def _rounded(numbers: NDArray[Any]) -> Any:
    return np.round(np.asarray(numbers, dtype=np.float64), 5).tolist()


def announcement(options: argparse.Namespace, instruction: str, convention: ActionConvention) -> str:
    """Return the description of a run that is printed before it starts."""
    limits = limits_of(options)
    guard, box = make_guard(convention, limits), limits.workspace
    return (
        f"{f'robot {options.robot}' if options.robot else f'dry run on {options.recorded}: nothing moves'}\n"
        f"instruction: {instruction}\n"
        f"{options.rate or convention.rate_hz:g} Hz, {'standing still' if options.synchronous else 'moving'} while "
        f"computing; a step is at most {guard.max_step_m:.3f} m and {guard.max_step_rad:.3f} rad; workspace "
        f"{'not limited' if box is None else f'{list(box[0])} to {list(box[1])}'}"
    )
