"""Write questions about places on the desk, with answers in words, as conversations that the mmu flow trains on.

python -m preprocess_data.place_questions --data data/desk_scenes/training --out data/places
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from common.arguments import command_parser, output_dir_option, path_argument, whole
from common.command import phase_bar, print_next, progress_bar, report_errors, run_command
from common.files import read_object, write_json, write_text
from config.schema import MMU_INDEX
from policy_rollout.benchmarks.vqa.questions import Question
from policy_rollout.benchmarks.vqa.results import FILE as RESULTS
from policy_rollout.benchmarks.vqa.scores import blind_guess
from policy_rollout.desk.layout import SCENES, layout_of
from preprocess_data.desk_scenes.locate import CALVIN, scenes_of
from preprocess_data.jobs.resume import output_folder
from preprocess_data.place_questions import grid
from preprocess_data.place_questions.questions import Balance, PlaceQuestion, all_questions
from training.data.episode_index import read_index
from training.data.readers import read_npz

TRUTHS = "place_truths.json"
"""True positions of the questions whose answers name a cell: id of a question -> (x, y, z) in metres."""

DESCRIPTION = f"""\
Write conversations about places on the desk, from frames whose state is known: random scenes (make_desk_scenes.py) or
demonstrations (process_calvin.py). "Where is the red block?" is answered by "On the table, column 9, row 7.": a
surface, and a cell of a grid of {grid.COLUMNS} columns and {grid.ROWS} rows of {grid.CELL * 100:g} cm, counted from the
left front corner (x {grid.ORIGIN[0]} m, y {grid.ORIGIN[1]} m). Other questions ask which block is on a surface, which
is nearest to the left or right of an object, and which of two is further left. The answers of a question occur about
equally often; the last line has the accuracy of the best fixed answers, which need no image.

The result is LLaVA's format (training: dataset.params.train_mmu_shards_path_or_url). Held-out questions come from
frames of another split, one question for each conversation (--turns 1). eval_vqa.py answers them, and --score turns its
results into millimetres."""

EPILOG = """\
examples:
  python -m preprocess_data.place_questions --data data/desk_scenes/training --out data/places
  python -m preprocess_data.place_questions --data data/desk_scenes/validation --out data/places_validation --turns 1
  python -m preprocess_data.place_questions --data data/desk_training --out data/places_demos --images 2000
      2000 frames of demonstrations, evenly spaced
  python -m preprocess_data.place_questions --score results/vqa/conversations_1a2b3c4d --out data/places_validation
      errors of the answers of a model:
      eval_vqa.py --checkpoint outputs/mine --questions data/places_validation/llava_v1_5_mix665k.json"""


@dataclass(frozen=True)
class Asked:
    """A question about the image of a frame. ``id``: name of the question in results."""

    id: str
    frame: int
    question: PlaceQuestion


def make_questions(data: Path, images: int | None, turns: int, seed: int, scene: str | None = None) -> list[Asked]:
    """Return the questions about evenly spaced frames of a processed split, ``turns`` for each.

    Raises ValueError naming a frame that does not record its state.
    """
    index = read_index(data)
    first = {index.frame_path(frame): frame for frame in reversed(range(len(index)))}  # episodes may share a frame
    distinct = sorted(first.values())
    count = min(images or len(distinct), len(distinct))
    frames = [distinct[number * len(distinct) // count] for number in range(count)]
    paths = [index.frame_path(frame) for frame in frames]
    scenes = scenes_of(paths) if scene is None else [None if scene == CALVIN else scene] * len(paths)
    balance, found = Balance(np.random.default_rng(seed)), []
    for frame, path, name in progress_bar(
        list(zip(frames, paths, scenes, strict=True)), desc="questions", unit="frame"
    ):
        if path.suffix != ".npz":
            raise ValueError(f"{path}: an image does not record the state of the scene (scene_obs of CALVIN's frames)")
        arrays = read_npz(path, ["scene_obs", "robot_obs"])
        layout = None if name is None else layout_of(name)
        questions = list(all_questions(layout, arrays["scene_obs"], arrays["robot_obs"]))
        chosen = balance.choose(questions, turns)
        found += [Asked(f"frame {frame} question {n}", frame, question) for n, question in enumerate(chosen)]
    return found


def write_questions(data: Path, out: Path, asked: Sequence[Asked]) -> None:
    """Write images, conversations and true positions to ``out``, in place of those of an earlier call."""
    index, folder = read_index(data), out / "images"
    truths = {one.id: one.question.position for one in asked if one.question.position is not None}
    write_json(out / TRUTHS, truths, indent=None)  # first, because it marks the folder as one of this command
    (out / MMU_INDEX).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    by_frame: dict[int, list[Asked]] = defaultdict(list)
    for one in asked:
        by_frame[one.frame].append(one)
    records = []
    for frame, of_frame in phase_bar(by_frame.items(), desc="writing images", unit="image", total=len(by_frame)):
        name = f"images/{frame:07d}.png"
        Image.fromarray(read_npz(index.frame_path(frame), ["rgb_static"])["rgb_static"]).save(out / name)
        records.append(json.dumps(_record(name, of_frame)))
    write_text(out / MMU_INDEX, "[\n" + ",\n".join(records) + "\n]\n")  # last, because it makes the folder complete


def require_own(out: Path) -> None:
    """Raise ValueError if ``out`` has files of anything but this command: its folder of images is replaced."""
    if out.is_dir() and not (out / TRUTHS).is_file() and any(not one.name.startswith(".") for one in out.iterdir()):
        raise ValueError(f"--out {out} has files of something else; give a new folder")


def _record(image: str, asked: Sequence[Asked]) -> dict[str, Any]:
    turns: list[dict[str, str]] = []
    for one in asked:
        mark = "" if turns else "<image>\n"
        turns += [{"from": "human", "value": mark + one.question.text}, {"from": "gpt", "value": one.question.answer}]
    return {"id": asked[0].id, "image": image, "conversations": turns}


def blind(asked: Sequence[Asked]) -> tuple[float, float]:
    """Return the accuracy of the best fixed answer to each question, and the mean error in mm of the best fixed cell.

    Both are best on these questions themselves, so that no guess without the image is better.
    """
    rows = [Question(one.id, "", one.question.text, (one.question.answer,), one.question.kind) for one in asked]
    by_text: dict[str, list[PlaceQuestion]] = defaultdict(list)
    for one in asked:
        if one.question.position is not None:
            by_text[one.question.text].append(one.question)
    total = count = 0.0
    for questions in by_text.values():
        points = np.array([question.position for question in questions])[:, :2]
        cells = {grid.cell_centre(question.answer) for question in questions}
        errors = [np.linalg.norm(points - np.array(cell), axis=1).sum() for cell in cells if cell is not None]
        total, count = total + 1000 * min(errors), count + len(questions)
    return blind_guess("conversations", rows), float(total / max(count, 1))


def describe(out: Path, asked: Sequence[Asked]) -> str:
    """Return a summary in one line."""
    accuracy, error = blind(asked)
    images = len({one.frame for one in asked})
    return (
        f"{out / MMU_INDEX}: {len(asked)} questions about {images} images; best fixed answers, without the image: "
        f"{100 * accuracy:.1f} % right, {error:.0f} mm from the place"
    )


def score(results: Path, out: Path) -> str:
    """Return the errors of the answers in a results.json of eval_vqa.py, in one line.

    Raises ValueError if the results are about other questions.
    """
    file = results / RESULTS if results.is_dir() else results
    truths = read_object(out / TRUTHS, "--out is a folder of preprocess_data.place_questions")
    records = [
        r for r in read_object(file, "--score takes a results.json of eval_vqa.py")["records"] if r["id"] in truths
    ]
    if not records:
        raise ValueError(f"--score {file}: none of its questions asks for a place of {out / TRUTHS}")
    errors = [grid.error_mm(record["answer"], truths[record["id"]]) for record in records]
    known = np.array([error for error in errors if error is not None])
    middle = f"{known.mean():.0f} mm in the mean, {np.median(known):.0f} mm in the median" if len(known) else "no cell"
    return f"{file}: {len(known)} of {len(records)} answers name a cell; its centre is {middle} from the true place"


def parser() -> argparse.ArgumentParser:
    made = command_parser(DESCRIPTION, EPILOG, prog="python -m preprocess_data.place_questions")
    add = made.add_argument
    add("--data", type=path_argument, metavar="DIR", help="processed split whose frames record scene_obs")
    output_dir_option(made, "folder to write; made if missing")
    add("--images", type=whole(1), metavar="N", help="at most that many frames, evenly spaced (default: all)")
    add("--turns", type=whole(1), default=3, metavar="N", help="questions about each image (default 3; 1: held out)")
    add("--seed", type=whole(0), default=0, help="of the choice among questions (default 0)")
    add("--scene", choices=(*SCENES, CALVIN), help="layout of the desk (default: as the recordings declare)")
    add("--score", type=path_argument, metavar="RESULTS", help="results of eval_vqa.py: print the errors of places")
    return made


@report_errors("place_questions")
def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    if options.score is not None:
        print(score(options.score, options.out))
        return 0
    if options.data is None:
        raise ValueError("give --data, or --score; --help shows examples")
    require_own(options.out)
    with output_folder(options.out, "place_questions"):
        asked = make_questions(options.data, options.images, options.turns, options.seed, options.scene)
        write_questions(options.data, options.out, asked)
    print(describe(options.out, asked))
    print_next("train with dataset.params.train_mmu_shards_path_or_url={folder}", folder=options.out)
    return 0


if __name__ == "__main__":
    run_command(main)
