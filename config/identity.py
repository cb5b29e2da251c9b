"""Identify the run of an output folder: by its settings, and by the command that writes to it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from common.files import CONFIG_DIR
from config.cli_help import FRAGMENTS, OBJECTIVE_OF, SCRIPTS
from config.loading import read_into, to_yaml
from config.parsing import build, new_tree
from config.schema import Framework, Job

WITHOUT_EFFECT = (
    "experiment.",
    "mmu_image_root",
    "question",
    "max_new_tokens",
    "dataset.params.num_workers",
)
"""Keys, or prefixes of keys, that do not change what a run learns."""
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")


def settings_of(job: Job) -> dict[str, Any]:
    """Return the settings that a run's result depends on, by dotted key."""
    return _flat(yaml.safe_load(to_yaml(job)))


def settings_in(config: Path) -> dict[str, Any] | None:
    """Return the same for the `config.yaml` of a run, or None if it does not exist or cannot be read."""
    try:
        content = yaml.safe_load(config.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError):
        return None
    return _flat(content) if isinstance(content, dict) else None


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str | None:
    """Return the first setting that differs, with both values, or None.

    A missing key has its default: the file is of an older version.
    """
    defaults = settings_of(Job())
    for key in sorted({*old, *new}):
        before, now = (settings.get(key, defaults.get(key)) for settings in (old, new))
        if before != now:
            return f"{key}={before}, now it is {now}"
    return None


def output_folder(checkpoint: Path) -> Path:
    """Return the output folder of the run that a checkpoint's path belongs to."""
    folder = checkpoint
    while folder.name == "unwrapped_model" or folder.name.startswith("checkpoint-") or folder.suffix in _WEIGHTS:
        folder = folder.parent
    return folder


def command_of_run(output: Path) -> str | None:
    """Return the training command whose run configuration in `config/` writes to `output`, or None."""
    for file in sorted(CONFIG_DIR.glob("*.yaml")):
        if file.stem in FRAGMENTS:
            continue
        tree = new_tree()
        read_into(tree, file)
        job = build(tree)
        if os.path.abspath(job.experiment.output_dir) == os.path.abspath(output):
            return f"python {SCRIPTS[job.training.text_objective]} config=./config/{file.name}"
    return None


def command_of_recipe(framework: Framework, output: Path) -> str:
    """Return a training command of the framework's recipe that writes to `output`."""
    script = SCRIPTS[OBJECTIVE_OF[framework]]
    return f'python {script} config=./config/{framework}_action_tuning.yaml "experiment.output_dir={output}"'


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict):
            flat |= _flat(value, f"{key}.")
        elif not key.startswith(WITHOUT_EFFECT):
            flat[key] = value
    return flat
