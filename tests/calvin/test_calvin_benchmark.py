"""CALVIN as a benchmark: what it needs of the user, what it says where that is missing, and the chains it plays."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from policy_rollout.benchmarks import calvin
from policy_rollout.benchmarks.base import find_benchmark
from policy_rollout.calvin.egl import Graphics, _physical, find_graphics
from policy_rollout.calvin.installation import ANNOTATIONS_IN_CALVIN, find_annotations, read_annotations
from policy_rollout.calvin.instructions import validation_instruction
from policy_rollout.calvin.oracle import VERSION
from policy_rollout.calvin.tasks import TASK_NAMES
from policy_rollout.closed_loop.interface import ChainRecord
from policy_rollout.closed_loop.runner import run_chains
from policy_rollout.policies.baselines import ConstantPolicy
from policy_rollout.policies.interface import ROBOT_OBS, Observation, StateLayout

Data = Callable[[str], Path]


def settings(folder: Path | None, **changes: Any) -> dict[str, Any]:
    given = {"environment": "calvin", "dataset_path": folder, "renderer": "tiny", "annotations": "own", "device": "cpu"}
    return {**given, **changes}


def sentences(folder: Path, **changes: Any) -> Path:
    """CALVIN's file of sentences, as its form is: a list for each task."""
    table = {task: [f"please {task}", "or else"] for task in TASK_NAMES}
    file = folder / "new_playtable_validation.yaml"
    file.write_text("# as CALVIN's\n" + json.dumps({**table, **changes}))
    return file


def test_without_the_simulator_it_explains_how_to_install_it(monkeypatch: Any, data: Data) -> None:
    monkeypatch.setattr(calvin, "package_folder", lambda: None)
    with pytest.raises(ValueError, match=r"install_calvin_env.sh.*environment=desk runs"):
        find_benchmark(settings(data("D")))


def test_the_validation_configuration_alone_is_enough(fake_calvin_env: None, data: Data) -> None:
    folder = data("D")
    assert [file.name for file in folder.rglob("*") if file.is_file()] == ["merged_config.yaml"]
    benchmark = find_benchmark(settings(folder))
    again = pickle.loads(pickle.dumps(benchmark))  # as it goes to the workers
    stamp = again.stamp()
    assert stamp == json.loads(json.dumps(stamp))
    assert (stamp["name"], stamp["scene"], stamp["renderer"]) == ("calvin", "calvin_table_D", "tiny")
    assert stamp["pictures"] == {"static": [20, 20], "gripper": [8, 8]}
    assert (again.envs_per_process, again.convention.rate_hz) == (1, 30)


def test_records_of_another_scene_or_other_sentences_do_not_mix(
    fake_calvin_env: None, data: Data, tmp_path: Path
) -> None:
    one, other = (find_benchmark(settings(data(scene))).stamp() for scene in ("D", "A"))
    assert {key for key in one if one[key] != other[key]} == {"scene", "configuration_sha256"}
    told = find_benchmark(settings(tmp_path / "task_D_D", annotations=sentences(tmp_path))).stamp()
    assert {key for key in one if one[key] != told[key]} == {"annotations"}


def test_records_that_another_version_of_the_oracle_evaluated_do_not_mix(
    fake_calvin_env: None, data: Data, monkeypatch: Any
) -> None:
    folder = data("D")
    now = find_benchmark(settings(folder)).stamp()
    monkeypatch.setattr(calvin, "VERSION", VERSION + 1)
    later = find_benchmark(settings(folder)).stamp()
    assert {key for key in now if now[key] != later[key]} == {"oracle"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"dataset_path": None}, "dataset_path has to be given"),
        ({"dataset_path": "/nowhere"}, "dataset_path=/nowhere: no such folder"),
        ({"renderer": "gl"}, "renderer=gl: calvin has egl, tiny"),
        ({"annotations": None}, "annotations=own for this project's instructions"),
        ({"annotations": "/nowhere.yaml"}, "annotations=/nowhere.yaml: no such file"),
    ],
)
def test_what_is_missing_is_reported_in_one_line(
    fake_calvin_env: None, data: Data, change: dict[str, Any], said: str
) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=said) as caught:
        find_benchmark(settings(data("D"), **change))
    assert "\n" not in str(caught.value)


def test_the_folder_above_the_tasks_is_distinguished_from_the_task(fake_calvin_env: None, data: Data) -> None:
    folder = data("D")
    with pytest.raises(FileNotFoundError, match=r"has no folder validation; it has task_D_D: did you mean"):
        find_benchmark(settings(folder.parent))
    (folder / "validation" / ".hydra" / "merged_config.yaml").unlink()
    with pytest.raises(FileNotFoundError, match=r"task_D_D/validation/.hydra/merged_config.yaml is missing"):
        find_benchmark(settings(folder))


def test_the_official_chains_have_calvins_instructions(fake_calvin_env: None, data: Data, tmp_path: Path) -> None:
    job = find_benchmark(settings(data("D"), annotations=sentences(tmp_path))).jobs(3)[2]
    assert job.instructions == tuple(f"please {task}" for task in job.tasks)
    own = find_benchmark(settings(tmp_path / "task_D_D")).jobs(3)[2]
    assert own.instructions == tuple(map(validation_instruction, job.tasks))
    assert (own.tasks, own.index) == (job.tasks, 2)
    assert np.array_equal(own.scene_obs, job.scene_obs)


def test_sentences_are_found_in_the_checkout_of_calvin(monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setattr("policy_rollout.calvin.installation.package_folder", lambda: tmp_path / "calvin_env")
    assert find_annotations() is None
    (tmp_path / ANNOTATIONS_IN_CALVIN).parent.mkdir(parents=True)
    sentences((tmp_path / ANNOTATIONS_IN_CALVIN).parent)
    assert find_annotations() == tmp_path / ANNOTATIONS_IN_CALVIN


@pytest.mark.parametrize("sentence", [None, [], [""], 3])
def test_a_task_without_a_sentence_is_named(tmp_path: Path, sentence: Any) -> None:
    with pytest.raises(ValueError, match="no instruction for the task stack_block"):
        read_annotations(sentences(tmp_path, stack_block=sentence))
    assert read_annotations(sentences(tmp_path, stack_block="stack them"))["stack_block"] == "stack them"


@pytest.mark.parametrize("workers", [0, 2])
def test_chains_are_run_in_the_simulator(fake_calvin_env: None, data: Data, workers: int) -> None:
    """Pulling back opens the drawer, and that alone, whether in this process or in two others."""
    benchmark = find_benchmark(settings(data("D")))
    jobs = [job for job in benchmark.jobs(60) if job.tasks[0] in ("open_drawer", "turn_on_led")][:4]
    records: dict[int, ChainRecord] = {}

    class Puller(ConstantPolicy):
        def act(self, observations: Any) -> Any:
            assert all(isinstance(seen, Observation) for seen in observations)
            assert all(seen.rgb_static.shape == (20, 20, 3) for seen in observations)
            assert all(seen.rgb_gripper is None for seen in observations), "drawn though nobody looks at it"
            return super().act(observations)

    run_chains(
        benchmark,
        Puller(np.array([0, -0.9, 0, 0, 0, 0, 1], np.float32), act_step=3),
        jobs,
        lambda record: records.__setitem__(record.index, record),
        max_steps=10,
        workers=workers,
        parallel=max(workers, 1),
    )
    opened = [records[job.index].completed >= 1 for job in jobs]
    assert opened == [job.tasks[0] == "open_drawer" for job in jobs]
    assert set(opened) == {True, False}
    assert all(records[job.index].steps[0] == (7 if job.tasks[0] == "open_drawer" else 10) for job in jobs)


def test_the_simulators_robot_obs_is_the_state_that_a_policy_reads(fake_calvin_env: None, data: Data) -> None:
    class Reader(ConstantPolicy):
        state = ROBOT_OBS
        read: ClassVar[list[np.ndarray]] = []

        def act(self, observations: Sequence[Observation]) -> np.ndarray:
            self.read += [self.state.check(seen.robot_obs, "robot_obs") for seen in observations]
            return super().act(observations)

    benchmark, policy = find_benchmark(settings(data("D"))), Reader(np.zeros(7, np.float32), act_step=3)
    run_chains(benchmark, policy, benchmark.jobs(1), lambda record: None, max_steps=6, workers=0)
    assert len(policy.read) == 2, "one for each chunk"
    policy.state = StateLayout(7, (0, 1, 2), (3, 4, 5), (6,))
    with pytest.raises(ValueError, match=r"gives CALVIN's robot_obs, 15 numbers .*another state, 7 numbers"):
        run_chains(benchmark, policy, benchmark.jobs(1), lambda record: None, max_steps=6, workers=0)


def prober(folder: Path, ending: str) -> dict[str, str]:
    """The environment of a process whose pybullet says and does this when its EGL plugin is loaded."""
    (folder / "eglRenderer.py").touch()
    text = f"DIRECT = 2\ndef connect(*_, **__): ...\ndef getCameraImage(*_): ...\ndef loadPlugin(*_):\n{ending}"
    (folder / "pybullet.py").write_text(text)
    return {"PYTHONPATH": str(folder)}


def test_egl_that_works_is_taken_and_named(tmp_path: Path) -> None:
    env = prober(tmp_path, "    print('GL_VENDOR=Somebody')\n    return 1\n")
    assert find_graphics(None, env) == (Graphics(True, "Somebody", None), "")
    assert Graphics(True, "Somebody").name == "egl (Somebody)"
    assert Graphics(False).name == "tiny"


def test_egl_that_ends_the_process_is_reported_and_the_cpu_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    env = prober(tmp_path, "    import os, sys\n    print('no EGL', file=sys.stderr, flush=True)\n    os._exit(1)\n")
    found, complaint = find_graphics(None, env)
    assert found is None
    assert complaint == "EGL does not work here (exit code 1: no EGL)"
    monkeypatch.setattr(calvin, "find_graphics", lambda cuda: (found, complaint))
    assert calvin._graphics({"renderer": None, "device": "cpu"}) == Graphics(False)
    told = capsys.readouterr().err
    assert told.startswith("notice: EGL does not work here")
    assert "drawn on the CPU" in told
    with pytest.raises(ValueError, match=r"renderer=egl: EGL does not work here.*renderer=tiny draws on the CPU"):
        calvin._graphics({"renderer": "egl", "device": "cpu"})


def test_a_gpu_is_found_by_its_number_on_the_machine() -> None:
    """EGL does not heed CUDA_VISIBLE_DEVICES."""
    assert _physical(1, {}) == 1
    assert _physical(1, {"CUDA_VISIBLE_DEVICES": "4, 6"}) == 6
    assert _physical(1, {"CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b"}) is None


def test_every_process_draws_on_the_gpu_it_acts_on(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert calvin._cuda_number({"device": "cpu", "local_rank": 3}) is None
    assert calvin._cuda_number({"device": 2}) == 2
    assert calvin._cuda_number({"device": "cuda:1", "local_rank": 0}) == 1
    assert [calvin._cuda_number({"device": 0, "local_rank": rank}) for rank in (0, 1, 5)] == [0, 1, 1]
