"""Start the processes of a run as its launcher asks, and check that accelerate does what was asked for.

Everything comes from accelerate's launch file. A launch that accelerate would silently turn into something else (one
process, or plain data parallel) is an error, with the command that does what was meant.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
import torch.utils._pytree as pytree
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.state import PartialState
from accelerate.utils import DistributedType, DynamoBackend, FullyShardedDataParallelPlugin, KwargsHandler
from torch.distributed.fsdp import MixedPrecisionPolicy
from transformers.integrations import unset_hf_deepspeed_config

from common.processes import ProcessRank, shown_variables, unset_command
from config.loading import ConfigError
from config.schema import Job
from models.losses import SumAndCount
from models.upvla import UPVLA, Losses
from training.distributed.launch_environment import check_environment, is_on

RENDEZVOUS_S = {"local": 45.0, "remote": 600.0}
"""Seconds that processes without a supervising launcher wait for each other, on one machine and on several."""
UNSUPPORTED_SECTIONS = (
    "amp",
    "msamp",
    "progressive_layer_drop",
    "curriculum_learning",
    "data_efficiency",
    "compression_training",
)
"""Sections of DeepSpeed's configuration that change the numbers of training and have no key in the job."""


def start_processes(job: Job) -> Accelerator:
    """Return the Accelerator of this launch. Raises ConfigError if it differs from what the launcher asks for."""
    place = check_environment(job)
    if "SLURM_STEP_NUM_TASKS" in place.variables:
        _join_slurm_step(place)
    world = place.world
    deepspeed, fsdp = (is_on(os.environ, f"ACCELERATE_USE_{name}") for name in ("DEEPSPEED", "FSDP"))
    device = job.training.device
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("training.device=cuda: torch sees no CUDA device here (allowed: auto, cpu, cuda)")
    on_cpu = device == "cpu" or not torch.cuda.is_available()
    if on_cpu and job.training.mixed_precision == "fp16":  # accelerate would silently train in fp32
        raise ConfigError("training.mixed_precision=fp16 needs a CUDA device; allowed on a CPU: no, bf16")
    if on_cpu and deepspeed and torch.cuda.is_available():
        raise ConfigError(
            "training.device=cpu: DeepSpeed takes the GPU where there is one; hide it (CUDA_VISIBLE_DEVICES=)"
        )
    handlers: list[KwargsHandler] = [DistributedDataParallelKwargs(find_unused_parameters=_has_unused_parameters(job))]
    if on_cpu and deepspeed and world > 1:
        # Without a GPU accelerate would start DeepSpeed with a world of one.
        handlers.append(InitProcessGroupKwargs(backend="gloo"))
    try:
        with _rendezvous_timeout(place):
            accelerator = Accelerator(
                mixed_precision=job.training.mixed_precision,
                gradient_accumulation_steps=job.training.gradient_accumulation_steps,
                kwargs_handlers=handlers,
                # Without this, torchrun on a CPU makes independent runs. With it, DeepSpeed would be off.
                cpu=on_cpu and not deepspeed,
            )
    except (ValueError, ImportError) as error:  # bf16 on a GPU without it, an invalid variable or file
        reason = " ".join(str(error).split())
        key = (
            f"training.mixed_precision={job.training.mixed_precision}" if "mixed precision" in reason else "the launch"
        )
        raise ConfigError(f"{key}: accelerate refuses it: {reason}") from error
    except dist.DistError as error:
        raise ConfigError(f"{_rendezvous_failed(place)} ({str(error).splitlines()[0]})") from error
    if accelerator.num_processes != world:
        raise ConfigError(
            f"the launcher started {world} processes but accelerate sees {accelerator.num_processes}: "
            "launch CPU processes with `ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes N`"
        )
    if accelerator.device.type == "cpu":  # accelerate calls it "cpu:0", which torch does not treat as equal to "cpu"
        PartialState().device = accelerator.state.device = torch.device("cpu")
    if deepspeed:
        # Accelerate configures transformers for ZeRO-3, which would then build sharded networks. Here DeepSpeed shards
        # the network after its weights are loaded.
        unset_hf_deepspeed_config()
    if fsdp and world > 1 and accelerator.distributed_type == DistributedType.MULTI_CPU:
        _shard_on_cpu(accelerator)
    _check(job, accelerator, world, deepspeed, fsdp)
    return accelerator


def _shard_on_cpu(accelerator: Accelerator) -> None:
    """Switch accelerate from DDP to FSDP2 on a CPU, so that launch files for GPUs can be tried without one.

    Accelerate supports FSDP on accelerators only and would silently train DDP. Torch's FSDP2 works over gloo. This sets
    the state that accelerate's constructor sets on a GPU.
    """
    plugin, state = FullyShardedDataParallelPlugin(), accelerator.state
    if accelerator.mixed_precision != "no":
        plugin.set_mixed_precision(accelerator.mixed_precision)
    state.fsdp_plugin = plugin
    state.distributed_type = DistributedType.FSDP
    PartialState._shared_state["distributed_type"] = DistributedType.FSDP


def describe(accelerator: Accelerator) -> str:
    """Return how the processes share the model: ``one process``, ``DDP``, ``DeepSpeed ZeRO-2``, ``FSDP2``."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        return f"DeepSpeed ZeRO-{accelerator.state.deepspeed_plugin.zero_stage}"
    if accelerator.distributed_type == DistributedType.FSDP:
        return f"FSDP{accelerator.state.fsdp_plugin.fsdp_version}"
    return "one process" if accelerator.distributed_type == DistributedType.NO else "DDP"


def format_launch(accelerator: Accelerator) -> str:
    """Return a text for the log: ``1 process``, ``2 processes (DDP)``."""
    many, kind = accelerator.num_processes, describe(accelerator)
    return f"{many} process{'' if many == 1 else 'es'}" + ("" if kind == "one process" else f" ({kind})")


def is_sharded(accelerator: Accelerator) -> bool:
    """Return True if each process holds only a shard of every parameter."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        return int(accelerator.state.deepspeed_plugin.zero_stage) == 3
    return bool(accelerator.distributed_type == DistributedType.FSDP)


def configure_deepspeed(accelerator: Accelerator, job: Job) -> None:
    """Set batch size, gradient clipping and the type of summed gradients in DeepSpeed's configuration.

    Called before the model is wrapped. DeepSpeed would read the batch size from a prepared data loader, which this
    project does not use, and would add up the gradients of micro-batches in 16 bits, unlike DDP and FSDP.
    """
    plugin = accelerator.state.deepspeed_plugin
    if plugin is not None:
        plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = job.training.batch_size_pre
        plugin.deepspeed_config["gradient_clipping"] = job.training.max_grad_norm or 0.0
        if accelerator.mixed_precision != "no":
            plugin.deepspeed_config.setdefault("data_types", {})["grad_accum_dtype"] = "fp32"


def configure_fsdp(accelerator: Accelerator, model: UPVLA) -> None:
    """Set the layers that FSDP shards as units, and sum gradients in fp32 (accelerate's default is 16 bits).

    Called before the model is wrapped.
    """
    if accelerator.distributed_type != DistributedType.FSDP:
        return
    plugin = accelerator.state.fsdp_plugin
    plugin.transformer_cls_names_to_wrap = sorted(model.backbone.lm._no_split_modules)
    low = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(accelerator.mixed_precision)
    plugin.mixed_precision_policy = MixedPrecisionPolicy(param_dtype=low, reduce_dtype=torch.float32)
    for output in (SumAndCount, Losses):  # FSDP searches tensors in the outputs of forward
        if output not in pytree.SUPPORTED_NODES:
            pytree.register_dataclass(output)


def _join_slurm_step(place: ProcessRank) -> None:
    """Make the tasks of a Slurm step the processes of one run: ``srun --ntasks=N python train_upvla.py ...`` (DDP).

    Under accelerate or torchrun the launcher has set these variables already.
    """
    env = os.environ
    job = env.get("SLURM_JOB_ID", "")
    if not job.isdecimal():
        raise ConfigError(
            f"{shown_variables(env, place.variables)} in the environment without SLURM_JOB_ID: the variables of a "
            f"Slurm step are left over; start by srun, or {unset_command(place.variables)}"
        )
    env["WORLD_SIZE"], env["RANK"], env["LOCAL_RANK"] = str(place.world), str(place.rank), str(place.local_rank)
    env["LOCAL_WORLD_SIZE"] = str(tasks_on_this_node(env))  # accelerate would set 1
    env.setdefault("MASTER_PORT", str(40000 + int(job) % 20000))
    if "MASTER_ADDR" not in env:
        env["MASTER_ADDR"] = "127.0.0.1" if env.get("SLURM_STEP_NUM_NODES", "1") == "1" else _first_node()


@contextmanager
def _rendezvous_timeout(place: ProcessRank) -> Iterator[None]:
    """End this process with one line if the others do not start in time; torch waits for half an hour.

    A launcher that supervises its processes (torchrun) needs no limit.
    """
    if place.world == 1 or "TORCHELASTIC_RUN_ID" in os.environ:
        yield
        return
    local = os.environ.get("MASTER_ADDR") in ("127.0.0.1", "localhost", "::1", socket.gethostname())
    limit = RENDEZVOUS_S["local" if local else "remote"]

    def exit_now() -> None:
        print(f"config error: {_rendezvous_failed(place)} (waited for {limit:.0f} s)", file=sys.stderr, flush=True)
        os._exit(2)

    timer = threading.Timer(limit, exit_now)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _rendezvous_failed(place: ProcessRank) -> str:
    names = (*place.variables, "MASTER_ADDR", "MASTER_PORT")
    return (
        f"{shown_variables(os.environ, names)} in the environment make this process one of {place.world}, but they do "
        "not come together: start all of them by accelerate launch, torchrun or srun; for a run of one process "
        f"{unset_command(place.variables)}"
    )


def tasks_on_this_node(env: Mapping[str, str]) -> int:
    """Return how many tasks of a Slurm step run on this node, from ``SLURM_STEP_TASKS_PER_NODE`` (``2(x3),1``)."""
    counts: list[int] = []
    for count, nodes in re.findall(r"(\d+)(?:\(x(\d+)\))?", env.get("SLURM_STEP_TASKS_PER_NODE", "")):
        counts += [int(count)] * int(nodes or 1)
    node = int(env.get("SLURM_NODEID") or 0)
    return counts[node] if node < len(counts) else int(env["SLURM_NTASKS"])


def _first_node() -> str:
    """Return the name of the node that runs rank 0 of this Slurm step."""
    command = ["scontrol", "show", "hostnames", os.environ["SLURM_STEP_NODELIST"]]
    try:
        names = subprocess.run(command, capture_output=True, check=True, encoding="utf-8").stdout.split()
    except (OSError, subprocess.CalledProcessError) as error:
        raise ConfigError(f"the first node of this Slurm step is not known ({error}): set MASTER_ADDR to it") from error
    return names[0]


def _check(job: Job, accelerator: Accelerator, world: int, deepspeed: bool, fsdp: bool) -> None:
    """Raise ConfigError for settings of the launch that accelerate would silently ignore."""
    kind, settings = accelerator.distributed_type, job.training
    if deepspeed and kind != DistributedType.DEEPSPEED:
        raise ConfigError(
            f"the launch file asks for DeepSpeed but accelerate would train with {describe(accelerator)}: "
            "leave out --cpu and ACCELERATE_USE_CPU (without a GPU DeepSpeed takes the CPU by itself)"
        )
    if fsdp and world > 1 and kind != DistributedType.FSDP:
        raise ConfigError(f"the launch file asks for FSDP but accelerate would train with {describe(accelerator)}")
    if kind == DistributedType.FSDP and accelerator.state.fsdp_plugin.fsdp_version != 2:
        raise ConfigError("the launch file asks for FSDP version 1; set fsdp_config.fsdp_version: 2")
    steps, compiled = accelerator.gradient_accumulation_steps, accelerator.state.dynamo_plugin.backend
    if steps != settings.gradient_accumulation_steps or compiled != DynamoBackend.NO:
        raise ConfigError(
            f"accelerate would train with gradient_accumulation_steps={steps} and dynamo_backend={compiled.value}, not "
            f"with training.gradient_accumulation_steps={settings.gradient_accumulation_steps} and dynamo_backend=NO: "
            "remove them from the launch file and the environment (ACCELERATE_*)"
        )
    if kind != DistributedType.DEEPSPEED:
        return
    config = accelerator.state.deepspeed_plugin.deepspeed_config
    _check_deepspeed(job, config, world)
    _check_deepspeed_precision(job, config, accelerator.mixed_precision)
    if config.get("scheduler") is not None or config.get("optimizer") is not None:
        raise ConfigError(
            "DeepSpeed's own configuration names an optimizer or a scheduler: leave them out, the run's sections "
            "optimizer and lr_scheduler count"
        )


def _check_deepspeed(job: Job, config: dict[str, Any], world: int) -> None:
    """Raise ConfigError if DeepSpeed's configuration contradicts keys of the job."""
    settings = job.training
    steps, rows = settings.gradient_accumulation_steps, settings.batch_size_pre
    same = {  # DeepSpeed would step after that many micro-batches
        "gradient_accumulation_steps": ("training.gradient_accumulation_steps", steps),
        "gradient_clipping": ("training.max_grad_norm", settings.max_grad_norm or 0.0),
        "train_micro_batch_size_per_gpu": ("training.batch_size_pre", rows),
        "train_batch_size": (f"training.batch_size_pre x accumulation x {world} process(es)", rows * steps * world),
    }
    for name, (key, value) in same.items():
        if config.get(name, "auto") not in ("auto", value) and not (name == "gradient_clipping" and not config[name]):
            raise ConfigError(
                f"{key}={value}, but the launch file's deepspeed_config has {name}={config[name]}: leave it out "
                "there, or give both the same number"
            )
    others = [name for name in UNSUPPORTED_SECTIONS if config.get(name) not in (None, {}, False)]
    others = [name for name in others if not isinstance(config[name], dict) or config[name].get("enabled", True)]
    if others:
        raise ConfigError(
            f"DeepSpeed's own configuration has {', '.join(others)}, which would change what is trained: remove "
            f"{'them' if len(others) > 1 else 'it'} there"
        )


def _check_deepspeed_precision(job: Job, config: dict[str, Any], precision: str) -> None:
    """Raise ConfigError if DeepSpeed's precision (``precision``, or torch's autocast) differs from the job's, or if
    gradients are not summed in float32."""
    wanted = job.training.mixed_precision
    autocast = config.get("torch_autocast") or {}
    if autocast.get("enabled"):
        dtype = str(autocast.get("dtype") or "the device's default").rpartition(".")[2]
        precision = {"bfloat16": "bf16", "float16": "fp16", "half": "fp16"}.get(dtype, dtype)
    if precision != wanted:
        raise ConfigError(
            f"training.mixed_precision={wanted}, but DeepSpeed's own configuration makes it {precision}: leave fp16, "
            "bf16 and torch_autocast out there, or let it name the same type"
        )
    summed = (config.get("data_types") or {}).get("grad_accum_dtype")
    if summed not in (None, "fp32"):
        raise ConfigError(
            f"DeepSpeed's own configuration has data_types.grad_accum_dtype={summed}: gradients are added up in fp32; "
            "remove it there"
        )


def _has_unused_parameters(job: Job) -> bool:
    """Return True if some steps do not use all trainable parameters. (Only then DDP has to search for them.)"""
    one_flow = job.dataset.und_type is None
    # In these modes the longer flow continues alone.
    uneven = not one_flow and job.dataset.combined_loader_mode in ("max_size", "sequential")
    unused_head = one_flow and job.training.pre_coeff == 0
    return uneven or unused_head
