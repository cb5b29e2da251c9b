"""Options that all recordings of scripted experts share."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import fields
from typing import TypeVar

from common.arguments import name_list, output_dir_option, real, whole
from policy_rollout.calvin.tasks import DOORS_AND_LIGHTS, TASK_NAMES
from policy_rollout.desk.experts.worlds import check_world
from policy_rollout.desk.layout import SCENES
from policy_rollout.desk.rendering import RENDERERS, check_renderer
from policy_rollout.desk.rendering.cameras import checked_jitter
from preprocess_data.desk_demos.play import INSTRUCTIONS, SPLITS, Settings

_SETS = {"all": TASK_NAMES, "doors_and_lights": DOORS_AND_LIGHTS}
Made = TypeVar("Made", bound=Settings)


def add_options(made: argparse.ArgumentParser, renderers: Sequence[str] = RENDERERS) -> None:
    """Add the options of a recording."""
    add = made.add_argument
    output_dir_option(made, "the split is DIR/training or DIR/validation")
    add("--episodes", type=int, required=True, metavar="N", help="runs of play; with several scenes, shared evenly")
    add("--tasks-per-episode", type=whole(1), default=8, metavar="N", help="tasks attempted in a run (default 8)")
    add("--split", choices=SPLITS, default="training", help="which split, with its own random numbers")
    add("--scenes", default="D", help=f"of {','.join(SCENES)}, separated by commas (default D)")
    add("--tasks", default="all", metavar="T,T", help="only these tasks, or doors_and_lights for eight (default: all)")
    add(
        "--instructions",
        choices=tuple(INSTRUCTIONS),
        default="training",
        help="wording: that of training (default, also for validation, so that splits differ in the scenes only) or "
        "sentences that training never contains; the frames are the same",
    )
    add("--seed", type=whole(0), default=0, help="of everything random (default 0)")
    add("--workers", type=whole(1), default=1, help="processes (default 1); the result does not depend on it")
    add("--static-size", type=whole(1), default=200, metavar="PX", help="edge of the static camera (200, CALVIN's)")
    add("--gripper-size", type=whole(1), default=84, metavar="PX", help="edge of the gripper camera (84, CALVIN's)")
    add("--depth", action="store_true", help="record depth_static and depth_gripper too (three times the size)")
    add("--camera-jitter", type=real(0), default=0.0, metavar="X", help="0 none, 1 clearly visible; per episode")
    add("--light-jitter", type=real(0), default=0.0, metavar="X", help="the same for the light")
    add(
        "--renderer",
        choices=renderers,
        default=RENDERERS[0] if len(renderers) == len(RENDERERS) else None,
        help="of the desk: raycast (default, needs no OpenGL) or gl"
        + ("; of calvin: egl (default if it works) or tiny (on the CPU)" if len(renderers) > len(RENDERERS) else ""),
    )
    add("--no-preview", action="store_true", help="leave out the contact sheet and the clip")


def make_settings(options: argparse.Namespace, kind: type[Made], **more: object) -> Made:
    """Return the settings of a recording. Raise ValueError naming the option, its value and what is allowed."""
    scenes = name_list("--scenes", options.scenes, SCENES)
    tasks = _SETS.get(options.tasks) or name_list("--tasks", options.tasks, TASK_NAMES)
    if options.episodes < 1:
        raise ValueError(f"--episodes is {options.episodes}; it must be at least 1")
    for name in ("camera_jitter", "light_jitter"):
        checked_jitter(getattr(options, name), f"--{name.replace('_', '-')}")
    if options.episodes < len(scenes):
        raise ValueError(f"--episodes is {options.episodes}; {len(scenes)} scenes need at least one each")
    environment = getattr(options, "environment", "desk")
    renderer = _calvin_renderer(options) if environment == "calvin" else _desk_renderer(options)
    shared = {field.name: getattr(options, field.name) for field in fields(kind) if hasattr(options, field.name)}
    return kind(**{**shared, "scenes": scenes, "tasks": tasks, "renderer": renderer, **more})


def _desk_renderer(options: argparse.Namespace) -> str:
    renderer: str = options.renderer or RENDERERS[0]
    if renderer not in RENDERERS:
        raise ValueError(f"--renderer is {renderer}; the desk has {', '.join(RENDERERS)}")
    check_renderer(renderer)
    return renderer


def _calvin_renderer(options: argparse.Namespace) -> str:
    """Return the renderer of a recording in the real simulator. Raise ValueError if it cannot record here."""
    from policy_rollout.calvin.scenes import env

    if options.renderer not in (None, *env.RENDERERS):
        raise ValueError(f"--renderer is {options.renderer}; calvin has {', '.join(env.RENDERERS)}")
    for name in ("camera_jitter", "light_jitter"):
        if getattr(options, name):
            raise ValueError(f"--{name.replace('_', '-')}: CALVIN's simulator has none; leave it out")
    check_world("calvin")
    return env.choose_renderer(options.renderer)
