"""Acting says what one forward over everything says, by the weights as they are at that moment."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.action.inference import ActionPredictor, compiled_forward
from models.sequence import robot_sequence
from models.upvla import UPVLA, Prediction
from tests.tiny import tiny_model

SHORT, LONG, OTHER = [5, 6, 7], [5, 9, 9, 4, 3, 2, 8, 7], [6, 6, 7]


@pytest.fixture(scope="module", params=["phi", "qwen3"])
def model(request, tmp_path_factory) -> UPVLA:
    return tiny_model(tmp_path_factory.mktemp(request.param), request.param)[0].eval()


def codes_of(model: UPVLA, batch: int, seed: int = 0) -> Tensor:
    return torch.randint(0, model.vocab.codebook_size, (batch, 4), generator=torch.Generator().manual_seed(seed))


def whole(model: UPVLA, instructions: list[list[int]], codes: Tensor) -> Prediction:
    return model.predict(robot_sequence(model.vocab, instructions, codes, model.spec.act_step), want_codes=True)


def same(found: Prediction, expected: Prediction) -> None:
    torch.testing.assert_close(found.actions, expected.actions, rtol=1e-5, atol=1e-6)
    assert torch.equal(found.codes, expected.codes)


@pytest.mark.parametrize(
    "instructions", [[SHORT], [SHORT, SHORT], [SHORT, OTHER], [LONG, SHORT, LONG, OTHER], [LONG, SHORT]], ids=len
)
def test_it_predicts_what_one_forward_over_everything_predicts(model, instructions):
    reader, codes = ActionPredictor(model), codes_of(model, len(instructions))
    expected = whole(model, instructions, codes)
    for _ in range(2):  # the second time by the layout that is kept
        same(reader.predict(instructions, codes, want_codes=True), expected)


@contextmanager
def learning(model: UPVLA) -> Iterator[UPVLA]:
    """A copy that learns, so that the shared one stays as it is."""
    yield copy.deepcopy(model).requires_grad_(True)


def step_of(kind: str, model: UPVLA) -> None:
    """Change every weight of the model, in one of the ways that a user has."""
    parameters = list(model.parameters())
    if kind == "load_state_dict":
        model.load_state_dict({name: tensor + 0.05 for name, tensor in model.state_dict().items()})
    elif kind == "data":
        for parameter in parameters:
            parameter.data.add_(0.05)
    elif kind == "exchanged":
        for parameter in parameters:
            parameter.data = parameter.data + 0.05
    else:
        name, _, form = kind.partition("_")
        optimizer = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[name](parameters, lr=0.05, **{form: True})
        codes = codes_of(model, 1)
        flow = robot_sequence(model.vocab, [LONG], codes, model.spec.act_step)
        model.action_head(model.hidden_states(flow)[:, -model.spec.act_step :]).square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize(
    "kind", ["adamw_fused", "adamw_foreach", "sgd_fused", "sgd_foreach", "load_state_dict", "data", "exchanged"]
)
def test_the_present_weights_act_however_they_were_changed(model: UPVLA, kind: str, frozen: bool) -> None:
    codes = codes_of(model, 1)
    with learning(model) as learner:
        learner.requires_grad_(not frozen)
        reader = ActionPredictor(learner)
        before = reader.predict([LONG], codes)
        learner.requires_grad_(True)
        step_of(kind, learner)
        learner.requires_grad_(not frozen)
        after = reader.predict([LONG], codes, want_codes=True)
        assert not torch.allclose(after.actions, before.actions)
        same(after, whole(learner, [LONG], codes))


@pytest.mark.slow  # half a minute of compiling
def test_compiled_for_its_shapes_it_predicts_the_same(tmp_path: Path):
    model = tiny_model(tmp_path)[0].eval()
    reader = ActionPredictor(model, compiled_forward(model))
    for instructions in ([SHORT], [LONG, SHORT, OTHER], [OTHER]):
        codes = codes_of(model, len(instructions))
        same(reader.predict(instructions, codes, want_codes=True), whole(model, instructions, codes))
