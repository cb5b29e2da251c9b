"""Play a trained model on the desk: tasks in a row, one task, or sentences from the keyboard.

    make demo
    make demo ARGS="--task open_drawer"
    make demo ARGS="--instruction 'pull the drawer open'"

Shows the progress in the terminal. Writes demo.gif, report.html with films, and predicted frames next to true ones.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from common.arguments import command_parser, path_argument, whole
from common.command import report_errors, run_command
from policy_rollout.calvin.instructions import closest_task, validation_instruction
from policy_rollout.calvin.tasks import TASK_NAMES
from policy_rollout.desk.layout import SCENES
from policy_rollout.policies.model_options import CHECKPOINT_HELP
from policy_rollout.policies.model_yaml import load_model_yaml

if TYPE_CHECKING:
    from policy_rollout.demo.session import Attempt, Session

MODEL = Path(__file__).resolve().parents[2] / "assets/desk_policy"
PROMPT = "a sentence or a task's name (reset: another start; Enter: finish) > "
EPILOG = """\
examples:
  python -m policy_rollout.demo                                        five tasks in a row, then your sentences
  python -m policy_rollout.demo --task open_drawer --seed 3            one task, from a random start
  python -m policy_rollout.demo --instruction "pull the drawer open"   one sentence
  python -m policy_rollout.demo --checkpoint outputs/tiny_desk         a model of your own (make recipe)

The start of a sentence is a random state in which the task with the most similar wording is feasible. If no wording is
close, it is any random state. All 34 tasks are checked, and the one that was completed is printed.
`python -m policy_rollout.desk --list` prints the tasks."""


def parser() -> argparse.ArgumentParser:
    made = command_parser(__doc__, EPILOG, prog="python -m policy_rollout.demo")
    add = made.add_argument
    add("--task", help="one task, from a random state in which it is feasible")
    add("--instruction", help="one sentence; with --task it replaces the task's own instruction")
    add("--checkpoint", "--model", dest="model", default=MODEL, help=f"{CHECKPOINT_HELP} (default: the bundled one)")
    add("--scene", choices=SCENES, default="D", help="scene of the desk (default: %(default)s)")
    add("--seed", type=whole(0), default=0, help="seed of the random start (default: %(default)s)")
    add("--tasks", type=whole(1), default=5, metavar="N", help="number of tasks in a row (default: %(default)s)")
    add("--max-steps", type=whole(1), help="control steps of an attempt, 30 a second (default: the evaluation's)")
    add("--replan-every", type=whole(1), help="control steps between two observations (default: the evaluation's)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1 (default: auto)")
    add(
        "--output-dir",
        "--output",
        dest="output",
        type=path_argument,
        help="new folder of films and report (default: outputs/demo/<time>)",
    )
    return made


def check(args: argparse.Namespace) -> Path:
    """Return the folder to write to. Raises ``ValueError`` or ``OSError`` before anything is loaded."""
    if args.task is not None and args.task not in TASK_NAMES:
        close = closest_task(args.task.replace("_", " "))
        hint = f"did you mean {close}?" if close else "python -m policy_rollout.desk --list prints the tasks"
        raise ValueError(f"--task {args.task!r} is not a task of the desk; {hint}")
    if args.instruction is not None and not args.instruction.strip():
        raise ValueError("--instruction is empty; give a sentence such as 'pull the drawer open'")
    load_model_yaml(None, args.model).require_checkpoint()
    folder = args.output or Path("outputs/demo") / time.strftime("%Y-%m-%d_%H-%M-%S")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"--output-dir {folder} exists and is not empty; give a new folder")
    resolved: Path = folder.resolve()
    return resolved


def run(args: argparse.Namespace, folder: Path, interactive: bool) -> None:
    """Load the model, play, and write the report."""
    from rich.console import Console

    from policy_rollout.demo.session import ANY_TASK, Attempt, Session
    from policy_rollout.desk.task_sets import DOORS
    from policy_rollout.policies.upvla import UPVLAPolicy

    print(f"loading {args.model}", flush=True)
    policy = UPVLAPolicy.from_config(None, args.device, args.model)
    tasks = replace(
        DOORS.with_cameras(policy.spec.data.cameras),
        scene=args.scene,
        max_steps=args.max_steps or DOORS.max_steps,
        replan_every=args.replan_every or min(DOORS.replan_every, policy.act_step),
    )
    session = Session(policy, tasks, args.seed, folder, Console())
    if args.task or args.instruction:
        instruction = args.instruction or validation_instruction(args.task)
        play_one(session, Attempt(instruction, args.task or ANY_TASK))
    else:
        play_several(session, args.tasks)
        if interactive:
            prompt(session)
    session.write()


def play_one(session: Session, attempt: Attempt) -> None:
    """Play an attempt from a random state in which its task, or the closest one, is feasible."""
    task = attempt.task if attempt.task in TASK_NAMES else closest_task(attempt.instruction)
    print(f"start: a random state{f', in which {task} is feasible' if task else '; no task has a similar wording'}")
    session.reset(task)
    session.play(attempt)


def play_several(session: Session, count: int) -> None:
    """Play tasks of doors and lights in a row, without a reset in between."""
    from policy_rollout.demo.session import Attempt

    print(f"{count} tasks in a row, scene {session.tasks.scene}, seed {session.seed}")
    session.reset("open_drawer")
    for _ in range(count):
        task = session.next_task()
        session.play(Attempt(validation_instruction(task), task))


def prompt(session: Session, read: Callable[[str], str] = input) -> None:
    """Play what a user types until an empty line or the end of the input. The state of the desk persists."""
    from policy_rollout.demo.session import Attempt

    while True:
        try:
            text = read(PROMPT).strip()
        except EOFError:
            print()
            return
        if not text:
            return
        if text == "reset":
            session.reset(None)
            continue
        name = text.replace(" ", "_")
        attempt = Attempt(validation_instruction(name), name) if name in TASK_NAMES else Attempt(text)
        task = name if name in TASK_NAMES else closest_task(text)
        if task is None:
            print(f"no task has a similar wording; all {len(TASK_NAMES)} are checked")
        elif task not in session.feasible():
            print(f"{task} is not feasible in this state of the desk")
        session.play(attempt)


@report_errors("demo")
def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    run(args, check(args), interactive=sys.stdin.isatty() and sys.stdout.isatty())
    return 0


if __name__ == "__main__":
    run_command(main)
