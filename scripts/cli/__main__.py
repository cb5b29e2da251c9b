"""Run a command of this project by its name: `blockdiff-vla <command> ...`, or `python -m scripts.cli <command> ...`.

Each name starts the main function of a module with the remaining arguments, as `python -m <module> ...` does. Modules
are imported when their command is started, so that the list of commands is printed at once.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from common.command import USER_ERROR, run_command

PROGRAM = "blockdiff-vla"


@dataclass(frozen=True)
class Command:
    """A command. ``main``: a function of ``module`` that takes the arguments; ``help``: one line for the list."""

    module: str
    help: str
    main: str = "main"


COMMANDS = {
    "train": Command("scripts.cli.train", "train a model: train [--objective ar|mdm|bd] config=FILE [key=value ...]"),
    "quickstart": Command("scripts.quickstart", "record, train, evaluate and report in minutes on this machine"),
    "memory": Command("scripts.estimate_memory", "estimate the memory of a training run"),
    "doctor": Command("scripts.doctor.__main__", "check installation, machine, data and checkpoints"),
    # Evaluation
    "eval": Command("scripts.eval_upvla_offline_actions", "action errors of a model on recorded frames"),
    "eval table": Command("scripts.summarize_offline_eval_json", "Markdown table of several results of eval"),
    "rollout": Command(
        "policy_rollout.calvin_evaluate_upvla", "chains of tasks in closed loop (desk, CALVIN)", "command"
    ),
    "rollout merge": Command("policy_rollout.merge", "merge records of several closed-loop evaluations"),
    "evaluate desk": Command("scripts.evaluate_desk", "closed loop on the desk with blind controls and baselines"),
    "evaluate frames": Command("policy_rollout.future_frames", "position of the hand in predicted future images"),
    "compare": Command("policy_rollout.compare", "compare closed-loop evaluations chain by chain"),
    "compare objectives": Command("scripts.compare_objectives", "train ar, mdm and bd alike and compare them"),
    "compare decoding": Command("scripts.compare_decoding.__main__", "quality against speed of ways to decode text"),
    "study": Command("scripts.study.__main__", "effect of the text objective on seeing and acting, by many runs"),
    "report": Command("policy_rollout.report", "write the HTML report of a closed-loop evaluation"),
    # Use of a model
    "ask": Command("scripts.generate_text", "answers to questions about images"),
    "vqa": Command("scripts.eval_vqa", "accuracy on a benchmark of questions about images"),
    "mask": Command("scripts.show_mask", "draw the attention mask of a text objective or of the robot flow"),
    "demo": Command("policy_rollout.demo.__main__", "watch a model on the desk, in the terminal or in a page (--web)"),
    "push": Command("scripts.cli.push", "publish a model on the Hugging Face hub"),
    "serve": Command("policy_rollout.serve", "serve a model to simulators and robots"),
    "robot": Command("policy_rollout.policy_upvla", "control a robot, or a dry run on recorded frames"),
    # Simulators and data
    "desk": Command("policy_rollout.desk.cli", "draw the desk, run its experts, measure its speed"),
    "desk experts": Command("policy_rollout.desk.experts.evaluate", "success of the scripted experts"),
    "desk scenes": Command("preprocess_data.make_desk_scenes", "random scenes of the desk as a training split"),
    "desk moments": Command("preprocess_data.desk_moments.make", "frames with actions of experts of several tasks"),
    "calvin": Command("policy_rollout.calvin.__main__", "check the installation of CALVIN's simulator"),
    "record": Command("preprocess_data.make_desk_demos", "record demonstrations of experts on the desk"),
    "relabel": Command("preprocess_data.relabel_rollouts", "record a policy on the desk with labels of experts"),
    "process calvin": Command("preprocess_data.process_calvin", "raw CALVIN, or a recording, to a training split"),
    "process bridge": Command("preprocess_data.process_bridge", "BridgeData V2 to a training split"),
    "process lerobot": Command("preprocess_data.process_lerobot", "LeRobot data to a training split"),
    "export lerobot": Command("preprocess_data.export_lerobot", "a raw CALVIN split to LeRobot data"),
    "tokenize": Command("preprocess_data.tokenize_images", "cache the image codes of a split"),
    "repack": Command("preprocess_data.repack", "pack raw frames into shards of pixels"),
    "clip features": Command("preprocess_data.clip_features", "cache the CLIP features of conversation images"),
    "locate objects": Command("preprocess_data.locate_objects", "positions of objects in the frames of a split"),
    "action sentences": Command("preprocess_data.language_actions.__main__", "conversations: next motions in words"),
    "place questions": Command("preprocess_data.place_questions.__main__", "conversations: places of objects"),
    "inspect": Command("scripts.inspect_data", "data sets and rollouts: summary and HTML page, or rerun"),
}
EPILOG = f"""\
examples:
  {PROGRAM} doctor
  {PROGRAM} demo --task open_drawer
  {PROGRAM} train config=./config/tiny_bdvla.yaml training.max_train_steps=20
  {PROGRAM} ask --checkpoint outputs/tiny_bdvla --question "Name the toys on the table."
  {PROGRAM} rollout environment=desk checkpoint=assets/desk_policy num_sequences=20

`{PROGRAM} <command> --help` explains a command. Commands that use a trained model take its folder as --checkpoint
(rollout: checkpoint=)."""


def usage() -> str:
    """Return the text of `--help`."""
    width = max(map(len, COMMANDS))
    rows = "\n".join(f"  {name:{width}}  {command.help}" for name, command in COMMANDS.items())
    return f"usage: {PROGRAM} <command> [arguments]\n\ncommands:\n{rows}\n\n{EPILOG}"


def resolve(argv: Sequence[str]) -> tuple[str, list[str]]:
    """Return the name of the command, of one or two words, and its arguments. Raise ValueError for an unknown name."""
    for length in (2, 1):
        name = " ".join(argv[:length])
        if len(argv) >= length and name in COMMANDS:
            return name, list(argv[length:])
    raise ValueError(f"{argv[0]!r} is not a command{_hint(argv)}")


def _hint(argv: Sequence[str]) -> str:
    """Return the nearest names for a message."""
    below = [name for name in COMMANDS if name.startswith(f"{argv[0]} ")]
    if below:
        return f" by itself; there are {', '.join(below)}"
    from difflib import get_close_matches

    close = get_close_matches(argv[0], COMMANDS, 1) or get_close_matches(" ".join(argv[:2]), COMMANDS, 1)
    return f"; did you mean {PROGRAM} {close[0]}?" if close else f"; {PROGRAM} --help lists the commands"


def dispatch(argv: Sequence[str]) -> object:
    """Run the command that the arguments name and return its exit code."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if argv else USER_ERROR
    try:
        name, arguments = resolve(argv)
    except ValueError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return USER_ERROR
    command = COMMANDS[name]
    sys.argv = [f"{PROGRAM} {name}", *arguments]  # argparse and Hydra print the first one as the program
    return getattr(importlib.import_module(command.module), command.main)(arguments)


def main() -> None:
    """Run the command of this process and exit."""
    run_command(lambda: dispatch(sys.argv[1:]))


if __name__ == "__main__":
    main()
