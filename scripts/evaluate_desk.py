"""Evaluate a small model in closed loop, on the desk or in the real CALVIN, with blind controls and baselines.

    python -m scripts.evaluate_desk --checkpoint assets/desk_policy --output-dir outputs/desk_policy_evaluation
    python -m scripts.evaluate_desk --checkpoint outputs/tiny_desk [--episodes 160] [--chains 60]
    python -m scripts.evaluate_desk --checkpoint outputs/tiny_desk_all --tasks all
    python -m scripts.evaluate_desk --checkpoint outputs/tiny_calvin --environment calvin --episodes 64 --chains 20

Runs the same single tasks and chains, from the same starts, with: the model; the model with another task's
instruction, with another block's colour in it (block tasks), with images of other frames, and with one fixed image; the
same network before training; the mean training action; random actions; and the scripted experts that the model learned
from. Measures how much the actions change if a part of the observation is exchanged. Writes summary.md and
results.json. Outcomes are stored in OUTPUT/judged and not run again.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from common.arguments import command_parser, path_argument, real, whole
from common.command import print_next, report_errors, run_command
from common.constants import CALVIN_MAX_STEPS
from common.files import write_text
from common.folder_lock import hold_file
from config.model_folders import looks_like_hub_id
from policy_rollout.benchmarks.processed import open_split
from policy_rollout.desk.experts.worlds import ENVIRONMENTS, check_world
from policy_rollout.desk.layout import SCENES
from policy_rollout.desk.task_sets import DOORS, TASK_SETS, TaskSet
from policy_rollout.policies.interface import ACTION_DECODERS
from policy_rollout.policies.model_options import CHECKPOINT_HELP
from policy_rollout.policies.model_yaml import local_checkpoint, located
from policy_rollout.policies.upvla import pick_device
from scripts.desk_evaluation.evaluation import COLOUR, MEAN, POLICIES, UNTRAINED, Evaluation, available
from scripts.desk_evaluation.report import results, summary
from scripts.objective_comparison.evaluate import machine


@report_errors("evaluate_desk")
def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    folder = _output_dir(args)
    model = local_checkpoint(args.model)
    if args.held_out is not None:
        if args.only:
            raise ValueError("--held-out belongs to the report, which --only does not write")
        len(open_split(args.held_out).annotations)  # raises before the episodes are run
    evaluation = _evaluation(args, model, folder)
    names = _policies(args, evaluation)
    with ExitStack() as locks:
        for name in names:  # several commands may run different policies at the same time
            locks.enter_context(hold_file(evaluation.file(name), f"evaluate_desk, {name}", "--model "))
        outcomes = [evaluation.outcome(name) for name in names]
        made_with = {name: evaluation.conditions(name) for name in names}
    if args.only:
        for one in outcomes:
            print(f"{one.name}: {sum(one.done)}/{len(one.done)} done, chains {one.chains}")
        return 0
    sensitivity = evaluation.sensitivity()
    command = shlex.join(["python", "-m", "scripts.evaluate_desk", *(sys.argv[1:] if argv is None else argv)])
    where = machine(pick_device(args.device))
    text = summary(outcomes, sensitivity, evaluation.rules, Path(args.model), where, command)
    found = {**results(outcomes, sensitivity, evaluation.rules), "made_with": made_with}
    if args.held_out is not None:
        future = evaluation.future_frames(args.held_out)
        text += f"\n## Future frames\n\n{future.summary(evaluation.trained.act_step)}\n"
        found["future_frames"] = future.as_json()
    write_text(folder / "summary.md", text)
    write_text(folder / "results.json", json.dumps(found, indent=1) + "\n")
    print(text)
    print(f"written: {folder / 'summary.md'}, results.json")
    print_next(
        "read {page}; watch the model: blockdiff-vla demo --checkpoint {model}",
        page=folder / "summary.md",
        model=args.model,
    )
    return 0


def _output_dir(args: argparse.Namespace) -> Path:
    """Return the folder of the report. Raises ``ValueError`` if it is not given and the model is not a local folder."""
    if args.output_dir is not None:
        return Path(args.output_dir).resolve()
    folder = Path(located(args.model))
    if folder.is_file() or (not folder.exists() and looks_like_hub_id(args.model)):
        raise ValueError(f"--output-dir is required, because --checkpoint {args.model} is no folder on this machine")
    return folder


def _evaluation(args: argparse.Namespace, model: Path, folder: Path) -> Evaluation:
    given = {name: getattr(args, name) for name in ("scene", "max_steps", "replan_every", "ensemble")}
    if args.environment == "calvin":
        check_world("calvin")
        from policy_rollout.calvin.scenes.env import choose_renderer

        given |= {"environment": "calvin", "renderer": choose_renderer(args.renderer)}
        given["max_steps"] = args.max_steps or CALVIN_MAX_STEPS
    elif args.renderer is not None:
        raise ValueError("--renderer belongs to --environment calvin")
    tasks: TaskSet = replace(
        TASK_SETS[args.tasks], **{name: value for name, value in given.items() if value is not None}
    )
    episodes = tasks.episodes if args.episodes is None else args.episodes
    chains = tasks.chains if args.chains is None else args.chains
    return Evaluation(model, args.device, tasks, episodes, chains, folder / "judged", args.action_decoder)


def _policies(args: argparse.Namespace, evaluation: Evaluation) -> tuple[str, ...]:
    """Return the policies to run. Raises ``ValueError`` if one of ``--only`` cannot be run on the task set."""
    possible = available(evaluation.tasks)
    if args.only:
        if COLOUR in args.only and COLOUR not in possible:
            raise ValueError(f"--only {COLOUR!r}: the tasks of --tasks {evaluation.tasks.name} name no colour")
        if evaluation.config is None and (needing := [name for name in args.only if name in (UNTRAINED, MEAN)]):
            raise ValueError(f"--only {needing[0]!r}: {args.model} has no config.yaml of its training")
        return tuple(args.only)
    if evaluation.config is None:
        if args.held_out is not None:
            raise ValueError(f"--held-out: {args.model} has no config.yaml, which names its training data")
        notice = f"{args.model} has no config.yaml of its training: {UNTRAINED!r} and {MEAN!r} are left out"
        print(f"notice: {notice}", file=sys.stderr)
        return tuple(name for name in possible if name not in (UNTRAINED, MEAN))
    data = Path(evaluation.job.dataset.params.train_pre_shards_path_or_url)
    if not data.is_dir():
        print(f"notice: {data} does not exist: {MEAN!r} is left out", file=sys.stderr)
        return tuple(name for name in possible if name != MEAN)
    return possible


def _parser() -> argparse.ArgumentParser:
    parser = command_parser(__doc__)
    add = parser.add_argument
    add(
        "--checkpoint",
        "--model",
        dest="model",
        required=True,
        help=CHECKPOINT_HELP,
    )
    add("--tasks", choices=list(TASK_SETS), default=DOORS.name, help="task set (default: %(default)s)")
    counts = [f"{tasks.episodes} and {tasks.chains} for {tasks.name}" for tasks in TASK_SETS.values()]
    add("--episodes", type=whole(1), help=f"single tasks (default, with chains: {', '.join(counts)})")
    add("--chains", type=whole(0), help="chains of three tasks (doors_and_lights) or five (all)")
    add("--environment", choices=ENVIRONMENTS, default="desk", help="desk (default), or the installed CALVIN")
    add("--renderer", choices=["egl", "tiny"], help="of calvin: egl (default if it works) or tiny (on the CPU)")
    add("--scene", choices=list(SCENES), help="scene (default: D)")
    steps = "control steps for one task (default: 120 for doors_and_lights, 160 for all; 360 in calvin)"
    add("--max-steps", type=whole(1), help=steps)
    add("--replan-every", type=whole(1), help="actions executed of a chunk before the next (default: 5)")
    add("--ensemble", type=real(at_least=0), help="average overlapping chunks, weight exp(-m i) (default: do not)")
    decoder = "decoder of the actions (default: that of the training run; language: one that learned sentences)"
    add("--action-decoder", choices=ACTION_DECODERS, help=decoder)
    add("--held-out", type=path_argument, help="split of other recordings: measure the hand in predicted frames, too")
    add("--output-dir", type=path_argument, help="folder of summary.md, results.json, judged/ (default: the model's)")
    quoted = ", ".join(repr(name) for name in POLICIES)
    only = f"run only these, store their outcomes, write no report; in quotes, of {quoted}"
    add("--only", nargs="+", choices=POLICIES, metavar="POLICY", help=only)
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1 (default: auto)")
    return parser


if __name__ == "__main__":
    run_command(main)
