"""The model card ``README.md`` of a saved model: what it is, data, objective, figures, and how to load it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.files import write_text
from config.schema import Job
from models.pretrained.model_config import ModelConfig

CARD_FILE = "README.md"
HEAD = """\
---
library_name: blockdiff-vla
pipeline_tag: robotics
tags: [robotics, vision-language-action]
---
"""
"""Start of every card that this module writes; another README.md is a user's own."""
OBJECTIVES = {"ar": "autoregressive", "mdm": "masked diffusion", "bd": "block diffusion"}
FIGURES = {
    "total/loss": "training loss, weighted sum",
    "image/loss": "training loss of future images (cross-entropy per code)",
    "action/loss": "training loss of actions",
    "text/loss": "training loss of text",
    "validation/image/loss": "validation loss of future images (cross-entropy per code)",
    "validation/action/loss": "validation loss of actions",
    "validation/action/mae": "validation: mean absolute error of actions, in the data's units",
    "validation/text/nats_per_token": "validation: nats per answer token (a bound for mdm and bd)",
    "validation/text/accuracy": "validation: accuracy of scored tokens",
}
"""Metrics of metrics.jsonl that a card has, with their meaning."""
LOAD = 'UPVLAPolicy.from_pretrained("{}")'
_LOADED = re.compile(r'UPVLAPolicy\.from_pretrained\("[^"]*"\)')


def is_card(file: Path) -> bool:
    """Return True if the file is a card that this module wrote."""
    return file.is_file() and file.read_text(encoding="utf-8", errors="replace").startswith(HEAD)


def last_figures(metrics: Path, step: int) -> dict[str, tuple[float, int]]:
    """Return the last value of each name of ``FIGURES`` in a metrics.jsonl up to ``step``, with its step."""
    found: dict[str, tuple[float, int]] = {}
    if not metrics.is_file():
        return found
    for line in metrics.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record: Any = json.loads(line)
        except json.JSONDecodeError:  # the last line of a killed run
            continue
        at = record.get("step", step + 1)
        found |= {name: (record[name], at) for name in FIGURES if at <= step and name in record}
    return {name: found[name] for name in FIGURES if name in found}


def card(job: Job, spec: ModelConfig, parameters: int, step: int, figures: Mapping[str, tuple[float, int]]) -> str:
    """Return the text of a card. ``parameters``: number of the network's; ``figures``: of ``last_figures``.

    Folders are named without the path above them, because a card is published.
    """
    objective = job.training.text_objective
    rows = "\n".join(f"| {FIGURES[name]} | `{name}` | {value:.4g} | {at} |" for name, (value, at) in figures.items())
    table = (
        f"| figure | name in metrics.jsonl | value | step |\n|---|---|---|---|\n{rows}" if rows else "None was logged."
    )
    return f"""{HEAD}
# {job.experiment.name}, step {step}

A vision-language-action model of BlockDiff-VLA ({spec.framework or "unnamed recipe"}): from {_cameras(spec)} and an
instruction, one transformer of {parameters / 1e6:.1f} million parameters predicts the image {spec.act_step} control
steps later, a chunk of {spec.act_step} actions with {spec.action_dim} numbers each, and text. Language model:
`{_name(spec.llm_model_path)}`. The weights are {_weights(spec)}.

## Data

{_data(job)}
Actions: {_convention(spec)}. Robot state: {"read" if spec.data.state is not None else "not read"}.

## Objective

Text objective `{objective}` ({OBJECTIVES[objective]}). Weights of the losses: image {job.training.pre_coeff:g}, action
{job.training.act_coeff:g}, text {job.training.mmu_coeff:g}. {step} of {job.training.max_train_steps} steps,
{job.training.batch_size_pre} robot samples and {job.training.batch_size_mmu} conversations per process and micro-batch,
{job.training.gradient_accumulation_steps} micro-batches a step, learning rate
{job.optimizer.params.learning_rate:g}, seed {job.training.seed}.

## Figures

{table}

Losses are means since the log before. They say little about success in closed loop, which
`python -m policy_rollout.calvin_evaluate_upvla` measures.

## Load

From a checkout of BlockDiff-VLA, with the path of this folder or its hub id:

```python
from policy_rollout.policies.upvla import UPVLAPolicy
policy = {LOAD.format(".")}
chunk = policy.act([observation])  # float32 [1, {spec.act_step}, {spec.action_dim}]
```

`observation` is a `policy_rollout.policies.interface.Observation`.
"""


def write_card(folder: Path, text: str) -> None:
    """Write the card of a model folder. A README.md that this module did not write stays."""
    file = folder / CARD_FILE
    if not file.exists() or is_card(file):
        write_text(file, text)


def with_hub_id(text: str, repo: str) -> str:
    """Return the card with the hub id in its lines for loading."""
    return _LOADED.sub(lambda _: LOAD.format(repo), text)


def _cameras(spec: ModelConfig) -> str:
    return "one camera image" if spec.num_view == 1 else f"{spec.num_view} camera images"


def _name(path: str) -> str:
    """Return a hub id unchanged, and the last part of a local path."""
    local = path.startswith((".", "/", "~")) or len(path.split("/")) != 2
    return Path(path).name if local else path


def _weights(spec: ModelConfig) -> str:
    return "the trained ones" if spec.weights == "trained" else f"the {spec.weights} ones"


def _convention(spec: ModelConfig) -> str:
    return ", ".join(f"{name} {value}" for name, value in sorted(spec.data.action_convention.items()))


def _data(job: Job) -> str:
    params = job.dataset.params
    lines = [f"Robot data: `{_name(params.train_pre_shards_path_or_url)}`."]
    if job.dataset.und_type is not None and params.train_mmu_shards_path_or_url:
        lines.append(f"Conversations: `{_name(params.train_mmu_shards_path_or_url)}`.")
    return "\n".join(lines)
