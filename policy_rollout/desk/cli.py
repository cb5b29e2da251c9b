"""The command line of the desk. Each option has one function; `main` parses the options."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common.arguments import path_argument, whole
from common.command import progress_bar
from common.image_grid import add_caption, image_grid, side_by_side, write_png
from common.video import write_gif
from policy_rollout.calvin.initial_states import initial_state
from policy_rollout.calvin.instructions import HELD_OUT, TRAINING
from policy_rollout.calvin.oracle import TaskOracle
from policy_rollout.calvin.sequences import desk_sequences
from policy_rollout.calvin.tasks import TASK_NAMES
from policy_rollout.desk import DeskEnv
from policy_rollout.desk.benchmark import bench
from policy_rollout.desk.experts.policy import EXPERT_TASKS, PLAY, QUIET, ScriptedExpert, task_resets
from policy_rollout.desk.layout import SCENES
from policy_rollout.desk.play import Actor, Video, play_task, random_actor
from policy_rollout.desk.rendering import RENDERERS, check_renderer

DESCRIPTION = """\
The desk: CALVIN's tasks on a table of our own, in MuJoCo, with no OpenGL and no download.
Four scenes (A, B, C, D), 34 tasks, two cameras, the same actions, observations and oracle as the real CALVIN."""

EPILOG = """\
examples:
  python -m policy_rollout.desk --list
      the 34 tasks, each with an instruction
  python -m policy_rollout.desk --draw state.png --scene B --seed 3
      both cameras' images of a random start
  python -m policy_rollout.desk --draw scenes.png --scene all
      the four scenes
  python -m policy_rollout.desk --sheet tasks.png
      every task before and after its expert
  python -m policy_rollout.desk --task open_drawer --expert --save clip.gif
      run the expert; the clip shows both cameras, the instruction and the outcome
  python -m policy_rollout.desk --chain 5 --save chain.gif
      five tasks in sequence, as in CALVIN's evaluation
  python -m policy_rollout.desk --bench
      milliseconds of CPU per step and per image, on this machine

more:
  python -m policy_rollout.desk.experts --table --chains 100      success rates of the experts
  python preprocess_data/make_desk_demos.py --help                record demonstrations in CALVIN's format"""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(
        prog="python -m policy_rollout.desk",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command = made.add_argument_group("command (one of them)").add_mutually_exclusive_group(required=True)
    command.add_argument("--list", action="store_true", help="print the tasks")
    command.add_argument("--task", metavar="NAME", help="run one task from a random state in which it is feasible")
    command.add_argument(
        "--chain", type=whole(1), metavar="N", help="run N tasks in sequence (1 to 8; CALVIN's chains have 5)"
    )
    command.add_argument("--draw", type=path_argument, metavar="FILE.png", help="draw a random start with both cameras")
    command.add_argument(
        "--sheet", type=path_argument, metavar="FILE.png", help="draw every task before and after (a minute)"
    )
    command.add_argument("--bench", action="store_true", help="measure physics, expert and cameras (a few seconds)")
    actor = made.add_mutually_exclusive_group()
    actor.add_argument("--expert", action="store_true", help="use the scripted expert (default)")
    actor.add_argument("--random", action="store_true", help="use random actions")
    made.add_argument("--noise", action="store_true", help="disturb the expert, as in demonstrations")
    made.add_argument("--save", type=path_argument, metavar="FILE.gif", help="save a clip of --task or --chain")
    made.add_argument("--scene", choices=(*SCENES, "all"), default="D", help="default D; all needs --draw")
    made.add_argument("--seed", type=whole(0), default=0, help="seed of the random start (default 0)")
    made.add_argument("--size", type=whole(1), default=200, metavar="PX", help="edge of the static image (default 200)")
    made.add_argument("--renderer", choices=RENDERERS, default="raycast", help="gl needs OpenGL (default raycast)")
    return made


def list_tasks() -> int:
    """Print every task with an instruction, and whether it has an expert."""
    width = max(map(len, TASK_NAMES))
    print(f"{'task':{width}}  expert  for example")
    for task in TASK_NAMES:
        expert = "yes" if task in EXPERT_TASKS else "no"
        print(f"{task:{width}}  {expert:6}  {TRAINING[task][0]}")
    phrasings = sum(map(len, TRAINING.values())), sum(map(len, HELD_OUT.values()))
    print(f"{len(TASK_NAMES)} tasks, {phrasings[0]} instructions for training and {phrasings[1]} held out")
    return 0


def draw(path: Path, options: argparse.Namespace) -> int:
    """Draw a random start, static and wrist camera side by side, of one scene or of all."""
    size, cells = options.size, []
    for scene in SCENES if options.scene == "all" else (options.scene,):
        env = DeskEnv(scene, options.renderer, size, size, seed=options.seed)
        env.reset(seed=options.seed)
        cells.append(add_caption(side_by_side([env.render("static"), env.render("gripper")], size), f"scene {scene}"))
        env.close()
    write_png(path, image_grid(cells, columns=2) if len(cells) > 1 else cells[0])
    print(f"{path}: scene {options.scene}, seed {options.seed}, {size} px")
    return 0


def draw_tasks(env: DeskEnv, path: Path, seed: int) -> int:
    """Draw every task before and after its expert."""
    oracle, cells, failed = TaskOracle(), [], []
    for task in progress_bar(EXPERT_TASKS, desc="tasks", unit="task"):
        obs = env.reset(*task_resets(task, seed, env.scene), seed=seed)
        before = env.render("static")
        expert = ScriptedExpert(env.layout, task, np.random.default_rng(seed), QUIET)
        success, _ = play_task(env, oracle, task, obs, expert.act)
        failed += [] if success else [task]
        pair = side_by_side([before, env.render("static")], env.static_size)
        cells.append(add_caption(pair, TRAINING[task][seed % len(TRAINING[task])], task))
    write_png(path, image_grid(cells, columns=5))
    print(f"{path}: {len(cells)} tasks before and after; not done: {', '.join(failed) or 'none'}")
    return 0


def play_one(env: DeskEnv, task: str, options: argparse.Namespace) -> int:
    """Run one task and print the outcome. Returns 0 if it was done, 1 if not."""
    video = None if options.save is None else Video(env)
    obs = env.reset(*task_resets(task, options.seed, env.scene), seed=options.seed)
    rng = np.random.default_rng(options.seed)
    instruction = TRAINING[task][options.seed % len(TRAINING[task])]
    actor = _actor(env, task, rng, options)
    success, steps = play_task(env, TaskOracle(), task, obs, actor, video=video, instruction=instruction)
    print(f'{task}, scene {env.scene}, seed {options.seed}: "{instruction}"')
    print(f"{'done' if success else 'NOT done'} after {steps} steps ({steps / env.control_freq:.1f} s)")
    _save(video, options.save)
    return 0 if success else 1


def play_chain(env: DeskEnv, length: int, options: argparse.Namespace) -> int:
    """Run tasks in sequence until one fails. Returns 0 if all were done, 1 if not."""
    video, oracle = None if options.save is None else Video(env), TaskOracle()
    chain = desk_sequences(1, EXPERT_TASKS, options.seed, length)[0]
    obs = env.reset(*initial_state(chain.state), seed=options.seed)
    rng = np.random.default_rng(options.seed)
    done = 0
    for number, task in enumerate(chain.tasks, 1):
        instruction = TRAINING[task][options.seed % len(TRAINING[task])]
        actor, text = _actor(env, task, rng, options), f"{number}. {instruction}"
        success, steps = play_task(env, oracle, task, obs, actor, video=video, instruction=text)
        print(f'{number}. {task}: "{instruction}": {"done" if success else "NOT done"} after {steps} steps')
        if not success:
            break
        done += 1
        obs = env.get_obs(render=False)
    print(f"{done} of {len(chain.tasks)} in a row")
    _save(video, options.save)
    return 0 if done == len(chain.tasks) else 1


def _actor(env: DeskEnv, task: str, rng: np.random.Generator, options: argparse.Namespace) -> Actor:
    if options.random:
        return random_actor(rng)
    return ScriptedExpert(env.layout, task, rng, PLAY if options.noise else QUIET).act


def _save(video: Video | None, path: Path | None) -> None:
    if video is not None and path is not None:
        write_gif(path, video.frames)
        print(f"{path}: {len(video.frames)} frames, {path.stat().st_size / 1e6:.1f} MB")


def _check(options: argparse.Namespace) -> None:
    """Raise ValueError naming the option, its value and what is allowed."""
    if options.task is not None and options.task not in EXPERT_TASKS:
        near = [task for task in EXPERT_TASKS if options.task.replace(" ", "_") in task][:4]
        hint = f"did you mean {', '.join(near)}?" if options.task and near else "--list shows all"
        raise ValueError(f"--task {options.task!r} is not a task; {hint}")
    if options.chain is not None and not 1 <= options.chain <= 8:
        raise ValueError(f"--chain is {options.chain}; it must be from 1 to 8")
    if not 16 <= options.size <= 2000:
        raise ValueError(f"--size is {options.size}; it must be from 16 to 2000 pixels")
    if options.seed < 0:
        raise ValueError(f"--seed is {options.seed}; it must not be negative")
    files = ("--save", options.save, ".gif"), ("--draw", options.draw, ".png"), ("--sheet", options.sheet, ".png")
    for option, path, suffix in files:
        if path is not None and path.suffix.lower() != suffix:
            raise ValueError(f"{option} {path}: the file must end in {suffix}")
    if options.scene == "all" and options.draw is None:
        raise ValueError(f"--scene all needs --draw; give one of {', '.join(SCENES)}")
    if options.save is not None and options.task is None and options.chain is None:
        raise ValueError("--save needs --task or --chain; --draw draws an image")


def run(options: argparse.Namespace) -> int:
    """Run the command of the options; returns the exit status."""
    _check(options)
    if options.list:
        return list_tasks()
    check_renderer(options.renderer)
    if options.draw is not None:
        return draw(options.draw, options)
    env = DeskEnv(options.scene, options.renderer, static_size=options.size, seed=options.seed)
    try:
        if options.bench:
            print(bench(env))
            return 0
        if options.sheet is not None:
            return draw_tasks(env, options.sheet, options.seed)
        if options.task is not None:
            return play_one(env, options.task, options)
        return play_chain(env, options.chain, options)
    finally:
        env.close()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Returns 0; 1 if a task was not done; 2 for invalid options or an unwritable file."""
    options = parser().parse_args(argv)
    try:
        return run(options)
    except (ValueError, OSError) as error:
        print(f"policy_rollout.desk: {error}", file=sys.stderr)
        return 2
