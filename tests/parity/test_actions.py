"""Actions as tokens against the original's arrays: quantisation, and its block-diffusion action term.

Its layout is ``[robot flow | noisy | clean]`` with a row for each copy, ours
``[robot flow | clean | view 1 | view 2]``; columns are put in its order here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from torch import Tensor
from torch.nn import functional as F

from models.action.encoding import ActionBins
from models.attention_mask import Kind
from models.objectives import TextTask, action_task
from models.objectives.block_size import Fixed
from models.objectives.diffusion import Diffusion
from models.objectives.layout import Canvas
from models.pretrained.model_io import Built
from models.rng import SampleRng
from models.sequence import TokenSequence
from models.upvla import RobotTask
from tests.parity.flows import LOSS, robot, upstream

pytestmark = pytest.mark.parity


def test_actions_have_the_originals_tokens_and_values(parity: Path) -> None:
    """Clipped to [-1, 1], rounded half to even, under the ids of the first image codes; and back."""
    arrays, vocab = np.load(parity / "action_quant.npz"), upstream(parity).model.vocab
    actions = torch.tensor(arrays["actions"])
    assert vocab.first_code == int(arrays["token_offset"])
    counts = [int(name.removeprefix("tokens_")) for name in arrays.files if name.startswith("tokens_")]
    assert counts
    for count in counts:
        bins = ActionBins(vocab, count)
        ids = bins.ids(actions)
        assert_array_equal(ids.numpy(), arrays[f"tokens_{count}"])
        assert_array_equal(bins.values(ids).numpy(), arrays[f"dequant_{count}"])
        error = (bins.values(ids) - actions.clamp(-1, 1)).abs().max()
        assert float(error) <= 1 / (count - 1) + 1e-6


@dataclass(frozen=True)
class Recorded(Diffusion):
    """Hides what the original hid: ``primary`` [B, C] in view 1, the rest in view 2."""

    primary: Tensor | None = None

    def _draw_masks(self, canvas: Canvas, generators: Any) -> Tensor:
        assert self.primary is not None
        assert canvas.ids.shape == self.primary.shape
        return torch.stack([self.primary, ~self.primary])


@dataclass(frozen=True)
class Problem:
    """The original's batch and ours. ``columns``: of our sequence in its order, for the primary and the other copy."""

    arrays: Any
    built: Built
    flow: TokenSequence
    task: TextTask
    columns: tuple[Tensor, Tensor]

    @property
    def prefix(self) -> int:
        return self.flow.ids.shape[1]

    def spans(self) -> tuple[slice, slice, slice]:
        """The original's columns of robot flow, noisy and clean copy."""
        tokens = self.arrays["action_token_ids"].shape[1]
        flow = slice(0, self.prefix)
        noisy = slice(self.prefix, self.prefix + tokens)
        return flow, noisy, slice(noisy.stop, noisy.stop + tokens)


def problem(parity: Path, **knobs: Any) -> Problem:
    built = upstream(parity)
    arrays = np.load(parity / "action_bd.npz")
    flow, _ = robot(parity, 1, built, pad=True)
    objective = Recorded(
        "action_bd",
        Fixed(int(arrays["block_size"])),
        weighting="uniform",
        ar_aux_weight=1.0,  # keeps all of the clean copy, as the original does
        primary=torch.tensor(arrays["primary_mask"]),
        **knobs,
    )
    bins = ActionBins(built.model.vocab, 256)
    task = action_task(objective, bins, flow, torch.tensor(arrays["actions"]), rng=SampleRng(0, 0, "action"))
    tokens, start = arrays["action_token_ids"].shape[1], flow.ids.shape[1]
    clean, one, two = (torch.arange(tokens) + start + copy * tokens for copy in range(3))
    head = torch.arange(start)
    return Problem(arrays, built, flow, task, (torch.cat([head, one, clean]), torch.cat([head, two, clean])))


def test_the_same_tokens_are_hidden_behind_the_same_flow(parity: Path) -> None:
    """The same prefix, the same ids, the same tokens hidden in both copies, the same ones to be predicted."""
    found = problem(parity)
    arrays, rows = found.arrays, len(found.arrays["primary_mask"])
    assert_array_equal(found.flow.ids.numpy(), arrays["prefix_ids"])
    flow, noisy, clean = found.spans()
    for copy, columns in enumerate(found.columns):
        ids = found.task.sequence.ids[:, columns].numpy()
        assert_array_equal(ids, arrays["input_ids"][copy * rows : (copy + 1) * rows])
        assert_array_equal(ids[:, clean], arrays["action_token_ids"])
        labels = arrays["labels_half"][copy * rows : (copy + 1) * rows]
        assert (labels[:, flow] == -100).all()
        hidden = ids[:, noisy] == found.built.model.vocab.mask
        assert_array_equal(labels[:, noisy], np.where(hidden, arrays["action_token_ids"], -100))


def test_noisy_tokens_see_what_the_originals_see_and_the_departures_are_as_documented(parity: Path) -> None:
    """Noisy slots see their own block and clean tokens of earlier ones, the flow sees no token, in both."""
    found = problem(parity)
    sequence = found.task.sequence
    flow, noisy, clean = found.spans()
    ours = sequence.rule.dense(sequence.slots)[:, 0].numpy()
    valid = found.flow.slots.valid.numpy()
    for copy, columns in enumerate(found.columns):
        for row in range(len(valid)):
            mask = ours[row][np.ix_(columns, columns)]
            theirs = found.arrays["allow_mask"][copy * len(valid) + row]
            same = ((noisy, noisy), (noisy, clean), (clean, noisy), (flow, noisy), (flow, clean))
            for queries, keys in same:
                assert_array_equal(mask[queries, keys], theirs[queries, keys])
            # Departures. Tokens see all of the flow there, its padding too;
            for queries in (noisy, clean):
                assert theirs[queries, flow].all()
                assert (mask[queries, flow] == valid[row]).all()
            # the flow is causal there, here it is the flow of the other losses, whose image span sees ahead;
            assert_array_equal(theirs[flow, flow], np.tril(np.ones((found.prefix, found.prefix), bool)))
            image = found.flow.slots.kind[row].numpy() == Kind.IMAGE
            assert (mask[flow, flow][image] == valid[row]).all()
            # and its clean copy sees its whole block, ours its past.
            grid = np.arange(clean.stop - clean.start) // int(found.arrays["block_size"])
            assert_array_equal(theirs[clean, clean], grid[None, :] <= grid[:, None])
            assert_array_equal(mask[clean, clean], np.tril(np.ones_like(theirs[clean, clean])))


def test_copies_repeat_positions_where_the_originals_count_on(parity: Path) -> None:
    """Its clean copy stands behind the noisy one; ours stand at the same positions."""
    found = problem(parity)
    flow, noisy, clean = found.spans()
    assert clean.start == noisy.stop
    for columns in found.columns:
        pos = found.task.sequence.slots.pos[:, columns]
        assert torch.equal(pos[:, noisy], pos[:, clean])
        assert torch.equal(
            pos[:, noisy] - pos[:, [flow.stop - 1]], 1 + torch.arange(noisy.stop - noisy.start).expand(len(pos), -1)
        )


def test_tokens_are_read_where_the_original_reads_them_but_for_a_blocks_first(parity: Path) -> None:
    """Tokens inside a block are read where the original reads them; a block's first token from the clean slot before
    it (the original: from the noisy slot before, of another block), and the chunk's first from the last <|lvg|> in
    both."""
    found = problem(parity)
    size, rows = int(found.arrays["block_size"]), len(found.arrays["primary_mask"])
    flow, noisy, _ = found.spans()
    task = found.task
    own = ~task.clean_only
    learned = set(zip(*(part[own].tolist() for part in (task.rows, task.slots, task.targets)), strict=True))
    agreed = moved = 0
    recorded = int((found.arrays["labels_half"] != -100).sum())
    for copy, columns in enumerate(found.columns):
        labels = found.arrays["labels_half"][copy * rows : (copy + 1) * rows]
        for row, at in zip(*np.nonzero(labels != -100), strict=True):
            theirs = (int(row), int(columns[at - 1]), int(labels[row, at]))
            offset = int(at) - noisy.start
            if offset % size == 0 and offset:
                clean_slot = found.prefix + offset - 1
                assert (theirs[0], clean_slot, theirs[2]) in learned
                assert theirs not in learned
                moved += 1
            else:
                assert theirs in learned
                agreed += 1
    assert agreed
    assert agreed + moved == recorded
    assert (found.flow.slots.kind[:, flow.stop - 1] == Kind.ACTION).all()


def test_under_the_originals_mask_and_positions_the_network_pays_its_loss(parity: Path) -> None:
    """Our network under the original's mask, positions and reading pays its loss: the departures are all there is.
    Ours is another number, and leaves image loss and regression as they are."""
    found = problem(parity)
    model, arrays = found.built.model, found.arrays
    ids, mask = torch.tensor(arrays["input_ids"]), torch.tensor(arrays["allow_mask"])[:, None]
    running = torch.arange(ids.shape[1]).expand_as(ids)
    hidden = model.backbone(model.backbone.embed(ids), mask, running)
    labels = torch.tensor(arrays["labels_half"])
    rows, columns = (labels != -100).nonzero(as_tuple=True)
    logits = model.backbone.logits(hidden[rows, columns - 1])
    assert_allclose(F.cross_entropy(logits, labels[rows, columns]).item(), arrays["loss_action_bd"], rtol=LOSS)

    recorded = np.load(parity / "pre_1view.npz")
    only_diffusion = Diffusion("action_bd", Fixed(int(arrays["block_size"])), weighting="uniform")
    actions = torch.tensor(arrays["actions"])
    task = action_task(only_diffusion, ActionBins(model.vocab, 256), found.flow, actions)
    losses = model(RobotTask(found.flow, None, torch.tensor(recorded["actions"]), action_tokens=task))
    assert_allclose(losses.action.mean.item(), recorded["loss_act"], rtol=LOSS)
    assert abs(losses.action_bd.mean.item() / float(arrays["loss_action_bd"]) - 1) < 0.2
    replaced = replace(found.task, weights=(~found.task.clean_only).float())
    ours, _ = model.action_token_losses(replaced, model.hidden_states(found.task.sequence))
    theirs = float(arrays["loss_action_bd"])
    assert abs(ours.mean.item() - theirs) > LOSS * theirs
