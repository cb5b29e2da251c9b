"""Decoding of bd and mdm: exact against slow references, and what must hold of every answer."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.decoding import (
    Acceptance,
    Decoding,
    Factor,
    FirstHitting,
    Generation,
    Progress,
    Sampling,
    Static,
    Threshold,
    acceptance,
    generate,
)
from models.processing.text import Prompter
from models.sequence import TextTurn
from models.upvla import UPVLA
from tests.models.text_problems import Block, alone
from tests.tiny import tiny_model

Built = tuple[UPVLA, Prompter]
QUESTIONS = ["where?", "which colour is the block on the left of the drawer?"]
SIZE = 4


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return varied(tmp_path_factory.mktemp("phi"), "phi")


@pytest.fixture(scope="module", params=["phi", "qwen3"])
def either(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Built:
    return varied(tmp_path_factory.mktemp(request.param), request.param)


def varied(folder: Path, kind: str) -> Built:
    model, prompter = tiny_model(folder, kind, seed=3)
    prompter.system_ids = prompter.system_ids[:4]
    with torch.no_grad():  # random weights of 0.02 say one word over and over
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and "embed" not in name:
                parameter.mul_(6)
    return model, prompter


def said_otherwise(built: Built, **spec: object) -> Built:
    """The same weights, declared to have been trained otherwise."""
    model = built[0]
    model.spec = model.spec.updated(**{"text_prediction": "shift", "text_block_size": SIZE, **spec})
    return built


def images(model: UPVLA, n: int = 2) -> Tensor:
    return torch.randn(n, 5, model.spec.clip_width or 1, generator=torch.Generator().manual_seed(1))


def say(built: Built, objective: str = "bd", room: int = 10, rows: slice = slice(0, 2), **how: object) -> Generation:
    model, prompter = built
    keep = {name: how.pop(name) for name in ("on_step", "stop", "sampling", "generator") if name in how}
    return generate(
        model,
        prompter,
        QUESTIONS[rows],
        images(model)[rows],
        room,
        objective=objective,
        decoding=Decoding(**how),  # type: ignore[arg-type]
        **keep,  # type: ignore[arg-type]
    )


@torch.no_grad()
def uncached(
    built: Built, row: int, room: int, size: int, accept: Acceptance, window: int | None, shift: bool
) -> tuple[list[int], int]:
    """The same by a full forward over (everything before the block, the block) each time; (ids, denoising forwards)."""
    model, prompter = built
    vocab, answer, forwards = model.vocab, list[int](), 0
    patches = images(model)[row : row + 1]
    while len(answer) < room:
        ids = [*prompter.question(QUESTIONS[row]), *answer]
        turn = TextTurn(torch.tensor([ids]), torch.zeros(1, len(ids)), patches)
        start = 1 + len(prompter.system_ids) + 2 + patches.shape[1] + len(ids)
        shown = [vocab.mask] * size
        while True:
            before, own = alone(built, turn, Block(0, start, shown), shown)
            scores = (torch.cat([before[None], own[:-1]]) if shift else own)[:, : vocab.words].log_softmax(-1)
            forwards += 1
            visible = shown[: room - len(answer)]
            visible = visible[: visible.index(vocab.eos)] if vocab.eos in visible else visible
            open_ = [i for i, token in enumerate(visible) if token == vocab.mask]
            if window:
                open_ = [i for i in open_ if i // window == open_[0] // window]
            ends = [i for i in open_ if int(scores[i].argmax()) == vocab.eos]
            open_ = [i for i in open_ if not ends or i <= ends[0]]
            surest = sorted(open_, key=lambda i: (-float(scores[i].max()), i))
            if isinstance(accept, Threshold):
                kept = [i for i in open_ if scores[i].max().exp() > accept.level] or surest[:1]
                kept = list({*kept, surest[0]})
            else:
                assert isinstance(accept, Static)
                kept = surest[: accept.count]
            for i in kept:
                shown[i] = int(scores[i].argmax())
            visible = shown[: room - len(answer)]
            if vocab.eos in visible and vocab.mask not in visible[: visible.index(vocab.eos)]:
                return [*answer, *visible[: visible.index(vocab.eos) + 1]], forwards
            if vocab.mask not in visible:
                break
        answer += visible
    return answer, forwards


# --- 8 ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accept", [Threshold(0.3), Static(2)])
@pytest.mark.parametrize("prediction", ["shift", "aligned"])
def test_8_cached_blocks_equal_uncached_ones_and_a_batch_equals_its_rows(
    either: Built, accept: Acceptance, prediction: str
) -> None:
    said_otherwise(either, text_prediction=prediction)
    together = say(either, accept=accept)
    for row in range(2):
        expected, forwards = uncached(either, row, 10, SIZE, accept, None, prediction == "shift")
        assert together.ids[row] == expected
        alone_ = say(either, rows=slice(row, row + 1), accept=accept)
        assert alone_.ids[0] == expected
        assert alone_.stats.forwards == forwards  # commits are fused: they cost none
    said_otherwise(either)


@pytest.mark.parametrize("whole", [False, True])
def test_8_masked_diffusion_equals_its_uncached_self(built: Built, whole: bool) -> None:
    said_otherwise(built, text_canvas_multiple=6)
    accept = Threshold(0.3)
    together = say(built, "mdm", 10, accept=accept, whole_canvas=whole)
    for row in range(2):
        expected, forwards = uncached(built, row, 10, 12, accept, None if whole else SIZE, True)
        assert together.ids[row] == expected
        assert say(built, "mdm", 10, slice(row, row + 1), accept=accept, whole_canvas=whole).stats.forwards == forwards


def test_8_a_fused_commit_equals_a_separate_one_and_saves_its_forward(built: Built) -> None:
    said_otherwise(built)
    fused, separate = say(built, room=12), say(built, room=12, fused=False)
    assert fused.ids == separate.ids
    assert max(map(len, fused.ids)) == 12
    assert separate.stats.forwards == fused.stats.forwards + 2  # three blocks, the last is never committed


@pytest.mark.parametrize("prediction", ["shift", "aligned"])
@pytest.mark.parametrize("size", [2, 5])
def test_8_speculative_answers_are_greedy_ar(either: Built, size: int, prediction: str) -> None:
    said_otherwise(either, text_prediction=prediction)
    model = either[0]
    expected = say(either, "ar", 14)
    found = say(either, "bd", 14, speculative=True, block_size=size)
    assert found.ids == expected.ids
    if prediction == "shift":  # ar's next word comes with every draft, and its next but one with every verification
        single = say(either, "bd", 14, slice(0, 1), speculative=True, block_size=size)
        assert single.ids == expected.ids[:1]
        assert single.stats.forwards <= 14
    stop = expected.ids[0][4]
    assert stop < model.vocab.words
    early = say(either, "bd", 14, speculative=True, block_size=size, stop=stop)
    assert early.ids == say(either, "ar", 14, stop=stop).ids
    said_otherwise(either)


def test_a_good_draft_is_kept_whole(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that says the same word always drafts what ar says: two forwards for each block and the word behind."""
    import models.decoding.sampling as sampling

    said_otherwise(built)
    word = 7

    def certain(self: object, hidden: Tensor) -> Tensor:
        logits = torch.zeros(*hidden.shape[:-1], 50)
        logits[..., word] = 9.0
        return logits

    monkeypatch.setattr(sampling.LogitsFilter, "logits", certain)
    answer = say(built, "bd", 15, speculative=True, block_size=4)
    assert answer.ids == [[word] * 15] * 2
    assert answer.stats.forwards == 6
    assert say(built, "bd", 16).stats.forwards == 4  # all of a block above the threshold at once
    assert say(built, "ar", 16).stats.forwards == 16


@pytest.mark.parametrize("objective", ["bd", "mdm"])
def test_no_forward_is_spent_behind_the_end(built: Built, objective: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that ends at once, and is as sure of every end that could follow."""
    import models.decoding.sampling as sampling

    said_otherwise(built)
    eos = built[0].vocab.eos
    monkeypatch.setattr(
        sampling.LogitsFilter, "logits", lambda self, hidden: torch.eye(50)[eos].expand(*hidden.shape[:-1], 50)
    )
    answer = say(built, objective, 12, accept=Threshold(1.01))
    assert answer.ids == [[eos], [eos]]
    assert answer.stats.forwards == 1


@pytest.mark.parametrize("objective", ["bd", "mdm"])
def test_8_a_threshold_above_one_is_a_word_per_forward(built: Built, objective: str) -> None:
    said_otherwise(built)
    answer = say(built, objective, 8, slice(0, 1), accept=Threshold(1.01))
    assert answer.stats.forwards == answer.stats.tokens == 8


def test_shifted_blocks_of_one_token_are_greedy_ar(built: Built) -> None:
    said_otherwise(built)
    ar, blocks = say(built, "ar", 9), say(built, "bd", 9, block_size=1)
    assert blocks.ids == ar.ids
    assert blocks.stats.forwards == ar.stats.forwards


# --- of every answer -------------------------------------------------------------------------------------------------

EVERY: list[tuple[str, dict[str, object]]] = [
    ("ar", {}),
    ("bd", {"accept": Threshold(0.3)}),
    ("bd", {"accept": Factor(1.0)}),
    ("bd", {"accept": FirstHitting()}),
    ("bd", {"speculative": True}),
    ("mdm", {"accept": Static(3)}),
    ("mdm", {"whole_canvas": True}),
]


@pytest.mark.parametrize(("objective", "how"), EVERY)
def test_visible_words_never_change_and_no_mask_is_left(built: Built, objective: str, how: dict[str, object]) -> None:
    said_otherwise(built)
    steps: list[Progress] = []
    answer = say(built, objective, 10, on_step=steps.append, generator=torch.Generator().manual_seed(0), **how)
    assert len(steps) <= answer.stats.forwards
    mask = built[0].vocab.mask
    for before, after in itertools.pairwise(steps):
        assert before.forwards < after.forwards
        for old, new in zip(before.rows, after.rows, strict=True):
            for token, later in zip(old, new, strict=False):
                assert token in (mask, later)
    for number, step in enumerate(steps):
        for row, fresh in zip(step.rows, step.fresh, strict=True):
            assert len(row) == len(fresh)
            assert all(token != mask for token, new in zip(row, fresh, strict=True) if new)
        if number:
            assert any(any(fresh) for fresh in step.fresh)
    for row, last in zip(answer.ids, steps[-1].rows, strict=True):
        assert all(0 <= token < built[0].vocab.words for token in row)
        assert last[: len(row)] == row
    assert answer.stats.tokens == sum(map(len, answer.ids))
    assert 0 < answer.stats.first_token_seconds <= answer.stats.seconds


@pytest.mark.parametrize(("objective", "how"), EVERY)
def test_an_answer_ends_at_the_stop_and_its_row_stays_while_others_go_on(
    built: Built, objective: str, how: dict[str, object]
) -> None:
    said_otherwise(built)

    def run(**more: object) -> Generation:
        return say(built, objective, 10, generator=torch.Generator().manual_seed(0), **how, **more)

    free = run()
    assert [len(row) for row in free.ids] == [10, 10]
    stop = free.ids[0][3]
    stopped = run(stop=stop)
    assert stopped.ids[0][-1] == stop
    assert stop not in stopped.ids[0][:-1]
    if objective == "ar" or "accept" not in how:  # with early stops a random acceptance draws otherwise
        assert stopped.ids[0] == free.ids[0][: free.ids[0].index(stop) + 1]
    assert stopped.stats.forwards <= free.stats.forwards


@pytest.mark.parametrize("room", [1, 3, 4, 5])
@pytest.mark.parametrize("objective", ["ar", "mdm", "bd"])
def test_no_answer_is_longer_than_asked(built: Built, objective: str, room: int) -> None:
    said_otherwise(built)
    assert all(len(row) <= room for row in say(built, objective, room).ids)
    assert say(built, objective, 0).ids == [[], []]


def test_a_model_decodes_as_it_was_trained_unless_told_otherwise(built: Built) -> None:
    model, prompter = built
    for objective in ("ar", "mdm", "bd"):
        said_otherwise(built, text_objective=objective)
        default = generate(model, prompter, QUESTIONS, images(model), 8)
        assert default.ids == say(built, objective, 8).ids
    said_otherwise(built, text_objective="ar")


def test_the_image_is_seen_by_every_decoder(built: Built) -> None:
    model, prompter = said_otherwise(built, text_canvas_multiple=8)  # whatever a test before declared of these weights
    for objective in ("ar", "mdm", "bd"):
        answers = generate(model, prompter, QUESTIONS[:1] * 8, 3 * images(model, 8), 12, objective=objective).ids
        assert len({tuple(answer) for answer in answers}) > 1  # the same question about eight images
    said_otherwise(built, text_canvas_multiple=32)


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        (Static(2), [True, False, False, True, False]),
        (Threshold(0.45), [True, False, True, True, False]),
        (Threshold(2.0), [True, False, False, False, False]),
        (Factor(0.31), [True, False, False, True, False]),
        (Factor(0.0), [True, False, False, False, False]),
    ],
)
def test_acceptance_rules_keep_the_surest_open_words(keep: Acceptance, expected: list[bool]) -> None:
    confidence = torch.tensor([[0.95, 0.1, 0.5, 0.9, 0.99]])
    open_ = torch.tensor([[True, True, True, True, False]])
    assert keep.keep(confidence, open_, None)[0].tolist() == expected


def test_first_hitting_picks_one_open_slot_each_as_often() -> None:
    open_ = torch.tensor([[True, False, True, True]]).expand(900, 4)
    kept = FirstHitting().keep(torch.zeros(900, 4), open_, torch.Generator().manual_seed(0))
    assert (kept.sum(1) == 1).all()
    assert not kept[:, 1].any()
    assert (kept.float().mean(0)[[0, 2, 3]] - 1 / 3).abs().max() < 0.05


@pytest.mark.parametrize("text", ["threshold:0.8", "static:3", "factor:1.5", "first-hitting", "threshold"])
def test_acceptance_rules_have_names(text: str) -> None:
    rule = acceptance(text)
    assert rule == {
        "threshold:0.8": Threshold(0.8), "static:3": Static(3), "factor:1.5": Factor(1.5),
        "first-hitting": FirstHitting(), "threshold": Threshold(0.9),
    }[text]  # fmt: skip


@pytest.mark.parametrize("text", ["best", "static:0", "static:x", "first-hitting:2"])
def test_a_rule_that_does_not_exist_is_refused_with_those_that_do(text: str) -> None:
    with pytest.raises(ValueError, match=f"acceptance '{text}'"):
        acceptance(text)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"objective": "diffuse"}, "allowed: ar, mdm, bd"),
        ({"objective": "ar", "decoding": Decoding(speculative=True)}, "drafts with bd"),
        (
            {"objective": "bd", "decoding": Decoding(speculative=True), "sampling": Sampling(temperature=1.0)},
            "temperature 0",
        ),
        ({"objective": "bd", "decoding": Decoding(block_size=-1)}, "block_size is -1"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(built: Built, given: dict[str, object], message: str) -> None:
    model, prompter = built
    with pytest.raises(ValueError, match=message):
        generate(model, prompter, QUESTIONS, images(model), 4, **given)  # type: ignore[arg-type]
