"""Play a trained model on the desk: tasks in a row, one task, or sentences from the keyboard.

    make demo
    make demo ARGS="--task open_drawer"
    make demo ARGS="--instruction 'pull the drawer open'"
    make demo ARGS=--web

Shows the progress in the terminal. Writes demo.gif, report.html with films, and predicted frames next to true ones.
With --web, tasks and sentences are given in a page in the browser, which writes no files.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from common.arguments import command_parser, path_argument, real, whole
from common.command import print_next, report_errors, run_command
from policy_rollout.calvin.instructions import closest_task, validation_instruction
from policy_rollout.calvin.tasks import TASK_NAMES
from policy_rollout.desk.layout import SCENES
from policy_rollout.policies.model_options import CHECKPOINT_HELP
from policy_rollout.policies.model_yaml import load_model_yaml

if TYPE_CHECKING:
    from policy_rollout.demo.persistent_desk import Attempt
    from policy_rollout.demo.session import Session
    from policy_rollout.demo.web.settings import WebSettings
    from policy_rollout.desk.task_sets import TaskSet
    from policy_rollout.policies.upvla import UPVLAPolicy

MODEL = Path(__file__).resolve().parents[2] / "assets/desk_policy"
PROMPT = "a sentence or a task's name (reset: another start; Enter: finish) > "
EPILOG = """\
examples:
  python -m policy_rollout.demo                                        five tasks in a row, then your sentences
  python -m policy_rollout.demo --task open_drawer --seed 3            one task, from a random start
  python -m policy_rollout.demo --instruction "pull the drawer open"   one sentence
  python -m policy_rollout.demo --checkpoint outputs/tiny_desk         a model of your own (make recipe)
  python -m policy_rollout.demo --web                                  a page in the browser (needs gradio)

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
    page = made.add_argument_group("page in the browser (pip install -e '.[web]')")
    page.add_argument("--web", action="store_true", help="serve a page, on this machine only")
    page.add_argument("--port", type=whole(0, 65535), default=7860, help="port; 0: a free one (default: %(default)s)")
    page.add_argument("--host", default="127.0.0.1", help="0.0.0.0: open to other machines (default: %(default)s)")
    page.add_argument("--max-sessions", type=whole(1), default=4, help="open pages, at most (default: %(default)s)")
    timeout = "seconds after which an idle page is closed (default: %(default)s)"
    page.add_argument("--session-timeout", type=real(above=0), default=900, metavar="S", help=timeout)
    text_models = "models that answer questions, by text objective; each is optional"
    page.add_argument("--text-models", metavar="ar=RUN,mdm=RUN,bd=RUN", help=text_models)
    return made


def check(args: argparse.Namespace) -> None:
    """Raise ``ValueError`` or ``OSError`` before anything is loaded."""
    if args.task is not None and args.task not in TASK_NAMES:
        close = closest_task(args.task.replace("_", " "))
        hint = f"did you mean {close}?" if close else "python -m policy_rollout.desk --list prints the tasks"
        raise ValueError(f"--task {args.task!r} is not a task of the desk; {hint}")
    if args.instruction is not None and not args.instruction.strip():
        raise ValueError("--instruction is empty; give a sentence such as 'pull the drawer open'")
    load_model_yaml(None, args.model).require_checkpoint()


def web_settings(args: argparse.Namespace) -> WebSettings:
    """Return the settings of the page. Raises ``ValueError`` or ``OSError``."""
    from policy_rollout.demo.web.settings import WebSettings, free_port, parse_text_models, require_gradio

    require_gradio()
    if args.output is not None:
        raise ValueError("--output-dir has no effect with --web, which writes no files; leave it out")
    text_models = parse_text_models(args.text_models) if args.text_models else {}
    for objective, checkpoint in text_models.items():
        try:
            load_model_yaml(None, checkpoint).require_checkpoint()
        except ValueError as error:
            raise ValueError(f"--text-models {objective}: {error}") from error
    free_port(args.host, args.port)
    return WebSettings(args.host, args.port, args.max_sessions, args.session_timeout, text_models)


def new_folder(args: argparse.Namespace) -> Path:
    """Return the folder to write to. Raises ``ValueError`` if it has files."""
    folder = args.output or Path("outputs/demo") / time.strftime("%Y-%m-%d_%H-%M-%S")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"--output-dir {folder} exists and is not empty; give a new folder")
    resolved: Path = folder.resolve()
    return resolved


def load(args: argparse.Namespace) -> tuple[UPVLAPolicy, TaskSet]:
    """Return the model and the rules of its attempts."""
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
    return policy, tasks


def run(args: argparse.Namespace, folder: Path, interactive: bool) -> Path:
    """Load the model, play, write the report, and return its path."""
    from rich.console import Console

    from policy_rollout.demo.persistent_desk import ANY_TASK, Attempt
    from policy_rollout.demo.session import Session

    policy, tasks = load(args)
    session = Session(policy, tasks, args.seed, folder, Console())
    if args.task or args.instruction:
        instruction = args.instruction or validation_instruction(args.task)
        play_one(session, Attempt(instruction, args.task or ANY_TASK))
    else:
        play_several(session, args.tasks)
        if interactive:
            prompt(session)
    return session.write()


def serve_page(args: argparse.Namespace, settings: WebSettings) -> None:
    """Load the model and serve the page until Ctrl-C or SIGTERM."""
    from policy_rollout.demo.web.play import SharedModel
    from policy_rollout.demo.web.server import serve
    from policy_rollout.demo.web.settings import Choices

    policy, tasks = load(args)
    first = args.task or tasks.tasks[0]
    offered = dict.fromkeys((first, *tasks.tasks, *(() if args.model == MODEL else TASK_NAMES)))
    instruction = args.instruction or validation_instruction(first)
    choices = Choices(tuple(offered), instruction, args.scene, args.seed, Path(args.model).name)
    serve(SharedModel(policy), tasks, choices, settings, args.device)


def play_one(session: Session, attempt: Attempt) -> None:
    """Play an attempt from a random state in which its task, or the closest one, is feasible."""
    task = attempt.closest_task
    print(f"start: a random state{f', in which {task} is feasible' if task else '; no task has a similar wording'}")
    session.reset(task)
    session.play(attempt)


def play_several(session: Session, count: int) -> None:
    """Play tasks of doors and lights in a row, without a reset in between."""
    from policy_rollout.demo.persistent_desk import Attempt

    print(f"{count} tasks in a row, scene {session.tasks.scene}, seed {session.seed}")
    session.reset("open_drawer")
    for _ in range(count):
        task = session.next_task()
        session.play(Attempt(validation_instruction(task), task))


def prompt(session: Session, read: Callable[[str], str] = input) -> None:
    """Play what a user types until an empty line or the end of the input. The state of the desk persists."""
    from policy_rollout.demo.persistent_desk import attempt_of

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
        attempt = attempt_of(text)
        if note := session.note(attempt):
            print(note)
        session.play(attempt)


@report_errors("demo")
def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    check(args)
    if args.web:
        serve_page(args, web_settings(args))
        return 0
    report = run(args, new_folder(args), interactive=sys.stdin.isatty() and sys.stdout.isatty())
    print_next("open {report} in a browser", report=report)
    return 0


if __name__ == "__main__":
    run_command(main)
