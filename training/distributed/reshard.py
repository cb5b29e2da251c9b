"""Going on with another number of processes, or refusing to.

DDP keeps one optimizer state, and FSDP2's files are read by any number of processes. DeepSpeed's files belong to the
number of processes that wrote them; its own tool rewrites them parameter by parameter ("universal checkpoint"), moments
included. Between the three there is no way but the weights alone.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from accelerate import Accelerator
from torch import Tensor
from torch.optim import Optimizer

from config.loading import ConfigError
from training.checkpointing.manifest import Checkpoint
from training.distributed.launch import describe

ENGINE_FOLDER = "pytorch_model"
"""Where accelerate has DeepSpeed write its files, inside the training state."""
ONE_STATE = ("one process", "DDP")


def validate_resume(accelerator: Accelerator, checkpoint: Checkpoint | None) -> None:
    """See that the state in ``checkpoint`` can be gone on with in this launch, and prepare DeepSpeed for what it will
    read. Called before the model is wrapped. Raises ``ConfigError``."""
    if checkpoint is None:
        return
    had, now = _recorded(checkpoint, "sharing"), describe(accelerator)
    if had is not None and had != now and not {had, now} <= set(ONE_STATE):
        raise ConfigError(
            f"{checkpoint.path} was saved under {had}, this launch is {now}: their optimizer states cannot be turned "
            f"into each other. Launch as before, or start anew from its weights with "
            f"experiment.resume_from_checkpoint=false model.showo.load_from_showo=true "
            f"model.showo.pretrained_model_path={checkpoint.path}"
        )
    if _written_for_others(accelerator, checkpoint):
        accelerator.state.deepspeed_plugin.deepspeed_config["checkpoint"] = {"load_universal": True}


@contextmanager
def state_folder(accelerator: Accelerator, checkpoint: Checkpoint) -> Iterator[Path]:
    """The training state in a form that this number of processes reads: as it was saved, or rewritten into a folder
    beside the checkpoint that is removed afterwards. All ranks see the same file system."""
    if not _written_for_others(accelerator, checkpoint):
        yield checkpoint.state_dir
        return
    beside = checkpoint.path.with_name(f".{checkpoint.path.name}.regrouped")
    if accelerator.is_main_process:
        _rewrite(checkpoint, beside)
    accelerator.wait_for_everyone()
    if not (beside / ENGINE_FOLDER).is_dir():
        raise ConfigError(
            f"{checkpoint.path} could not be rewritten for {accelerator.num_processes} process(es); go on with "
            f"{_recorded(checkpoint, 'processes')}"
        )
    inner = accelerator.deepspeed_engine_wrapped.engine.optimizer.optimizer  # ours, inside DeepSpeed's
    decays = [group["weight_decay"] for group in inner.param_groups]
    try:
        yield beside
        _mend(inner, decays)
    finally:
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            shutil.rmtree(beside, ignore_errors=True)


def _mend(optimizer: Optimizer, decays: Sequence[float]) -> None:
    """Reading a rewritten ZeRO-3 state, DeepSpeed (0.19) gives all groups the settings of the first, weight decay
    included, and all of them one step counter, which then counts once for every group."""
    for group, decay in zip(optimizer.param_groups, decays, strict=True):
        group["weight_decay"] = decay
    for state in optimizer.state.values():
        if isinstance(state.get("step"), Tensor):
            state["step"] = state["step"].clone()


def _written_for_others(accelerator: Accelerator, checkpoint: Checkpoint) -> bool:
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
    """DeepSpeed's files anew, everything else of the training state as it is."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(checkpoint.state_dir, target, ignore=shutil.ignore_patterns(ENGINE_FOLDER))
    made = target / "unfinished"
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state"]
    command += ["--input_folder", str(checkpoint.state_dir / ENGINE_FOLDER), "--output_folder", str(made)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8")
    if done.returncode == 0:
        made.rename(target / ENGINE_FOLDER)
    else:
        print(done.stderr[-2000:], file=sys.stderr)
