"""CALVIN's own simulator (calvin_env's ``PlayTableSimEnv``, pybullet) behind
``policy_rollout.closed_loop.interface.Env``.

What it does on top of calvin_env, all of it found by running that code (commit 797142c, pybullet 3.2.7):

* Physics every step, images only when asked for: calvin_env draws every camera at every step. Drawing changes
  nothing of the physics.
* The world is built anew at every reset. calvin_env puts the bodies of the last chain back, and then the order of
  contacts in the engine, and with it where a pushed block ends (by up to 1 cm), still hangs on the chain before.
* ``robot_obs[14]``, the last gripper command, comes back on reset; calvin_env leaves that of the last chain.
* Blocks are red, blue, pink in ``scene_obs``, in whichever order the scene's file lists them.
* The first two images of a connection that draws with EGL have no shadows. They are drawn and discarded.
* Memory for meshes is freed when an EGL connection is closed, not when the world is loaded again. The connection is
  renewed after ``WORLDS_PER_CONNECTION`` worlds.
* ``gym`` is gymnasium if that is installed, else gym: calvin_env uses ``Env`` and ``seeding`` only.
* No tactile sensors, so neither tacto nor pyrender nor torch is needed.
"""

from __future__ import annotations

import ctypes
import io
import os
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

from policy_rollout.calvin.installation import check_assets, check_packages, package_commit
from policy_rollout.calvin.tasks import BLOCKS
from policy_rollout.closed_loop.interface import Info, Render

CAMERAS = ("static", "gripper")
CONFIGURATION = Path(".hydra") / "merged_config.yaml"
SECTIONS = ("cameras", "env", "robot", "scene")
"""Of the configuration, what the environment is built from."""
FIRST_BLOCK, BLOCK_SIZE = 6, 6
"""Of `scene_obs`: where the blocks begin, and xyz + euler of each."""
WARM_UP_IMAGES = 2
"""Images that a new EGL connection draws and discards. Those of any camera count."""
WORLDS_PER_CONNECTION = 10
"""Chains that are played in one EGL connection before it is renewed. Each loads a world, which leaks about 12 MB until
then. A new connection takes 0.3 to 0.7 s, and a chain takes several seconds. With 10, a process stays within about
120 MB of its smallest size and spends about 1 % of its time on connections."""
MODULES = (
    "calvin_env.envs.play_table_env",
    "calvin_env.robot.robot",
    "calvin_env.scene.play_table_scene",
    "calvin_env.camera.static_camera",
    "calvin_env.camera.gripper_camera",
)
"""Modules of calvin_env that an environment is built from. The first holds the environment's class."""


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


class CalvinEnv:
    """One desk of the real CALVIN. A process holds one at a time: some of calvin_env's calls of pybullet do not say
    which world they are about.

    `split`: the folder with `.hydra/merged_config.yaml`. `egl`: draw with EGL rather than on the CPU; on the EGL
    device of that number where it is one. Raises ``ValueError`` where the simulator cannot be built, ``RuntimeError``
    where this process has one already.
    """

    _in_use = False

    def __init__(self, split: Path, egl: bool = False, egl_device: int | None = None) -> None:
        self._config, self._file, self._egl = read_configuration(split), split / CONFIGURATION, egl
        if CalvinEnv._in_use:
            raise RuntimeError("a process can hold one CALVIN environment at a time: close the first")
        if egl_device is not None:
            os.environ["EGL_VISIBLE_DEVICES"] = str(egl_device)  # read when the EGL plugin is loaded
        self._seed = int(self._config.env.seed)
        self._connect()

    def _connect(self) -> None:
        """Open a connection to pybullet and build the environment in it."""
        self._sim = _build(self._config, self._egl, self._file)
        self._worlds = 0
        CalvinEnv._in_use = True
        # Without cameras of its own the simulator draws nothing, whoever asks it for an observation.
        self._cameras = {str(camera.name): camera for camera in self._sim.cameras}
        self._sim.cameras = []
        names = [str(block.name) for block in self._sim.scene.movable_objects]
        if sorted(names) != sorted(BLOCKS):
            self.close()
            raise ValueError(f"{self._file}: its blocks are {', '.join(names)}, not {', '.join(BLOCKS)}")
        self._to_simulator = np.array([BLOCKS.index(name) for name in names])
        self._from_simulator = np.argsort(self._to_simulator)
        if self._egl:
            for _ in range(WARM_UP_IMAGES):
                self._draw(("static",))

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
        if self._egl and self._worlds >= WORLDS_PER_CONNECTION:
            self.close()
            self._connect()
        self._worlds += 1
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
        """CALVIN's observation: `robot_obs` (15,), `scene_obs` (24,) with the blocks red, blue, pink; the images
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
        with _silent(errors_too=False):  # some image or other tells what draws it
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


def import_simulator() -> None:
    """Import all modules of calvin_env that an environment needs. Raise ``ValueError`` in one line if one of its
    packages is missing."""
    check_packages()
    _provide_gym()
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")  # calvin_env imports GitPython, which wants a git program
    excepthook = sys.excepthook  # calvin_env 1431a46 replaces it
    try:
        with _silent():
            modules = [import_module(name) for name in MODULES]
    except (ImportError, AttributeError) as error:  # an old gym uses attributes that NumPy no longer has
        module = error.name if isinstance(error, ImportError) else None
        raise ValueError(f"calvin_env cannot be imported ({error}): {_remedy(module)}") from error
    finally:
        sys.excepthook = excepthook
    if hasattr(modules[0], "get_git_commit_hash"):
        vars(modules[0])["get_git_commit_hash"] = lambda path: package_commit()  # raises outside of a git checkout


def _remedy(module: str | None) -> str:
    """The command that provides a module which could not be imported."""
    package = (module or "").partition(".")[0]
    install = "bash scripts/install_calvin_env.sh"
    return f"pip install {package}, or {install}" if package not in ("", "calvin_env") else install


def _build(config: Any, egl: bool, file: Path) -> Any:
    """calvin_env's environment. Raises ``ValueError`` in one line where it cannot be built."""
    from hydra.errors import HydraException
    from hydra.utils import instantiate
    from omegaconf.errors import OmegaConfBaseException

    import_simulator()
    try:
        check_assets(config, file)
        with _silent():
            return instantiate(config.env, show_gui=False, use_vr=False, use_scene_info=True, use_egl=egl)
    except SystemExit as error:
        raise ValueError("the EGL plugin of pybullet cannot be loaded; renderer=tiny draws on the CPU") from error
    except (HydraException, OmegaConfBaseException) as error:
        cause = error.__cause__ or error
        raise ValueError(f"{file}: calvin_env cannot build this environment: {' '.join(str(cause).split())}") from error


def _provide_gym() -> None:
    """Let ``import gym`` find gymnasium if that is installed. Otherwise it finds gym."""
    if "gym" not in sys.modules and find_spec("gymnasium") is not None:
        for name in ("", ".utils", ".utils.seeding"):
            sys.modules[f"gym{name}"] = import_module(f"gymnasium{name}")


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
