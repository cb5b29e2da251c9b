"""The exactness tests of the three text objectives, 1 to 5 of the specification's list: values and gradients.

The rest is in ``test_objectives_independence.py``.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import models.objectives.diffusion as diffusion
from models.objectives import TextTask, text_objective
from models.objectives.diffusion import Diffusion
from models.objectives.elbo_weights import Ratio
from models.sequence import TextTurn
from tests.models.objective_problems import ask, assert_same_gradients, attentive, bd, gradients, mdm, value
from tests.models.text_problems import (
    Built,
    blocks_of,
    cross_entropies,
    enumerated_bound,
    hidden_probability,
    shown_in,
    talk,
)

READINGS = ["shift", "aligned"]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return attentive(tmp_path_factory.mktemp("phi"), "phi")


@pytest.fixture(scope="module", params=["phi", "qwen3"])
def either(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Built:
    return attentive(tmp_path_factory.mktemp(request.param), request.param)


# --- 1 ---------------------------------------------------------------------------------------------------------------


def one_by_one(built: Built, turn: TextTurn, task: TextTask, objective: Diffusion, size: int) -> Tensor:
    """The training loss by a forward for each block and view."""
    total = torch.zeros(())
    for block in blocks_of(built, turn, size, objective.whole_answer):
        n = len(block.ids)
        for view in range(1, objective.num_copies + 1):
            hidden = [shown == built[0].vocab.mask for shown in shown_in(task, block, view)]
            assert len(hidden) == n
            losses = cross_entropies(built, turn, block, hidden, objective.prediction)
            k = sum(hidden)
            for offset, loss in losses.items():
                if objective.weighting == "uniform":
                    total = total + loss
                elif offset or objective.prediction == "aligned":
                    total = total + (n + 1) / k / objective.num_copies * loss
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
    expected, found = model.hidden_states(plain.sequence), model.hidden_states(ours.sequence)[:, :length]
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
    monkeypatch.setattr(diffusion, "drop_unread_clean_tokens", lambda clean, canvas: clean)
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
        monkeypatch.setattr(Diffusion, "_draw_masks", lambda self, canvas, draws, views=views: views)
        knobs = {"prediction": prediction, "complementary": complementary}
        tasks = [ask(built, bd(size, ratio=Ratio(low, high), **knobs), turn) for low, high in ranges]
        losses = built[0].text_scores(tasks[0])[0]  # the ratio changes weights alone
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
