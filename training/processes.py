"""The processes of a run: which there are, how they share the model, and that they are what was asked for.

Everything comes from accelerate's launch file. A launch that accelerate would quietly turn into something else (one
process, or plain data parallel) is an error here, with the command that does what was meant.
"""

from __future__ import annotations

import os
import subprocess

import torch
import torch.utils._pytree as pytree
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.state import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, KwargsHandler
from torch.distributed.fsdp import MixedPrecisionPolicy
from transformers.integrations import unset_hf_deepspeed_config

from config.load import ConfigError
from config.schema import Job
from models.loss import Tally
from models.upvla import UPVLA, Losses


def start_processes(job: Job) -> Accelerator:
    """Accelerate's object for the launch that started this process, checked against what the launcher asked for."""
    _join_slurm_step()
    world = int(os.environ.get("WORLD_SIZE", "1"))
    deepspeed, fsdp = _asked("DEEPSPEED"), _asked("FSDP")
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
        accelerator = Accelerator(
            mixed_precision=job.training.mixed_precision,
            gradient_accumulation_steps=job.training.gradient_accumulation_steps,
            kwargs_handlers=handlers,
            # torchrun without a GPU would otherwise make independent runs; DeepSpeed would be switched off by the flag.
            cpu=on_cpu and not deepspeed,
        )
    except ValueError as error:  # bf16 on a GPU that cannot
        raise ConfigError(f"training.mixed_precision={job.training.mixed_precision}: {error}") from error
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


def tell_deepspeed(accelerator: Accelerator, job: Job) -> None:
    """DeepSpeed reads the batch size off a prepared loader (ours are not) and clips by its own configuration; the
    job's number counts there too. Called before the model is wrapped; nothing to do for other launches."""
    plugin = accelerator.state.deepspeed_plugin
    if plugin is not None:
        plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = job.training.batch_size_pre
        plugin.deepspeed_config["gradient_clipping"] = job.training.max_grad_norm or 0.0


def tell_fsdp(accelerator: Accelerator, model: UPVLA) -> None:
    """Which layers are units of sharding, and that gradients are added up in fp32 (accelerate would take 16 bits).
    Called before the model is wrapped; nothing to do for other launches."""
    if accelerator.distributed_type != DistributedType.FSDP:
        return
    plugin = accelerator.state.fsdp_plugin
    plugin.transformer_cls_names_to_wrap = sorted(model.backbone.lm._no_split_modules)
    low = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(accelerator.mixed_precision)
    plugin.mixed_precision_policy = MixedPrecisionPolicy(param_dtype=low, reduce_dtype=torch.float32)
    for output in (Tally, Losses):  # FSDP looks for the tensors in what forward returns
        if output not in pytree.SUPPORTED_NODES:
            pytree.register_dataclass(output)


def _join_slurm_step() -> None:
    """``srun --ntasks=N python train_upvla.py ...``: the tasks of a Slurm step are the processes of one run (DDP), with
    no launcher between. Under accelerate or torchrun the launcher has said already who is who."""
    env = os.environ
    tasks = int(env.get("SLURM_STEP_NUM_TASKS", "1"))
    if "WORLD_SIZE" in env or "SLURM_STEP_ID" not in env or tasks == 1:
        return
    env["WORLD_SIZE"], env["RANK"], env["LOCAL_RANK"] = str(tasks), env["SLURM_PROCID"], env["SLURM_LOCALID"]
    env.setdefault("MASTER_PORT", str(40000 + int(env["SLURM_JOB_ID"]) % 20000))
    if "MASTER_ADDR" not in env:
        env["MASTER_ADDR"] = "127.0.0.1" if env.get("SLURM_STEP_NUM_NODES", "1") == "1" else _first_node()


def _first_node() -> str:
    """Name of the node that runs rank 0 of this Slurm step."""
    command = ["scontrol", "show", "hostnames", os.environ["SLURM_STEP_NODELIST"]]
    try:
        names = subprocess.run(command, capture_output=True, check=True, encoding="utf-8").stdout.split()
    except (OSError, subprocess.CalledProcessError) as error:
        raise ConfigError(f"the first node of this Slurm step is not known ({error}): set MASTER_ADDR to it") from error
    return names[0]


def _asked(launcher: str) -> bool:
    return os.environ.get(f"ACCELERATE_USE_{launcher}", "false").lower() == "true"


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
    if kind != DistributedType.DEEPSPEED:
        return
    config = accelerator.state.deepspeed_plugin.deepspeed_config
    steps = config.get("gradient_accumulation_steps", "auto")
    if steps not in (
        "auto",
        settings.gradient_accumulation_steps,
    ):  # DeepSpeed would step after that many micro-batches
        raise ConfigError(
            f"training.gradient_accumulation_steps={settings.gradient_accumulation_steps}, but the launch file's "
            f"deepspeed_config says {steps}: leave it out there, or give both the same number"
        )
    autocast = config.get("torch_autocast", {}).get("enabled", False)
    if accelerator.mixed_precision != settings.mixed_precision and not autocast:
        raise ConfigError(
            f"training.mixed_precision={settings.mixed_precision}, but DeepSpeed's own configuration makes it "
            f"{accelerator.mixed_precision}: leave fp16 and bf16 out there"
        )
    if config.get("scheduler") is not None or config.get("optimizer") is not None:
        raise ConfigError(
            "DeepSpeed's own configuration names an optimizer or a scheduler: leave them out, the run's sections "
            "optimizer and lr_scheduler count"
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
