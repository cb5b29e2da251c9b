"""Save the checkpoints and the final model of a run, each of them completely or not at all."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from accelerate.utils import DistributedType
from torch import Tensor
from tqdm import tqdm

from common.files import flush, remove, retire
from models.pretrained.model_card import CARD_FILE, card, is_card, last_figures, write_card
from models.pretrained.model_io import WEIGHTS_FILE
from training.build.components import Components
from training.checkpointing import trained_weights
from training.checkpointing.checkpoint import discard
from training.checkpointing.conditions import conditions
from training.checkpointing.manifest import Checkpoint, list_checkpoints, position_to_json, write_manifest
from training.data.sampling_order import Position
from training.distributed.full_state import FullModel
from training.failure.known_errors import WRITE_ERRORS, describe_write_error, is_write_error
from training.failure.status import write_status
from training.metrics.logger import METRICS_FILE
from training.run import Run


class CannotSave(SystemExit):
    """A checkpoint could not be written; earlier checkpoints are unchanged."""


class Checkpointer:
    """Writes the checkpoints of a run.

    ``optimizer``: kind and parameter names of the optimizer (``training.checkpointing.optimizer_state.record``).
    """

    def __init__(self, run: Run, components: Components, full_model: FullModel, optimizer: Mapping[str, Any]) -> None:
        self.run, self.components, self._full_model, self._optimizer = run, components, full_model, optimizer
        self.conditions = conditions(run.job, run.accelerator, components.data)
        self._saved_step = run.start_step
        self._adapters_only = run.job.experiment.save_adapters_only and run.job.lora.rank > 0
        self._undeletable: set[str] = set()  # names of old checkpoints for which a warning was logged
        _skip_weights_in_state(run)
        if trained_weights.is_needed(run.job):
            run.accelerator.register_save_state_pre_hook(self._save_trained_weights)

    def is_saved(self, step: int) -> bool:
        """Return True if the checkpoint of this step exists already."""
        return step == self._saved_step

    def save(self, step: int, position: Position, progress: Mapping[str, Any]) -> None:
        """Write ``checkpoint-<step>``. All ranks call it at the end of an optimizer step.

        The oldest checkpoints are deleted after the new one is complete (``experiment.checkpoints_total_limit``).

        Args:
            progress: state of this rank alone, as JSON values.

        Raises CannotSave on all ranks if it cannot be written.
        """
        run, output_dir = self.run, self.run.output_dir
        final = Checkpoint(output_dir / f"checkpoint-{step}", step, position)
        partial = Checkpoint(run.comm.broadcast_from_main(lambda: _free(output_dir / f".checkpoint-{step}.tmp")), step)
        state = self._full_model.state()
        adapters_only = self._adapters_only and step < run.job.training.max_train_steps
        excluded = adapters_only and run.accelerator.distributed_type == DistributedType.DEEPSPEED
        state_options = {"exclude_frozen_parameters": True} if excluded else {}

        def prepare() -> None:
            if run.is_main_process:
                partial.state_dir.mkdir(parents=True)

        def write() -> None:
            run.accelerator.save_state(str(partial.state_dir), **state_options)
            (partial.state_dir / f"progress_{run.rank}.json").write_text(json.dumps(progress), encoding="utf-8")
            if run.is_main_process:
                run.metrics_logger.flush_to_disk()
                self._save_model(partial.model_dir, step, state, adapters_only)

        def complete() -> None:
            if run.is_main_process:
                record = {"conditions": self.conditions, "optimizer": self._optimizer}
                write_manifest(partial.path, step, position_to_json(position), record)
                if os.path.lexists(final.path):  # of a run that resumed from elsewhere; see archive_previous_run
                    old = final.path.with_name(f".{final.path.name}.{secrets.token_hex(3)}.old")
                    os.replace(final.path, old)
                    remove(old)
                os.replace(partial.path, final.path)
                flush(output_dir)

        self._on_all_ranks(prepare, partial)
        self._on_all_ranks(write, partial, collective=True)
        self._on_all_ranks(complete, partial)
        limit = run.job.experiment.checkpoints_total_limit
        if run.is_main_process and limit is not None:
            self._delete_old(max(limit, 1))
        self._saved_step = step
        run.log(f"saved {final.path}")
        if run.is_main_process:
            write_status(output_dir, "running", step, final.path)

    def save_final_model(self, step: int) -> None:
        """Write the model of the last step directly under the output folder. All ranks call it."""
        run, state = self.run, self._full_model.state()
        if run.is_main_process:
            save_final_model(run.output_dir, lambda path: self._save_model(path, step, state))
            write_status(run.output_dir, "finished", step, run.output_dir / f"checkpoint-{step}")
        run.accelerator.wait_for_everyone()

    def _save_model(
        self, folder: Path, step: int, state: Mapping[str, Tensor] | None, adapters_only: bool = False
    ) -> None:
        """Write the model with its card."""
        components, job = self.components, self.run.job
        components.save_model(folder, step=step, state=state, adapters_only=adapters_only)
        figures = last_figures(self.run.output_dir / METRICS_FILE, step)
        parameters = sum(p.numel() for p in components.model.parameters()) if state is None else _size(state)
        write_card(folder, card(job, components.model.spec, parameters, step, figures))

    def _save_trained_weights(self, models: list[object], weights: list[object], folder: str) -> None:
        """Write the trained weights if they differ from the exported ones; accelerate calls this on all ranks."""
        state = self._full_model.state()
        if self.run.is_main_process:
            self.components.save_trained_weights(Path(folder), state)

    def _delete_old(self, keep: int) -> None:
        """Delete all but the newest ``keep`` checkpoints.

        One that cannot be deleted is logged once and tried again after the next checkpoint.
        """
        for hidden in self.run.output_dir.glob(".checkpoint-*.old"):
            remove(hidden)
        for old in list_checkpoints(self.run.output_dir)[:-keep]:
            reason = retire(old)  # a link stays, because a user made it
            if reason is not None and old.name not in self._undeletable:
                self._undeletable.add(old.name)
                tqdm.write(f"warning: the old checkpoint {old} could not be deleted ({reason}); the run continues")

    def _on_all_ranks(self, action: Callable[[], None], partial: Checkpoint, collective: bool = False) -> None:
        """Run one action on every rank. If it fails on any rank, delete the partial checkpoint and raise CannotSave.

        Args:
            collective: the action contains collective calls of DeepSpeed or FSDP.
        """
        run, failure = self.run, None
        try:
            action()
        except WRITE_ERRORS as error:
            if not is_write_error(error):
                raise
            failure = describe_write_error(error, run.output_dir)
            if collective and run.accelerator.distributed_type in (DistributedType.DEEPSPEED, DistributedType.FSDP):
                # The other ranks wait for this one inside the library and never return.
                shutil.rmtree(partial.path, ignore_errors=True)
                raise CannotSave(self._message(partial, failure)) from error
        failures = [text for text in run.comm.all_gather(failure) if text is not None]
        if failures:
            if run.is_main_process:
                shutil.rmtree(partial.path, ignore_errors=True)
            run.comm.barrier()
            raise CannotSave(self._message(partial, failures[0]) if run.is_main_process else 1)

    def _message(self, partial: Checkpoint, failure: str) -> str:
        saved = list_checkpoints(self.run.output_dir)
        last = f"{saved[-1]} is unchanged" if saved else "there is none before it"
        return (
            f"stopped: checkpoint-{partial.step} cannot be written to {self.run.output_dir} ({failure}); {last}. "
            "Free space and start the same command again; experiment.checkpoints_total_limit keeps fewer checkpoints."
        )


def save_final_model(output_dir: Path, save_model: Callable[[Path], None]) -> None:
    """Write the model's files directly under ``output_dir``, each completely or not at all (rank 0 only)."""
    partial = _free(output_dir / ".checkpoint-model.tmp")
    try:
        save_model(partial)
    except WRITE_ERRORS as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise CannotSave(
            f"the final model cannot be written to {output_dir} ({describe_write_error(error, output_dir)}); it is "
            "also in the last checkpoint there. Free space and start the same command again."
        ) from error
    for path in partial.rglob("*"):
        flush(path)
    # Weights last: until they are in place the folder's model is that of the last checkpoint.
    for path in sorted(partial.iterdir(), key=lambda path: path.name == WEIGHTS_FILE):
        target = output_dir / path.name
        if path.name == CARD_FILE and target.exists() and not is_card(target):  # a user's own
            path.unlink()
            continue
        if target.is_dir():
            discard(target)
        os.replace(path, target)
    partial.rmdir()


def _size(state: Mapping[str, Tensor]) -> int:
    """Return the number of weights of a state dict; tensors that share memory count once."""
    return sum({tensor.data_ptr(): tensor.numel() for tensor in state.values()}.values())


def _free(path: Path) -> Path:
    """Delete ``path`` and return it, or return another name next to it if it cannot be deleted."""
    return path if remove(path) is None else path.with_name(f"{path.name}.{secrets.token_hex(3)}")


def _skip_weights_in_state(run: Run) -> None:
    """Prevent accelerate from writing the weights a second time: ``unwrapped_model/`` has them in full precision.

    (Under DeepSpeed and FSDP no weights are passed to the hooks: the engine keeps its own partitioned copy.)
    """

    def drop_weights(models: list[object], weights: list[object], output_dir: str) -> None:
        weights.clear()

    def drop_models(models: list[object], input_dir: str) -> None:
        models.clear()

    run.accelerator.register_save_state_pre_hook(drop_weights)
    run.accelerator.register_load_state_pre_hook(drop_models)
