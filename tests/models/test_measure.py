"""What is told of held-out conversations beside the likelihood."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from models.draws import Draws
from models.measure import BINS, MEASURES, measure_text
from models.objectives import text_objective
from tests.models.text_problems import Built, talk
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


@pytest.mark.parametrize("name", ["ar", "mdm", "bd"])
def test_all_names_are_known_and_all_numbers_finite(built: Built, name: str) -> None:
    model, prompter = built
    found = measure_text(model, prompter, text_objective(name), talk(built))
    assert set(found) <= set(MEASURES)
    assert all(torch.isfinite(tally.mean) for tally in found.values())
    assert 0 <= float(found["text/accuracy"].mean) <= 1
    if name != "ar":
        assert set(found) == set(MEASURES)


def test_the_clean_stream_pays_what_ar_pays(built: Built) -> None:
    model, prompter = built
    found = measure_text(model, prompter, text_objective("bd"), talk(built))
    task = text_objective("ar").prepare(model.vocab, prompter.system_ids, talk(built))
    with torch.no_grad():
        expected = model.text_loss(task)[1]
    torch.testing.assert_close(found["text/clean_nats_per_token"].mean, expected.mean)


def test_the_picture_gap_is_zero_where_pictures_are_alike_and_not_where_they_differ(built: Built) -> None:
    model, prompter = built
    turn = talk(built)
    assert turn.patches is not None
    alike = replace(turn, patches=turn.patches[:1].expand_as(turn.patches))
    gaps = {}
    for name, what in (("differ", turn), ("alike", alike)):
        gaps[name] = float(measure_text(model, prompter, text_objective("bd"), what)["text/picture_gap"].mean)
    assert abs(gaps["alike"]) < 1e-4 < abs(gaps["differ"])
    single = replace(turn, **{f: getattr(turn, f)[:1] for f in ("ids", "answer", "patches", "indices")})
    assert "text/picture_gap" not in measure_text(model, prompter, text_objective("bd"), single)


def test_bins_hold_every_token_read_from_a_view_once(built: Built) -> None:
    model, prompter = built
    draws = 3
    found = measure_text(model, prompter, text_objective("bd"), talk(built), seed=7, draws=draws)
    objective, from_views, everything = text_objective("bd").measuring(1), 0, 0
    for step in range(draws):
        task = objective.prepare(model.vocab, prompter.system_ids, talk(built), Draws(7, step))
        from_views += int((task.sequence.slots.view[task.rows, task.slots] > 0).sum())
        everything += len(task.rows)
    assert sum(int(found[f"text/nats_hidden_{bin_}"].count) for bin_ in BINS) == from_views
    assert int(found["text/accuracy"].count) == everything > from_views


def test_the_spread_is_that_of_single_draws(built: Built) -> None:
    model, prompter = built
    turn = talk(built, [[("where?", "inside the drawer")]])
    found = measure_text(model, prompter, text_objective("mdm"), turn, draws=5)["text/estimate_spread"].mean
    objective, bounds = text_objective("mdm").measuring(1), []
    for step in range(5):
        task = objective.prepare(model.vocab, prompter.system_ids, turn, Draws(0, step))
        with torch.no_grad():
            bounds.append(model.text_loss(task)[1].sum)
    estimates = torch.stack(bounds)
    torch.testing.assert_close(found, estimates.std() / estimates.mean(), rtol=1e-4, atol=1e-6)
    assert float(found) > 0
