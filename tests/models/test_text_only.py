"""Conversations without an image beside others with one: they are what they would be alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from config.schema import Job
from models.attention_mask import Kind
from models.objectives import text_objective
from models.rng import SampleRng
from models.sequence import TextTurn, clean_text_sequence
from models.text_metrics import GAP, evaluate_text_likelihood, with_exchanged_images
from tests.models.text_problems import TALK, Built, one_row, talk
from tests.tiny import tiny_model

OBJECTIVES = ("ar", "mdm", "bd")
BARE = torch.tensor([False, True])  # the first row has no image


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return tiny_model(tmp_path_factory.mktemp("model"))


def losses(built: Built, objective: str, turn: TextTurn) -> torch.Tensor:
    """[2]: sums of the training loss and of the negative log-likelihood or its bound."""
    model, prompter = built
    job = Job()
    job.training.text_objective = objective  # type: ignore[assignment]
    job.block_diffusion.block_size = 4
    task = text_objective(job).prepare(model.vocab, prompter.system_ids, turn, SampleRng(3, 1))
    loss, nats, _ = model.text_losses(task)
    return torch.stack([loss.sum, nats.sum])


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_row_without_an_image_costs_what_it_costs_alone_and_leaves_the_others_as_they_are(
    built: Built, objective: str
) -> None:
    turn = talk(built)
    mixed = replace(turn, pictured=BARE)
    alone = [replace(one_row(turn, 0), patches=None), one_row(turn, 1)]
    expected = sum(losses(built, objective, row) for row in alone)
    assert isinstance(expected, torch.Tensor)
    torch.testing.assert_close(losses(built, objective, mixed), expected, rtol=1e-5, atol=1e-4)
    seen = losses(built, objective, turn)
    assert not torch.allclose(seen, expected, rtol=1e-5, atol=1e-4)  # with its image it costs something else


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_nothing_of_a_placeholder_reaches_the_loss_or_the_projector(built: Built, objective: str) -> None:
    model, _ = built
    turn = replace(one_row(talk(built), 0), pictured=BARE[:1])
    assert turn.patches is not None
    other = replace(turn, patches=100 * torch.randn(turn.patches.shape, generator=torch.Generator().manual_seed(5)))
    first, second = losses(built, objective, turn), losses(built, objective, other)
    assert torch.equal(first, second)
    model.zero_grad()
    second[0].backward()
    assert model.projector is not None
    gradients = [p.grad for p in model.projector.parameters()]
    assert all(g is not None and not g.any() for g in gradients)  # there for DDP, and zero
    assert any(p.grad is not None and p.grad.any() for p in model.backbone.parameters())
    model.zero_grad()


def test_without_an_image_the_words_follow_on_the_system_prompt(built: Built) -> None:
    model, prompter = built
    turn = talk(built)
    assert turn.patches is not None
    sequence = clean_text_sequence(model.vocab, prompter.system_ids, replace(turn, pictured=BARE))
    head, gap = 1 + len(prompter.system_ids), turn.patches.shape[1] + 2
    kinds, pos = sequence.slots.kind, sequence.slots.pos
    assert (kinds[0, head : head + gap] == Kind.PAD).all()
    assert pos[0, head + gap :].tolist() == list(range(head, head + turn.ids.shape[1]))
    bare = clean_text_sequence(model.vocab, prompter.system_ids, replace(one_row(turn, 0), patches=None))
    kept = torch.cat([torch.arange(head), torch.arange(head + gap, kinds.shape[1])])
    assert torch.equal(kinds[0, kept], bare.slots.kind[0])
    assert torch.equal(sequence.rule.dense(sequence.slots)[0, 0][kept][:, kept], bare.rule.dense(bare.slots)[0, 0])
    with_all = clean_text_sequence(model.vocab, prompter.system_ids, turn)
    assert torch.equal(kinds[1], with_all.slots.kind[1])
    assert torch.equal(pos[1], with_all.slots.pos[1])


def test_images_are_exchanged_among_those_who_have_one(built: Built) -> None:
    model, prompter = built
    turn = talk(built, [*TALK, TALK[1]])
    assert turn.patches is not None
    mixed = replace(turn, pictured=torch.tensor([True, False, True]))
    others = with_exchanged_images(mixed)
    assert others is not None
    assert torch.equal(others.patches, turn.patches[[2, 1, 0]])  # type: ignore[arg-type]
    assert with_exchanged_images(replace(turn, pictured=torch.tensor([False, True, False]))) is None
    both = one_row(turn, 0), one_row(turn, 2)
    names = ("ids", "answer", "patches", "indices", "lengths")
    alone = TextTurn(**{name: torch.cat([getattr(row, name) for row in both]) for name in names})
    gap, expected = (evaluate_text_likelihood(model, prompter, text_objective("ar"), t)[GAP] for t in (mixed, alone))
    assert gap.count == expected.count
    torch.testing.assert_close(gap.sum, expected.sum, rtol=1e-4, atol=1e-4)
