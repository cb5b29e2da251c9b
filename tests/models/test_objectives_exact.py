"""The exactness tests of the three text objectives (the numbers are those of the specification's list)."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import models.objectives.diffusion as diffusion
from models.draws import Draws
from models.masks import Kind
from models.objectives import TextTask, text_objective
from models.objectives.diffusion import Diffusion
from models.objectives.levels import Ratio
from models.objectives.schedules import Elastic, Fixed
from models.sequence import TextTurn, future_targets, robot_sequence
from models.upvla import FutureTask
from tests.models.text_problems import (
    TALK,
    Built,
    blocks_of,
    cross_entropies,
    enumerated_bound,
    hidden_probability,
    one_row,
    shown_in,
    talk,
)
from tests.tiny import tiny_model

READINGS = ["shift", "aligned"]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return attentive(tmp_path_factory.mktemp("phi"), "phi")


@pytest.fixture(scope="module", params=["phi", "qwen3"])
def either(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Built:
    return attentive(tmp_path_factory.mktemp(request.param), request.param)


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
    return Diffusion("mdm", Fixed(multiple), whole=True, **knobs)  # type: ignore[arg-type]


def ask(built: Built, objective: object, turn: TextTurn, seed: int = 0) -> TextTask:
    model, prompter = built
    return objective.prepare(model.vocab, prompter.system_ids, turn, Draws(seed))  # type: ignore[attr-defined]


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


# --- 1 ---------------------------------------------------------------------------------------------------------------


def one_by_one(built: Built, turn: TextTurn, task: TextTask, objective: Diffusion, size: int) -> Tensor:
    """The training loss by a forward for each block and view."""
    total = torch.zeros(())
    for block in blocks_of(built, turn, size, objective.whole):
        n = len(block.ids)
        for view in range(1, objective.views + 1):
            hidden = [shown == built[0].vocab.mask for shown in shown_in(task, block, view)]
            assert len(hidden) == n
            losses = cross_entropies(built, turn, block, hidden, objective.prediction)
            k = sum(hidden)
            for offset, loss in losses.items():
                if objective.weighting == "uniform":
                    total = total + loss
                elif offset or objective.prediction == "aligned":
                    total = total + (n + 1) / k / objective.views * loss
        if objective.prediction == "shift" and objective.weighting == "nelbo":
            everything = cross_entropies(built, turn, block, [True] * n, "shift")
            total = total + everything[0]
    return total / task.counted


def check_one_forward(built: Built, objective: Diffusion) -> None:
    turn = talk(built)
    task = ask(built, objective, turn)
    together = value(built, task)[0]
    apart = one_by_one(built, turn, task, objective, 4)
    torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-6)
    assert_same_gradients(gradients(built, together), gradients(built, apart))


@pytest.mark.parametrize("make", [bd, mdm])
def test_1_one_forward_equals_a_forward_for_each_block_and_view(either: Built, make: Callable[..., Diffusion]) -> None:
    check_one_forward(either, make(4))


@pytest.mark.parametrize("knobs", [{"prediction": "aligned"}, {"complementary": False}, {"weighting": "uniform"}])
def test_1_so_it_does_whatever_the_knobs(built: Built, knobs: dict[str, object]) -> None:
    check_one_forward(built, bd(4, **knobs))


# --- 2, 3, 4 ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_2_the_clean_stream_of_bd_is_the_plain_ar_forward(either: Built) -> None:
    model, turn = either[0], talk(either)
    plain, ours = ask(either, text_objective("ar"), turn), ask(either, bd(ar_aux_weight=1.0), turn)
    length, valid = plain.sequence.ids.shape[1], plain.sequence.slots.valid
    assert torch.equal(ours.sequence.ids[:, :length], plain.sequence.ids)
    expected, found = model.hidden(plain.sequence), model.hidden(ours.sequence)[:, :length]
    torch.testing.assert_close(found[valid], expected[valid], rtol=1e-5, atol=1e-5)
    without = ask(either, bd(), turn)
    torch.testing.assert_close(
        value(either, ours)[0] - value(either, without)[0], value(either, plain)[0], rtol=1e-5, atol=1e-5
    )


def test_3_shifted_blocks_of_one_token_are_ar(either: Built) -> None:
    turn = talk(either)
    expected = value(either, ask(either, text_objective("ar"), turn))[0]
    loss, nats = value(either, ask(either, bd(1), turn))
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(nats, expected.detach(), rtol=1e-6, atol=1e-6)
    assert_same_gradients(gradients(either, loss), gradients(either, expected))
    larger = value(either, ask(either, bd(2), turn))[0]
    assert abs(float(larger.detach() - expected.detach())) > 1e-4


@pytest.mark.parametrize("prediction", READINGS)
def test_4_a_block_as_long_as_the_answer_makes_bd_masked_diffusion(
    built: Built, prediction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    turn = talk(built)
    size = max(len(block.ids) for block in blocks_of(built, turn, 1, whole=True))
    one_block, answer = (
        ask(built, bd(size, prediction=prediction), turn),
        ask(built, mdm(size, prediction=prediction), turn),
    )
    expected = value(built, answer)
    torch.testing.assert_close(value(built, one_block), expected, rtol=0, atol=0)
    # x0 of the last answer is not even there, and changes nothing where it is.
    monkeypatch.setattr(diffusion, "without_unread", lambda clean, canvas: clean)
    kept = ask(built, bd(size, prediction=prediction), turn)
    assert kept.sequence.ids.shape[1] > answer.sequence.ids.shape[1]
    torch.testing.assert_close(value(built, kept), expected, rtol=1e-5, atol=1e-6)
    shorter = ask(built, bd(size // 2, prediction=prediction), turn)
    assert abs(float(value(built, shorter)[1] - expected[1])) > 1e-4


# --- 5 ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", READINGS)
@pytest.mark.parametrize("complementary", [True, False])
@torch.no_grad()
def test_5_the_expectation_over_all_masks_is_the_enumerated_bound(
    built: Built, prediction: str, complementary: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 3
    turn = talk(built, [[("where?", "left")]])
    canvas = sum(len(block.ids) for block in blocks_of(built, turn, size))
    assert canvas % size == 0
    exact = enumerated_bound(built, turn, size, prediction)
    ranges = ((0.0, 1.0), (0.3, 0.8), (0.1, 1.0))
    loss, bound = torch.zeros(3), torch.zeros(3)
    for pattern in itertools.product([False, True], repeat=size):
        # The bound is a sum over blocks: all of them may show the same pattern.
        primary = torch.tensor(pattern).repeat(canvas // size)[None, None]
        views = torch.cat([primary, ~primary]) if complementary else primary
        monkeypatch.setattr(Diffusion, "_hidden", lambda self, canvas, draws, views=views: views)
        knobs = {"prediction": prediction, "complementary": complementary}
        tasks = [ask(built, bd(size, ratio=Ratio(low, high), **knobs), turn) for low, high in ranges]
        losses = built[0].text_cross_entropy(tasks[0])  # the ratio changes weights alone
        for number, (task, (low, high)) in enumerate(zip(tasks, ranges, strict=True)):
            chance = hidden_probability(size, sum(pattern), low, high)
            loss[number] += chance * (losses * task.weights).sum()
            bound[number] += chance * (losses * task.bound_weights).sum()
    torch.testing.assert_close(bound, exact.expand(3), rtol=2e-5, atol=1e-5)
    torch.testing.assert_close(loss[0], exact, rtol=2e-5, atol=1e-5)
    # A model that is not trained at all ratios is not trained on the bound; it is logged all the same.
    assert float((loss[1:] - exact).abs().min()) > 1e-2


def test_the_paired_estimate_varies_least(built: Built) -> None:
    """The spread of one draw's estimate if every hidden token cost one nat: the bound is then the canvas's length."""
    turn = talk(built, [[("where?", "inside")]])
    spread = {}
    for name, complementary in (("pair", True), ("single", False)):
        objective = bd(8, prediction="aligned", complementary=complementary)
        estimates = torch.stack([ask(built, objective, turn, seed).bound_weights.sum() for seed in range(150)])
        length = sum(len(block.ids) for block in blocks_of(built, turn, 8))
        assert abs(float(estimates.mean()) / length - 1) < 0.1
        spread[name] = float(estimates.std() / estimates.mean())
    assert spread["pair"] < 0.8 * spread["single"]


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
        for start in slots.start[row][slots.view[row] == view].unique().tolist():
            if start < 0:
                continue  # padding
            own = (slots.view[row] == view) & (slots.start[row] == start) & slots.valid[row]
            embeds = model.embed(sequence).detach().requires_grad_()
            hidden = model.backbone(embeds, mask, slots.pos)
            hidden[row][own].square().sum().backward()
            assert embeds.grad is not None
            touched = embeds.grad.abs().sum(-1) > 0  # [B, L]
            past = (slots.view[row] == 0) & (slots.pos[row] < start) & slots.valid[row]
            expected = torch.zeros_like(touched)
            expected[row] = past | own
            assert torch.equal(touched, expected)
            kinds = slots.kind[row][touched[row]]
            assert (kinds == Kind.PATCH).sum() == 5  # the picture is among them


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
        read = task.sequence.slots.start[task.rows, task.slots] == start
        losses = built[0].text_cross_entropy(task)
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
def test_9_the_picture_changes_the_text_loss_and_the_projector_learns(built: Built, name: str) -> None:
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
            for p, i in zip(*(t[row][slots.view[row] == 0] for t in (slots.pos, task.sequence.ids)), strict=True)
        }
        for view in (1, 2):
            here = (slots.view[row] == view) & slots.valid[row]
            shown = zip(slots.pos[row][here].tolist(), task.sequence.ids[row][here].tolist(), strict=True)
            words = [(p, i) for p, i in shown if i not in (model.vocab.mask, model.vocab.eos)]
            assert words
            assert all(clean[p] == i for p, i in words)
    running = torch.arange(slots.pos.shape[1]).expand_as(slots.pos)
    mask = task.sequence.rule.dense(slots)
    hidden = [model.backbone(model.embed(task.sequence), mask, pos) for pos in (slots.pos, running)]
    noisy = (slots.view > 0) & slots.valid
    assert float((hidden[0] - hidden[1])[noisy].abs().max()) > 1e-2


def test_11_the_same_seed_hides_the_same_words_however_a_batch_is_split(built: Built) -> None:
    dialogues = [*TALK, [("what?", "the light, the drawer and the blue block")], [("is it red?", "yes, it is red")]]
    turn = talk(built, dialogues)
    elastic = Diffusion("bd", Elastic((2, 3, 5), 3))

    def shown(turn: TextTurn, seed: int = 0, step: int = 0) -> dict[int, list[list[int]]]:
        model, prompter = built
        sequence = elastic.prepare(model.vocab, prompter.system_ids, turn, Draws(seed, step)).sequence
        rows = {}
        for row, sample in enumerate(turn.samples):
            view, valid = sequence.slots.view[row], sequence.slots.valid[row]
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
    future = FutureTask(robot, future_targets(model.vocab, codes[1]), actions)
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
