"""Acting in tokens: exact against a slow reference, and within its bounds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from models.action.encoding import ActionBins
from models.attention_mask import Kind
from models.decoding import ActionDecoding, DecodedActions, Static, decode_actions
from models.decoding.acceptance import accept_within
from models.upvla import UPVLA
from tests.models.action_problems import Built, alone, robot, telling_model


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return telling_model(tmp_path_factory.mktemp("phi"))


@pytest.fixture(scope="module", params=["phi", "qwen3"])
def either(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Built:
    return telling_model(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(autouse=True)
def _as_declared(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tests declare the shared model to have been trained otherwise."""
    model: UPVLA = request.getfixturevalue("either" if "either" in request.fixturenames else "built")[0]
    before = model.spec
    yield
    model.spec = before


def trained_as(built: Built, **spec: object) -> None:
    built[0].spec = built[0].spec.updated(**spec)


def decode(built: Built, rows: tuple[int, ...] = (0, 1), threshold: float = 0.3, forwards: int = 8) -> DecodedActions:
    return decode_actions(built[0], robot(built, rows), ActionDecoding(threshold, forwards))


@torch.no_grad()
def slowly(built: Built, row: int, threshold: float, forwards: int) -> tuple[Tensor, int]:
    """One row by a full forward over (flow, blocks before, the block) each time: ([T, A], forwards)."""
    model = built[0]
    spec, vocab = model.spec, model.vocab
    bins = ActionBins(vocab, spec.decoding.action_bins or 0)
    before: list[int] = []
    taken, total = 0, spec.act_step * 7
    while len(before) < total:
        shown = [vocab.mask] * min(spec.decoding.action_block_size, total - len(before))
        for left in range(forwards, 0, -1):
            hidden = [i for i, token in enumerate(shown) if token == vocab.mask]
            if not hidden:
                break
            taken += 1
            scores = alone(built, robot(built, [row]), 0, before, shown)
            scores = scores[:-1] if spec.decoding.action_prediction == "shift" else scores[1:]
            chance = scores[:, vocab.first_code : vocab.first_code + bins.count].softmax(-1)
            surest = sorted(hidden, key=lambda i: (-float(chance[i].max()), i))
            keep = max([i for i, _ in enumerate(surest, 1) if chance[surest[i - 1]].max() > threshold], default=1)
            for i in surest[: max(keep, -(-len(hidden) // left))]:
                shown[i] = vocab.first_code + int(chance[i].argmax())
        before += shown
    return bins.values(torch.tensor(before)).view(spec.act_step, 7), taken


@pytest.mark.parametrize("prediction", ["shift", "aligned"])
@pytest.mark.parametrize(("threshold", "forwards"), [(0.3, 8), (0.6, 3), (1.5, 2)])
def test_8_cached_equals_uncached_and_a_batch_equals_its_rows(
    either: Built, prediction: str, threshold: float, forwards: int
) -> None:
    trained_as(either, action_prediction=prediction)
    together = decode(either, (0, 1), threshold, forwards)
    assert together.actions.shape == (2, 3, 7)
    for row in range(2):
        expected, taken = slowly(either, row, threshold, forwards)
        alone_ = decode(either, (row,), threshold, forwards)
        for found, index in ((together, row), (alone_, 0)):
            assert torch.equal(found.actions[index], expected)
            assert int(found.forwards[index]) == taken
    assert not torch.equal(together.actions[0], together.actions[1])


@pytest.mark.parametrize("size", [1, 5, 21, 40])
def test_8_so_it_does_with_other_blocks(built: Built, size: int) -> None:
    trained_as(built, action_block_size=size)
    expected, taken = slowly(built, 1, 0.3, 4)
    found = decode(built, (0, 1), 0.3, 4)
    assert torch.equal(found.actions[1], expected)
    assert int(found.forwards[1]) == taken


def test_8_a_threshold_above_one_is_a_number_per_forward(built: Built) -> None:
    assert decode(built, threshold=1.01).forwards.tolist() == [21, 21]
    assert decode(built, threshold=0.0).forwards.tolist() == [3, 3]  # everything above nothing: one forward per block


@pytest.mark.parametrize("steps", [1, 2, 3, 6, 7, 100])
def test_all_numbers_are_there_after_the_forwards_that_are_allowed(built: Built, steps: int) -> None:
    found = decode(built, threshold=1.01, forwards=steps)
    assert found.forwards.tolist() == [3 * min(steps, 7)] * 2
    bins = ActionBins(built[0].vocab, built[0].spec.decoding.action_bins or 0)
    assert torch.equal(bins.values(bins.ids(found.actions)), found.actions)
    assert float(found.actions.abs().max()) <= 1


def test_a_forward_reads_the_flow_once_and_then_a_block_and_its_past_one(
    built: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the cache of the robot's prefix; and a block is committed by the forward that begins the next."""
    model = built[0]
    read: list[int] = []
    forward = model.backbone.forward

    def watch(embeds: Tensor, *rest: object) -> Tensor:
        read.append(embeds.shape[1])
        return forward(embeds, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(model.backbone, "forward", watch)
    decode(built, (0,), threshold=1.01, forwards=2)
    flow = robot(built, (0,)).ids.shape[1]
    assert read == [flow + 7, 7, 14, 7, 14, 7]


def test_a_nearly_sure_model_takes_a_forward_per_step_and_says_what_it_is_sure_of(
    built: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sure(hidden: Tensor, count: int) -> Tensor:
        logits = torch.zeros(*hidden.shape[:-1], count)
        logits[..., 5] = 20.0
        return logits

    monkeypatch.setattr(built[0], "code_logits", sure)
    found = decode(built, threshold=0.9)
    assert found.forwards.tolist() == [3, 3]
    torch.testing.assert_close(found.actions, torch.full((2, 3, 7), 5 / 15 * 2 - 1))


def test_the_frame_and_the_instruction_change_the_actions(built: Built) -> None:
    base = robot(built)
    how = ActionDecoding(0.3)
    actions = decode_actions(built[0], base, how).actions
    words = decode_actions(built[0], robot(built, texts=["close it", "lift the pink block"]), how).actions
    image = base.slots.kind == Kind.IMAGE
    swapped = replace(base, ids=torch.where(image, base.ids.flip(0), base.ids))
    frame = decode_actions(built[0], swapped, how).actions
    assert float((actions - words).abs().max()) > 0
    assert float((actions - frame).abs().max()) > 0


def test_a_model_that_never_learned_it_is_refused_in_one_line(built: Built) -> None:
    trained_as(built, action_bins=None)
    with pytest.raises(ValueError, match=r"not trained with block_diffusion\.action_enabled=true") as caught:
        decode(built)
    assert "\n" not in str(caught.value)


def test_no_forwards_are_refused() -> None:
    with pytest.raises(ValueError, match="action_infer_steps is 0; it must be 1 or more"):
        ActionDecoding(forwards=0)


def test_rows_with_more_open_slots_keep_more_of_them(built: Built) -> None:
    confidence = torch.tensor([[0.1, 0.4, 0.3, 0.2]] * 2)
    open_ = torch.tensor([[True] * 4, [True, False, False, True]])
    kept = accept_within(Static(1), 2, confidence, open_)
    assert kept.tolist() == [[False, True, True, False], [False, False, False, True]]
    assert accept_within(Static(1), 1, confidence, open_).tolist() == open_.tolist()
    assert accept_within(Static(1), 9, confidence, open_).sum(1).tolist() == [1, 1]
