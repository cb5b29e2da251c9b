"""Play a policy on the embedded desk and label every state that it visits by an expert (DAgger, arXiv 1011.0686).

python preprocess_data/relabel_rollouts.py --model outputs/tiny_desk --out data/desk_dagger --episodes 20
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from itertools import groupby
from pathlib import Path
from typing import Any

from common.arguments import command_parser, path_argument, real, whole
from common.command import print_next, run_command
from common.files import write_bytes
from preprocess_data.desk_demos.files import json_bytes
from preprocess_data.desk_demos.options import add_options, make_settings
from preprocess_data.desk_demos.play import VERSION
from preprocess_data.desk_demos.recording import describe, finished_episodes, record, settings_of
from preprocess_data.desk_demos.rollouts import RolloutSettings, load_policy

PROGRAM = "relabel_rollouts"
LIST_NAME = "rollouts.json"
"""File in the split: all windows of the policy, and whether it completed them."""
CONTRACT = {"format": 1, "action_key": "expert_actions"}
_SAME = ("split", "static_size", "gripper_size", "depth", "renderer", "version")
"""Settings in which a recording and the rollouts that follow it agree."""

DESCRIPTION = """\
Play a policy on the embedded desk and label every state that it visits by an expert: DAgger. The policy attempts one
task after the other. If it has not completed a task after --policy-steps frames, the expert finishes it, so that the
next one starts from a sensible state. The result is a raw CALVIN split, OUT/training or OUT/validation, as
make_desk_demos.py writes it, in which `expert_actions` is what the expert wanted in each state.

Every attempt is one annotated window with its instruction, also where the policy fails: the label is the expert's, not
the policy's motion. So training needs dataset.action_key=expert_actions, and refuses rel_actions. rollouts.json in the
split lists the windows, and whether the policy completed them.

A label is the action of one frame. A chunk of labels is no motion that the expert would make, and policies of chunks
became worse with such data (docs/desk.md has the figures).

Episode k depends on the options, the policy and k only (on one machine). A stopped command resumes when given again."""

EPILOG = """\
examples:
  relabel_rollouts.py --model outputs/tiny_desk --out data/desk_dagger --episodes 20 --tasks doors_and_lights \\
      --static-size 128 --gripper-size 64 --workers 2
  relabel_rollouts.py ... --add-to data/desk_doors/training
      the demonstrations and the rollouts in one split; the frames of the demonstrations are linked, not copied
  relabel_rollouts.py ... --beta 0.5
      the expert acts in half of the turns; for a policy that does nothing useful yet

then:
  python preprocess_data/process_calvin.py --source-split-dir data/desk_dagger/training --output-dir data/dagger
  and train with dataset.action_key=expert_actions"""


def parser() -> argparse.ArgumentParser:
    made = command_parser(DESCRIPTION, EPILOG, prog=f"{PROGRAM}.py")
    add = made.add_argument
    add("--checkpoint", "--model", dest="model", type=path_argument, required=True, help="folder of a run, or a yaml")
    add_options(made)
    add("--add-to", type=path_argument, metavar="SPLIT", help="a recording whose episodes come first in the new split")
    add("--policy-steps", type=whole(1), default=120, metavar="N", help="frames of the policy for a task (default 120)")
    add("--replan-every", type=whole(1), default=5, metavar="N", help="frames of each chunk that are executed (5)")
    add("--beta", type=real(0, 1), default=0.0, metavar="P", help="share of turns in which the expert acts (default 0)")
    add("--noise", action="store_true", help="disturb the expert where it acts, as in demonstrations")
    return made


def rollout_settings(options: argparse.Namespace) -> RolloutSettings:
    """Return the settings of the rollouts. Loads the policy once. Raise ValueError or OSError naming the option."""
    policy: Any = load_policy(str(options.model))
    if options.replan_every > policy.act_step:
        raise ValueError(f"--replan-every {options.replan_every}: {options.model} returns {policy.act_step} actions")
    base = "" if options.add_to is None else _base(options)
    weights = policy.source.weights_sha256
    return make_settings(options, RolloutSettings, model=str(options.model), weights=weights, base=base)


def _base(options: argparse.Namespace) -> str:
    """Return what identifies the recording of --add-to. Raise ValueError if the rollouts cannot follow it."""
    found, episodes = settings_of(options.add_to), list(finished_episodes(options.add_to))
    wanted = {key: getattr(options, key, VERSION) for key in _SAME}
    for key in _SAME:
        if found.get(key) != wanted[key]:
            raise ValueError(
                f"--add-to {options.add_to}: its {key} is {found.get(key)}, that of the rollouts {wanted[key]}; "
                "they have to be equal"
            )
    if len(episodes) < found["episodes"]:
        raise ValueError(
            f"--add-to {options.add_to}: it has {len(episodes)} of {found['episodes']} episodes; resume it"
        )
    scenes = [scene for scene, _ in groupby([*(e.scene for e in episodes), *options.scenes.split(",")])]
    if len(scenes) != len(set(scenes)):
        raise ValueError(
            f"--scenes {options.scenes}: frames of one scene are consecutive in CALVIN's format, and {options.add_to} "
            f"ends with scene {episodes[-1].scene}; give --scenes {episodes[-1].scene}, or leave out --add-to"
        )
    digest = hashlib.blake2b(json.dumps(found, sort_keys=True).encode(), digest_size=8).hexdigest()
    return f"{len(episodes)} episodes of {digest}"


def write_rollouts(split: Path) -> tuple[int, int]:
    """Write the contract and the list of the policy's windows; return how many it completed, of how many."""
    rows = [
        {"start": start, "end": end, "task": task, "instruction": text, "completed_by_policy": completed}
        for entry in finished_episodes(split)
        for (start, end, task, text), completed in zip(entry.windows, entry.by_policy, strict=False)
        if completed is not None
    ]
    write_bytes(split / LIST_NAME, json_bytes(rows) + b"\n")
    write_bytes(split / "dataset_contract.json", json_bytes(CONTRACT) + b"\n")
    return sum(bool(row["completed_by_policy"]) for row in rows), len(rows)


def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    try:
        settings = rollout_settings(options)
        summary = record(
            options.out, settings, PROGRAM, options.workers, preview=not options.no_preview, base=options.add_to
        )
        completed, attempts = write_rollouts(summary.path)
    except (ValueError, OSError, BrokenProcessPool) as error:
        where = f"{options.out}: " if isinstance(error, OSError) and error.filename is None else ""
        print(f"{PROGRAM}: {where}{error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{PROGRAM}: stopped; give the same command again to resume", file=sys.stderr)
        return 130
    print(f"{describe(summary)}; the policy completed {completed} of its {attempts} attempts")
    print_next("blockdiff-vla process calvin --source-split-dir {folder} --output-dir DIR", folder=summary.path)
    return 0


if __name__ == "__main__":
    run_command(main)
