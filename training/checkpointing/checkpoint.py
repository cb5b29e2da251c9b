"""Checkpoints of a training run: written whole or not at all, found again, and the state in them restored.

    checkpoint-<step>/
        unwrapped_model/     all that acting needs (``models.pretrained.model_io``)
        training_state/      all that resuming needs: optimizer, gradient scaler, random numbers, per rank where needed
        metadata.json        the step, the place in the data, every file's size and checksum
        (``training.checkpointing.manifest``)

The learning rate is a function of the step, and the order of the data one of the place in it: neither has a state. A
checkpoint is written to a hidden folder first, and renamed when all of it is on the disk, so that a folder with its
final name is a whole one. What a kill leaves half done has a name that begins with ``.checkpoint-``.
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from safetensors import SafetensorError
from torch import nn
from torch.optim import Optimizer
from tqdm import tqdm

from common.files import flush, remove, retire
from config.loading import ConfigError
from config.schema import Job
from models.pretrained.folders import is_copy, model_files
from models.pretrained.model_io import WEIGHTS_FILE
from training.checkpointing.manifest import Checkpoint, open_checkpoint, told_position, write_manifest
from training.checkpointing.optimizer_state import settings_kept
from training.data.dataloader import CotrainLoader
from training.data.sampling_order import ORDER_VERSION, Position
from training.distributed.host_sync import HostComm
from training.distributed.launch import describe
from training.distributed.reshard import state_folder
from training.metrics_logger import METRICS_FILE, WANDB_ID_FILE
from training.optim.lora import ADAPTER_FOLDER
from training.optim.optimizer import not_finite_moments

NAME = re.compile(r"checkpoint-(\d+)")
HALF_DONE = ".checkpoint-*"
UNWRITABLE = (OSError, SafetensorError, RuntimeError)
"""What a disk that takes no more looks like through the file formats' libraries, ..."""
TORCHS_WRITER = "inline_container"
"""... the last with this word in it."""
NO_SPACE = 1 << 20


def list_checkpoints(output_dir: Path) -> list[Path]:
    """The ``checkpoint-<step>`` folders of a run, oldest first, whole or not."""
    found = [(int(m[1]), p) for p in output_dir.glob("checkpoint-*") if p.is_dir() and (m := NAME.fullmatch(p.name))]
    return [path for _, path in sorted(found)]


def find_checkpoint(output_dir: Path, wish: bool | int | str) -> tuple[Checkpoint | None, list[str]]:
    """What ``experiment.resume_from_checkpoint`` asks for, and notes to tell the user.

    ``latest`` passes over damaged ones with a note, and starts from zero when there is none (so that a requeued job
    is the same command as the first). A step or a path that is not there or damaged is an error.
    """
    if wish is False or wish is None or wish == "":
        return None, []
    if wish is True or wish == "latest":
        return _newest(output_dir)
    text = str(wish)
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


def set_aside(output_dir: Path, resumed: Checkpoint | None) -> list[str]:
    """Leave in ``output_dir`` what belongs to the run that begins now, and move the rest to ``earlier-<n>/``: nothing
    is lost, two runs never mix, and no checkpoint of another past stands before those to come.

    A run that continues one of the checkpoints there keeps those before it and the records; newer ones, damaged ones
    among them, go. Any other run keeps nothing.

    The final model of an earlier run goes first: an output folder has one only after its run has finished. A copy of
    a checkpoint's model is deleted, any other is moved.
    """
    notes = []
    for half in sorted(output_dir.glob(HALF_DONE)):
        if (why := remove(half)) is not None:
            notes.append(f"warning: {half} is not needed any more and could not be deleted ({why})")
    final = _final_model(output_dir)
    left = list_checkpoints(output_dir)
    if resumed is not None and resumed.path.resolve().parent == output_dir.resolve():
        left = [path for path in left if int(path.name.rpartition("-")[2]) > resumed.step]
        why = f"moved to {{aside}}: {', '.join(path.name for path in left)} (newer than {resumed.path.name} or damaged)"
    else:
        left += [output_dir / name for name in ("logs", METRICS_FILE, WANDB_ID_FILE)]
        why = f"{output_dir} held an earlier run: moved to {{aside}}"
        if resumed is None:
            why += " (experiment.resume_from_checkpoint=latest continues it)"
    left = [path for path in left if path.exists()]
    if not left and final:
        why = f"moved to {{aside}}: the final model of an earlier run ({', '.join(path.name for path in final)})"
    left += reversed(final)
    if not left:
        return notes
    n = 1
    while (output_dir / f"earlier-{n}").exists():
        n += 1
    aside = output_dir / f"earlier-{n}"
    aside.mkdir()
    for path in reversed(left):  # newest first: whatever is left after a kill, the newest of it is no older than before
        _move(path, aside / path.name)
    return [*notes, why.format(aside=aside)]


def _final_model(output_dir: Path) -> list[Path]:
    """Return the files of an earlier run's final model, weights first. A copy of the newest checkpoint's model is
    deleted instead."""
    files = [path for path in (*model_files(output_dir), output_dir / ADAPTER_FOLDER) if path.exists()]
    saved = list_checkpoints(output_dir)
    if not saved or not is_copy(output_dir, saved[-1] / "unwrapped_model"):
        return files
    for path in files:
        _discard(path)
    return []


def _discard(path: Path) -> None:
    """Give a path a hidden name, and delete what can be deleted of it; the next start tries the rest again."""
    hidden = path.with_name(f".checkpoint-{path.name}.{secrets.token_hex(3)}.old")
    os.replace(path, hidden)
    remove(hidden)


def _move(path: Path, target: Path) -> None:
    """Move a path into another folder. A relative link still leads to the same place afterwards."""
    if path.is_symlink() and not os.path.isabs(os.readlink(path)):
        os.symlink(path.resolve(), target)
        path.unlink()
    else:
        os.replace(path, target)


class CannotSave(SystemExit):
    """A checkpoint could not be written; those before it are as they were."""


@dataclass(frozen=True)
class Saver:
    """Writes a run's checkpoints. ``keep``: how many may stay (None: all)."""

    accelerator: Accelerator
    ranks: HostComm
    output_dir: Path
    keep: int | None
    conditions: Mapping[str, Any]
    """What the numbers of later steps depend on (``conditions`` below)."""
    optimizer: Mapping[str, Any]
    """Kind and parameter names of the optimizer (``training.checkpointing.optimizer_state.record``)."""
    kept: set[str] = field(default_factory=set)
    """Names of old checkpoints that could not be deleted and have been named."""

    def save(
        self, step: int, position: Position, save_model: Callable[[Path], None], mine: Mapping[str, Any]
    ) -> Checkpoint:
        """Write ``checkpoint-<step>``; called by all ranks at the end of an optimizer step.

        ``save_model`` writes the model folder (called on rank 0 only); ``mine`` is what this rank alone knows. The
        oldest checkpoints go when the new one is in place. Raises ``CannotSave`` on all ranks if it cannot be written.
        """
        final = Checkpoint(self.output_dir / f"checkpoint-{step}", step, position)
        partial = Checkpoint(self.ranks.from_main(lambda: _free(self.output_dir / f".checkpoint-{step}.tmp")), step)
        is_main, rank = self.accelerator.is_main_process, self.accelerator.process_index

        def prepare() -> None:
            if is_main:
                partial.state_dir.mkdir(parents=True)

        def write() -> None:
            self.accelerator.save_state(str(partial.state_dir))
            (partial.state_dir / f"progress_{rank}.json").write_text(json.dumps(mine), encoding="utf-8")
            if is_main:
                save_model(partial.model_dir)

        def complete() -> None:
            if is_main:
                facts = {"conditions": self.conditions, "optimizer": self.optimizer}
                write_manifest(partial.path, step, told_position(position), facts)
                if os.path.lexists(final.path):  # of a run that went on from elsewhere; see set_aside
                    old = final.path.with_name(f".{final.path.name}.{secrets.token_hex(3)}.old")
                    os.replace(final.path, old)
                    remove(old)
                os.replace(partial.path, final.path)
                flush(self.output_dir)

        for act in (prepare, write, complete):
            self._together(act, partial)
        if is_main and self.keep is not None:
            self._delete_old(max(self.keep, 1))
        return final

    def _delete_old(self, keep: int) -> None:
        """Delete all but the newest ``keep``. One that cannot be deleted stays, is named once, and is tried again after
        the next checkpoint."""
        for hidden in self.output_dir.glob(".checkpoint-*.old"):
            remove(hidden)
        for old in list_checkpoints(self.output_dir)[:-keep]:
            why = retire(old)  # a link stays: somebody has put the folder where it is
            if why is not None and old.name not in self.kept:
                self.kept.add(old.name)
                tqdm.write(f"warning: the old checkpoint {old} could not be deleted ({why}); the run continues")

    def _together(self, act: Callable[[], None], partial: Checkpoint) -> None:
        """Do it on every rank, or on none: the rank that cannot says why, and what was written so far goes."""
        trouble = None
        try:
            act()
        except UNWRITABLE as error:
            if isinstance(error, RuntimeError) and TORCHS_WRITER not in str(error):
                raise
            trouble = why_unwritable(error, self.output_dir)
            if (
                self.accelerator.distributed_type in (DistributedType.DEEPSPEED, DistributedType.FSDP)
                and act.__name__ == "write"
            ):
                # The other ranks wait inside the library for this one, which is never going to come.
                shutil.rmtree(partial.path, ignore_errors=True)
                raise CannotSave(self._told(partial, trouble)) from error
        troubles = [text for text in self.ranks.all(trouble) if text is not None]
        if troubles:
            if self.accelerator.is_main_process:
                shutil.rmtree(partial.path, ignore_errors=True)
            self.ranks.most(0)  # nobody leaves before that
            raise CannotSave(self._told(partial, troubles[0]) if self.accelerator.is_main_process else 1)

    def _told(self, partial: Checkpoint, trouble: str) -> str:
        kept = list_checkpoints(self.output_dir)
        last = f"{kept[-1]} is as it was" if kept else "there is none before it"
        return (
            f"stopped: checkpoint-{partial.step} cannot be written to {self.output_dir} ({trouble}); {last}. "
            "Make room and start the same command again; experiment.checkpoints_total_limit keeps fewer of them."
        )


def why_unwritable(error: BaseException, folder: Path) -> str:
    """The reason in a few words; the libraries of the file formats often lose it."""
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno)
    try:
        free = shutil.disk_usage(folder).free
    except OSError as failed:
        return os.strerror(failed.errno or errno.EIO)
    text = str(error).strip().splitlines()
    return os.strerror(errno.ENOSPC) if free < NO_SPACE else text[0] if text else type(error).__name__


def _free(path: Path) -> Path:
    """``path`` with nothing there any more, or a name beside it where what is there cannot be deleted."""
    return path if remove(path) is None else path.with_name(f"{path.name}.{secrets.token_hex(3)}")


def save_final_model(output_dir: Path, save_model: Callable[[Path], None]) -> None:
    """Write the model's files directly under ``output_dir``, each of them whole or not at all (rank 0 only)."""
    partial = _free(output_dir / ".checkpoint-model.tmp")
    try:
        save_model(partial)
    except UNWRITABLE as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise CannotSave(
            f"the final model cannot be written to {output_dir} ({why_unwritable(error, output_dir)}); it is also in "
            "the last checkpoint there. Make room and start the same command again."
        ) from error
    for path in partial.rglob("*"):
        flush(path)
    # Weights last: until they are in place the folder's model is that of the last checkpoint.
    for path in sorted(partial.iterdir(), key=lambda path: path.name == WEIGHTS_FILE):
        target = output_dir / path.name
        if target.is_dir():
            _discard(target)
        os.replace(path, target)
    partial.rmdir()


def saved_progress(checkpoint: Checkpoint, rank: int, world: int) -> list[dict[str, Any]]:
    """What the ranks of the run that saved it knew, as far as this one takes their place: its own namesake, and for
    rank 0 also those that have none now."""
    had = int(checkpoint.record.get("conditions", {}).get("processes", 1))
    mine = [number for number in range(had) if number == rank or (rank == 0 and number >= world)]
    files = [checkpoint.state_dir / f"progress_{number}.json" for number in mine]
    return [json.loads(file.read_text(encoding="utf-8")) for file in files if file.is_file()]


WITHOUT_EFFECT = (
    "experiment.", "config_path", "mmu_image_root", "question", "max_new_tokens", "dataset.params.num_workers",
    "dataset.params.validation_", "training.explosion_factor",
)  # fmt: skip
"""Keys, or beginnings of keys, that no number of training depends on."""


ORDER = "version of the data order"
"""Its name among the conditions; checkpoints without it are of version 1."""


def conditions(job: Job, accelerator: Accelerator, data: CotrainLoader) -> dict[str, Any]:
    """What the numbers of a run's next steps depend on beside its checkpoint: name -> value, as json has it."""
    flows = {"robot samples": data.robot, "mmu samples": data.text}
    settings = {key: value for key, value in _flat(asdict(job)).items() if not key.startswith(WITHOUT_EFFECT)}
    return {
        "processes": accelerator.num_processes,
        "sharing": describe(accelerator),
        "device": accelerator.device.type,
        "torch": torch.__version__,
        ORDER: ORDER_VERSION,
        **{name: len(flow.dataset) for name, flow in flows.items() if flow is not None},
        **settings,
    }


def _flat(tree: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= _flat(value, f"{above}{name}.") if isinstance(value, dict) else {f"{above}{name}": value}
    return flat


def changes(checkpoint: Checkpoint, now: Mapping[str, Any]) -> list[str]:
    """What to tell a user who goes on under other conditions; nothing if the run goes on bit for bit."""
    before = checkpoint.record.get("conditions")
    if before is None:
        return []
    before = {ORDER: 1, **before}
    names = [name for name in now if name in before and now[name] != before[name]]
    if not names:
        return []
    told = ", ".join(f"{name} {now[name]} (was {before[name]})" for name in names)
    data = "no sample of the epoch comes again or is left out"
    if {"robot samples", "mmu samples", "training.seed", ORDER} & {*names}:
        data = "the order of the data is another one, so samples of this epoch may come again or be left out"
    return [f"note: from here on not bit for bit the run that was interrupted: {told}; {data}"]


def leave_weights_to_model_folder(accelerator: Accelerator) -> None:
    """Keep accelerate from writing the weights a second time: ``unwrapped_model/`` has them, in full precision.

    (Under DeepSpeed and FSDP the hooks are passed no weights: the engine keeps its own partitioned copy.)
    """

    def forget_weights(models: list[object], weights: list[object], output_dir: str) -> None:
        weights.clear()

    def forget_models(models: list[object], input_dir: str) -> None:
        models.clear()

    accelerator.register_save_state_pre_hook(forget_weights)
    accelerator.register_load_state_pre_hook(forget_models)


def load_state(accelerator: Accelerator, checkpoint: Checkpoint, optimizer: Optimizer) -> None:
    """Restore optimizer, scaler and random numbers (the weights were loaded when the model was built).

    The settings of ``optimizer`` (the wrapped one) stay those of the job.
    """
    try:
        with state_folder(accelerator, checkpoint) as folder, settings_kept(optimizer):
            accelerator.load_state(str(folder))
    except ValueError as error:
        raise ConfigError(
            f"{checkpoint.path} was saved by a run that trained other parameters, so its optimizer cannot go on here "
            f"({error}); take its weights alone by model.showo.pretrained_model_path"
        ) from error


def require_finite_state(ranks: HostComm, checkpoint: Checkpoint, optimizer: Optimizer, model: nn.Module) -> None:
    """Raise ``ConfigError`` on all ranks if the optimizer's state that any of them restored holds NaN or infinity."""
    bad = sorted({name for names in ranks.all(not_finite_moments(optimizer, model)) for name in names})
    if bad:
        raise ConfigError(
            f"{checkpoint.state_dir} holds optimizer state that is not finite (NaN or infinity) in {len(bad)} tensors, "
            f"such as {bad[0]}; continue from an earlier checkpoint (experiment.resume_from_checkpoint=<step>)"
        )
