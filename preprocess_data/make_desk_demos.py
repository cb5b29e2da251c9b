"""Record demonstrations on the embedded desk, or in the real CALVIN, as a raw CALVIN split.

process_calvin.py and training read it.

python preprocess_data/make_desk_demos.py --out data/desk --episodes 100 --scenes A,B,C --workers 4
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from common.arguments import command_parser
from common.command import print_next, run_command
from policy_rollout.desk.experts.worlds import ENVIRONMENTS
from policy_rollout.desk.rendering import RENDERERS
from preprocess_data.desk_demos.options import add_options, make_settings
from preprocess_data.desk_demos.play import Settings
from preprocess_data.desk_demos.recording import Summary, describe, record

CALVIN_RENDERERS = ("egl", "tiny")

DESCRIPTION = """\
Record demonstrations on the embedded desk or in the real CALVIN: scripted experts with noise do one task after the
other, as CALVIN's operators did. A stretch in which the task oracle confirms a task is annotated with an instruction.
The result is a raw CALVIN split: OUT/training or OUT/validation.

An episode is one run of uninterrupted play with --tasks-per-episode attempts, about 40 frames each at 30 Hz.
Episode k depends on the options and k only: any number of workers gives the same bytes. A stopped recording resumes
when the same command is given again."""

EPILOG = """\
examples:
  make_desk_demos.py --out data/desk --episodes 40
      40 episodes in scene D: about 12000 frames, 300 annotated windows
  make_desk_demos.py --out data/desk_ABC --episodes 300 --scenes A,B,C --workers 8
  make_desk_demos.py --out data/desk_ABC --episodes 20 --scenes D --split validation
      train on three scenes, evaluate on a fourth: CALVIN's ABC -> D
  make_desk_demos.py --environment calvin --out data/calvin_D --episodes 40 --renderer tiny --workers 2
      the same in CALVIN's own simulator (scripts/install_calvin_env.sh); no data set is needed
  make_desk_demos.py --out data/tiny --episodes 4 --static-size 64 --gripper-size 64 --tasks open_drawer,close_drawer

then:
  python preprocess_data/process_calvin.py --source-split-dir data/desk/training --output-dir data/desk_processed"""


def make_demos(out: Path, settings: Settings, workers: int = 1, progress: bool = True, preview: bool = True) -> Summary:
    """Record the missing episodes of demonstrations, see ``recording.record``."""
    return record(out, settings, "make_desk_demos", workers, progress, preview)


def parser() -> argparse.ArgumentParser:
    made = command_parser(DESCRIPTION, EPILOG, prog="make_desk_demos.py")
    made.add_argument("--environment", choices=ENVIRONMENTS, default="desk", help="desk, or the installed CALVIN")
    add_options(made, (*RENDERERS, *CALVIN_RENDERERS))
    made.add_argument(
        "--no-noise", action="store_true", help="experts without disturbances; policies learn less from them"
    )
    return made


def settings_of(options: argparse.Namespace) -> Settings:
    """Return the recording's settings. Raise ValueError naming the option, its value and what is allowed."""
    return make_settings(options, Settings, noise=not options.no_noise)


def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    try:
        settings = settings_of(options)
        summary = make_demos(options.out, settings, options.workers, preview=not options.no_preview)
    except (ValueError, OSError, BrokenProcessPool) as error:
        # The error of a full disk has no file name.
        where = f"{options.out}: " if isinstance(error, OSError) and error.filename is None else ""
        print(f"make_desk_demos: {where}{error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("make_desk_demos: stopped; give the same command again to resume", file=sys.stderr)
        return 130
    print(describe(summary))
    print_next("blockdiff-vla process calvin --source-split-dir {folder} --output-dir DIR", folder=summary.path)
    return 0


if __name__ == "__main__":
    run_command(main)
