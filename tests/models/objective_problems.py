"""What the exactness tests of the text objectives share: objectives with their knobs, values and gradients."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from models.objectives import TextTask
from models.objectives.block_size import Fixed
from models.objectives.diffusion import Diffusion
from models.rng import SampleRng
from models.sequence import TextTurn
from tests.models.text_problems import Built
from tests.tiny import tiny_model


def attentive(folder: Path, kind: str) -> Built:
    model, prompter = tiny_model(folder, kind, seed=5)
    prompter.system_ids = prompter.system_ids[:4]  # shorter sequences
    # Random weights of standard deviation 0.02 hardly attend: make what is seen matter.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and "embed" not in name:
                parameter.mul_(4)
    return model, prompter


def bd(size: int = 4, **knobs: object) -> Diffusion:
    return Diffusion("bd", Fixed(size), **knobs)  # type: ignore[arg-type]


def mdm(multiple: int = 4, **knobs: object) -> Diffusion:
    return Diffusion("mdm", Fixed(multiple), whole_answer=True, **knobs)  # type: ignore[arg-type]


def ask(built: Built, objective: object, turn: TextTurn, seed: int = 0) -> TextTask:
    model, prompter = built
    return objective.prepare(model.vocab, prompter.system_ids, turn, SampleRng(seed))  # type: ignore[attr-defined]


def value(built: Built, task: TextTask) -> tuple[Tensor, Tensor]:
    """(training loss, nats per token)."""
    loss, nats = built[0].text_loss(task)
    return loss.mean, nats.mean


def gradients(built: Built, loss: Tensor) -> dict[str, Tensor]:
    model = built[0]
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    largest = max(float(g.abs().max()) for g in theirs.values())
    assert largest > 1e-3
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=2e-6 * largest, msg=name)
