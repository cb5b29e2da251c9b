"""Find the checkpoints of a training run, archive the files of an earlier run, and restore the optimizer.

    checkpoint-<step>/
        unwrapped_model/     the model that inference reads (``models.pretrained.model_io``); with
                             experiment.save_adapters_only, adapters without their base (``models.pretrained.adapters``)
        training_state/      the state for resuming: optimizer, gradient scaler, random numbers, per rank where needed
        metadata.json        the step, the position in the data, every file's size and checksum
        (``training.checkpointing.manifest``)

The learning rate is a function of the step, and the order of the data is a function of the position: neither has a
state. A checkpoint is written to a hidden folder and renamed when all of it is on the disk, so that a folder with its
final name is complete (``training.checkpointing.checkpointer``). A killed process leaves names that begin with
``.checkpoint-``.
"""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn
from torch.optim import Optimizer

from common.files import remove
from config.loading import ConfigError
from models.pretrained.folders import is_copy, model_files
from models.pretrained.weights_io import ADAPTERS_FILE
from training.checkpointing.manifest import Checkpoint, list_checkpoints, open_checkpoint
from training.checkpointing.optimizer_state import preserve_settings
from training.distributed.host_sync import HostComm
from training.distributed.reshard import state_folder
from training.metrics.logger import METRICS_FILE, WANDB_ID_FILE
from training.optim.lora import ADAPTER_FOLDER
from training.optim.optimizer import not_finite_moments

PARTIAL = ".checkpoint-*"
LEFTOVERS = ".*.tmp"
"""Temporary files of ``common.files.atomic_path`` that a killed process has left."""


def step_of(checkpoint: Path) -> int:
    """Return the step in the name of a checkpoint's folder."""
    return int(checkpoint.name.rpartition("-")[2])


def find_checkpoint(output_dir: Path, choice: bool | int | str) -> tuple[Checkpoint | None, list[str]]:
    """Return the checkpoint that ``experiment.resume_from_checkpoint`` selects, and notes for the log.

    ``latest`` skips damaged checkpoints with a note, and returns None if there is none (a requeued job is the same
    command as the first one). Raises FileNotFoundError or ValueError for a step or path that is missing or damaged.
    """
    if choice is False or choice is None or choice == "":
        return None, []
    if choice is True or choice == "latest":
        return _newest(output_dir)
    text = str(choice)
    path = output_dir / f"checkpoint-{text}" if text.isdecimal() else Path(text)
    if not path.is_dir():
        have = ", ".join(p.name for p in list_checkpoints(output_dir)) or "none"
        raise FileNotFoundError(
            f"experiment.resume_from_checkpoint={text}: there is no {path} "
            f"(checkpoints under {output_dir}: {have}; allowed: false, latest, a step, a path)"
        )
    checkpoint = open_checkpoint(path)
    return checkpoint, [f"continuing from {path} at step {checkpoint.step}"]


def _newest(output_dir: Path) -> tuple[Checkpoint | None, list[str]]:
    notes = []
    for path in reversed(list_checkpoints(output_dir)):
        try:
            checkpoint = open_checkpoint(path)
        except ValueError as error:
            notes.append(f"warning: skipping {path.name}: {error}")
            continue
        return checkpoint, [*notes, f"continuing from {path} at step {checkpoint.step}"]
    return None, [*notes, f"no checkpoint under {output_dir} to continue from: starting at step 0"]


def archive_previous_run(output_dir: Path, resumed: Checkpoint | None) -> list[str]:
    """Move the files of an earlier run to ``earlier-<n>/``, so that nothing is lost and two runs never mix.

    A run that resumes a checkpoint of ``output_dir`` keeps the older checkpoints and the records; newer and damaged
    checkpoints are moved. Any other run keeps nothing. The final model of an earlier run is moved first, because an
    output folder has one only after its run has finished; it is deleted if it is a copy of a checkpoint's model.

    Returns notes for the log.
    """
    notes = []
    for partial in sorted({*output_dir.glob(PARTIAL), *output_dir.glob(LEFTOVERS)}):
        if (reason := remove(partial)) is not None:
            notes.append(f"warning: {partial} is not needed any more and could not be deleted ({reason})")
    final = _final_model(output_dir)
    old = list_checkpoints(output_dir)
    if resumed is not None and resumed.path.resolve().parent == output_dir.resolve():
        old = [path for path in old if step_of(path) > resumed.step]
        note = f"moved to {{archive}}: {', '.join(p.name for p in old)} (newer than {resumed.path.name} or damaged)"
    else:
        old += [output_dir / name for name in ("logs", METRICS_FILE, WANDB_ID_FILE)]
        note = f"{output_dir} held an earlier run: moved to {{archive}}"
        if resumed is None:
            note += " (experiment.resume_from_checkpoint=latest continues it)"
    old = [path for path in old if path.exists()]
    if not old and final:
        note = f"moved to {{archive}}: the final model of an earlier run ({', '.join(path.name for path in final)})"
    old += reversed(final)
    if not old:
        return notes
    n = 1
    while (output_dir / f"earlier-{n}").exists():
        n += 1
    archive = output_dir / f"earlier-{n}"
    archive.mkdir()
    for path in reversed(old):  # newest first: after a kill, no checkpoint that stays is newer than one that was moved
        _move(path, archive / path.name)
    return [*notes, note.format(archive=archive)]


def _final_model(output_dir: Path) -> list[Path]:
    """Return the files of an earlier run's final model, weights first. A copy of the newest checkpoint's model is
    deleted instead."""
    files = [path for path in (*model_files(output_dir), output_dir / ADAPTER_FOLDER) if path.exists()]
    saved = list_checkpoints(output_dir)
    if not saved or not is_copy(output_dir, saved[-1] / "unwrapped_model"):
        return files
    for path in files:
        discard(path)
    return []


def discard(path: Path) -> None:
    """Rename a path to a hidden name and delete what can be deleted of it; the next start deletes the rest."""
    hidden = path.with_name(f".checkpoint-{path.name}.{secrets.token_hex(3)}.old")
    os.replace(path, hidden)
    remove(hidden)


def _move(path: Path, target: Path) -> None:
    """Move a path to another folder. The target of a relative link stays the same."""
    if path.is_symlink() and not os.path.isabs(os.readlink(path)):
        os.symlink(path.resolve(), target)
        path.unlink()
    else:
        os.replace(path, target)


def load_state(accelerator: Accelerator, checkpoint: Checkpoint, optimizer: Optimizer) -> None:
    """Restore optimizer, scaler and random numbers (the weights were loaded when the model was built).

    The settings of ``optimizer`` (the wrapped one) stay those of the job.
    """
    try:
        with state_folder(accelerator, checkpoint) as folder, preserve_settings(optimizer):
            accelerator.load_state(str(folder), **_load_options(accelerator, checkpoint))
    except ValueError as error:
        raise ConfigError(
            f"{checkpoint.path} was saved by a run that trained other parameters, so its optimizer state does not fit "
            f"({error}); load only its weights by model.showo.pretrained_model_path"
        ) from error


def _load_options(accelerator: Accelerator, checkpoint: Checkpoint) -> dict[str, bool]:
    """Return what DeepSpeed needs to load a state without the frozen weights."""
    adapters_only = (checkpoint.model_dir / ADAPTERS_FILE).is_file()
    deepspeed = accelerator.distributed_type == DistributedType.DEEPSPEED
    return {"load_module_strict": False} if adapters_only and deepspeed else {}


def require_finite_state(comm: HostComm, checkpoint: Checkpoint, optimizer: Optimizer, model: nn.Module) -> None:
    """Raise ConfigError on all ranks if the optimizer state that any of them restored holds NaN or infinity."""
    bad = sorted({name for names in comm.all_gather(not_finite_moments(optimizer, model)) for name in names})
    if bad:
        raise ConfigError(
            f"{checkpoint.state_dir} holds optimizer state that is not finite (NaN or infinity) in {len(bad)} tensors, "
            f"such as {bad[0]}; continue from an earlier checkpoint (experiment.resume_from_checkpoint=<step>)"
        )


def saved_progress(checkpoint: Checkpoint, rank: int, world: int) -> list[dict[str, Any]]:
    """Return the progress records that this rank continues: that of the same rank, and on rank 0 also those of ranks
    that do not exist any more."""
    processes = int(checkpoint.record.get("conditions", {}).get("processes", 1))
    own = [number for number in range(processes) if number == rank or (rank == 0 and number >= world)]
    files = [checkpoint.state_dir / f"progress_{number}.json" for number in own]
    return [json.loads(file.read_text(encoding="utf-8")) for file in files if file.is_file()]
