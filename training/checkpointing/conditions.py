"""Record what the numbers of a run depend on, and report what changed since the resumed checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from accelerate import Accelerator

from config.schema import Job
from training.checkpointing.manifest import Checkpoint
from training.data.dataloader import CotrainLoader
from training.data.sampling_order import ORDER_VERSION
from training.distributed.launch import describe

WITHOUT_EFFECT = (
    "experiment.", "config_path", "mmu_image_root", "question", "max_new_tokens", "dataset.params.num_workers",
    "dataset.params.validation_", "training.explosion_factor",
)  # fmt: skip
"""Prefixes of keys that do not change the numbers of training."""
ORDER = "version of the data order"
"""Name of this condition. Checkpoints without it have version 1."""


def conditions(job: Job, accelerator: Accelerator, data: CotrainLoader) -> dict[str, Any]:
    """Return everything except the checkpoint that the numbers of the next steps depend on: name -> JSON value."""
    flows = {"robot samples": data.robot, "mmu samples": data.text, "scenes": data.scenes}
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


def changes(checkpoint: Checkpoint, now: Mapping[str, Any]) -> list[str]:
    """Return a note on the conditions that changed since the checkpoint; empty if resuming is bit-exact."""
    before = checkpoint.record.get("conditions")
    if before is None:
        return []
    before = {ORDER: 1, **before}
    names = [name for name in now if name in before and now[name] != before[name]]
    if not names:
        return []
    changed = ", ".join(f"{name} {now[name]} (was {before[name]})" for name in names)
    data = "no sample of the epoch comes again or is left out"
    if {"robot samples", "mmu samples", "scenes", "training.seed", ORDER} & {*names}:
        data = "the order of the data is another one, so samples of this epoch may come again or be left out"
    return [f"note: from here on not bit for bit the run that was interrupted: {changed}; {data}"]


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat
