"""What is told of held-out conversations beside the likelihood."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from models.losses import SumAndCount
from models.objectives import text_objective
from models.objectives.block_size import Fixed
from models.objectives.diffusion import Diffusion
from models.rng import SampleRng
from models.sequence import TextTurn
from models.text_metrics import BINNED, BINS, LIKELIHOOD_METRICS, evaluate_text_likelihood, summarize_text_likelihood
from tests.models.text_problems import Built, enumerated_bound, talk
from tests.tiny import tiny_model


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    model, prompter = tiny_model(tmp_path_factory.mktemp("phi"), seed=5)
    prompter.system_ids = prompter.system_ids[:4]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and "embed" not in name:
                parameter.mul_(4)
    return model, prompter


def totals(found: dict[str, SumAndCount]) -> dict[str, tuple[float, float]]:
    return {name: (float(tally.sum), float(tally.count)) for name, tally in found.items()}


def answer_nats(built: Built, turn: TextTurn) -> Tensor:
    """[answer tokens] negative log-likelihoods, one forward for each token, no layout of ours."""
    model, prompter = built
    plain = text_objective("ar").prepare(model.vocab, prompter.system_ids, turn)
    with torch.no_grad():
        logits = model.backbone.logits(model.hidden_states(plain.sequence))[..., : model.vocab.mask].log_softmax(dim=-1)
    pairs = zip(plain.rows.tolist(), plain.slots.tolist(), plain.targets.tolist(), strict=True)
    return torch.stack([-logits[row, slot, goal] for row, slot, goal in pairs])


@pytest.mark.parametrize("name", ["ar", "mdm", "bd"])
def test_all_names_are_known_and_all_numbers_finite(built: Built, name: str) -> None:
    model, prompter = built
    found = evaluate_text_likelihood(model, prompter, text_objective(name), talk(built))
    assert set(found) <= set(LIKELIHOOD_METRICS)
    assert all(torch.isfinite(tally.mean) for tally in found.values())
    assert 0 <= float(found["text/accuracy"].mean) <= 1
    if name != "ar":
        assert set(found) == set(LIKELIHOOD_METRICS)


def test_of_ar_everything_is_exact(built: Built) -> None:
    model, prompter = built
    turn = talk(built)
    found = totals(evaluate_text_likelihood(model, prompter, text_objective("ar"), turn))
    nats = answer_nats(built, turn)
    assert found["text/nats_per_token"] == pytest.approx((float(nats.sum()), len(nats)), rel=1e-5)
    assert found["text/clean_nats_per_token"] == found["text/loss"] == found["text/nats_per_token"]
    assert found["text/scored_per_answer_token"] == (len(nats), len(nats))
    figures = summarize_text_likelihood(found)
    assert figures["text/nats_error"] == 0
    assert figures["text/answer_tokens"] == len(nats)
    assert figures["text/perplexity_bound"] == pytest.approx(math.exp(float(nats.mean())), rel=1e-5)
    assert all(found[name] == (0, 0) for name in BINNED)  # nothing is hidden


def test_the_clean_stream_of_a_diffusion_model_pays_what_ar_pays(built: Built) -> None:
    model, prompter = built
    turn = talk(built)
    found = evaluate_text_likelihood(model, prompter, text_objective("bd"), turn)
    torch.testing.assert_close(found["text/clean_nats_per_token"].mean, answer_nats(built, turn).mean())


@pytest.mark.parametrize("prediction", ["shift", "aligned"])
def test_many_views_estimate_the_enumerated_bound_within_their_standard_error(built: Built, prediction: str) -> None:
    model, prompter = built
    turn = talk(built, [[("where?", "inside")], [("lit?", "no")]])
    objective = Diffusion("bd", Fixed(3), prediction=prediction)
    with torch.no_grad():
        expected = float(enumerated_bound(built, turn, 3, prediction)) / float(turn.answer.sum())
    misses = []
    for seed in range(4):
        found = totals(evaluate_text_likelihood(model, prompter, objective, turn, seed, draws=24))
        sum_, count = found["text/nats_per_token"]
        misses.append((sum_ / count - expected) / summarize_text_likelihood(found)["text/nats_error"])
    assert max(map(abs, misses)) < 4
    assert 0.2 < torch.tensor(misses).square().mean().sqrt() < 2.2  # errors are as large as they are said to be


def test_the_standard_error_is_the_deviation_of_repeated_measurements(built: Built) -> None:
    model, prompter = built
    turn = talk(built, [[("where?", "inside")]])
    said, values = [], []
    for seed in range(40):
        found = totals(evaluate_text_likelihood(model, prompter, text_objective("bd"), turn, seed, draws=3))
        said.append(summarize_text_likelihood(found)["text/nats_error"] ** 2)
        values.append(found["text/nats_per_token"][0] / found["text/nats_per_token"][1])
    deviation = float(torch.tensor(values).std())
    assert (sum(said) / len(said)) ** 0.5 == pytest.approx(deviation, rel=0.35)


def test_the_spread_is_that_of_the_single_draws(built: Built) -> None:
    model, prompter = built
    turn, draws = talk(built), 5
    found = evaluate_text_likelihood(model, prompter, text_objective("bd"), turn, seed=2, draws=draws)
    task = text_objective("bd").for_evaluation(draws).prepare(model.vocab, prompter.system_ids, turn, SampleRng(2))
    with torch.no_grad():
        costs = (model.text_scores(task)[0] * task.bound_weights).tolist()
    estimates = torch.zeros(draws, 2)
    for row, slot, cost in zip(task.rows.tolist(), task.slots.tolist(), costs, strict=True):
        view = int(task.sequence.slots.copy_id[row, slot])
        if view == 0:  # the first token of a block is read from the clean stream: no draw changes it
            estimates[:, row] += cost
        else:  # every view's share of the average over all draws, times the draws
            estimates[(view - 1) // 2, row] += cost * draws
    torch.testing.assert_close(estimates.mean(dim=0).sum(), found["text/nats_per_token"].sum, rtol=1e-4, atol=1e-5)
    spread = (estimates.std(dim=0) / estimates.mean(dim=0)).mean()
    torch.testing.assert_close(found["text/estimate_spread"].mean, spread, rtol=1e-3, atol=1e-6)
    variance = (estimates.var(dim=0) / draws).sum()
    torch.testing.assert_close(found["text/nats_variance"].sum, variance, rtol=1e-3, atol=1e-6)
    assert float(spread) > 0


def test_the_image_gap_is_zero_where_images_are_alike_and_not_where_they_differ(built: Built) -> None:
    model, prompter = built
    turn = talk(built)
    assert turn.patches is not None
    alike = replace(turn, patches=turn.patches[:1].expand_as(turn.patches))
    gaps = {}
    for name, what in (("differ", turn), ("alike", alike)):
        gaps[name] = float(
            evaluate_text_likelihood(model, prompter, text_objective("bd"), what)["text/picture_gap"].mean
        )
    assert abs(gaps["alike"]) < 1e-4 < abs(gaps["differ"])
    single = replace(turn, **{f: getattr(turn, f)[:1] for f in ("ids", "answer", "patches", "indices", "lengths")})
    assert "text/picture_gap" not in evaluate_text_likelihood(model, prompter, text_objective("bd"), single)


def test_the_image_gap_of_ar_is_the_difference_of_two_exact_likelihoods(built: Built) -> None:
    model, prompter = built
    turn = talk(built)
    assert turn.patches is not None
    exchanged = replace(turn, patches=turn.patches.flip(0))
    expected = answer_nats(built, exchanged).mean() - answer_nats(built, turn).mean()
    found = evaluate_text_likelihood(model, prompter, text_objective("ar"), turn)["text/picture_gap"].mean
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)


def test_bins_hold_every_token_read_from_a_view_once(built: Built) -> None:
    model, prompter = built
    found = evaluate_text_likelihood(model, prompter, text_objective("bd"), talk(built), seed=7, draws=3)
    task = text_objective("bd").for_evaluation(3).prepare(model.vocab, prompter.system_ids, talk(built), SampleRng(7))
    from_views = int((task.sequence.slots.copy_id[task.rows, task.slots] > 0).sum())
    assert sum(int(found[f"text/nats_hidden_{bin_}"].count) for bin_ in BINS) == from_views
    assert int(found["text/accuracy"].count) == len(task.rows) > from_views


def test_measuring_twice_gives_the_same_numbers_and_touches_no_global_generator(built: Built) -> None:
    model, prompter = built
    before = torch.get_rng_state()
    first, second = (
        totals(evaluate_text_likelihood(model, prompter, text_objective("bd"), talk(built), seed=2)) for _ in "ab"
    )
    assert first == second
    assert torch.equal(before, torch.get_rng_state())
