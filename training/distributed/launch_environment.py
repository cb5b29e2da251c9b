"""Compare the variables that accelerate reads with the run's configuration.

Accelerate reads variables (``accelerate launch`` sets them from the launch file), some of which override the arguments
of its constructor. Needs no torch, so that a contradiction is reported at once.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from common.processes import ProcessRank, process_rank, shown_variables, unset_command
from config.loading import ConfigError
from config.schema import Job

OTHER_LAUNCHERS = ("ACCELERATE_USE_MEGATRON_LM", "ACCELERATE_USE_PARALLELISM_CONFIG", "ACCELERATE_USE_SAGEMAKER")
RENDEZVOUS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""Variables that torch needs to connect the processes of a run."""


def is_on(env: Mapping[str, str], name: str) -> bool:
    """Return True if accelerate reads this variable as true."""
    return env.get(name, "").strip().lower() in ("1", "true", "t", "yes", "y", "on")


def check_environment(job: Job, env: Mapping[str, str] = os.environ) -> ProcessRank:
    """Return the rank of this process. Raises ConfigError if the environment contradicts the job or itself."""
    place = check_launcher(env)
    _check_step(job, env)
    _check_other_modes(job, env)
    return place


def check_launcher(env: Mapping[str, str] = os.environ) -> ProcessRank:
    """Return the rank of this process. Raises ConfigError if a launcher's variables are incomplete or contradictory."""
    try:
        place = process_rank(env)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    _check_rendezvous(env, place)
    return place


def _check_rendezvous(env: Mapping[str, str], place: ProcessRank) -> None:
    """Check that torchrun's variables are complete; those of a Slurm step are completed later."""
    given = [name for name in RENDEZVOUS[:3] if name in env]
    missing = [name for name in RENDEZVOUS if not env.get(name)]
    by_slurm = "SLURM_STEP_NUM_TASKS" in place.variables
    if given and missing and not by_slurm:
        raise ConfigError(
            f"{shown_variables(env, given)} in the environment without {', '.join(missing)}: variables of a launcher "
            f"are left over or incomplete; start by accelerate launch, torchrun or srun, or {unset_command(given)}"
        )
    if given and not by_slurm and place.world > 1 and env["MASTER_PORT"].strip() == "0":
        raise ConfigError(
            "MASTER_PORT=0 in the environment: the processes cannot find each other; give torchrun --standalone or a "
            "port (--master-port=29500)"
        )
    if is_on(env, "ACCELERATE_USE_DEEPSPEED") and "LOCAL_RANK" not in env and not by_slurm:
        raise ConfigError(
            "ACCELERATE_USE_DEEPSPEED=true in the environment, but no launcher started this process: start it by "
            f"accelerate launch, or {unset_command(['ACCELERATE_USE_DEEPSPEED'])}"
        )


def _check_step(job: Job, env: Mapping[str, str]) -> None:
    """Check variables that change an optimizer step."""
    settings = job.training
    _require_same(
        env,
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS",
        "training.gradient_accumulation_steps",
        settings.gradient_accumulation_steps,
    )
    limit = 0.0 if settings.max_grad_norm is None else settings.max_grad_norm
    if is_on(env, "ACCELERATE_USE_DEEPSPEED"):
        _require_same(env, "ACCELERATE_GRADIENT_CLIPPING", "training.max_grad_norm", limit, silent=("auto", 0))
    _refuse(env, "ACCELERATE_DYNAMO_BACKEND", ("", "no"), "training.compile", settings.compile)
    _refuse(env, "ACCELERATE_FP8_BACKEND", ("", "no"), "training.mixed_precision", settings.mixed_precision)
    if env.get("ACCELERATE_MIXED_PRECISION", "").strip().lower() == "fp8":
        _refuse(env, "ACCELERATE_MIXED_PRECISION", (), "training.mixed_precision", settings.mixed_precision)


def _check_other_modes(job: Job, env: Mapping[str, str]) -> None:
    """Check variables that select the device and the sharding."""
    device = job.training.device
    if device == "cuda" and is_on(env, "ACCELERATE_USE_CPU"):
        _refuse(env, "ACCELERATE_USE_CPU", (), "training.device", device)
    _refuse(env, "ACCELERATE_TORCH_DEVICE", ("", "cpu") if device == "cpu" else ("",), "training.device", device)
    for name in OTHER_LAUNCHERS:
        if is_on(env, name):
            raise ConfigError(
                f"{name}={env[name]} (environment or launch file): this project trains with one process, DDP, "
                f"DeepSpeed or FSDP2; choose another launch file (accelerate_configs/), or {unset_command([name])}"
            )
    if not is_on(env, "ACCELERATE_USE_FSDP"):
        return
    if is_on(env, "FSDP_ACTIVATION_CHECKPOINTING"):
        key, value = "model.gradient_checkpointing", job.model.gradient_checkpointing
        _refuse(env, "FSDP_ACTIVATION_CHECKPOINTING", (), key, value)
    _refuse(env, "FSDP_IGNORED_MODULES", ("", "none"), "training.freeze", job.training.freeze)


def _refuse(env: Mapping[str, str], name: str, allowed: tuple[str, ...], key: str, value: object) -> None:
    """Raise ConfigError if a variable that the key replaces has a value that is not ``allowed``."""
    text = env.get(name)
    if text is None or text.strip().lower() in allowed:
        return
    raise ConfigError(
        f"{name}={text} (environment or launch file), but {key}={_plain(value)}, which alone decides: "
        f"{unset_command([name])}, or remove it from the launch file"
    )


def _require_same(
    env: Mapping[str, str], name: str, key: str, value: float, silent: tuple[str | float, ...] = ()
) -> None:
    """Raise ConfigError if a variable contradicts the number of its key. ``silent`` values defer to the key."""
    text = env.get(name, "").strip()
    try:
        number: str | float = float(text)
    except ValueError:
        number = text.lower()
    if text and number != value and number not in silent:
        raise ConfigError(
            f"{name}={text} (environment or launch file), but {key}={_plain(value)}: {unset_command([name])}, remove "
            "it from the launch file, or give both the same number"
        )


def _plain(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
