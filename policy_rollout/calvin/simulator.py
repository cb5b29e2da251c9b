"""CALVIN's own simulator (calvin_env's ``PlayTableSimEnv``, pybullet) behind ``policy_rollout.environment.Env``.

What it does on top of calvin_env, all of it found by running that code (commit 797142c, pybullet 3.2.7):

* Physics every step, pictures only when asked for: calvin_env draws every camera at every step. Drawing changes
  nothing of the physics.
* The world is built anew at every reset. calvin_env puts the bodies of the last chain back, and then the order of
  contacts in the engine, and with it where a pushed block ends (by up to 1 cm), still hangs on the chain before.
* ``robot_obs[14]``, the last gripper command, comes back on reset; calvin_env leaves that of the last chain.
* Blocks are red, blue, pink in ``scene_obs``, in whichever order the scene's file lists them.
* ``gym`` is gymnasium: calvin_env uses its ``Env`` and ``seeding`` only, and the old package breaks on NumPy 2.
* No tactile sensors, so neither tacto nor pyrender nor torch is needed.
"""

from __future__ import annotations

import ctypes
import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from policy_rollout.calvin.tasks import BLOCKS
from policy_rollout.environment import Info, Render

CAMERAS = ("static", "gripper")
CONFIGURATION = Path(".hydra") / "merged_config.yaml"
SECTIONS = ("cameras", "env", "robot", "scene")
"""Of the configuration, what the environment is built from."""
FIRST_BLOCK, BLOCK_SIZE = 6, 6
"""Of `scene_obs`: where the blocks begin, and xyz + euler of each."""


def read_configuration(split: Path) -> Any:
    """The environment's configuration (an omegaconf ``DictConfig``) of a split's folder, cameras beside ``CAMERAS``
    left out. Raises ``FileNotFoundError`` or ``ValueError`` in one line naming the file."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    file = split / CONFIGURATION
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing; of CALVIN's data this file alone is needed")
    try:
        config = OmegaConf.load(file)
        missing = [name for name in SECTIONS if name not in config]
    except (YAMLError, OmegaConfBaseException, OSError, UnicodeDecodeError, TypeError) as error:
        raise ValueError(f"{file} cannot be read: {' '.join(str(error).split())}") from error
    if missing:
        raise ValueError(f"{file} has no {', '.join(missing)}: it does not describe CALVIN's environment")
    for name in [name for name in config.cameras if name not in CAMERAS]:
        del config.cameras[name]  # tactile sensors need packages of their own, and no policy here feels
    if "static" not in config.cameras:
        raise ValueError(f"{file} has no camera static")
    return config


def package_folder() -> Path | None:
    """The checkout that holds the package calvin_env, None where it is not installed. Nothing is imported."""
    spec = find_spec("calvin_env")
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations))).parent


def package_commit() -> str:
    """The commit of that checkout; "unknown" where it is none, or where there is no git."""
    folder = package_folder()
    if folder is None:
        return "unknown"
    try:
        asked = subprocess.run(
            ["git", "-C", folder, "rev-parse", "HEAD"], capture_output=True, check=False, encoding="utf-8"
        )
    except FileNotFoundError:
        return "unknown"
    return asked.stdout.strip() or "unknown"


class CalvinEnv:
    """One desk of the real CALVIN. A process holds one at a time: some of calvin_env's calls of pybullet do not say
    which world they are about.

    `split`: the folder with `.hydra/merged_config.yaml`. `egl`: draw with EGL rather than on the CPU; on the EGL
    device of that number where it is one. Raises ``ValueError`` where the simulator cannot be built, ``RuntimeError``
    where this process has one already.
    """

    _in_use = False

    def __init__(self, split: Path, egl: bool = False, egl_device: int | None = None) -> None:
        config = read_configuration(split)
        if CalvinEnv._in_use:
            raise RuntimeError("a process can hold one CALVIN environment at a time: close the first")
        if egl_device is not None:
            os.environ["EGL_VISIBLE_DEVICES"] = str(egl_device)  # read when the EGL plugin is loaded
        self._sim = _build(config, egl, split / CONFIGURATION)
        self._seed = int(config.env.seed)
        CalvinEnv._in_use = True
        # Without cameras of its own the simulator draws nothing, whoever asks it for an observation.
        self._cameras = {str(camera.name): camera for camera in self._sim.cameras}
        self._sim.cameras = []
        names = [str(block.name) for block in self._sim.scene.movable_objects]
        if sorted(names) != sorted(BLOCKS):
            self.close()
            raise ValueError(f"{split / CONFIGURATION}: its blocks are {', '.join(names)}, not {', '.join(BLOCKS)}")
        self._to_simulator = np.array([BLOCKS.index(name) for name in names])
        self._from_simulator = np.argsort(self._to_simulator)

    def reset(self, robot_obs: ArrayLike | None = None, scene_obs: ArrayLike | None = None) -> dict[str, Any]:
        """To the state that the two observations say (CALVIN's start and random blocks without); nothing is drawn."""
        robot = None if robot_obs is None else _vector(robot_obs, 15, "robot_obs")
        scene = None if scene_obs is None else _vector(scene_obs, 24, "scene_obs")
        self._build_anew()
        self._sim.robot.gripper_action = 1 if robot is None or robot[14] >= 0 else -1
        if scene is not None:
            scene = _blocks_ordered(scene, self._to_simulator)
        self._sim.reset(robot_obs=robot, scene_obs=scene)
        return self.get_obs(render=False)

    def _build_anew(self) -> None:
        """The world as in a fresh process, random numbers included. Takes a fraction of a second."""
        with _silent():
            self._sim.seed(self._seed)
            self._sim.scene.np_random = self._sim.np_random
            self._sim.load()
        for camera in self._cameras.values():
            if hasattr(camera, "robot_uid"):
                camera.robot_uid = self._sim.robot.robot_uid

    def step(self, action: ArrayLike, render: Render = True) -> tuple[dict[str, Any], int, bool, Info]:
        """Act for 1/30 s with a relative action (7,). calvin_env's old four: observation, reward 0, done False, info.

        The gripper's number is taken as open above 0, else closed. `render`: see `get_obs`.
        """
        vector = _vector(action, 7, "the action")
        vector[6] = 1.0 if vector[6] > 0 else -1.0  # calvin_env asserts that it is one of the two
        obs, reward, done, info = self._sim.step(vector)
        return self._complete(obs, render), reward, done, info

    def get_obs(self, render: Render = True) -> dict[str, Any]:
        """CALVIN's observation: `robot_obs` (15,), `scene_obs` (24,) with the blocks red, blue, pink; the pictures
        (uint8 HWC) and depths (metres) of the cameras that were asked for, None without any."""
        return self._complete(self._sim.get_obs(), render)

    def _complete(self, obs: Mapping[str, Any], render: Render) -> dict[str, Any]:
        shots = self._draw(self._wanted(render))
        return {
            "rgb_obs": {f"rgb_{name}": np.ascontiguousarray(rgb, np.uint8) for name, (rgb, _) in shots.items()} or None,
            "depth_obs": {f"depth_{name}": depth for name, (_, depth) in shots.items()} or None,
            "robot_obs": np.asarray(obs["robot_obs"], dtype=np.float64),
            "scene_obs": _blocks_ordered(np.asarray(obs["scene_obs"], dtype=np.float64), self._from_simulator),
        }

    def _draw(self, names: Collection[str]) -> dict[str, tuple[Any, Any]]:
        """Colours and depth of these cameras."""
        if not names:
            return {}
        with _silent(errors_too=False):  # some picture or other tells what draws it
            return {name: self._cameras[name].render() for name in names}

    def _wanted(self, render: Render) -> tuple[str, ...]:
        if isinstance(render, Collection):
            unknown = [name for name in render if name not in self._cameras]
            if unknown:
                raise ValueError(f"this environment has no camera {unknown[0]}; it has {', '.join(self._cameras)}")
            return tuple(render)
        return tuple(self._cameras) if render else ()

    def get_info(self) -> Info:
        info: Info = self._sim.get_info()
        return info

    def close(self) -> None:
        """Ends the simulation; the process may then hold another. A second time does nothing."""
        if self._sim is None:
            return
        CalvinEnv._in_use = False
        with _silent():  # it prints that it disconnects, and once more when it is deleted
            self._sim.close()
            self._sim.ownsPhysicsClient = False
            self._sim = None
            self._cameras = {}


def import_simulator() -> Any:
    """calvin_env's module of the environment. Raises ``ValueError`` in one line where a package of its is missing."""
    _provide_gym()
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")  # calvin_env imports GitPython, which wants a git program
    try:
        with _silent():
            module = import_module("calvin_env.envs.play_table_env")
    except ImportError as error:
        raise ValueError(f"calvin_env cannot be imported ({error}): bash scripts/install_calvin_env.sh") from error
    if hasattr(module, "get_git_commit_hash"):
        vars(module)["get_git_commit_hash"] = lambda path: package_commit()  # raises outside of a git checkout
    return module


def _build(config: Any, egl: bool, file: Path) -> Any:
    """calvin_env's environment. Raises ``ValueError`` in one line where it cannot be built."""
    from hydra.errors import HydraException
    from hydra.utils import instantiate

    import_simulator()
    try:
        with _silent():
            return instantiate(config.env, show_gui=False, use_vr=False, use_scene_info=True, use_egl=egl)
    except SystemExit as error:
        raise ValueError("the EGL plugin of pybullet cannot be loaded; renderer=tiny draws on the CPU") from error
    except HydraException as error:
        cause = error.__cause__ or error
        raise ValueError(f"{file}: calvin_env cannot build this environment: {' '.join(str(cause).split())}") from error


def _provide_gym() -> None:
    if "gym" not in sys.modules:
        try:
            for name in ("", ".utils", ".utils.seeding"):
                sys.modules[f"gym{name}"] = import_module(f"gymnasium{name}")
        except ImportError as error:
            raise ValueError(f"calvin_env needs gymnasium ({error}): pip install gymnasium") from error


def _blocks_ordered(scene: NDArray[np.float64], order: NDArray[np.intp]) -> NDArray[np.float64]:
    """`scene_obs` with its blocks in another order: the i-th is what was number `order[i]`."""
    blocks = scene[FIRST_BLOCK:].reshape(len(order), BLOCK_SIZE)[order]
    return np.concatenate([scene[:FIRST_BLOCK], blocks.ravel()])


def _vector(values: ArrayLike, size: int, what: str) -> NDArray[np.float64]:
    out = np.array(values, dtype=np.float64)  # a copy, and never of integers: calvin_env computes in place
    if out.shape != (size,) or not np.isfinite(out).all():
        raise ValueError(f"{what} has to be {size} finite numbers, got {out.tolist()}")
    return out


@contextmanager
def _silent(errors_too: bool = True) -> Iterator[None]:
    """What is printed, by C code too, is heard only where something fails: pybullet, its EGL plugin and calvin_env are
    talkative."""
    flush = ctypes.CDLL(None).fflush  # C keeps text back, and would print it after all
    sys.stdout.flush()
    sys.stderr.flush()
    kept = {number: os.dup(number) for number in ((1, 2) if errors_too else (1,))}
    words = io.StringIO()
    with tempfile.TemporaryFile() as heard:
        try:
            for number in kept:
                os.dup2(heard.fileno(), number)
            with redirect_stdout(words), redirect_stderr(words if errors_too else sys.stderr):
                yield
        except BaseException:
            flush(None)
            heard.seek(0)
            os.write(kept.get(2, 2), heard.read() + words.getvalue().encode())
            raise
        finally:
            flush(None)
            for number, copy in kept.items():
                os.dup2(copy, number)
                os.close(copy)
