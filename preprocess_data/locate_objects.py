"""Write where the objects are in every frame of a processed split, for grounding (``training.ground_coeff``).

python preprocess_data/locate_objects.py --data data/desk_training
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from common.arguments import command_parser, path_argument, whole
from common.command import print_next, report_errors, run_command
from policy_rollout.desk.layout import SCENES
from preprocess_data.desk_scenes.locate import CALVIN, locate
from preprocess_data.jobs.resume import output_folder

DESCRIPTION = """\
Write object_positions.index next to the dataset_info.json of processed splits: the position (x, y, z in metres) of
every object in every frame, from the recorded scene_obs, and the object that each instruction names. Training then
learns these positions beside the actions (training.ground_coeff), and reports their error in millimetres.

dataset_info.json does not change, so token caches stay valid. On the desk the objects are the three blocks, the handles
of drawer and door, button, switch and drawer; in recordings of the real CALVIN the three blocks.
make_desk_scenes.py writes the file itself."""

EPILOG = """\
examples:
  locate_objects.py --data data/desk_training data/desk_validation
  locate_objects.py --data data/copied_frames --scene D
      frames that were copied away from their recording, all of layout D of the desk"""


def parser() -> argparse.ArgumentParser:
    made = command_parser(DESCRIPTION, EPILOG, prog="locate_objects.py")
    add = made.add_argument
    add("--data", type=path_argument, nargs="+", required=True, metavar="DIR", help="processed splits")
    layouts = f"{', '.join(SCENES)}: layout of the desk in all frames; calvin: the real CALVIN"
    add("--scene", choices=(*SCENES, CALVIN), help=f"{layouts} (default: as the recordings declare)")
    add("--workers", type=whole(1), default=1, help="processes (default 1)")
    return made


@report_errors("locate_objects")
def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    for root in options.data:
        with output_folder(root, "locate_objects"):
            print(locate(root, options.scene, options.workers))
    print_next("train with training.ground_coeff=1 (docs/grounding.md)")
    return 0


if __name__ == "__main__":
    run_command(main)
