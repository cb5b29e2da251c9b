"""The exactness tests of the three text objectives, 6 to 12 of the specification's list: what a loss depends on, and
what it must not depend on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from models.attention_mask import Kind
from models.objectives import text_objective
from models.objectives.block_size import Elastic
from models.objectives.diffusion import Diffusion
from models.rng import SampleRng
from models.sequence import TextTurn, future_targets, robot_sequence
from models.upvla import RobotTask
from tests.models.objective_problems import ask, attentive, bd, gradients, mdm, value
from tests.models.text_problems import TALK, Built, blocks_of, one_row, talk
from tests.tiny import tiny_model


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return attentive(tmp_path_factory.mktemp("phi"), "phi")


# --- 6 ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [bd, mdm])
def test_6_a_noisy_slot_depends_on_its_clean_past_and_its_own_block_alone(
    built: Built, make: Callable[..., Diffusion]
) -> None:
    model = built[0]
    sequence = ask(built, make(4), talk(built)).sequence
    slots = sequence.slots
    mask = sequence.rule.dense(slots)
    for view, row in ((1, 0), (2, 0), (1, 1)):
        for start in slots.block_start[row][slots.copy_id[row] == view].unique().tolist():
            if start < 0:
                continue  # padding
            own = (slots.copy_id[row] == view) & (slots.block_start[row] == start) & slots.valid[row]
            embeds = model.embed(sequence).detach().requires_grad_()
            hidden = model.backbone(embeds, mask, slots.pos)
            hidden[row][own].square().sum().backward()
            assert embeds.grad is not None
            touched = embeds.grad.abs().sum(-1) > 0  # [B, L]
            past = (slots.copy_id[row] == 0) & (slots.pos[row] < start) & slots.valid[row]
            expected = torch.zeros_like(touched)
            expected[row] = past | own
            assert torch.equal(touched, expected)
            kinds = slots.kind[row][touched[row]]
            assert (kinds == Kind.PATCH).sum() == 5  # the image is among them


@torch.no_grad()
def test_6_what_follows_an_answer_has_no_effect_on_it(built: Built) -> None:
    """The second question and answer may change; the first answer's continuation lies over their positions."""
    first = TALK[0][0]
    one = talk(built, [[first, ("where?", "inside the drawer")]])
    other = talk(built, [[first, ("which colour is the light?", "on the left")]])
    stop = int(one.answer[0].long().diff().eq(-1).nonzero()[0]) + 1
    assert torch.equal(one.ids[:, :stop], other.ids[:, :stop])
    found = []
    for turn in (one, other):
        task = ask(built, mdm(16), turn)
        start = min(block.start for block in blocks_of(built, turn, 16, whole=True))
        read = task.sequence.slots.block_start[task.rows, task.slots] == start
        losses = built[0].text_scores(task)[0]
        found.append(losses[read])
    assert len(found[0]) >= 8
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-5)


# --- 7 ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", [bd(4), bd(4, ar_aux_weight=0.5), mdm(4), text_objective("ar")])
@torch.no_grad()
def test_7_a_mixed_batch_equals_its_rows_and_fixed_padding(built: Built, objective: object) -> None:
    turn = talk(built, [*TALK, [("what?", "the light, the drawer and the blue block")]])
    together = built[0].text_loss(ask(built, objective, turn))
    rows = [built[0].text_loss(ask(built, objective, one_row(turn, row))) for row in range(3)]
    wide = talk(built, [*TALK, [("what?", "the light, the drawer and the blue block")]], width=turn.ids.shape[1] + 9)
    padded = built[0].text_loss(ask(built, objective, wide))
    for kind in range(2):  # loss, likelihood
        summed = sum((row[kind] for row in rows[1:]), rows[0][kind])
        torch.testing.assert_close(together[kind].sum, summed.sum, rtol=1e-5, atol=1e-4)
        assert together[kind].count == summed.count == padded[kind].count
        torch.testing.assert_close(together[kind].sum, padded[kind].sum, rtol=1e-5, atol=1e-4)


# --- 9, 10, 11, 12 ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ar", "mdm", "bd"])
def test_9_the_image_changes_the_text_loss_and_the_projector_learns(built: Built, name: str) -> None:
    objective = text_objective(name)
    loss = value(built, ask(built, objective, talk(built)))[0]
    learned = gradients(built, loss)
    assert float(learned["projector.0.weight"].abs().max()) > 1e-6
    with torch.no_grad():
        other = value(built, ask(built, objective, talk(built, seed=1)))[0]
    assert abs(float(other - loss.detach())) > 1e-4


@torch.no_grad()
def test_10_copies_repeat_positions(built: Built) -> None:
    model = built[0]
    task = ask(built, bd(4, ar_aux_weight=1.0), talk(built))
    slots = task.sequence.slots
    for row in range(2):
        clean = {
            int(p): int(i)
            for p, i in zip(*(t[row][slots.copy_id[row] == 0] for t in (slots.pos, task.sequence.ids)), strict=True)
        }
        for view in (1, 2):
            here = (slots.copy_id[row] == view) & slots.valid[row]
            shown = zip(slots.pos[row][here].tolist(), task.sequence.ids[row][here].tolist(), strict=True)
            words = [(p, i) for p, i in shown if i not in (model.vocab.mask, model.vocab.eos)]
            assert words
            assert all(clean[p] == i for p, i in words)
    running = torch.arange(slots.pos.shape[1]).expand_as(slots.pos)
    mask = task.sequence.rule.dense(slots)
    hidden = [model.backbone(model.embed(task.sequence), mask, pos) for pos in (slots.pos, running)]
    noisy = (slots.copy_id > 0) & slots.valid
    assert float((hidden[0] - hidden[1])[noisy].abs().max()) > 1e-2


def test_11_the_same_seed_hides_the_same_words_however_a_batch_is_split(built: Built) -> None:
    dialogues = [*TALK, [("what?", "the light, the drawer and the blue block")], [("is it red?", "yes, it is red")]]
    turn = talk(built, dialogues)
    elastic = Diffusion("bd", Elastic((2, 3, 5), 3))

    def shown(turn: TextTurn, seed: int = 0, step: int = 0) -> dict[int, list[list[int]]]:
        model, prompter = built
        sequence = elastic.prepare(model.vocab, prompter.system_ids, turn, SampleRng(seed, step)).sequence
        rows = {}
        for row, sample in enumerate(turn.samples):
            view, valid = sequence.slots.copy_id[row], sequence.slots.valid[row]
            rows[sample] = [sequence.ids[row][valid & (view == v)].tolist() for v in (1, 2)]
        return rows

    together = shown(turn)
    torch.rand(7)  # the global generator has no say
    apart: dict[int, list[list[int]]] = {}
    for row in (2, 0, 3, 1):
        apart.update(shown(one_row(turn, row)))
    assert apart == together
    assert shown(turn, seed=1) != together
    assert shown(turn, step=1) != together


def test_12_image_and_action_losses_are_the_same_under_all_three(built: Built) -> None:
    model, prompter = built
    draw = torch.Generator().manual_seed(0)
    codes = [torch.randint(0, 64, (2, model.spec.num_image_tokens), generator=draw) for _ in range(2)]
    words = [prompter.instruction(text) for text in ("open the drawer", "push the red block")]
    robot = robot_sequence(model.vocab, words, codes[0], model.spec.act_step)
    actions = torch.randn(2, model.spec.act_step, 7, generator=draw)
    future = RobotTask(robot, future_targets(model.vocab, codes[1]), actions)
    losses = {name: model(future, ask(built, text_objective(name), talk(built))) for name in ("ar", "mdm", "bd")}
    for name in ("mdm", "bd"):
        for part in ("image", "action"):
            ours, ar = getattr(losses[name], part), getattr(losses["ar"], part)
            assert torch.equal(ours.sum, ar.sum)
            assert torch.equal(ours.count, ar.count)
        assert not torch.equal(losses[name].text.sum, losses["ar"].text.sum)


@torch.no_grad()
def test_eager_and_sdpa_attention_agree_on_noisy_views(tmp_path: Path) -> None:
    losses = []
    for attention in ("sdpa", "eager"):
        built = tiny_model(tmp_path / attention, attn_implementation=attention)
        losses.append(value(built, ask(built, bd(3), talk(built))))
    torch.testing.assert_close(losses[0], losses[1])


def test_a_conversation_without_an_answer_costs_nothing(built: Built) -> None:
    turn = talk(built)
    empty = replace(turn, answer=torch.zeros_like(turn.answer))
    for name in ("ar", "mdm", "bd"):
        loss, nats = built[0].text_loss(ask(built, text_objective(name), empty))
        assert (float(loss.sum.detach()), float(loss.count), float(nats.count)) == (0, 0, 0)
