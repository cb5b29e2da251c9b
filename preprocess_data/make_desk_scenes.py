"""Write random scenes of the embedded desk, each with both images, its state and an instruction, as a processed split.

python preprocess_data/make_desk_scenes.py --out data/desk_scenes --count 6000 --scenes D --processes 2
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from common.arguments import command_parser, name_list, output_dir_option, real, whole
from common.command import phase_bar, print_next, report_errors, run_command
from policy_rollout.calvin.instructions import TRAINING
from policy_rollout.calvin.tasks import TASK_NAMES
from policy_rollout.desk import DeskEnv
from policy_rollout.desk.layout import SCENES
from policy_rollout.desk.rendering import RENDERERS, check_renderer
from policy_rollout.desk.rendering.cameras import checked_jitter
from preprocess_data.desk_demos.play import SPLITS
from preprocess_data.desk_scenes.draw import PLACES, draw_scene
from preprocess_data.desk_scenes.frame_shards import require_same_settings, write_raw_files
from preprocess_data.desk_scenes.locate import locate
from preprocess_data.desk_scenes.objects import object_of_task
from preprocess_data.jobs.shard_writer import ShardTask, lock_plan, rank_and_world, rank_options, write_shards
from training.data.dataset_spec import write_contract
from training.data.episode_index import INDEX_NAME, MIN_INDEXED, Episode, Frame, build_index, write_index
from training.data.formats.column_file import IndexFile
from training.data.formats.packed_frames import KIND, Pack, pack_at
from training.data.formats.shards import Plan, ShardWriter, begin, has_shard, shard_path, write_frames
from training.data.object_positions import FILE

DESCRIPTION = """\
Write random scenes of the embedded desk, to learn where objects are: no episodes, only resets. Doors, drawer, switch
and lights are in random states, blocks at random places of the table, the two compartments of the cabinet, the drawer,
on another block and in the closed hand, the hand anywhere above the desk (half of the time near the object that the
instruction names). No two bodies overlap.

Tasks, and so colours, occur equally often, and the block that an instruction names is equally often at each place.
The result is a processed split of one-frame episodes in OUT/training or OUT/validation: images and states in shards,
dataset_info.json, dataset_contract.json. tokenize_images.py makes its token cache. Scene k depends on the options and
k only, so any number of processes draws the same scenes. A stopped command resumes when it is given again."""

EPILOG = """\
examples:
  make_desk_scenes.py --out data/desk_scenes --count 6000 --processes 2
      6000 scenes of layout D
  make_desk_scenes.py --out data/desk_scenes --count 600 --split validation
      others to validate on, with their own random numbers
  make_desk_scenes.py --out data/scenes_ABC --count 9000 --scenes A,B,C --static-size 128 --gripper-size 64
  srun --ntasks 16 python preprocess_data/make_desk_scenes.py ...
      the shards are divided among ranks

then:
  python preprocess_data/tokenize_images.py --data data/desk_scenes/training --tokenizer assets/tiny_magvit \\
      --resolution 96"""

NAMED_TASKS = tuple(task for task in TASK_NAMES if object_of_task(task))
"""Tasks whose instructions name an object that has a position."""
SHARD_ROWS = 64
STATISTICS = ("rel_actions", "robot_obs")
"""Arrays of which the contract has statistics."""
BATCH = 32
"""Scenes held in memory before they are added to a shard."""


@dataclass(frozen=True)
class Settings:
    """All settings that determine the scenes of a split."""

    count: int
    scenes: tuple[str, ...] = ("D",)
    split: str = "training"
    seed: int = 0
    tasks: tuple[str, ...] = NAMED_TASKS
    static_size: int = 200
    gripper_size: int = 84
    camera_jitter: float = 0.0
    light_jitter: float = 0.0
    renderer: str = "raycast"

    def first_row(self, scene: int) -> int:
        """Return the first row of a scene, by its number; scenes follow each other, as `scene_info.npy` requires."""
        return scene * self.count // len(self.scenes)

    def scene(self, row: int) -> tuple[str, int]:
        """Return the scene of a row, and the row's number within the scene."""
        number = max(n for n in range(len(self.scenes)) if self.first_row(n) <= row)
        return self.scenes[number], row - self.first_row(number)

    def task(self, row: int) -> tuple[str, str]:
        """Return the task of a row and the place of the block that it names: every pair occurs equally often."""
        _, position = self.scene(row)
        cycle, at = divmod(position, len(self.tasks))
        order = self.random(row - at, "tasks").permutation(len(self.tasks))
        return self.tasks[int(order[at])], PLACES[cycle % len(PLACES)]

    def instruction(self, row: int) -> str:
        """Return the instruction of a row."""
        phrases = TRAINING[self.task(row)[0]]
        return phrases[int(self.random(row, "wording").integers(len(phrases)))]

    def random(self, row: int, purpose: str) -> np.random.Generator:
        """Return the random numbers of a row for one purpose."""
        return np.random.default_rng([self.seed, SPLITS.index(self.split), row, *purpose.encode()])

    def plan(self) -> Plan:
        """Return the plan of the shards."""
        columns = {
            "rgb_static": ("|u1", (self.static_size, self.static_size, 3)),
            "rgb_gripper": ("|u1", (self.gripper_size, self.gripper_size, 3)),
            "robot_obs": ("<f8", (15,)),
            "scene_obs": ("<f8", (24,)),
            "actions": ("<f8", (7,)),
            "rel_actions": ("<f8", (7,)),
        }
        about = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        return Plan(
            self.count, SHARD_ROWS, columns, {"kind": KIND, "version": 1, "scenes_of": "make_desk_scenes"} | about
        )


def scene_arrays(env: DeskEnv, settings: Settings, row: int) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of a row. The actions are those of a hand that stays where it is."""
    draw_scene(env, settings.random(row, "scene"), *settings.task(row))
    obs = env.get_obs(render=True)
    robot = obs["robot_obs"]
    gripper = robot[14:15]
    states = {"robot_obs": robot, "scene_obs": obs["scene_obs"]}
    actions = {"actions": np.concatenate([robot[:6], gripper]), "rel_actions": np.concatenate([np.zeros(6), gripper])}
    return {**obs["rgb_obs"], **states, **actions}


def write_scenes_of(task: ShardTask[Settings], tick: Callable[[int], object] = lambda done: None) -> None:
    """Draw and render the scenes of the task's shards, and write the shards."""
    settings, plan, env = task.settings, task.plan, None
    for shard in task.shards:
        began, writer, rows = time.process_time(), ShardWriter(task.folder, plan, shard), plan.rows_of(shard)
        for start in range(rows.start, rows.stop, BATCH):
            batch = []
            for row in range(start, min(start + BATCH, rows.stop)):
                name, _ = settings.scene(row)
                if env is None or env.scene != name:
                    env = _desk(settings, name)
                batch.append(scene_arrays(env, settings, row))
            writer.add({name: np.stack([arrays[name] for arrays in batch]) for name in plan.columns})
            tick(len(batch))
        writer.close({"cpu_ms": round((time.process_time() - began) / len(rows) * 1000, 2)})


def _desk(settings: Settings, scene: str) -> DeskEnv:
    sizes, jitter = (settings.static_size, settings.gripper_size), (settings.camera_jitter, settings.light_jitter)
    return DeskEnv(scene, settings.renderer, *sizes, *jitter)


def make_scenes(out: Path, settings: Settings, ranks: tuple[int, int] = (0, 1), processes: int = 1) -> str:
    """Write the missing scenes of ``settings`` under ``out``/``settings.split``, and return a line to print.

    Raises ValueError if the folder holds scenes of other settings or another process writes there.
    """
    folder, plan = out / settings.split, settings.plan()
    require_same_settings(folder, plan, "scenes_of", "scenes")
    with lock_plan(folder, plan, ranks, "make_desk_scenes", "--out "):
        begin(folder, plan)
        write_frames(folder, {"ids": ("<i8", np.arange(plan.rows))})
        missing = sum(not has_shard(folder, plan, shard) for shard in range(plan.shards))
        unfinished = write_shards(ShardTask(settings, folder, plan), ranks, processes, settings.split, write_scenes_of)
        if unfinished:
            return unfinished
        pack = pack_at(folder)
        assert pack is not None
        if missing or not (folder / INDEX_NAME).is_file():
            _write_index_files(folder, settings, pack)
        if missing or not (folder / FILE).is_file():
            locate(folder)
    size = plan.rows * plan.row_bytes / 1e6
    return (
        f"{folder}: {plan.rows} scenes of {', '.join(settings.scenes)}, {size:.1f} MB, {_cost(pack):.1f} ms of CPU each"
    )


def _cost(pack: Pack) -> float:
    """Return the mean CPU time of a scene in milliseconds, as it was when the scene was made."""
    plan = pack.rows.plan
    spent = [
        IndexFile(shard_path(pack.folder, shard)).about["made"]["cpu_ms"] * len(plan.rows_of(shard))
        for shard in range(plan.shards)
    ]
    return float(sum(spent) / plan.rows)


def _write_index_files(folder: Path, settings: Settings, pack: Pack) -> None:
    """Write the files that make the shards a raw and a processed split."""
    rows = np.arange(settings.count)
    ends = [*(settings.first_row(n) for n in range(1, len(settings.scenes))), settings.count]
    ranges = {s: [settings.first_row(n), ends[n] - 1] for n, s in enumerate(settings.scenes)}
    write_raw_files(folder, settings.count, ranges, {"scene": settings.scenes[0], "renderer": settings.renderer})
    motions, states = (np.stack([pack.arrays(row, [key])[key] for row in rows.tolist()]) for key in STATISTICS)

    def episodes() -> Iterator[Episode]:
        for row, name in enumerate(
            phase_bar(pack.names(), desc="writing the index", unit="frame", total=settings.count)
        ):
            arrays = pack.arrays(row, ["actions", "rel_actions", "robot_obs"])
            relative, absolute, state = (arrays[key].tolist() for key in ("rel_actions", "actions", "robot_obs"))
            frame = Frame(name, relative, absolute, state=state)
            yield Episode(settings.instruction(row), settings.task(row)[0], [frame])

    cameras = {key: pack.rows.plan.columns[key][1][:2] for key in ("rgb_static", "rgb_gripper")}
    write_index(folder, episodes(), before=lambda: write_contract(folder, cameras, None, motions, states))
    if (folder / INDEX_NAME).stat().st_size >= MIN_INDEXED:
        build_index(folder)


# --------------------------------------------------------------------------------------------------------- command line


def parser() -> argparse.ArgumentParser:
    made = command_parser(DESCRIPTION, EPILOG, prog="make_desk_scenes.py")
    add = made.add_argument
    output_dir_option(made, "the split is DIR/training or DIR/validation")
    add("--count", type=whole(1), required=True, metavar="N", help="scenes; with several layouts, shared evenly")
    add("--split", choices=SPLITS, default="training", help="which split, with its own random numbers")
    add("--scenes", default="D", help=f"layouts, of {','.join(SCENES)}, separated by commas (default D)")
    add(
        "--tasks",
        default="all",
        metavar="T,T",
        help="instructions of these tasks only (default: all that name an object)",
    )
    add("--seed", type=whole(0), default=0, help="of everything random (default 0)")
    add("--static-size", type=whole(1), default=200, metavar="PX", help="edge of the static camera (200, CALVIN's)")
    add("--gripper-size", type=whole(1), default=84, metavar="PX", help="edge of the gripper camera (84, CALVIN's)")
    add("--camera-jitter", type=real(0), default=0.0, metavar="X", help="0 none, 1 clearly visible; per scene")
    add("--light-jitter", type=real(0), default=0.0, metavar="X", help="the same for the light")
    add("--renderer", choices=RENDERERS, default="raycast", help="raycast needs no OpenGL (default)")
    rank_options(made.add_argument_group("computation"))
    return made


def settings_of(options: argparse.Namespace) -> Settings:
    """Return the settings. Raise ValueError naming the option, its value and what is allowed."""
    scenes = name_list("--scenes", options.scenes, SCENES)
    tasks = NAMED_TASKS if options.tasks == "all" else name_list("--tasks", options.tasks, NAMED_TASKS)
    for name in ("camera_jitter", "light_jitter"):
        checked_jitter(getattr(options, name), f"--{name.replace('_', '-')}")
    if options.count < len(scenes):
        raise ValueError(f"--count is {options.count}; {len(scenes)} layouts need at least one scene each")
    check_renderer(options.renderer)
    shared = {field.name: getattr(options, field.name) for field in fields(Settings)}
    return Settings(**{**shared, "scenes": scenes, "tasks": tasks})


@report_errors("make_desk_scenes")
def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    settings = settings_of(options)
    print(make_scenes(options.out, settings, rank_and_world(options), options.processes))
    print_next("blockdiff-vla inspect {folder}", folder=options.out / settings.split)
    return 0


if __name__ == "__main__":
    run_command(main)
