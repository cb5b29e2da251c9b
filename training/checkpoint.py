"""Checkpoints of a training run: written whole or not at all, found again, and the state in them restored.

    checkpoint-<step>/
        unwrapped_model/     all that acting needs (``models.checkpoint``)
        training_state/      all that resuming needs: optimizer, gradient scaler, random numbers, per rank where needed
        metadata.json        {"global_step": ..., "files": {name: bytes}}

The learning rate is a function of the step, and so is the order of the data: neither has a state. A checkpoint is
written to a hidden folder first and renamed when complete, so that a folder with its final name is a whole one.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator

from config.load import ConfigError

METADATA = "metadata.json"
NAME = re.compile(r"checkpoint-(\d+)")


@dataclass(frozen=True)
class Checkpoint:
    """A folder with the state after ``step`` optimizer steps."""

    path: Path
    step: int

    @property
    def model_dir(self) -> Path:
        return self.path / "unwrapped_model"

    @property
    def state_dir(self) -> Path:
        return self.path / "training_state"


def open_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint's metadata and see that every file it lists is there in full; ``ValueError`` if not."""
    metadata = path / METADATA
    try:
        record = json.loads(metadata.read_text())
        step, files = int(record["global_step"]), dict(record.get("files", {}))
    except FileNotFoundError:
        raise ValueError(f"{path} is not a checkpoint of a training run: it has no {METADATA}") from None
    except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{metadata} is damaged: {error}") from error
    for name, size in files.items():
        file = path / name
        found = file.stat().st_size if file.is_file() else None
        if found != size:
            raise ValueError(
                f"{file} is damaged: {size} bytes expected, " + (f"{found} found" if found else "none found")
            )
    checkpoint = Checkpoint(path, step)
    if not checkpoint.state_dir.is_dir():
        raise ValueError(
            f"{path} holds weights but no training state, so it cannot be resumed; "
            "to start from its weights set model.showo.pretrained_model_path to it"
        )
    return checkpoint


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


def set_aside(output_dir: Path) -> list[str]:
    """Move what an earlier run left in ``output_dir`` to ``earlier-<n>/``: nothing is lost, and two runs never mix."""
    left = [*list_checkpoints(output_dir), output_dir / "logs", output_dir / "metrics.jsonl"]
    left = [path for path in left if path.exists()]
    if not left:
        return []
    n = 1
    while (output_dir / f"earlier-{n}").exists():
        n += 1
    aside = output_dir / f"earlier-{n}"
    aside.mkdir()
    for path in left:
        os.replace(path, aside / path.name)
    return [
        f"{output_dir} held an earlier run: moved to {aside} (experiment.resume_from_checkpoint=latest continues it)"
    ]


def save_checkpoint(
    accelerator: Accelerator,
    output_dir: Path,
    step: int,
    save_model: Callable[[Path], None],
    keep: int | None,
) -> Checkpoint:
    """Write ``checkpoint-<step>``; called by all ranks at the end of an optimizer step.

    ``save_model`` writes the model folder (called on rank 0 only). ``keep``: how many checkpoints may stay
    (``None``: all); the oldest go, after the new one is in place.
    """
    final = Checkpoint(output_dir / f"checkpoint-{step}", step)
    partial = Checkpoint(output_dir / f".checkpoint-{step}.tmp", step)
    if accelerator.is_main_process:
        shutil.rmtree(partial.path, ignore_errors=True)
        partial.path.mkdir(parents=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(partial.state_dir))
    if accelerator.is_main_process:
        save_model(partial.model_dir)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        files = {
            str(f.relative_to(partial.path)): f.stat().st_size for f in sorted(partial.path.rglob("*")) if f.is_file()
        }
        (partial.path / METADATA).write_text(json.dumps({"global_step": step, "files": files}, indent=1))
        if final.path.exists():
            shutil.rmtree(final.path)
        os.replace(partial.path, final.path)
        if keep is not None:
            for old in list_checkpoints(output_dir)[: -max(keep, 1)]:
                shutil.rmtree(old)
    accelerator.wait_for_everyone()
    return final


def save_final_model(output_dir: Path, save_model: Callable[[Path], None]) -> None:
    """Write the model's files directly under ``output_dir``, each of them whole or not at all (rank 0 only)."""
    partial = output_dir / ".model.tmp"
    shutil.rmtree(partial, ignore_errors=True)
    save_model(partial)
    for path in sorted(partial.iterdir()):
        target = output_dir / path.name
        if target.is_dir():
            shutil.rmtree(target)
        os.replace(path, target)
    partial.rmdir()


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


def load_state(accelerator: Accelerator, checkpoint: Checkpoint) -> None:
    """Restore optimizer, scaler and random numbers (the weights were loaded when the model was built)."""
    try:
        accelerator.load_state(str(checkpoint.state_dir))
    except ValueError as error:
        raise ConfigError(
            f"{checkpoint.path} was saved by a run that trained other parameters, so its optimizer cannot go on here "
            f"({error}); take its weights alone by model.showo.pretrained_model_path"
        ) from error
