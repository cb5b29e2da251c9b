"""Acting reads an instruction once, and says what one forward over everything says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.robot_reader import RobotReader
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


@contextmanager
def lengths_read(model: UPVLA) -> Iterator[list[tuple[int, int]]]:
    """(rows, slots) of every forward of the backbone."""
    seen: list[tuple[int, int]] = []
    hook = model.backbone.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape[:2])))
    yield seen
    hook.remove()


@pytest.mark.parametrize(
    "instructions", [[SHORT], [SHORT, SHORT], [SHORT, OTHER], [LONG, SHORT, LONG, OTHER], [LONG, SHORT]], ids=len
)
def test_it_predicts_what_one_forward_over_everything_predicts(model, instructions):
    reader, codes = RobotReader(model), codes_of(model, len(instructions))
    expected = whole(model, instructions, codes)
    for _ in range(2):  # the second time from what is kept
        same(reader.predict(instructions, codes, want_codes=True), expected)


def test_an_instruction_is_read_once_however_often_it_is_acted_on(model):
    reader, pictures = RobotReader(model), 4 + 2 + model.spec.act_step
    with lengths_read(model) as seen:
        for step in range(3):
            reader.predict([SHORT, LONG, SHORT], codes_of(model, 3, step))
        reader.predict([OTHER], codes_of(model, 1))
    assert seen == [(2, len(LONG)), *[(3, pictures)] * 3, (1, len(OTHER)), (1, pictures)]


def test_instructions_that_were_not_needed_for_long_are_forgotten_and_read_again(model):
    reader = RobotReader(model, kept_slots=len(SHORT) + len(OTHER))
    codes = codes_of(model, 1)
    with lengths_read(model) as seen:
        for instruction in (SHORT, OTHER, SHORT, LONG, OTHER):
            same(reader.predict([instruction], codes, want_codes=True), whole(model, [instruction], codes))
    instructions_read = [slots for _, slots in seen if slots < 10 and slots in (len(SHORT), len(LONG))]
    assert instructions_read == [len(SHORT), len(OTHER), len(LONG), len(OTHER)]
    batch = [SHORT, OTHER, LONG]  # more than is kept
    same(reader.predict(batch, codes_of(model, 3), want_codes=True), whole(model, batch, codes_of(model, 3)))


def test_changed_weights_are_noticed(model):
    reader, codes = RobotReader(model), codes_of(model, 1)
    before = reader.predict([LONG], codes)
    weight = model.backbone.lm.get_input_embeddings().weight
    kept = weight.detach().clone()
    with torch.no_grad():
        weight[LONG] += 1.0
    try:
        after = reader.predict([LONG], codes, want_codes=True)
        assert not torch.allclose(after.actions, before.actions)
        same(after, whole(model, [LONG], codes))
    finally:
        with torch.no_grad():
            weight.copy_(kept)


@pytest.mark.slow  # half a minute of compiling
def test_compiled_for_its_shapes_it_predicts_the_same(tmp_path: Path):
    model = tiny_model(tmp_path)[0].eval()
    reader = RobotReader(model, compiled=True)
    for instructions in ([SHORT], [LONG, SHORT, OTHER], [OTHER]):
        codes = codes_of(model, len(instructions))
        same(reader.predict(instructions, codes, want_codes=True), whole(model, instructions, codes))
