"""What is told of every training step's text loss, against numbers worked out by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from models import losses as losses_module
from models.losses import cross_entropy_with_accuracy, token_cross_entropy
from models.objectives import TextTask, text_objective
from models.objectives.block_size import Fixed
from models.objectives.diffusion import Diffusion
from models.sequence import clean_text_sequence
from models.text_metrics import ACCURACY, BINNED, CLEAN, COUNTS, STEP_METRICS, derived, text_step_metrics, zero_metrics
from tests.models.text_problems import Built, talk
from tests.tiny import tiny_model
from training.metrics.logger import Meter


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return tiny_model(tmp_path_factory.mktemp("phi"))


def task_with(built: Built, share: list[float], bound: list[float]) -> TextTask:
    """Scored slots of the given hidden share and weight in the bound, seven answer tokens."""
    model, prompter = built
    sequence = clean_text_sequence(model.vocab, prompter.system_ids, talk(built))
    some = torch.zeros(len(share), dtype=torch.long)
    ones = torch.ones(len(share))
    return TextTask(
        sequence, some, some, some, ones, torch.tensor(bound), ones.sum(), torch.tensor(7.0), torch.tensor(share)
    )


def test_tokens_fall_into_the_quarter_their_block_is_hidden_to(built: Built) -> None:
    #            read clean | up to 25 % |  50 %  |  75 %  | above     | beside the objective
    share = [0.0, 0.125, 0.25, 0.26, 0.5, 0.75, 0.8, 1.0, 0.0]
    bound = [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0]
    nats = torch.tensor([9.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 100.0])
    right = torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0])
    found = text_step_metrics(task_with(built, share, bound), nats, right)
    assert set(found) == set(STEP_METRICS)
    told = {name: (float(t.sum), float(t.count)) for name, t in found.items()}
    assert [told[name] for name in BINNED[:4]] == [(3, 2), (7, 2), (5, 1), (13, 2)]
    assert [told[name] for name in BINNED[4:]] == [(1, 2), (0, 2), (1, 1), (1, 2)]
    assert told[ACCURACY] == (4, 8)  # not the one beside the objective
    assert told[CLEAN] == (100, 1)
    assert [told[name][0] for name in COUNTS] == [9, 7]


def test_a_batch_without_text_tells_the_same_names_and_counts_nothing() -> None:
    nothing = zero_metrics("cpu")
    assert set(nothing) == set(STEP_METRICS)
    assert all(float(tally.count) == 0 for tally in nothing.values())


@pytest.mark.parametrize("name", ["ar", "mdm", "bd"])
def test_the_model_tells_details_of_its_one_forward(built: Built, name: str) -> None:
    model, prompter = built
    task = text_objective(name).prepare(model.vocab, prompter.system_ids, talk(built))
    with torch.no_grad():
        losses = model(None, task)
        hidden = model.hidden_states(task.sequence)[task.rows, task.slots]
        scores = model.backbone.logits(hidden)[:, : model.vocab.mask].log_softmax(dim=-1)
    right = (scores.argmax(dim=-1) == task.targets).float()
    torch.testing.assert_close(losses.details[ACCURACY].mean, right.mean())
    binned = sum(float(losses.details[name].sum) for name in BINNED[:4])
    cost = -scores.gather(1, task.targets[:, None])[:, 0]
    assert binned == pytest.approx(float(cost[task.mask_ratio > 0].sum()), rel=1e-5)
    assert float(losses.details[COUNTS[0]].sum) == len(task.rows)
    assert float(losses.details[COUNTS[1]].sum) == float(talk(built).answer.sum())


class NoLooking(TorchDispatchMode):
    """Fails at every operation whose result the host has to wait for."""

    WAITS = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func).split(".")[1]
        assert name not in self.WAITS, f"{name} makes the host wait for the device"
        return func(*args, **(kwargs or {}))


def test_telling_details_never_makes_the_host_wait(built: Built) -> None:
    model, prompter = built
    task = text_objective("bd").prepare(model.vocab, prompter.system_ids, talk(built))
    hidden, meter = torch.randn(len(task.rows), model.backbone.hidden_size), Meter()
    with torch.no_grad(), NoLooking():
        nats, right = cross_entropy_with_accuracy(model.backbone.head, hidden, task.targets, model.banned_token)
        meter.add(text_step_metrics(task, nats, right))
        meter.add(text_step_metrics(task, nats, right))
    with pytest.raises(AssertionError, match="wait"), NoLooking():
        bool((nats > 0).any())


def test_with_an_auxiliary_loss_the_clean_stream_tells_what_ar_would_pay(built: Built) -> None:
    model, prompter = built
    objective = Diffusion("bd", Fixed(4), ar_aux_weight=0.3)
    with torch.no_grad():
        beside = model(None, objective.prepare(model.vocab, prompter.system_ids, talk(built))).details[CLEAN]
        alone = model(None, text_objective("ar").prepare(model.vocab, prompter.system_ids, talk(built))).nats
    torch.testing.assert_close(beside.sum, alone.sum)
    assert float(beside.count) == float(alone.count)


def test_perplexity_follows_from_nats_and_ar_is_its_own_clean_stream() -> None:
    assert derived({"text/nats_per_token": 2.0}, "bd") == {"text/perplexity_bound": math.exp(2.0)}
    assert derived({"text/nats_per_token": 2.0}, "ar")["text/clean_nats_per_token"] == 2.0
    assert derived({}, "ar") == {}
    assert math.isfinite(derived({"text/nats_per_token": 1e4}, "mdm")["text/perplexity_bound"])


def test_judging_changes_neither_losses_nor_gradients_in_one_piece_or_in_chunks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    head, hidden = nn.Linear(6, 11), torch.randn(9, 6)
    targets = torch.randint(0, 10, (9,))
    expected = token_cross_entropy(head, hidden, targets, banned=10)
    expected.sum().backward()
    assert head.weight.grad is not None
    gradient = head.weight.grad.clone()
    for most in (1 << 26, 3 * 11):
        monkeypatch.setattr(losses_module, "MAX_LOGITS", most)
        head.zero_grad()
        losses, right = cross_entropy_with_accuracy(head, hidden, targets, banned=10)
        losses.sum().backward()
        torch.testing.assert_close(losses, expected)
        torch.testing.assert_close(head.weight.grad, gradient)
        assert torch.equal(right.bool(), head(hidden)[:, :10].argmax(dim=-1) == targets)
        assert not right.requires_grad
