"""Stand-ins for the modules of LIBERO and SimplerEnv that vla-eval's benchmark classes import.

They render images, keep a pose and note the actions; everything else is vla-eval's own code.
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

LIBERO = "vla_eval.benchmarks.libero.benchmark:LIBEROBenchmark"
SIMPLER = "vla_eval.benchmarks.simpler.benchmark:SimplerEnvBenchmark"
STEPS = 6
"""Steps after which an episode succeeds."""
INSTRUCTION = "pick up the black bowl"
EEF_QUATERNION = np.array([0.6, 0.8, 0.0, -0.02])  # negative w: its axis angle differs with antipodal normalisation


def rendered(step: int, size: int = 256) -> NDArray[np.uint8]:
    """An image as the simulator gives it: dark, its first pixel bright, its last pixel the number of the step."""
    image = np.full((size, size, 3), 10, np.uint8)
    image[0, 0], image[-1, -1] = 200, step
    return image


@dataclass
class Noted:
    """What reached the simulator. ``settled``: actions before the episode starts."""

    actions: list[NDArray[np.float64]] = field(default_factory=list)
    settled: int = 0


def _module(monkeypatch: pytest.MonkeyPatch, name: str, **content: Any) -> ModuleType:
    made = ModuleType(name)
    made.__path__ = []
    vars(made).update(content)
    monkeypatch.setitem(sys.modules, name, made)
    parent, _, child = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], child, made)
    return made


def _keep_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """vla-eval's classes choose a renderer and replace ``torch.load`` in the process: undone after the test."""
    import torch

    monkeypatch.setattr(torch, "load", torch.load)
    for name in ("PYOPENGL_PLATFORM", "EGL_PLATFORM", "MUJOCO_GL"):
        monkeypatch.setenv(name, "unchanged")


def stub_libero(monkeypatch: pytest.MonkeyPatch, wait: int) -> Noted:
    """Install stand-ins for ``libero`` with one task. ``wait``: the steps in which objects come to rest."""
    noted = Noted()
    _keep_process(monkeypatch)

    class OffScreenRenderEnv:
        robots = (SimpleNamespace(controller=SimpleNamespace(ee_pos=np.zeros(3), ee_ori_mat=np.eye(3))),)

        def __init__(self, **_: Any) -> None:
            self.steps = 0

        def seed(self, _: int) -> None: ...

        def reset(self) -> None: ...

        def close(self) -> None: ...

        def set_init_state(self, _: Any) -> dict[str, Any]:
            return self._seen()

        def _seen(self) -> dict[str, Any]:
            return {
                "agentview_image": rendered(len(noted.actions)),
                "robot0_eye_in_hand_image": rendered(len(noted.actions)),
                "robot0_eef_pos": np.array([0.1, 0.2, 0.3]),
                "robot0_eef_quat": EEF_QUATERNION / np.linalg.norm(EEF_QUATERNION),
                "robot0_gripper_qpos": np.array([0.04, -0.04]),
            }

        def step(self, action: Any) -> Any:
            if noted.settled < wait:
                noted.settled += 1
            else:
                noted.actions.append(np.array(action))
            return self._seen(), 0.0, len(noted.actions) >= STEPS, {}

    task = SimpleNamespace(language=INSTRUCTION, problem_folder="problem", bddl_file="task.bddl")
    suite = SimpleNamespace(n_tasks=1, get_task=lambda _: task, get_task_init_states=lambda _: [None])
    _module(monkeypatch, "libero")
    _module(monkeypatch, "libero.libero", get_libero_path=lambda _: "/nowhere")
    _module(monkeypatch, "libero.libero.benchmark", get_benchmark_dict=lambda: {"libero_spatial": lambda: suite})
    _module(monkeypatch, "libero.libero.envs", OffScreenRenderEnv=OffScreenRenderEnv)
    return noted


def stub_simpler(monkeypatch: pytest.MonkeyPatch) -> Noted:
    """Install stand-ins for ``simpler_env``."""
    noted = Noted()
    _keep_process(monkeypatch)

    class Env:
        def __init__(self) -> None:
            agent = SimpleNamespace(get_gripper_closedness=lambda: 0.25)
            self.unwrapped = SimpleNamespace(get_language_instruction=lambda: INSTRUCTION, agent=agent)

        def _seen(self) -> dict[str, Any]:
            pose = np.array([0.1, 0.2, 0.3, 1.0, 0.0, 0.0, 0.0])
            return {"agent": {"base_pose": pose * [0, 0, 0, 1, 1, 1, 1]}, "extra": {"tcp_pose": pose}}

        def reset(self, **_: Any) -> Any:
            return self._seen(), {}

        def step(self, action: Any) -> Any:
            noted.actions.append(np.array(action))
            ends = len(noted.actions) >= STEPS
            return self._seen(), 0.0, ends, ends, {}

        def close(self) -> None: ...

    def image_of(env: Any, obs: Any) -> NDArray[np.uint8]:
        return rendered(len(noted.actions))

    for name in ("simpler_env", "simpler_env.utils", "simpler_env.utils.env"):
        _module(monkeypatch, name)
    vars(sys.modules["simpler_env"])["make"] = lambda *_, **__: Env()
    name = "simpler_env.utils.env.observation_utils"
    _module(monkeypatch, name, get_image_from_maniskill2_obs_dict=image_of)
    return noted


def evaluate(url: str, benchmark: str, output: Path, **params: Any) -> dict[str, Any]:
    """Run one episode as ``vla-eval run --no-docker --no-save`` does, and return its results."""
    from vla_eval.orchestrator import Orchestrator

    entry = {"benchmark": benchmark, "episodes_per_task": 1, "max_steps": 2 * STEPS, "params": params}
    config = {"server": {"url": url, "timeout": 60}, "output_dir": str(output), "benchmarks": [entry]}
    (result,) = asyncio.run(asyncio.wait_for(Orchestrator(config, no_save=True).run(), 300))
    return result
