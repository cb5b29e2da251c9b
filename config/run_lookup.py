"""Which training command writes a folder: for messages about a checkpoint that is not there yet."""

from __future__ import annotations

import os
from pathlib import Path

from config.build import build, new_tree
from config.files import CONFIG_DIR, read_into
from config.help import FRAGMENTS, OBJECTIVE_OF, SCRIPTS
from config.schema import Framework

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")


def output_folder(checkpoint: Path) -> Path:
    """Return the output folder of the run that a checkpoint's path lies in."""
    folder = checkpoint
    while folder.name == "unwrapped_model" or folder.name.startswith("checkpoint-") or folder.suffix in _WEIGHTS:
        folder = folder.parent
    return folder


def command_of_run(output: Path) -> str | None:
    """Return the training command whose run configuration in config/ writes to `output`, None if none does."""
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
