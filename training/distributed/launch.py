"""The processes of a run: which there are, how they share the model, and that they are what was asked for.

Everything comes from accelerate's launch file. A launch that accelerate would quietly turn into something else (one
process, or plain data parallel) is an error here, with the command that does what was meant.
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

MEETING_S = {"here": 45.0, "elsewhere": 600.0}
"""Seconds that processes without a watching launcher wait for each other, on one machine and on several."""
OTHER_TRAINING = (
    "amp",
    "msamp",
    "progressive_layer_drop",
    "curriculum_learning",
    "data_efficiency",
    "compression_training",
)
"""Sections of DeepSpeed's configuration that change the numbers of training and have no key of the job."""


def start_processes(job: Job) -> Accelerator:
    """Accelerate's object for the launch that started this process, checked against what the launcher asked for."""
    place = check_environment(job)
    if "SLURM_STEP_NUM_TASKS" in place.variables:
        _join_slurm_step(place)
    world = place.world
    deepspeed, fsdp = (is_on(os.environ, f"ACCELERATE_USE_{name}") for name in ("DEEPSPEED", "FSDP"))
    wish = job.training.device
    if wish == "cuda" and not torch.cuda.is_available():
        raise ConfigError("training.device=cuda: torch sees no CUDA device here (allowed: auto, cpu, cuda)")
    on_cpu = wish == "cpu" or not torch.cuda.is_available()
    if on_cpu and job.training.mixed_precision == "fp16":  # accelerate would quietly train in fp32
        raise ConfigError("training.mixed_precision=fp16 needs a CUDA device; allowed on a CPU: no, bf16")
    if on_cpu and deepspeed and torch.cuda.is_available():
        raise ConfigError(
            "training.device=cpu: DeepSpeed takes the GPU where there is one; hide it (CUDA_VISIBLE_DEVICES=)"
        )
    handlers: list[KwargsHandler] = [DistributedDataParallelKwargs(find_unused_parameters=_skips_parameters(job))]
    if on_cpu and deepspeed and world > 1:
        # Without a GPU accelerate would start DeepSpeed with a world of one.
        handlers.append(InitProcessGroupKwargs(backend="gloo"))
    try:
        with _meeting(place):
            accelerator = Accelerator(
                mixed_precision=job.training.mixed_precision,
                gradient_accumulation_steps=job.training.gradient_accumulation_steps,
                kwargs_handlers=handlers,
                # torchrun without a GPU would otherwise make independent runs; it would switch DeepSpeed off.
                cpu=on_cpu and not deepspeed,
            )
    except (ValueError, ImportError) as error:  # bf16 on a GPU that cannot, a variable or file that makes no sense
        why = " ".join(str(error).split())
        key = f"training.mixed_precision={job.training.mixed_precision}" if "mixed precision" in why else "the launch"
        raise ConfigError(f"{key}: accelerate refuses it: {why}") from error
    except dist.DistError as error:
        raise ConfigError(f"{_cannot_meet(place)} ({str(error).splitlines()[0]})") from error
    if accelerator.num_processes != world:
        raise ConfigError(
            f"the launcher started {world} processes but accelerate sees {accelerator.num_processes}: "
            "launch CPU processes with `ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes N`"
        )
    if accelerator.device.type == "cpu":  # accelerate numbers it, and torch takes "cpu:0" for another device than "cpu"
        PartialState().device = accelerator.state.device = torch.device("cpu")
    if deepspeed:
        # Accelerate tells transformers of ZeRO-3, which then builds a network already in parts; ours is filled with
        # weights first, and taken to pieces by DeepSpeed itself.
        unset_hf_deepspeed_config()
    if fsdp and world > 1 and accelerator.distributed_type == DistributedType.MULTI_CPU:
        _fsdp_on_cpu(accelerator)
    _check(job, accelerator, world, deepspeed, fsdp)
    return accelerator


def describe(accelerator: Accelerator) -> str:
    """How the processes share the model: ``one process``, ``DDP``, ``DeepSpeed ZeRO-2``, ``FSDP2``."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        return f"DeepSpeed ZeRO-{accelerator.state.deepspeed_plugin.zero_stage}"
    if accelerator.distributed_type == DistributedType.FSDP:
        return f"FSDP{accelerator.state.fsdp_plugin.fsdp_version}"
    return "one process" if accelerator.distributed_type == DistributedType.NO else "DDP"


def told(accelerator: Accelerator) -> str:
    """For the user: ``1 process``, ``2 processes (DDP)``."""
    many, kind = accelerator.num_processes, describe(accelerator)
    return f"{many} process{'' if many == 1 else 'es'}" + ("" if kind == "one process" else f" ({kind})")


def is_sharded(accelerator: Accelerator) -> bool:
    """Does each process hold only a part of every parameter?"""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        return int(accelerator.state.deepspeed_plugin.zero_stage) == 3
    return bool(accelerator.distributed_type == DistributedType.FSDP)


def configure_deepspeed(accelerator: Accelerator, job: Job) -> None:
    """DeepSpeed reads the batch size off a prepared loader (ours are not) and clips by its own configuration; the
    job's number counts there too. Called before the model is wrapped; nothing to do for other launches."""
    plugin = accelerator.state.deepspeed_plugin
    if plugin is not None:
        plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = job.training.batch_size_pre
        plugin.deepspeed_config["gradient_clipping"] = job.training.max_grad_norm or 0.0


def configure_fsdp(accelerator: Accelerator, model: UPVLA) -> None:
    """Which layers are units of sharding, and that gradients are added up in fp32 (accelerate would take 16 bits).
    Called before the model is wrapped; nothing to do for other launches."""
    if accelerator.distributed_type != DistributedType.FSDP:
        return
    plugin = accelerator.state.fsdp_plugin
    plugin.transformer_cls_names_to_wrap = sorted(model.backbone.lm._no_split_modules)
    low = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(accelerator.mixed_precision)
    plugin.mixed_precision_policy = MixedPrecisionPolicy(param_dtype=low, reduce_dtype=torch.float32)
    for output in (SumAndCount, Losses):  # FSDP looks for the tensors in what forward returns
        if output not in pytree.SUPPORTED_NODES:
            pytree.register_dataclass(output)


def _join_slurm_step(place: ProcessRank) -> None:
    """``srun --ntasks=N python train_upvla.py ...``: the tasks of a Slurm step are the processes of one run (DDP), with
    no launcher between. Under accelerate or torchrun the launcher has said already who is who."""
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
def _meeting(place: ProcessRank) -> Iterator[None]:
    """End this process with one line if the others do not come: torch waits for half an hour. A launcher that watches
    its processes (torchrun) needs no limit."""
    if place.world == 1 or "TORCHELASTIC_RUN_ID" in os.environ:
        yield
        return
    here = os.environ.get("MASTER_ADDR") in ("127.0.0.1", "localhost", "::1", socket.gethostname())
    limit = MEETING_S["here" if here else "elsewhere"]

    def end() -> None:
        print(f"config error: {_cannot_meet(place)} (waited for {limit:.0f} s)", file=sys.stderr, flush=True)
        os._exit(2)

    timer = threading.Timer(limit, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _cannot_meet(place: ProcessRank) -> str:
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
    """Name of the node that runs rank 0 of this Slurm step."""
    command = ["scontrol", "show", "hostnames", os.environ["SLURM_STEP_NODELIST"]]
    try:
        names = subprocess.run(command, capture_output=True, check=True, encoding="utf-8").stdout.split()
    except (OSError, subprocess.CalledProcessError) as error:
        raise ConfigError(f"the first node of this Slurm step is not known ({error}): set MASTER_ADDR to it") from error
    return names[0]


def _check(job: Job, accelerator: Accelerator, world: int, deepspeed: bool, fsdp: bool) -> None:
    """What accelerate passes over in silence."""
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
    """Numbers and sections of DeepSpeed's configuration that stand for keys of the job."""
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
                f"{key}={value}, but the launch file's deepspeed_config says {name}={config[name]}: leave it out "
                "there, or give both the same number"
            )
    others = [name for name in OTHER_TRAINING if config.get(name) not in (None, {}, False)]
    others = [name for name in others if not isinstance(config[name], dict) or config[name].get("enabled", True)]
    if others:
        raise ConfigError(
            f"DeepSpeed's own configuration has {', '.join(others)}, which would change what is trained: remove "
            f"{'them' if len(others) > 1 else 'it'} there"
        )


def _check_deepspeed_precision(job: Job, config: dict[str, Any], precision: str) -> None:
    """The type that matrices are computed in, by DeepSpeed's engine (``precision``) or by torch's autocast in it, is
    the job's, and gradients are added up in float32."""
    wish = job.training.mixed_precision
    autocast = config.get("torch_autocast") or {}
    if autocast.get("enabled"):
        said = str(autocast.get("dtype") or "the device's default").rpartition(".")[2]
        precision = {"bfloat16": "bf16", "float16": "fp16", "half": "fp16"}.get(said, said)
    if precision != wish:
        raise ConfigError(
            f"training.mixed_precision={wish}, but DeepSpeed's own configuration makes it {precision}: leave fp16, "
            "bf16 and torch_autocast out there, or let it name the same type"
        )
    summed = (config.get("data_types") or {}).get("grad_accum_dtype")
    if summed not in (None, "fp32"):
        raise ConfigError(
            f"DeepSpeed's own configuration has data_types.grad_accum_dtype={summed}: gradients are added up in fp32; "
            "remove it there"
        )


def _fsdp_on_cpu(accelerator: Accelerator) -> None:
    """Accelerate has FSDP for accelerators only and would run DDP. Torch's FSDP2 itself works over gloo, so this says
    to accelerate what its own constructor would have said had it found a GPU: all of its FSDP code then runs."""
    plugin, state = FullyShardedDataParallelPlugin(), accelerator.state
    if accelerator.mixed_precision != "no":
        plugin.set_mixed_precision(accelerator.mixed_precision)
    state.fsdp_plugin = plugin
    state.distributed_type = DistributedType.FSDP
    PartialState._shared_state["distributed_type"] = DistributedType.FSDP


def _skips_parameters(job: Job) -> bool:
    """Are there steps in which a trainable parameter takes no part? (DDP has to look for them only then.)"""
    one_flow = job.dataset.und_type is None
    # In these modes the longer flow goes on alone.
    uneven = not one_flow and job.dataset.combined_loader_mode in ("max_size", "sequential")
    silent_head = one_flow and job.training.pre_coeff == 0
    return uneven or silent_head
