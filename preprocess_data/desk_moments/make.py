"""Write moments of play on the embedded desk, with the next actions of experts for several tasks, as a processed split.

python -m preprocess_data.desk_moments --out data/desk_moments --count 20000 --processes 2
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from common.arguments import command_parser, name_list, output_dir_option, real, whole
from common.command import phase_bar, print_next, report_errors
from common.constants import CALVIN_STATE
from policy_rollout.calvin.instructions import TRAINING
from policy_rollout.calvin.tasks import TASK_NAMES
from policy_rollout.desk import DeskEnv
from policy_rollout.desk.layout import SCENES
from preprocess_data.desk_demos.play import SPLITS
from preprocess_data.desk_moments.play import Label, Moment, MomentPlayer
from preprocess_data.desk_scenes.frame_shards import require_same_settings, write_raw_files
from preprocess_data.desk_scenes.locate import locate
from preprocess_data.jobs.shard_writer import ShardTask, lock_plan, rank_and_world, rank_options, write_shards
from training.data.calvin import MAX_RELATIVE_POSITION, MAX_RELATIVE_ROTATION
from training.data.dataset_spec import write_contract
from training.data.episode_index import INDEX_NAME, MIN_INDEXED, Episode, Frame, build_index, write_index
from training.data.formats.packed_frames import KIND, Pack, pack_at
from training.data.formats.shards import Plan, ShardWriter, begin, has_shard, write_frames
from training.data.object_positions import FILE

DESCRIPTION = """\
Write moments of play on the embedded desk. Experts play as for make_desk_demos.py, and nearly every second frame is
kept, with both images, the state, and the next actions of several experts: of the one that plays, and of OTHERS that
begin another feasible task in this frame (each is simulated from there, without images). One image so has several
instructions with different actions, and only the instruction determines them.

The result is a processed split in OUT/training or OUT/validation with one episode of one frame for every instruction;
its actions are the frame's expert_chunk. tokenize_images.py makes its token cache, which holds each image once. A shard
of 256 moments depends on the options and its number only, so any number of processes writes the same moments. A stopped
command resumes when it is given again."""

EPILOG = """\
examples:
  python -m preprocess_data.desk_moments --out data/desk_moments --count 20000 --processes 2
      20000 moments of layout D, about 32000 training samples
  python -m preprocess_data.desk_moments --out data/desk_moments --count 1000 --split validation
      others to validate on, with their own random numbers
  srun --ntasks 16 python -m preprocess_data.desk_moments ...
      the shards are divided among ranks

then:
  python preprocess_data/tokenize_images.py --data data/desk_moments/training --tokenizer assets/tiny_magvit \\
      --resolution 96"""

SHARD_ROWS = 256
STATE = {**CALVIN_STATE, "groups": {**CALVIN_STATE["groups"], "position": [0, 1, 2, 6]}}
"""Declaration of the states: CALVIN's, with the distance of the fingers among the positions, which are normalised."""


@dataclass(frozen=True)
class Settings:
    """All settings that determine the moments of a split."""

    count: int
    others: int = 1
    chunk: int = 10
    share: float = 0.45
    scenes: tuple[str, ...] = ("D",)
    split: str = "training"
    seed: int = 0
    tasks: tuple[str, ...] = TASK_NAMES
    static_size: int = 200
    gripper_size: int = 84

    def scene(self, shard: int) -> str:
        """Return the scene of a shard; scenes follow each other, as `scene_info.npy` requires."""
        return self.scenes[shard * len(self.scenes) // self.plan().shards]

    def random(self, number: int, purpose: str) -> np.random.Generator:
        """Return the random numbers of a shard, or of a row, for one purpose."""
        return np.random.default_rng([self.seed, SPLITS.index(self.split), number, *purpose.encode()])

    def plan(self) -> Plan:
        """Return the plan of the shards. Rows with fewer labels end with the task -1."""
        labels = 1 + self.others
        columns = {
            "rgb_static": ("|u1", (self.static_size, self.static_size, 3)),
            "rgb_gripper": ("|u1", (self.gripper_size, self.gripper_size, 3)),
            "robot_obs": ("<f8", (15,)),
            "scene_obs": ("<f8", (24,)),
            "label_tasks": ("<i2", (labels,)),
            "label_chunks": ("<f4", (labels, self.chunk, 7)),
        }
        about = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        return Plan(self.count, SHARD_ROWS, columns, {"kind": KIND, "version": 2, "moments_of": "experts"} | about)


def moment_arrays(moment: Moment, labels: int, chunk: int) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of a row."""
    tasks, chunks = np.full(labels, -1, np.int16), np.zeros((labels, chunk, 7), np.float32)
    for number, label in enumerate(moment.labels):
        tasks[number], chunks[number] = TASK_NAMES.index(label.task), label.chunk
    states = {key: moment.obs[key] for key in ("robot_obs", "scene_obs")}
    return {**moment.obs["rgb_obs"], **states, "label_tasks": tasks, "label_chunks": chunks}


def write_moments_of(task: ShardTask[Settings], tick: Callable[[int], object] = lambda done: None) -> None:
    """Play and render the moments of the task's shards, and write the shards."""
    settings, plan = task.settings, task.plan
    for shard in task.shards:
        began, writer = time.process_time(), ShardWriter(task.folder, plan, shard)
        env = DeskEnv(settings.scene(shard), static_size=settings.static_size, gripper_size=settings.gripper_size)
        player = MomentPlayer(env, settings.tasks, settings.others, settings.chunk, settings.share)
        for moment in islice(player.moments(settings.random(shard, "play")), len(plan.rows_of(shard))):
            arrays = moment_arrays(moment, 1 + settings.others, settings.chunk)
            writer.add({name: arrays[name][None] for name in plan.columns})
            tick(1)
        player.close()
        env.close()
        writer.close({"cpu_ms": round((time.process_time() - began) / len(plan.rows_of(shard)) * 1000, 2)})


def make_moments(out: Path, settings: Settings, ranks: tuple[int, int] = (0, 1), processes: int = 1) -> str:
    """Write the missing moments of ``settings`` under ``out``/``settings.split``, and return a line to print.

    Raises ValueError if the folder holds moments of other settings or another process writes there.
    """
    folder, plan = out / settings.split, settings.plan()
    require_same_settings(folder, plan, "moments_of", "moments")
    with lock_plan(folder, plan, ranks, "desk_moments", "--out "):
        begin(folder, plan)
        write_frames(folder, {"ids": ("<i8", np.arange(plan.rows))})
        missing = sum(not has_shard(folder, plan, shard) for shard in range(plan.shards))
        unfinished = write_shards(ShardTask(settings, folder, plan), ranks, processes, settings.split, write_moments_of)
        if unfinished:
            return unfinished
        pack = pack_at(folder)
        assert pack is not None
        if missing or not (folder / INDEX_NAME).is_file():
            _write_index_files(folder, settings, pack)
        if missing or not (folder / FILE).is_file():
            locate(folder)
    tasks = Counter(label.task for row in range(plan.rows) for label in labels_of(pack, row))
    rare, common = min(tasks, key=tasks.__getitem__), max(tasks, key=tasks.__getitem__)
    return (
        f"{folder}: {plan.rows} moments of {', '.join(settings.scenes)}, {sum(tasks.values())} labels of {len(tasks)} "
        f"tasks ({rare} {tasks[rare]} to {common} {tasks[common]}), {plan.rows * plan.row_bytes / 1e6:.1f} MB"
    )


def labels_of(pack: Pack, row: int) -> list[Label]:
    """Return the labels of a row."""
    arrays = pack.arrays(row, ["label_tasks", "label_chunks"])
    return [
        Label(TASK_NAMES[int(task)], chunk)
        for task, chunk in zip(arrays["label_tasks"], arrays["label_chunks"], strict=True)
        if task >= 0
    ]


def _write_index_files(folder: Path, settings: Settings, pack: Pack) -> None:
    """Write the files that make the shards a raw and a processed split."""
    plan, rows = settings.plan(), np.arange(settings.count)
    ranges: dict[str, list[int]] = {}
    for shard in range(plan.shards):
        own = plan.rows_of(shard)
        ranges.setdefault(settings.scene(shard), [own.start, own.stop - 1])[1] = own.stop - 1
    write_raw_files(folder, settings.count, ranges, {"scene": settings.scenes[0]})
    names = list(pack.names())
    robots = [pack.arrays(row, ["robot_obs"])["robot_obs"] for row in rows.tolist()]
    found = [(row, label) for row in rows.tolist() for label in labels_of(pack, row)]

    def episodes() -> Iterator[Episode]:
        for row, label in phase_bar(found, desc="writing the index", unit="task"):
            name, robot, first = names[row], robots[row], label.chunk[0]
            moved, turned = first[:3] * MAX_RELATIVE_POSITION, first[3:6] * MAX_RELATIVE_ROTATION
            absolute = [*(robot[:3] + moved), *(robot[3:6] + turned), first[6]]
            phrases = TRAINING[label.task]
            words = phrases[int(settings.random(row, f"wording of {label.task}").integers(len(phrases)))]
            frame = Frame(
                name, first.tolist(), absolute, state=robot.tolist(), expert_chunk=label.chunk.ravel().tolist()
            )
            yield Episode(words, label.task, [frame])

    cameras = {key: plan.columns[key][1][:2] for key in ("rgb_static", "rgb_gripper")}
    first_actions = np.stack([label.chunk[0] for _, label in found])
    states = np.stack([robots[row] for row, _ in found])
    write_index(folder, episodes(), before=lambda: write_contract(folder, cameras, None, first_actions, states, STATE))
    if (folder / INDEX_NAME).stat().st_size >= MIN_INDEXED:
        build_index(folder)


# --------------------------------------------------------------------------------------------------------- command line


def parser() -> argparse.ArgumentParser:
    made = command_parser(DESCRIPTION, EPILOG, prog="python -m preprocess_data.desk_moments")
    add = made.add_argument
    output_dir_option(made, "the split is DIR/training or DIR/validation")
    add("--count", type=whole(1), required=True, metavar="N", help="moments (images), each with 1 to 1 + OTHERS labels")
    add("--others", type=whole(0), default=1, metavar="N", help="labels of other tasks at most (default 1)")
    add("--chunk", type=whole(1), default=10, metavar="C", help="actions of a label, at least act_step (default 10)")
    share = "probability that a frame of play is kept; fewer show more arrangements of objects for one image's cost"
    add("--share", type=real(above=0, at_most=1), default=0.45, metavar="P", help=f"{share} (default 0.45)")
    add("--split", choices=SPLITS, default="training", help="which split, with its own random numbers")
    add("--scenes", default="D", help=f"layouts, of {','.join(SCENES)}, separated by commas (default D)")
    add("--tasks", default="all", metavar="T,T", help="only these tasks (default: all 34)")
    add("--seed", type=whole(0), default=0, help="of everything random (default 0)")
    add("--static-size", type=whole(1), default=200, metavar="PX", help="edge of the static camera (200, CALVIN's)")
    add("--gripper-size", type=whole(1), default=84, metavar="PX", help="edge of the gripper camera (84, CALVIN's)")
    rank_options(made.add_argument_group("computation"))
    return made


def settings_of(options: argparse.Namespace) -> Settings:
    """Return the settings. Raise ValueError naming the option, its value and what is allowed."""
    scenes = name_list("--scenes", options.scenes, SCENES)
    tasks = TASK_NAMES if options.tasks == "all" else name_list("--tasks", options.tasks, TASK_NAMES)
    if options.count < SHARD_ROWS * (len(scenes) - 1) + 1:
        raise ValueError(f"--count is {options.count}; {len(scenes)} layouts need a shard of {SHARD_ROWS} each")
    shared = {field.name: getattr(options, field.name) for field in fields(Settings)}
    return Settings(**{**shared, "scenes": scenes, "tasks": tasks})


@report_errors("desk_moments")
def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    settings = settings_of(options)
    print(make_moments(options.out, settings, rank_and_world(options), options.processes))
    print_next("blockdiff-vla inspect {folder}", folder=options.out / settings.split)
    return 0
