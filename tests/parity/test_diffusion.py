"""Diffusion of text against the original's arrays: where its rule is ours, and where ours departs on purpose.

Its layout is ``[noisy | clean]``, ours ``[clean | noisy views]``; rows and columns are put in its order here.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from torch import Tensor
from torch.nn import functional as F

from models.attention_mask import CAUSAL, Kind, Slots, with_noisy_copies
from models.objectives.block_size import Fixed
from models.objectives.diffusion import Diffusion
from models.objectives.elbo_weights import Ratio
from models.objectives.layout import Canvas, append_noisy_copies, apply_mask, build_canvas
from models.sequence import TokenSequence
from models.vocabulary import Vocabulary

pytestmark = pytest.mark.parity

VOCAB = Vocabulary(words=9000, bos=8998, eos=8999)

LAYOUT = re.compile(r"(?:bd|prefixed_P(?P<prefix>\d+))_L(?P<length>\d+)_B(?P<block>\d+)")
"""An array's name says the sizes of the mask in it: ``bd_L7_B3``, ``prefixed_P5_L6_B2``."""


def our_mask(prefix: int, length: int, block: int) -> Tensor:
    """Our rule over the original's order: prefix, noisy copy, clean copy."""
    head, offset = torch.arange(prefix), torch.arange(length)
    start = prefix + offset // block * block
    none = torch.full_like
    slots = Slots(
        kind=torch.full((1, prefix + 2 * length), int(Kind.ANSWER)),
        pos=torch.cat([head, prefix + offset, prefix + offset])[None],
        copy_id=torch.cat([none(head, 0), none(offset, 1), none(offset, 0)])[None],
        block_start=torch.cat([none(head, -1), start, none(offset, -1)])[None],
    )
    return with_noisy_copies(CAUSAL).dense(slots)[0, 0]


def check_layout(theirs: np.ndarray, prefix: int, length: int, block: int) -> None:
    ours = our_mask(prefix, length, block).numpy()
    head, noisy, clean = slice(0, prefix), slice(prefix, prefix + length), slice(prefix + length, None)
    for queries, keys in ((noisy, noisy), (noisy, clean), (noisy, head), (clean, noisy), (clean, head), (head, head)):
        assert_array_equal(ours[queries, keys], theirs[queries, keys])
    # The departure: the original's clean copy sees its whole block, also what comes after; ours is causal, so that it
    # is the AR model's own stream, can be cached, and can verify a draft.
    grid = np.arange(length) // block
    assert_array_equal(theirs[clean, clean], grid[None, :] <= grid[:, None])
    assert_array_equal(ours[clean, clean], np.tril(np.ones((length, length), bool)))


def test_noisy_blocks_see_what_the_originals_see_and_the_clean_stream_is_causal(parity: Path) -> None:
    arrays = np.load(parity / "block_diffusion.npz")
    named = [match for name in arrays.files if (match := LAYOUT.fullmatch(name))]
    assert named
    for match in named:
        check_layout(arrays[match[0]], int(match["prefix"] or 0), int(match["length"]), int(match["block"]))
    for mask, size in zip(arrays["elastic_masks"], arrays["elastic_block_sizes"].tolist(), strict=True):
        check_layout(mask, 0, int(arrays["elastic_L"]), size)


def corrupt(level: np.ndarray, u: np.ndarray, valid: np.ndarray, size: int, ratio: Ratio) -> Tensor:
    """Our hiding rule with given draws. ``level``: a draw per block of ``size`` tokens, counted from the row's start as
    the original does (ours counts from the start of the answer)."""
    block = torch.arange(len(u)) // size
    return apply_mask(torch.tensor(u), ratio.of(torch.tensor(level))[block], torch.tensor(valid))


def test_the_same_draws_hide_the_same_tokens(parity: Path) -> None:
    """Given the same draws the same tokens are hidden: elastic blocks, and the recorded steps of bd and mdm."""
    arrays = np.load(parity / "block_diffusion.npz")
    for row, size in enumerate(arrays["elastic_block_sizes"].tolist()):
        valid, u = arrays["elastic_valid"][row], arrays["elastic_u"][row]
        primary = corrupt(arrays[f"elastic_t{row}"], u, valid, size, Ratio(low=1e-3))
        assert_array_equal(primary.numpy(), arrays["elastic_primary_mask"][row])
        assert_array_equal(valid & ~primary.numpy(), arrays["elastic_complementary_mask"][row])
    steps = json.loads((parity / "steps.json").read_text())
    bd, mdm = np.load(parity / "step_bd.npz"), np.load(parity / "step_mdm.npz")
    low, high = steps["mdm"]["mask_ratio"]
    hidden_words = 0
    for flow in ("pre", "mmu"):
        for row in range(len(bd[f"{flow}_noise_u"])):
            u, valid = bd[f"{flow}_noise_u"][row], bd[f"{flow}_valid_mask"][row]
            eps, size = steps["bd"]["eps"], steps["bd"]["block_size"]
            primary = corrupt(bd[f"{flow}_noise_level"][row], u, valid, size, Ratio(low=eps)).numpy()
            hidden_words += int(primary.sum())
            assert_array_equal(primary, bd[f"{flow}_primary_mask"][row])
            assert_array_equal(valid & ~primary, bd[f"{flow}_complementary_mask"][row])
            u, valid = mdm[f"{flow}_noise_u"][row], mdm[f"{flow}_valid_mask"][row]
            level = mdm[f"{flow}_noise_level"][row]  # recorded as a ratio already
            assert low <= level.item() <= high
            hidden, theirs = corrupt(level, u, valid, len(u), Ratio()).numpy(), mdm[f"{flow}_masked_pos"][row]
            if hidden.any():
                assert_array_equal(hidden, theirs)
            else:  # where the draw hides nothing the original hides one token all the same (`check_departures`)
                assert theirs.sum() == valid.any()
                assert not theirs[~valid].any()
            hidden_words += int(hidden.sum())
    assert hidden_words


def test_a_batch_of_elastic_blocks_is_laid_out_alike(parity: Path) -> None:
    """Rows of a batch with blocks of their own: what is shown and what is to be predicted, in both copies."""
    arrays = np.load(parity / "block_diffusion.npz")
    ids, length = arrays["elastic_clean_ids"], int(arrays["elastic_L"])
    hidden = np.concatenate([arrays["elastic_primary_mask"], arrays["elastic_complementary_mask"]])
    (mask,) = np.unique(arrays["elastic_input_ids"][:, :length][hidden]).tolist()
    assert mask not in ids
    twice = np.concatenate([ids, ids])
    assert_array_equal(arrays["elastic_input_ids"][:, :length], np.where(hidden, mask, twice))
    assert_array_equal(arrays["elastic_input_ids"][:, length:], twice)
    assert_array_equal(arrays["elastic_labels"], np.where(hidden, twice, -100))
    assert_array_equal(arrays["elastic_block_sizes_out"], np.tile(arrays["elastic_block_sizes"], 2))
    for row, size in enumerate(arrays["elastic_block_sizes"].tolist()):
        # Ours, of one answer without end-of-text: the same blocks, shown the same.
        clean = answer(ids[row])
        canvas = build_canvas(clean, VOCAB, [size])
        assert_array_equal((canvas.block_start[0] - clean.slots.pos[0, 1]).numpy(), np.arange(length) // size * size)
        for copy in (row, row + len(ids)):
            covered = torch.tensor(hidden[copy])[None, None]
            sequence, (span,) = append_noisy_copies(clean, canvas, covered, mask)
            assert_array_equal(sequence.ids[0, span.columns].numpy(), arrays["elastic_input_ids"][copy, :length])


def answer(ids: np.ndarray) -> TokenSequence:
    """A word and an answer behind it."""
    tokens = torch.tensor([[3, *ids.tolist()]])
    kind = torch.full_like(tokens, int(Kind.ANSWER))
    kind[0, 0] = int(Kind.TEXT)
    return TokenSequence(tokens, Slots.clean(kind, torch.arange(tokens.shape[1])[None]), CAUSAL)


@dataclass(frozen=True)
class Recorded(Diffusion):
    """Hides what it is told to."""

    covered: Tensor | None = None

    def _draw_masks(self, canvas: Canvas, generators: object) -> Tensor:
        assert self.covered is not None
        return self.covered[None]


def test_tokens_are_read_one_slot_before_as_there_but_for_a_blocks_first(parity: Path) -> None:
    """The original's shifted loss: the token at i from the noisy slot before it. Ours inside a block; the first token
    of a block is read from the clean slot before it, where the original reads it from another block's noisy slot, and
    never learns the first of all."""
    arrays = np.load(parity / "block_diffusion.npz")
    logits, labels = torch.tensor(arrays["shift_logits"]), torch.tensor(arrays["shift_labels"])
    costs, length = [], labels.shape[1]
    for row in range(len(labels)):
        covered = labels[row] != -100
        covered[0] = False  # the original never learns it; ours would read it from the clean slot 0
        words = torch.where(covered, labels[row], 1).numpy()
        objective = Recorded(
            "bd", Fixed(length), complementary=False, weighting="uniform", covered=covered[None], whole_answer=True
        )
        task = objective.task(VOCAB, answer(words), [0])
        inside = task.weights > 0
        columns = task.slots[inside] - 1  # the clean stream in front is the one word before the answer
        costs.append(F.cross_entropy(logits[row, columns], task.targets[inside], reduction="none"))
        assert_array_equal(columns.numpy() + 1, covered.nonzero()[:, 0].numpy())
    assert_allclose(torch.cat(costs).mean().item(), arrays["shift_loss"], rtol=1e-6)
    assert arrays["shift_loss_first_only"] == 0  # the departure: nobody reads it there
    first = Recorded("bd", Fixed(length), complementary=False, covered=torch.ones(1, length, dtype=torch.bool))
    task = first.task(VOCAB, answer(np.full(length, 5)), [0])
    assert task.weights[task.slots == 0].tolist() == [1.0]


def test_the_departures_are_as_documented(parity: Path) -> None:
    """What the original's arrays say that ours do not do."""
    bd, mdm = np.load(parity / "step_bd.npz"), np.load(parity / "step_mdm.npz")
    # It also hides words of the robot's instruction; here the text objectives learn answers alone.
    assert bd["pre_valid_mask"].any()
    assert mdm["pre_masked_pos"].any()
    # Its text passes do not see the image: the chat rows hold no slot for it.
    without_image = np.load(parity / "mmu.npz")["text_ids"].shape[1]
    assert bd["mmu_clean_ids"].shape[1] == mdm["mmu_clean_ids"].shape[1] == without_image
    # With a ratio of 0 it hides one token all the same; here nothing is hidden and the draw weighs nothing, which is
    # what makes the weights (n + 1) / k exact.
    edge = np.load(parity / "mdm_edge.npz")
    assert ((edge["labels"] != -100).sum(1) == edge["valid_mask"].any(1)).all()
    nothing = apply_mask(torch.rand(4, 9), torch.zeros(4, 9), torch.tensor(edge["valid_mask"]))
    assert not nothing.any()
