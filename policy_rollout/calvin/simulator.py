"""CALVIN's own simulator (calvin_env's ``PlayTableSimEnv``, pybullet) behind
``policy_rollout.closed_loop.interface.Env``.

Differences to calvin_env, found by running it (commit 797142c, pybullet 3.2.7):

* Images are rendered on request only: calvin_env renders every camera at every step. Rendering does not change the
  physics.
* The world is rebuilt at every reset. calvin_env moves the bodies of the previous chain; the order of contacts in the
  engine, and so the final position of a pushed block (by up to 1 cm), then depends on the previous chain.
* A reset restores ``robot_obs[14]``, the last gripper command; calvin_env keeps that of the previous chain.
* Blocks are red, blue, pink in ``scene_obs``, for any order in the scene's file.
* The first two images of a connection that draws with EGL have no shadows. They are drawn and discarded.
* Memory for meshes is freed when an EGL connection is closed, not when the world is loaded again. The connection is
  renewed after ``WORLDS_PER_CONNECTION`` worlds.
* ``gym`` is gymnasium if that is installed, else gym: calvin_env uses ``Env`` and ``seeding`` only.
* No tactile sensors, so neither tacto nor pyrender nor torch is needed.
"""

from __future__ import annotations

import ctypes
import gc
import io
import os
import sys
import tempfile
import traceback
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from common.constants import ENV_CAMERAS
from policy_rollout.calvin.installation import check_assets, check_packages, package_commit
from policy_rollout.calvin.tasks import BLOCKS
from policy_rollout.closed_loop.interface import Info, Render

CONFIGURATION = Path(".hydra") / "merged_config.yaml"
SECTIONS = ("cameras", "env", "robot", "scene")
"""Sections of the configuration that the environment is built from."""
FIRST_BLOCK, BLOCK_SIZE = 6, 6
"""Index of the first block in `scene_obs`, and number of values of each block (xyz and Euler angles)."""
WARM_UP_IMAGES = 2
"""Images that a new EGL connection draws and discards. Those of any camera count."""
WORLDS_PER_CONNECTION = 10
"""Chains per EGL connection. Each loads a world, which leaks about 12 MB until
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
    """Return the environment's configuration (an omegaconf ``DictConfig``) of a split, with ``ENV_CAMERAS`` only.

    Raises ``FileNotFoundError`` or ``ValueError`` in one line naming the file.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    file = split / CONFIGURATION
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing; it is the only needed file of CALVIN's data")
    try:
        config = OmegaConf.load(file)
        missing = [name for name in SECTIONS if name not in config]
    except (YAMLError, OmegaConfBaseException, OSError, UnicodeDecodeError, TypeError) as error:
        raise ValueError(f"{file} cannot be read: {' '.join(str(error).split())}") from error
    if missing:
        raise ValueError(f"{file} has no {', '.join(missing)}: it does not describe CALVIN's environment")
    for name in [name for name in config.cameras if name not in ENV_CAMERAS]:
        del config.cameras[name]  # tactile sensors need more packages and are not used
    if "static" not in config.cameras:
        raise ValueError(f"{file} has no camera static")
    return config


class CalvinEnv:
    """One environment of the real CALVIN. A process can have one at a time, as some calls of pybullet in calvin_env
    do not select a connection.

    `split`: the folder with `.hydra/merged_config.yaml`. `egl`: render with EGL instead of the CPU; `egl_device`: its
    device number. `config`: a configuration in place of that file; `split` then names its origin in messages. Raises
    ``ValueError`` if the simulator cannot be built, ``RuntimeError`` if this process already has one.
    """

    _in_use = False

    def __init__(self, split: Path, egl: bool = False, egl_device: int | None = None, config: Any = None) -> None:
        self._config = read_configuration(split) if config is None else config
        self._file, self._egl = split / CONFIGURATION if config is None else split, egl
        if CalvinEnv._in_use:
            raise RuntimeError("a process can have one CALVIN environment at a time: close the first")
        if egl_device is not None:
            os.environ["EGL_VISIBLE_DEVICES"] = str(egl_device)  # read when the EGL plugin is loaded
        self._seed = int(self._config.env.seed)
        self._connect()

    def _connect(self) -> None:
        """Open a connection to pybullet and build the environment in it."""
        self._sim = _build(self._config, self._egl, self._file)
        self._worlds = 0
        CalvinEnv._in_use = True
        # Without cameras, the simulator renders nothing in its observations.
        self._cameras = {str(camera.name): camera for camera in self._sim.cameras}
        self._sim.cameras = []
        names = [str(block.name) for block in self._sim.scene.movable_objects]
        if sorted(names) != sorted(BLOCKS):
            self.close()
            raise ValueError(f"{self._file}: its blocks are {', '.join(names)}, not {', '.join(BLOCKS)}")
        self._to_simulator = np.array([BLOCKS.index(name) for name in names])
        self._from_simulator = np.argsort(self._to_simulator)
        if self._egl:
            try:
                for _ in range(WARM_UP_IMAGES):
                    self._draw(("static",))
            except BaseException:
                self.close()
                raise

    def reset(self, robot_obs: ArrayLike | None = None, scene_obs: ArrayLike | None = None) -> dict[str, Any]:
        """Reset to the state of the two observations (default: CALVIN's start, random blocks), without rendering."""
        robot = None if robot_obs is None else _vector(robot_obs, 15, "robot_obs")
        scene = None if scene_obs is None else _vector(scene_obs, 24, "scene_obs")
        self._rebuild()
        self._sim.robot.gripper_action = 1 if robot is None or robot[14] >= 0 else -1
        if scene is not None:
            scene = _blocks_ordered(scene, self._to_simulator)
        self._sim.reset(robot_obs=robot, scene_obs=scene)
        return self.get_obs(render=False)

    def _rebuild(self) -> None:
        """Rebuild the world as in a new process, random numbers included. Takes a fraction of a second."""
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
        """Act for 1/30 s with a relative action (7,). Returns observation, reward 0, done False, info.

        The gripper opens for values above 0, else it closes. `render`: see `get_obs`.
        """
        vector = _vector(action, 7, "the action")
        vector[6] = 1.0 if vector[6] > 0 else -1.0  # calvin_env asserts that it is one of the two
        obs, reward, done, info = self._sim.step(vector)
        return self._complete(obs, render), reward, done, info

    def get_obs(self, render: Render = True) -> dict[str, Any]:
        """Return CALVIN's observation: `robot_obs` (15,), `scene_obs` (24,) with the blocks red, blue, pink; images
        (uint8 HWC) and depths (metres) of the requested cameras, None without any."""
        return self._complete(self._sim.get_obs(), render)

    def _complete(self, obs: Mapping[str, Any], render: Render) -> dict[str, Any]:
        images = self._draw(self._selected(render))
        return {
            "rgb_obs": {f"rgb_{name}": np.ascontiguousarray(rgb, np.uint8) for name, (rgb, _) in images.items()}
            or None,
            "depth_obs": {f"depth_{name}": depth for name, (_, depth) in images.items()} or None,
            "robot_obs": np.asarray(obs["robot_obs"], dtype=np.float64),
            "scene_obs": _blocks_ordered(np.asarray(obs["scene_obs"], dtype=np.float64), self._from_simulator),
        }

    def _draw(self, names: Collection[str]) -> dict[str, tuple[Any, Any]]:
        """Return colours and depth of these cameras."""
        if not names:
            return {}
        with _silent(errors_too=False):  # the first image prints the name of the renderer
            return {name: self._cameras[name].render() for name in names}

    def _selected(self, render: Render) -> tuple[str, ...]:
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
        """End the simulation, so that the process can have another. A second call does nothing."""
        if self._sim is None:
            return
        CalvinEnv._in_use = False
        with _silent():  # it prints messages when it disconnects and when it is deleted
            self._sim.close()
            self._sim.ownsPhysicsClient = False
            self._sim = None
            self._cameras = {}


def import_simulator() -> None:
    """Import all modules of calvin_env that an environment needs. Raise ``ValueError`` in one line if one of its
    packages is missing."""
    check_packages()
    _provide_gym()
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")  # calvin_env imports GitPython, which needs a git program
    excepthook = sys.excepthook  # calvin_env 1431a46 replaces it
    try:
        with _silent(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # calvin_env uses Hydra as older versions of it did
            modules = [import_module(name) for name in MODULES]
    except (ImportError, AttributeError) as error:  # an old gym uses attributes that NumPy no longer has
        module = error.name if isinstance(error, ImportError) else None
        raise ValueError(f"calvin_env cannot be imported ({error}): {_remedy(module)}") from error
    finally:
        sys.excepthook = excepthook
    if hasattr(modules[0], "get_git_commit_hash"):
        vars(modules[0])["get_git_commit_hash"] = lambda path: package_commit()  # raises outside of a git checkout


def _remedy(module: str | None) -> str:
    """Return the command that installs a module that could not be imported."""
    package = (module or "").partition(".")[0]
    install = "bash scripts/install_calvin_env.sh"
    return f"pip install {package}, or {install}" if package not in ("", "calvin_env") else install


def _build(config: Any, egl: bool, file: Path) -> Any:
    """Return calvin_env's environment. Raises ``ValueError`` in one line if it cannot be built."""
    from hydra.errors import HydraException
    from hydra.utils import instantiate
    from omegaconf.errors import OmegaConfBaseException

    import_simulator()
    try:
        check_assets(config, file)
        with _silent(), _released_on_error():
            return instantiate(config.env, show_gui=False, use_vr=False, use_scene_info=True, use_egl=egl)
    except SystemExit as error:
        raise ValueError("the EGL plugin of pybullet cannot be loaded; renderer=tiny draws on the CPU") from error
    except (HydraException, OmegaConfBaseException) as error:
        cause = error.__cause__ or error
        raise ValueError(f"{file}: calvin_env cannot build this environment: {' '.join(str(cause).split())}") from error


@contextmanager
def _released_on_error() -> Iterator[None]:
    """Delete a partially built environment on an error, and with it its connection to pybullet. The frames of the
    error's tracebacks would keep it alive, and its deletion would print a message later."""
    try:
        yield
    except BaseException as error:
        cause: BaseException | None = error
        while cause is not None:
            traceback.clear_frames(cause.__traceback__)
            cause = cause.__cause__ or cause.__context__
        gc.collect()  # the environment and its parts refer to each other
        raise


def _provide_gym() -> None:
    """Make ``import gym`` import gymnasium if that is installed, else gym."""
    if "gym" not in sys.modules and find_spec("gymnasium") is not None:
        for name in ("", ".utils", ".utils.seeding"):
            sys.modules[f"gym{name}"] = import_module(f"gymnasium{name}")


def _blocks_ordered(scene: NDArray[np.float64], order: NDArray[np.intp]) -> NDArray[np.float64]:
    """Return `scene_obs` with its blocks in another order: block i is the former block `order[i]`."""
    blocks = scene[FIRST_BLOCK:].reshape(len(order), BLOCK_SIZE)[order]
    return np.concatenate([scene[:FIRST_BLOCK], blocks.ravel()])


def _vector(values: ArrayLike, size: int, name: str) -> NDArray[np.float64]:
    out = np.array(values, dtype=np.float64)  # a copy, and never of integers: calvin_env computes in place
    if out.shape != (size,) or not np.isfinite(out).all():
        raise ValueError(f"{name} has to be {size} finite numbers, got {out.tolist()}")
    return out


@contextmanager
def _silent(errors_too: bool = True) -> Iterator[None]:
    """Capture the output of Python and C code and print it only on an error: pybullet, its EGL plugin and calvin_env
    print a lot."""
    flush = ctypes.CDLL(None).fflush  # C buffers output, and would print it later
    sys.stdout.flush()
    sys.stderr.flush()
    saved = {number: os.dup(number) for number in ((1, 2) if errors_too else (1,))}
    python_output = io.StringIO()
    with tempfile.TemporaryFile() as output:
        try:
            for number in saved:
                os.dup2(output.fileno(), number)
            with redirect_stdout(python_output), redirect_stderr(python_output if errors_too else sys.stderr):
                yield
        except BaseException:
            flush(None)
            output.seek(0)
            os.write(saved.get(2, 2), output.read() + python_output.getvalue().encode())
            raise
        finally:
            flush(None)
            for number, copy in saved.items():
                os.dup2(copy, number)
                os.close(copy)
