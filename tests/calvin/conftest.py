"""A validation split as CALVIN's, and a stand-in for the simulator that it describes."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from policy_rollout.calvin.installation import REQUIRED

FAKE = Path(__file__).parent / "fake"
CONFIGURATION = """
cameras:
  static: {{_target_: calvin_env.camera.static_camera.StaticCamera, name: static, width: 20, height: 20}}
  gripper: {{_target_: calvin_env.camera.gripper_camera.GripperCamera, name: gripper, width: 8, height: 8}}
  tactile: {{_target_: calvin_env.camera.tactile_sensor.TactileSensor, name: tactile, width: 12, height: 16}}
env:
  _target_: calvin_env.envs.play_table_env.PlayTableSimEnv
  _recursive_: false
  cameras: ${{cameras}}
  seed: 0
  bullet_time_step: 240.0
  use_vr: false
  show_gui: false
  robot_cfg: ${{robot}}
  scene_cfg: ${{scene}}
  use_scene_info: false
  use_egl: true
  control_freq: 30
scene:
  _target_: calvin_env.scene.play_table_scene.PlayTableScene
  _recursive_: false
  data_path: data
  objects:
    fixed_objects:
      table: {{file: calvin_table_{scene}/urdf/calvin_table_{scene}.urdf}}
    movable_objects:
{blocks}
robot: {{_target_: calvin_env.robot.robot.Robot, filename: panda.urdf}}
"""
ORDERS = {"D": ("red", "blue", "pink"), "A": ("blue", "pink", "red"), "C": ("pink", "red", "blue")}


@pytest.fixture
def data(tmp_path: Path) -> Callable[[str], Path]:
    """Makes CALVIN's folder for a scene: the one file of it that is needed."""

    def make(scene: str = "D") -> Path:
        folder = tmp_path / f"task_{scene}_{scene}"
        (folder / "validation" / ".hydra").mkdir(parents=True)
        blocks = "\n".join(f"      block_{colour}: {{file: blocks/{colour}.urdf}}" for colour in ORDERS[scene])
        text = CONFIGURATION.format(scene=scene, blocks=blocks)
        (folder / "validation" / ".hydra" / "merged_config.yaml").write_text(text)
        return folder

    return make


MESH = "v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n"
URDF = """<robot name="body"><link name="base"><collision><geometry>
<mesh filename="{mesh}"/></geometry></collision></link></robot>
"""
BODIES = {
    **{f"calvin_table_{scene}/urdf/calvin_table_{scene}.urdf": "../meshes/base_link.obj" for scene in ORDERS},
    **{f"blocks/{colour}.urdf": "block.obj" for colour in ("red", "blue", "pink")},
    "panda.urdf": "package://meshes/link0.obj",
    "plane/plane.urdf": "plane.obj",
}


def make_fake_checkout(folder: Path) -> None:
    """The stand-in as a checkout: its code, one mesh for every body, and empty modules for packages not installed."""
    shutil.copytree(FAKE, folder, dirs_exist_ok=True)
    for name, mesh in BODIES.items():
        body = folder / "data" / name
        file = body.parent / mesh.removeprefix("package://")
        body.parent.mkdir(parents=True, exist_ok=True)
        file.parent.mkdir(parents=True, exist_ok=True)
        body.write_text(URDF.format(mesh=mesh))
        file.write_text(MESH)
    for module in REQUIRED:
        if find_spec(module) is None:
            (folder / f"{module}.py").touch()


@pytest.fixture
def fake_calvin_env(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The stand-in is what `import calvin_env` finds, gone again after the test. Its folder."""
    kept = dict(sys.modules)
    folder = tmp_path_factory.mktemp("calvin_env")
    make_fake_checkout(folder)
    monkeypatch.syspath_prepend(str(folder))
    for name in [name for name in sys.modules if name.partition(".")[0] in ("calvin_env", "gym", "gymnasium")]:
        del sys.modules[name]
    yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] in ("calvin_env", "gym", "gymnasium")]:
        del sys.modules[name]
    sys.modules.update({name: module for name, module in kept.items() if name not in sys.modules})
