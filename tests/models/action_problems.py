"""Robot batches with action tokens for a tiny model, and a slow way to compute what block-diffusion actions compute."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from models.action.encoding import ActionBins
from models.attention_mask import Kind
from models.objectives import action_task
from models.objectives.block_size import Fixed
from models.objectives.diffusion import Diffusion
from models.processing.text import Prompter
from models.rng import SampleRng
from models.sequence import TokenSequence, future_targets, robot_sequence
from models.upvla import UPVLA, RobotTask
from tests.tiny import tiny_model

Built = tuple[UPVLA, Prompter]
INSTRUCTIONS = ["open the drawer", "push the blue block to the left, then turn on the light"]
BINS = 16


def acting_model(folder: Path, kind: str = "phi", *, louder: float = 4.0, **spec: object) -> Built:
    """A model that may act in tokens, whose random weights are scaled up until what is seen matters."""
    model, prompter = tiny_model(folder, kind, seed=5, act_step=3, **{"action_bins": BINS, **spec})  # type: ignore[arg-type]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and "embed" not in name:
                parameter.mul_(louder)
    return model, prompter


def telling_model(folder: Path, kind: str = "phi", **spec: object) -> Built:
    """Its numbers differ from slot to slot and from row to row, and it is now more sure of them, now less."""
    model, prompter = acting_model(folder, kind, louder=1.0, **spec)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(part in name for part in ("v_proj", "dense.weight", "o_proj")):
                parameter.mul_(30)
        model.backbone.lm.get_output_embeddings().weight.mul_(15)
    return model, prompter


def diffusion(size: int = 7, **knobs: object) -> Diffusion:
    return Diffusion("action_bd", Fixed(size), **knobs)  # type: ignore[arg-type]


def codes_of(built: Built, rows: Sequence[int], seed: int = 0) -> Tensor:
    """[B, N]"""
    generators = [torch.Generator().manual_seed(100 * seed + row) for row in rows]
    return torch.stack([torch.randint(0, 64, (built[0].spec.num_image_tokens,), generator=g) for g in generators])


def chunks(built: Built, rows: Sequence[int] = (0, 1)) -> Tensor:
    """[B, T, A]"""
    generators = [torch.Generator().manual_seed(50 + row) for row in rows]
    return torch.stack([torch.rand(built[0].spec.act_step, 7, generator=g) for g in generators]) * 2 - 1


def robot(
    built: Built, rows: Sequence[int] = (0, 1), texts: Sequence[str] = INSTRUCTIONS, pad_to: int | None = None
) -> TokenSequence:
    model, prompter = built
    words = [prompter.instruction(texts[row]) for row in rows]
    return robot_sequence(model.vocab, words, codes_of(built, rows), model.spec.act_step, pad_to)


def future(
    built: Built,
    objective: Diffusion | None,
    rows: Sequence[int] = (0, 1),
    *,
    texts: Sequence[str] = INSTRUCTIONS,
    actions: Tensor | None = None,
    counted: Tensor | None = None,
    pad_to: int | None = None,
    seed: int = 0,
) -> RobotTask:
    """What the robot flow learns from samples of these numbers, with action tokens behind it unless ``objective`` is
    None. A sample's codes, actions and draws are the same in any batch."""
    model = built[0]
    sequence = robot(built, rows, texts, pad_to)
    actions = chunks(built, rows) if actions is None else actions
    task = RobotTask(sequence, future_targets(model.vocab, codes_of(built, rows, seed=1)), actions)
    if counted is not None:
        task = replace(task, action_weight=counted.float())
    if objective is None:
        return task
    blind = replace(sequence, ids=torch.where(sequence.slots.kind == Kind.IMAGE, 0, sequence.ids))  # as on the host
    bins = ActionBins(model.vocab, model.spec.decoding.action_bins or BINS)
    draws = SampleRng(seed, 0, "action")
    return replace(task, action_tokens=action_task(objective, bins, blind, actions, counted, rows, draws))


def alone(built: Built, sequence: TokenSequence, row: int, before: Sequence[int], shown: Sequence[int]) -> Tensor:
    """[n + 1, V] log-probabilities from one forward over a robot row without padding, clean action tokens and a block
    as ``shown``: at the clean slot before the block, then at the block's own slots."""
    model, _ = built
    prefix = sequence.ids[row][sequence.slots.valid[row]].tolist()
    kinds = sequence.slots.kind[row][sequence.slots.valid[row]]
    flow, past = len(prefix), len(prefix) + len(before)
    ids = torch.tensor([[*prefix, *before, *shown]])
    length = ids.shape[1]
    mask = torch.ones(length, length, dtype=torch.bool).tril()
    mask[:flow][kinds == Kind.IMAGE, :flow] = True  # the image span sees ahead, no further than the flow
    mask[past:] = True
    hidden = model.backbone(model.backbone.embed(ids), mask[None, None], torch.arange(length)[None])
    logits = model.backbone.logits(hidden[0, past - 1 :])
    return F.log_softmax(logits.index_fill(-1, torch.tensor([model.vocab.mask]), float("-inf")), dim=-1)
