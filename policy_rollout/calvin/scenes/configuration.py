"""The configuration of a scene, composed from the files of the installed calvin_env, or read from a split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from policy_rollout.calvin.installation import package_folder

SCENES = ("A", "B", "C", "D")
_CONF = Path("conf")


def compose_configuration(scene: str, static_size: int | None = None, gripper_size: int | None = None) -> Any:
    """Return the configuration (an omegaconf ``DictConfig``) that CALVIN's data of this scene was recorded with.

    It has the content of a split's ``.hydra/merged_config.yaml`` without the recorder's and the tactile camera's
    sections. `static_size` and `gripper_size` replace the edge lengths of the images, in pixels. Raises ``ValueError``
    for an unknown scene, or in one line if calvin_env is not installed or has no such file.
    """
    from omegaconf import OmegaConf

    if scene not in SCENES:
        raise ValueError(f"scene is {scene!r}; CALVIN has the scenes {', '.join(SCENES)}")
    config = OmegaConf.create(
        {
            "cameras": {"static": _read("cameras/cameras/static"), "gripper": _read("cameras/cameras/gripper")},
            "env": _read("env/play_table_env"),
            "scene": _read(f"scene/calvin_scene_{scene}"),
            "robot": OmegaConf.merge(_read("robot/panda"), _read("robot/panda_longer_finger")),
            "tasks": _read("tasks/new_playtable_tasks"),
            "data_path": "data",
            "use_vr": False,
            "seed": 0,
        }
    )
    config.robot.pop("defaults", None)
    for name, size in (("static", static_size), ("gripper", gripper_size)):
        if size is not None:
            config.cameras[name].width = config.cameras[name].height = size
    return config


def _read(name: str) -> Any:
    from omegaconf import OmegaConf

    file = configuration_folder() / f"{name}.yaml"
    if not file.is_file():
        raise ValueError(f"{file} is missing: the checkout of calvin_env is not complete")
    return OmegaConf.load(file)


def configuration_folder() -> Path:
    """Return calvin_env's folder of configuration files. Raise ``ValueError`` in one line if it is not installed."""
    folder = package_folder()
    if folder is None:
        raise ValueError(
            "the package calvin_env is not installed; bash scripts/install_calvin_env.sh installs it. "
            "--environment desk needs no simulator"
        )
    return folder / _CONF


def data_folder(config: Any) -> Path:
    """Return the folder of meshes and descriptions that a configuration names."""
    folder = package_folder()
    data = Path(str(config.scene.data_path))
    return data if folder is None else folder / data
