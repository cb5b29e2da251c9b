"""Greedy answers: cached equals uncached, a batch equals its rows, nothing but words comes out."""

from __future__ import annotations

import pytest
import torch

from models.decoding import Sampling, generate, prompt_sequence
from models.processing.text import Prompter
from models.upvla import UPVLA
from tests.tiny import tiny_model

Built = tuple[UPVLA, Prompter]


@pytest.fixture(scope="module", params=["phi", "qwen3"])
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Built:
    return tiny_model(tmp_path_factory.mktemp(request.param), request.param, seed=3)


QUESTIONS = ["where?", "which colour is the block on the left of the drawer?"]


def images(model: UPVLA, n: int = 2) -> torch.Tensor:
    return torch.randn(n, 5, model.spec.clip_width or 1, generator=torch.Generator().manual_seed(1))


def uncached(model: UPVLA, prompter: Prompter, question: str, patches: torch.Tensor, steps: int) -> list[int]:
    said: list[int] = []
    for _ in range(steps):
        ids = [*prompter.question(question), *said]
        sequence = prompt_sequence(model.vocab, prompter.system_ids, [ids], patches)
        with torch.no_grad():
            logits = model.backbone.logits(model.hidden_states(sequence)[0, -1])
        said.append(int(logits[: model.vocab.words].argmax()))
        if said[-1] == model.vocab.eos:
            break
    return said


def test_cached_decoding_equals_uncached_and_a_batch_equals_its_rows(built: Built) -> None:
    model, prompter = built
    patches = images(model)
    answer = generate(model, prompter, QUESTIONS, patches, max_new_tokens=8)
    for row, question in enumerate(QUESTIONS):
        assert answer.ids[row] == uncached(model, prompter, question, patches[row : row + 1], 8)


def test_a_finished_row_stays_frozen_and_its_end_is_the_last_token(built: Built) -> None:
    model, prompter = built
    patches = images(model)
    free = generate(model, prompter, QUESTIONS, patches, max_new_tokens=6)
    stop = free.ids[0][1]
    stopped = generate(model, prompter, QUESTIONS, patches, max_new_tokens=6, stop=stop)
    for short, long in zip(stopped.ids, free.ids, strict=True):
        cut = long.index(stop) + 1 if stop in long else len(long)
        assert short == long[:cut]
    assert stopped.stats.tokens == sum(map(len, stopped.ids))


def test_only_words_are_said(built: Built) -> None:
    model, prompter = built
    draw = torch.Generator().manual_seed(0)
    hot = Sampling(temperature=5.0)
    answer = generate(model, prompter, QUESTIONS, images(model), 12, sampling=hot, generator=draw)
    assert all(token < model.vocab.words for row in answer.ids for token in row)


def test_sampling_repeats_with_its_seed_and_narrows_with_top_k(built: Built) -> None:
    model, prompter = built

    def say(sampling: Sampling, seed: int) -> list[list[int]]:
        draw = torch.Generator().manual_seed(seed)
        return generate(model, prompter, QUESTIONS, images(model), 8, sampling=sampling, generator=draw).ids

    warm = Sampling(temperature=2.0)
    assert say(warm, 1) == say(warm, 1)
    assert say(warm, 1) != say(warm, 2)
    greedy = say(Sampling(), 0)
    assert say(Sampling(temperature=2.0, top_k=1), 5) == greedy
    assert say(Sampling(temperature=1e-320), 5) == greedy  # dividing by it gives infinities
    assert say(Sampling(temperature=2.0, top_p=1e-9), 5) == greedy


@pytest.mark.parametrize(
    "bad", [{"temperature": -1.0}, {"temperature": float("inf")}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.5}]
)
def test_impossible_sampling_is_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        Sampling(**bad)  # type: ignore[arg-type]


def test_an_image_per_question_is_asked_for(built: Built) -> None:
    model, prompter = built
    with pytest.raises(ValueError, match="2 questions for 1 images"):
        generate(model, prompter, QUESTIONS, images(model, 1))


def test_the_cost_is_counted(built: Built) -> None:
    model, prompter = built
    stats = generate(model, prompter, QUESTIONS[:1], images(model, 1), max_new_tokens=4).stats
    assert stats.forwards == stats.tokens  # one row: one forward a token
    assert 0 < stats.first_token_seconds <= stats.seconds
