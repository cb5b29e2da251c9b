"""Every launch file in accelerate_configs/: what stands in it, and that it trains with two CPU processes."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.training.launches import LAUNCH_FILES, ON_CPU, complaint, free_port, start, why

FILES = sorted(LAUNCH_FILES.glob("*.yaml"))
NAMES = [file.stem for file in FILES]
KIND = {"deepspeed": "DEEPSPEED", "fsdp2": "FSDP", "ddp": "MULTI_GPU"}


def read(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    return content


def test_the_promised_launch_files_are_there() -> None:
    promised = {"1_gpu", "1_gpu_deepspeed_zero2", "4_gpus_deepspeed_zero2", "8_gpus_deepspeed_zero2"}
    assert promised <= set(NAMES)
    assert {"1_cpu", "4_gpus_fsdp2", "2_nodes_16_gpus_deepspeed_zero2"} <= set(NAMES)


@pytest.mark.parametrize("file", FILES, ids=NAMES)
def test_a_launch_file_is_what_its_name_states(file: Path) -> None:
    content, name = read(file), file.stem
    nodes = re.match(r"(\d+)_nodes", name)
    assert content["num_machines"] == (int(nodes[1]) if nodes else 1)
    processes = re.search(r"(\d+)_(gpus?|cpus?)", name)
    assert processes
    assert content["num_processes"] == int(processes[1])
    kind = next((value for key, value in KIND.items() if key in name), "NO")
    assert content["distributed_type"] == kind
    stage = re.search(r"zero(\d)", name)
    assert content.get("deepspeed_config", {}).get("zero_stage") == (int(stage[1]) if stage else None)


@pytest.mark.parametrize("file", FILES, ids=NAMES)
def test_no_launch_file_decides_what_the_run_configuration_decides(file: Path) -> None:
    """Accumulation, optimizer and schedule in a launch file would win in silence; clipping would happen twice."""
    deepspeed = read(file).get("deepspeed_config", {})
    assert not {"gradient_accumulation_steps", "deepspeed_config_file"} & set(deepspeed)
    assert not deepspeed.get("gradient_clipping")


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES, ids=NAMES)
def test_every_launch_file_trains_with_two_processes_on_the_cpu(file: Path, world: Path, tmp_path: Path) -> None:
    content = read(file)
    options = ["--config_file", str(file), "--num_processes", "2", "--num_machines", "1"]
    env = {} if content["distributed_type"] == "DEEPSPEED" else ON_CPU
    if content["distributed_type"] == "NO":  # one process, to accelerate's mind, until message otherwise
        options.append("--multi_gpu")
    done = start(world, tmp_path / "out", tuple(options), env, ("training.max_train_steps=1",))
    assert (tmp_path / "out" / "model.safetensors").is_file(), done.stderr[-3000:]
    expected = {"DEEPSPEED": "DeepSpeed ZeRO-", "FSDP": "FSDP2"}.get(content["distributed_type"], "DDP")
    assert f"2 processes ({expected}" in done.stdout


@pytest.mark.slow
def test_two_launchers_with_one_process_each_are_one_run(world: Path, tmp_path: Path) -> None:
    """As on two machines, which here are one."""
    from concurrent.futures import ThreadPoolExecutor

    file = LAUNCH_FILES / "2_nodes_16_gpus_deepspeed_zero2.yaml"
    common = ("--config_file", str(file), "--num_processes", "2", "--main_process_ip", "127.0.0.1")
    port = str(free_port())

    def machine(rank: int) -> subprocess.CompletedProcess[str]:
        options = (*common, "--machine_rank", str(rank))
        return start(world, tmp_path / "out", options, None, ("training.max_train_steps=1",), port=port)

    with ThreadPoolExecutor(2) as pool:
        output = list(pool.map(machine, range(2)))
    assert (tmp_path / "out" / "model.safetensors").is_file(), [why(done) for done in output]
    assert "2 processes (DeepSpeed ZeRO-2)" in output[0].stdout


@pytest.mark.slow
def test_a_launch_that_accelerate_would_turn_into_another_is_refused(world: Path, tmp_path: Path) -> None:
    zero2 = ("--config_file", str(LAUNCH_FILES / "4_gpus_deepspeed_zero2.yaml"), "--num_processes", "2")
    output = complaint(start(world, tmp_path / "out", zero2, ON_CPU))
    assert "asks for DeepSpeed but accelerate would train with DDP" in output
    twice = (*zero2, "--gradient_accumulation_steps", "2")
    output = complaint(start(world, tmp_path / "out", twice))
    assert "training.gradient_accumulation_steps=1" in output
    assert not (tmp_path / "out").exists()
