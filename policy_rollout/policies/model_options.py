"""Options that name a model, the same ones in every command that acts or answers. Imports no torch."""

from __future__ import annotations

import argparse
from typing import Protocol

from policy_rollout.policies.model_yaml import MODEL_OPTIONS, ModelYaml, load_model_yaml

CHECKPOINT_HELP = "output folder of a run, checkpoint-<step>, a model folder or a hub id"


class OptionGroup(Protocol):
    """A parser or a group of one."""

    def add_argument(self, *names: str, help: str) -> argparse.Action: ...


def add_model_options(group: OptionGroup) -> None:
    """Add ``--checkpoint`` and ``--model-config``."""
    group.add_argument("--checkpoint", help=CHECKPOINT_HELP)
    yaml = "model yaml, for other frozen networks or decoding than the checkpoint's own (policy_rollout/*_model.yaml)"
    group.add_argument("--model-config", help=yaml)


def require_model_options(options: argparse.Namespace) -> ModelYaml:
    """Return the model yaml of the options, without torch. Raises ConfigError if they name no existing model."""
    if options.checkpoint is None and options.model_config is None:
        raise ValueError(f"--checkpoint or --model-config is required: {MODEL_OPTIONS}")
    config = load_model_yaml(options.model_config, options.checkpoint)
    config.require_checkpoint()
    return config
