"""Resume with another number of processes, or refuse to.

DDP keeps one optimizer state, and FSDP2's files are read by any number of processes. DeepSpeed's files belong to the
number of processes that wrote them; its own tool rewrites them parameter by parameter ("universal checkpoint"), moments
included. States cannot be converted between the three; only the weights can be reused.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from accelerate import Accelerator
from packaging.version import Version
from torch import Tensor
from torch.optim import Optimizer

from config.loading import ConfigError
from training.checkpointing.manifest import Checkpoint
from training.distributed.host_sync import HostComm
from training.distributed.launch import describe

ENGINE_FOLDER = "pytorch_model"
"""Folder of DeepSpeed's files inside the training state (accelerate's name)."""
ONE_STATE = ("one process", "DDP")
"""Launches that share one format of the optimizer state."""
REPAIRED_DEEPSPEED = Version("0.20")
"""DeepSpeed versions below this one are known to load group settings wrongly (``_repair_param_groups``)."""


def validate_resume(accelerator: Accelerator, checkpoint: Checkpoint | None) -> None:
    """Check that this launch can load the state in ``checkpoint``, and configure DeepSpeed for its format.

    Called before the model is wrapped. Raises ConfigError.
    """
    if checkpoint is None:
        return
    before, now = _recorded(checkpoint, "sharing"), describe(accelerator)
    if before is not None and before != now and not {before, now} <= set(ONE_STATE):
        raise ConfigError(
            f"{checkpoint.path} was saved under {before}, this launch is {now}: their optimizer states cannot be "
            f"turned into each other. Launch as before, or start a new run from its weights with "
            f"experiment.resume_from_checkpoint=false model.showo.load_from_showo=true "
            f"model.showo.pretrained_model_path={checkpoint.path}"
        )
    if _world_size_changed(accelerator, checkpoint):
        accelerator.state.deepspeed_plugin.deepspeed_config["checkpoint"] = {"load_universal": True}


@contextmanager
def state_folder(accelerator: Accelerator, checkpoint: Checkpoint) -> Iterator[Path]:
    """Yield the folder of the training state in a format for this number of processes.

    If DeepSpeed's files have to be rewritten, this is a temporary folder next to the checkpoint. All ranks share a file
    system.
    """
    if not _world_size_changed(accelerator, checkpoint):
        yield checkpoint.state_dir
        return
    folder = checkpoint.path.with_name(f".{checkpoint.path.name}.regrouped")
    HostComm(accelerator).run_on_main(lambda: _rewrite(checkpoint, folder))
    if not (folder / ENGINE_FOLDER).is_dir():
        raise ConfigError(
            f"{checkpoint.path} could not be rewritten for {accelerator.num_processes} process(es); resume with "
            f"{_recorded(checkpoint, 'processes')}"
        )
    optimizer = accelerator.deepspeed_engine_wrapped.engine.optimizer.optimizer  # ours, inside DeepSpeed's
    decays = [group["weight_decay"] for group in optimizer.param_groups]
    try:
        yield folder
        _repair_param_groups(optimizer, decays)
    finally:
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            shutil.rmtree(folder, ignore_errors=True)


def _repair_param_groups(optimizer: Optimizer, decays: Sequence[float]) -> None:
    """Restore the weight decay of each group and give each parameter a step counter of its own.

    After loading a rewritten ZeRO-3 state, DeepSpeed 0.19 gives all groups the settings of the first one, weight decay
    included, and all parameters one shared step counter, which then counts once for every group. Newer versions are not
    repaired but checked.
    """
    import deepspeed

    steps = [state["step"] for state in optimizer.state.values() if isinstance(state.get("step"), Tensor)]
    if Version(deepspeed.__version__) >= REPAIRED_DEEPSPEED:
        if [g["weight_decay"] for g in optimizer.param_groups] != list(decays) or len({*map(id, steps)}) < len(steps):
            raise ConfigError(
                f"DeepSpeed {deepspeed.__version__} loads the optimizer state of another number of processes wrongly; "
                f"resume with that number of processes, or with DeepSpeed below {REPAIRED_DEEPSPEED}"
            )
        return
    for group, decay in zip(optimizer.param_groups, decays, strict=True):
        group["weight_decay"] = decay
    for state in optimizer.state.values():
        if isinstance(state.get("step"), Tensor):
            state["step"] = state["step"].clone()


def _world_size_changed(accelerator: Accelerator, checkpoint: Checkpoint) -> bool:
    """Return True if DeepSpeed has to load files of another number of processes."""
    processes = _recorded(checkpoint, "processes")
    return (
        describe(accelerator).startswith("DeepSpeed")
        and processes is not None
        and int(processes) != accelerator.num_processes
    )


def _recorded(checkpoint: Checkpoint, name: str) -> str | None:
    value = checkpoint.record.get("conditions", {}).get(name)
    return None if value is None else str(value)


def _rewrite(checkpoint: Checkpoint, target: Path) -> None:
    """Copy a training state to ``target`` with DeepSpeed's files in its universal format."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(checkpoint.state_dir, target, ignore=shutil.ignore_patterns(ENGINE_FOLDER))
    partial = target / "unfinished"
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state"]
    command += ["--input_folder", str(checkpoint.state_dir / ENGINE_FOLDER), "--output_folder", str(partial)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8")
    if done.returncode == 0:
        partial.rename(target / ENGINE_FOLDER)
    else:
        print(done.stderr[-2000:], file=sys.stderr)
