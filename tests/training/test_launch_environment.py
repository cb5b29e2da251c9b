"""Variables of launchers: what contradicts the job, or itself, is one line before torch is loaded."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from common.processes import ProcessRank, process_rank
from config.loading import ConfigError
from config.schema import Job
from tests.training.launches import ROOT
from tests.training.runs import forget_processes
from tests.training.world import argv, load
from training.distributed import launch
from training.distributed.launch import tasks_on_this_node
from training.distributed.launch_environment import check_environment

TORCHRUN = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511"}
STEP = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "7"}
DEEPSPEED = {"ACCELERATE_USE_DEEPSPEED": "true", **TORCHRUN}


@pytest.fixture
def job(world: Path, tmp_path: Path) -> Job:
    return load(world, tmp_path / "out")


@pytest.mark.parametrize(
    ("variable", "value", "key", "more"),
    [
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", "training.gradient_accumulation_steps=1", {}),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "auto", "training.gradient_accumulation_steps=1", {}),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "2", "training.gradient_accumulation_steps=1", DEEPSPEED),
        ("ACCELERATE_GRADIENT_CLIPPING", "0.5", "training.max_grad_norm=", DEEPSPEED),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", "training.compile=false", {}),
        ("ACCELERATE_DYNAMO_BACKEND", "nonsense", "training.compile=false", {}),
        ("ACCELERATE_MIXED_PRECISION", "fp8", "training.mixed_precision=no", {}),
        ("ACCELERATE_FP8_BACKEND", "MSAMP", "training.mixed_precision=no", DEEPSPEED),
        ("ACCELERATE_TORCH_DEVICE", "cuda", "training.device=cpu", {}),
        ("ACCELERATE_USE_MEGATRON_LM", "true", "FSDP2", {}),
        ("ACCELERATE_USE_PARALLELISM_CONFIG", "true", "FSDP2", {}),
        (
            "FSDP_ACTIVATION_CHECKPOINTING",
            "true",
            "model.gradient_checkpointing=false",
            {"ACCELERATE_USE_FSDP": "true"},
        ),
        ("FSDP_IGNORED_MODULES", "projector", "training.freeze=", {"ACCELERATE_USE_FSDP": "true"}),
    ],
)
def test_a_variable_that_would_win_over_the_job_is_refused_with_both_names(
    job: Job, variable: str, value: str, key: str, more: dict[str, str]
) -> None:
    with pytest.raises(ConfigError) as refused:
        check_environment(job, {**more, variable: value})
    output = str(refused.value)
    assert f"{variable}={value}" in output
    assert key in output
    assert f"unset {variable}" in output
    assert "\n" not in output


@pytest.mark.parametrize(
    "env",
    [
        {},
        {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1", "ACCELERATE_DYNAMO_BACKEND": "NO"},
        {"ACCELERATE_MIXED_PRECISION": "bf16", "ACCELERATE_USE_CPU": "true", **TORCHRUN},
        {"ACCELERATE_GRADIENT_CLIPPING": "0.0", **DEEPSPEED},
        {"ACCELERATE_GRADIENT_CLIPPING": "auto", **DEEPSPEED},
        {"ACCELERATE_GRADIENT_CLIPPING": "0.5"},  # read by DeepSpeed alone
        {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"},
        {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"},  # a batch script
        {"PMI_SIZE": "4", "PMI_RANK": "3", **STEP},  # srun sets them too
        {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "1", **TORCHRUN},
        {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"},
    ],
)
def test_what_launchers_set_and_what_changes_nothing_is_accepted(job: Job, env: dict[str, str]) -> None:
    check_environment(job, env)


def test_the_number_that_both_give_is_accepted(world: Path, tmp_path: Path) -> None:
    job = load(world, tmp_path / "out", training__gradient_accumulation_steps=4, training__max_grad_norm=0.5)
    env = {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4", "ACCELERATE_GRADIENT_CLIPPING": "0.5", **DEEPSPEED}
    assert check_environment(job, env) == ProcessRank(0, 2, 0, 1)


def test_what_accelerate_ends_up_with_is_compared_too(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """A way past the variables that are known here."""
    monkeypatch.setattr(launch, "check_environment", lambda job: ProcessRank())
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    forget_processes()
    try:
        with pytest.raises(ConfigError, match="gradient_accumulation_steps=4"):
            launch.start_processes(job)
    finally:
        forget_processes()


@pytest.mark.parametrize(
    ("config", "key"),
    [
        ({"gradient_accumulation_steps": 2}, "training.gradient_accumulation_steps=1"),
        ({"gradient_clipping": 0.25}, "training.max_grad_norm="),
        ({"train_micro_batch_size_per_gpu": 16}, "training.batch_size_pre=2"),
        ({"train_batch_size": 64}, "2 process(es)=4"),
        ({"progressive_layer_drop": {"enabled": True}}, "progressive_layer_drop"),
        ({"amp": {"enabled": True}}, "amp"),
    ],
)
def test_a_deepspeed_file_that_contradicts_the_job_is_refused(job: Job, config: dict[str, object], key: str) -> None:
    with pytest.raises(ConfigError) as refused:
        launch._check_deepspeed(job, config, world=2)
    assert key in str(refused.value)
    assert next(iter(config)) in str(refused.value)
    launch._check_deepspeed(job, {"gradient_clipping": 0.0, "train_batch_size": "auto", "amp": {"enabled": False}}, 2)


@pytest.mark.parametrize(
    ("wish", "engine", "config", "refused"),
    [
        ("bf16", "bf16", {}, None),
        ("bf16", "no", {"torch_autocast": {"enabled": True, "dtype": "bfloat16"}}, None),
        ("fp16", "no", {"torch_autocast": {"enabled": True, "dtype": "torch.float16"}}, None),
        ("bf16", "bf16", {"torch_autocast": {"enabled": False, "dtype": "float16"}}, None),
        ("bf16", "bf16", {"data_types": {"grad_accum_dtype": "fp32"}}, None),
        ("no", "bf16", {}, "makes it bf16"),
        ("no", "no", {"torch_autocast": {"enabled": True, "dtype": "bfloat16"}}, "makes it bf16"),
        ("bf16", "no", {"torch_autocast": {"enabled": True, "dtype": "float16"}}, "makes it fp16"),
        ("bf16", "no", {"torch_autocast": {"enabled": True}}, "makes it the device's default"),
        ("bf16", "bf16", {"data_types": {"grad_accum_dtype": "bf16"}}, "grad_accum_dtype=bf16"),
    ],
)
def test_a_deepspeed_file_computes_in_the_jobs_type(
    job: Job, wish: Any, engine: str, config: dict[str, Any], refused: str | None
) -> None:
    asked = replace(job, training=replace(job.training, mixed_precision=wish))
    if refused is None:
        launch._check_deepspeed_precision(asked, config, engine)
        return
    with pytest.raises(ConfigError, match=refused):
        launch._check_deepspeed_precision(asked, config, engine)


@pytest.mark.parametrize(("precision", "expected"), [("bf16", "fp32"), ("fp16", "fp32"), ("no", None)])
def test_deepspeed_sums_gradients_in_float32(job: Job, precision: str, expected: str | None) -> None:
    plugin = SimpleNamespace(deepspeed_config={})
    accelerator: Any = SimpleNamespace(state=SimpleNamespace(deepspeed_plugin=plugin), mixed_precision=precision)
    launch.configure_deepspeed(accelerator, job)
    assert plugin.deepspeed_config.get("data_types", {}).get("grad_accum_dtype") == expected


LEFTOVERS = [
    {"WORLD_SIZE": "4"},
    {"RANK": "1"},
    {"WORLD_SIZE": "two", "RANK": "0"},
    {"WORLD_SIZE": "2", "RANK": "2"},
    {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "2", "LOCAL_WORLD_SIZE": "2"},
    {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "1"},
    {"PMI_SIZE": "2", "PMI_RANK": "0"},
    {"MV2_COMM_WORLD_SIZE": "2", "MV2_COMM_WORLD_RANK": "0"},
    {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4"},
    {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "many", "SLURM_PROCID": "0"},
    {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "5"},
]


@pytest.mark.parametrize("env", LEFTOVERS)
def test_leftover_variables_of_launchers_are_named_with_the_remedy(job: Job, env: dict[str, str]) -> None:
    for look in (process_rank, lambda env: check_environment(job, env)):
        with pytest.raises(ValueError, match="unset ") as refused:
            look(env)
        output = str(refused.value)
        wrong = [name for name, value in env.items() if f"{name}={value}" in output]
        assert wrong, output
        assert "mixed_precision" not in output
        assert "\n" not in output


@pytest.mark.parametrize("env", [{"LOCAL_RANK": "0"}, {"RANK": "0"}, {"WORLD_SIZE": "2", "RANK": "0"}])
def test_training_needs_all_of_torchruns_variables_or_none(job: Job, env: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="MASTER_ADDR, MASTER_PORT") as refused:
        check_environment(job, env)
    assert f"unset {' '.join(sorted(env))}" in str(refused.value)


def test_a_port_without_a_rendezvous_is_refused(job: Job) -> None:
    with pytest.raises(ConfigError, match=r"^MASTER_PORT=0 "):
        check_environment(job, {**TORCHRUN, "MASTER_PORT": "0"})


def command(world: Path, tmp_path: Path, env: dict[str, str], *wrapped: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *(wrapped or ("train_upvla.py",)), *argv(world, tmp_path / "out")],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **env},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_a_leftover_is_one_line_before_torch_is_loaded(world: Path, tmp_path: Path) -> None:
    without_torch = (
        "-c",
        "import sys; sys.modules['torch'] = None; import train_upvla; from config.loading import main_or_exit;"
        "main_or_exit(train_upvla.main)",
    )
    done = command(world, tmp_path, {"WORLD_SIZE": "2"}, *without_torch)
    assert done.returncode == 2
    assert done.stderr.startswith("config error: WORLD_SIZE=2 in the environment")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("rank", ["0", "1"])
def test_processes_that_never_come_end_the_wait_with_one_line(world: Path, tmp_path: Path, rank: str) -> None:
    patched = (
        "-c",
        "import sys; sys.path.insert(0, '.'); import training.distributed.launch as p; p.RENDEZVOUS_S['local'] = 3.0;"
        "import train_upvla; from config.load import main_or_exit; main_or_exit(train_upvla.main)",
    )
    started = time.monotonic()
    done = command(world, tmp_path, {**TORCHRUN, "RANK": rank, "ACCELERATE_USE_CPU": "true"}, *patched)
    assert time.monotonic() - started < 120
    assert done.returncode == 2
    output = [line for line in done.stderr.splitlines() if line.startswith("config error:")]
    assert len(output) == 1
    assert f"RANK={rank} WORLD_SIZE=2" in output[0]
    assert "unset LOCAL_RANK RANK WORLD_SIZE" in output[0]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("node", "tasks"), [("0", 2), ("2", 2), ("3", 1)])
def test_a_slurm_step_gives_the_number_of_tasks_on_a_node(node: str, tasks: int) -> None:
    step = {"SLURM_NTASKS": "7", "SLURM_STEP_TASKS_PER_NODE": "2(x3),1", "SLURM_NODEID": node}
    assert tasks_on_this_node(step) == tasks
    assert tasks_on_this_node({"SLURM_NTASKS": "3"}) == 3
