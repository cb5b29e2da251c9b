"""Measure and draw the hand in a model's predicted future frames.

    python -m policy_rollout.future_frames --checkpoint outputs/tiny_desk --probe-data data/desk_doors/training \\
        --data data/desk_doors/validation

Trains a probe that reads the hand's position from the image codes of recorded frames. Then compares the position in the
frame that the model predicts with the recorded one: the share of frames in which both are within 3 cm. The same is done
with the present frame in place of the prediction, and with the true frame, which shows the error of the probe.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from common.arguments import command_parser, path_argument, whole
from common.command import print_next, report_errors, run_command
from policy_rollout.policies.model_options import CHECKPOINT_HELP
from policy_rollout.policies.model_yaml import load_model_yaml

if TYPE_CHECKING:
    from common.image_grid import RgbImage
    from policy_rollout.benchmarks.future_frames import FutureFrames, Recording
    from policy_rollout.policies.upvla import UPVLAPolicy

CELL = 224
"""Pixels of an image in the figure."""
TRUE_COLOUR, READ_COLOUR = (20, 160, 60), (235, 120, 0)
EPILOG = """\
The probe and the model need recordings with robot_obs: raw CALVIN splits (preprocess_data/make_desk_demos.py records
them on the desk), or processed splits with states. The probe's frames must not be those that are measured."""


def draw(policy: UPVLAPolicy, recording: Recording, found: FutureFrames, rows: int) -> RgbImage:
    """Return a figure: present, predicted and true frames of samples whose hand moves, with the hand marked."""
    import numpy as np

    from common.image_grid import add_caption, image_grid, resize_to_height
    from policy_rollout.benchmarks.future_frames import observe
    from policy_rollout.desk.rendering.cameras import static_camera

    camera, steps = static_camera(), policy.act_step
    moving = np.flatnonzero(found.moving)
    if len(moving) == 0:
        raise ValueError("--figure: the hand moves in no sample; give --data with other windows")
    cells = []
    for i in moving[np.linspace(0, len(moving) - 1, min(rows, len(moving))).astype(int)]:
        sample = found.samples[i]
        now, later = (
            observe(recording, frame, sample.instruction, policy) for frame in (sample.start, sample.start + steps)
        )
        decoded = policy.decode(np.concatenate([policy.encode([later]), policy.predict_codes([now])]))[:, 0]
        true = camera.project(found.later[i], CELL)
        for image, source, text in (
            (now.rgb_static, None, sample.instruction),
            (decoded[1], "predicted", f"predicted, {steps} steps later"),
            (decoded[0], "true", "true, through the tokenizer"),
            (later.rgb_static, None, "true"),
        ):
            marked = mark(resize_to_height(image, CELL), true, TRUE_COLOUR, ring=True)
            note = " "
            if source is not None:
                marked = mark(marked, camera.project(found.read[source][i], CELL), READ_COLOUR)
                note = f"hand read {1000 * found.errors(source)[i]:.0f} mm off"
            cells.append(add_caption(marked, text, note))
    return image_grid(cells, columns=4)


def mark(image: RgbImage, at: tuple[float, float], colour: tuple[int, int, int], ring: bool = False) -> RgbImage:
    """Return the image with a ring or a cross at column and row ``at``."""
    import numpy as np
    from PIL import Image, ImageDraw

    canvas = Image.fromarray(image)
    draw, (x, y) = ImageDraw.Draw(canvas), at
    for width, shade in ((5, (255, 255, 255)), (2, colour)):
        if ring:
            draw.ellipse((x - 14, y - 14, x + 14, y + 14), outline=shade, width=width)
        else:
            for dy in (-8, 8):
                draw.line((x - 8, y - dy, x + 8, y + dy), fill=shade, width=width)
    return np.asarray(canvas)


@report_errors("future_frames")
def main(argv: Sequence[str] | None = None) -> int:
    parser = command_parser(__doc__, EPILOG, prog="python -m policy_rollout.future_frames")
    add = parser.add_argument
    add("--checkpoint", "--model", dest="model", required=True, help=CHECKPOINT_HELP)
    add("--probe-data", type=path_argument, required=True, help="split whose frames train the probe")
    add("--data", type=path_argument, required=True, help="split with the held-out windows")
    add("--probe-frames", type=whole(100), default=4000, help="frames that train the probe (default: %(default)s)")
    add("--samples", type=whole(1), default=300, help="frames to predict from (default: %(default)s)")
    add("--seed", type=whole(0), default=0, help="seed of the probe (default: %(default)s)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1 (default: auto)")
    add("--figure", type=path_argument, metavar="FILE.png", help="draw some frames, with the hand marked")
    add("--rows", type=whole(1), default=4, help="rows of the figure (default: %(default)s)")
    add("--output-json", type=path_argument, metavar="FILE", help="write the numbers")
    args = parser.parse_args(argv)
    if args.data.resolve() == args.probe_data.resolve():
        raise ValueError(f"--data {args.data} and --probe-data are the same split; the probe would know its frames")
    load_model_yaml(None, args.model).require_checkpoint()
    # Imported here: --help and errors on the command line come before torch and transformers are loaded.
    from common.files import write_text
    from common.image_grid import write_png
    from policy_rollout.benchmarks.future_frames import evaluate
    from policy_rollout.benchmarks.processed import open_split
    from policy_rollout.policies.upvla import UPVLAPolicy

    recording = open_split(args.data)
    policy = UPVLAPolicy.from_config(None, args.device, args.model)
    found = evaluate(policy, open_split(args.probe_data), recording, args.probe_frames, args.samples, args.seed)
    print(found.summary(policy.act_step))
    if args.output_json is not None:
        assert policy.source is not None
        conditions = {
            "command": shlex.join(["python", "-m", "policy_rollout.future_frames", *(argv or sys.argv[1:])]),
            "date": f"{datetime.now(timezone.utc):%Y-%m-%d}",
            "weights_sha256": policy.source.weights_sha256,
            "probe": {"frames": args.probe_frames, "seed": args.seed},
        }
        write_text(args.output_json, json.dumps({**conditions, **found.as_json()}, indent=1) + "\n")
    if args.figure is not None:
        write_png(args.figure, draw(policy, recording, found, args.rows))
    written = [str(path) for path in (args.output_json, args.figure) if path is not None]
    print(f"written: {', '.join(written)}" if written else "done", file=sys.stderr)
    print_next(
        "blockdiff-vla evaluate desk --checkpoint {model}" if written else "keep it: --output-json, --figure",
        model=args.model,
    )
    return 0


if __name__ == "__main__":
    run_command(main)
