"""The small run that all faults are tried on: its command, how it ends undisturbed, and how two ends are compared."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.faults.fleet import ALONE, Fleet, Launch, start
from tests.training.world import argv
from training.checkpointing.manifest import list_checkpoints, open_checkpoint

STEPS = 8


class Broken(AssertionError):
    """A promise that did not hold."""


@dataclass(frozen=True)
class Small:
    """A training run of ``STEPS`` steps over both flows, with accumulation and dropped instructions, in a folder."""

    world: Path
    folder: Path
    objective: str = "bd"
    launch: Launch = ALONE
    workers: int = 0
    more: tuple[str, ...] = ()

    def argv(self, *more: str) -> list[str]:
        return argv(
            self.world,
            self.folder,
            f"training.text_objective={self.objective}",
            f"training.max_train_steps={STEPS}",
            "training.gradient_accumulation_steps=2",
            "lr_scheduler.scheduler=constant",  # so that a run that ends early takes the same steps
            "training.batch_size_mmu=1",
            "training.cond_dropout_prob=0.3",
            "experiment.save_every=1",
            "experiment.log_every=3",  # not in step with the checkpoints
            "experiment.tracker=tensorboard",
            "experiment.checkpoints_total_limit=3",
            "experiment.resume_from_checkpoint=latest",
            f"dataset.params.num_workers={self.workers}",
            *self.more,
            *more,
        )

    def start(self, *more: str, prepare: Callable[[], None] | None = None) -> Fleet:
        log = self.folder.with_name(f"{self.folder.name}.log")
        return start(self.objective, self.argv(*more), self.launch, log, prepare)

    def finish(self, *more: str) -> Fleet:
        """Start it and wait; it has to end well."""
        fleet = self.start(*more)
        fleet.wait()
        if set(fleet.codes.values()) != {0}:
            raise Broken(f"ended with {fleet.codes}; the log ends with\n{fleet.said()[-3000:]}")
        return fleet

    def left(self) -> dict[str, Any]:
        """What it left: the bytes of the model and of the last checkpoint, and all metrics but those of the clock."""
        last = self.folder / f"checkpoint-{STEPS}"
        files = {
            str(file.relative_to(self.folder)): file.read_bytes()
            for root in (last, self.folder / "tokenizer")
            for file in sorted(root.rglob("*"))
            if file.is_file() and file.suffix not in (".bin", ".pkl", ".pt", ".py") and file.name != "metadata.json"
        }
        files["model.safetensors"] = (self.folder / "model.safetensors").read_bytes()
        lines = [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]
        metrics = [{name: value for name, value in line.items() if not name.startswith("speed/")} for line in lines]
        return {
            "files": files,
            "metrics": metrics,
            "position": json.loads((last / "metadata.json").read_text())["data"],
        }

    def forget(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def must_be_as(self, reference: dict[str, Any]) -> None:
        """Bit for bit what the undisturbed run left."""
        ours = self.left()
        if ours["metrics"] != reference["metrics"]:
            raise Broken(f"metrics differ: {ours['metrics']} instead of {reference['metrics']}")
        if ours["position"] != reference["position"]:
            raise Broken(f"it stands at {ours['position']} of its data instead of {reference['position']}")
        files, theirs = ours["files"], reference["files"]
        differ = sorted(name for name in files.keys() | theirs.keys() if files.get(name) != theirs.get(name))
        if differ:
            raise Broken(f"other bytes in {', '.join(differ)}")

    def checkpoints_must_be_whole(self) -> None:
        for path in list_checkpoints(self.folder):
            try:
                open_checkpoint(path)
            except ValueError as error:
                raise Broken(f"a checkpoint with its final name is damaged: {error}") from error


@dataclass
class Count:
    """Faults of one kind: how many were tried and survived, and what is worth telling of them."""

    name: str
    tried: int = 0
    survived: int = 0
    notes: dict[str, int] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)
    skipped: str = ""

    def note(self, what: str, times: int = 1) -> None:
        self.notes[what] = self.notes.get(what, 0) + times

    def row(self) -> str:
        notes = ", ".join(f"{what} {times}" for what, times in self.notes.items())
        return f"| {self.name} | {self.tried} | {self.survived} | {self.skipped or notes} |"
