"""Metrics of text and of action tokens: per training step, and the likelihood of held-out answers.

Metrics are sums and counts that stay on the device: nothing here makes the host wait for it.

Legend: B conversations, S scored slots, K bins; in ``evaluate_text_likelihood`` K independent draws of masks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from models.losses import SumAndCount
from models.objectives import TextObjective, TextTask, text_objective
from models.processing.text import Prompter
from models.rng import SampleRng
from models.sequence import TextTurn

BINS = ("00_25", "25_50", "50_75", "75_100")
"""Quarters of a block's mask ratio, upper ends included; a ratio of 0 (predicted from the clean stream) is in none."""

ACCURACY, CLEAN = "text/accuracy", "text/clean_nats_per_token"
COUNTS = ("text/supervised_tokens", "text/answer_tokens")
"""Sums without a count: the mean is over optimizer steps."""
BINNED = tuple(f"text/{what}_hidden_{name}" for what in ("nats", "accuracy") for name in BINS)
STEP_METRICS = (ACCURACY, CLEAN, *BINNED, *COUNTS)
ACTION_NATS, ACTION_ACCURACY = "action_bd/nats_per_token", "action_bd/accuracy"
ACTION_BINNED = tuple(name.replace("text/", "action_bd/") for name in BINNED)
ACTION_METRICS = (ACTION_NATS, ACTION_ACCURACY, *ACTION_BINNED)
"""Metrics of block-diffusion actions; their counts are 0 without ``block_diffusion.action_enabled``."""

NATS, PERPLEXITY = "text/nats_per_token", "text/perplexity_bound"

LOSS, GAP, SPREAD = "text/loss", "text/picture_gap", "text/estimate_spread"
SCORED, VARIANCE = "text/scored_per_answer_token", "text/nats_variance"
ERROR = "text/nats_error"
"""Standard error of ``NATS``, computed from ``VARIANCE`` by ``summarize_text_likelihood``."""

LIKELIHOOD_METRICS = (LOSS, NATS, VARIANCE, ACCURACY, *BINNED, CLEAN, GAP, SPREAD, SCORED)
DRAWS = 4
"""Samples of masks per conversation, two complementary copies each, all in one forward."""


def text_step_metrics(task: TextTask, nats: Tensor, right: Tensor) -> dict[str, SumAndCount]:
    """Return every name of ``STEP_METRICS``.

    ``nats`` [S]: cross-entropies of the scored slots; ``right`` [S]: 1 where the target is the most likely token.
    """
    nats, counted = nats.detach(), (~task.clean_only).float()
    n_scored = torch.full_like(task.answer_tokens, float(nats.numel()))
    return {
        ACCURACY: SumAndCount((right * counted).sum(), counted.sum()),
        CLEAN: SumAndCount((nats * (1 - counted)).sum(), (1 - counted).sum()),
        **metrics_by_mask_ratio(task.mask_ratio, nats, right),
        COUNTS[0]: SumAndCount(n_scored, torch.ones_like(n_scored)),
        COUNTS[1]: SumAndCount(task.answer_tokens, torch.ones_like(n_scored)),
    }


def action_step_metrics(task: TextTask, nats: Tensor, right: Tensor) -> dict[str, SumAndCount]:
    """Return every name of ``ACTION_METRICS`` for a task of action tokens; arguments as for ``text_step_metrics``."""
    nats = nats.detach()
    binned = metrics_by_mask_ratio(task.mask_ratio, nats, right)
    return {
        ACTION_NATS: SumAndCount((nats * task.bound_weights).sum(), task.answer_tokens),
        ACTION_ACCURACY: SumAndCount(right.sum(), torch.full_like(task.answer_tokens, float(right.numel()))),
        **{name: binned[text] for name, text in zip(ACTION_BINNED, BINNED, strict=True)},
    }


def zero_metrics(device: torch.device | str, names: Sequence[str] = STEP_METRICS) -> dict[str, SumAndCount]:
    """Return zeros under the same names: every rank reports the same names in every step."""
    return {name: SumAndCount.zero(device) for name in names}


def metrics_by_mask_ratio(mask_ratio: Tensor, nats: Tensor, right: Tensor) -> dict[str, SumAndCount]:
    """Return cross-entropy and accuracy by the mask ratio of a token's block: "25_50" is above 25 % and up to 50 %."""
    quarter = (mask_ratio * len(BINS)).ceil().long() - 1  # [S], -1: in no bin

    def total(values: Tensor) -> Tensor:
        sums = torch.zeros(len(BINS) + 1, dtype=values.dtype, device=values.device)
        return sums.index_add_(0, quarter + 1, values)[1:]

    counts = total(torch.ones_like(nats))
    sums = torch.cat([total(nats), total(right)])  # [2 K], as BINNED
    return {name: SumAndCount(sums[i], counts[i % len(BINS)]) for i, name in enumerate(BINNED)}


def perplexity(nats: float) -> float:
    """Return the perplexity for nats per token: exact for ``ar``, an upper bound for the others."""
    return math.exp(min(nats, 700.0))  # a float ends at exp(709)


def derived(values: Mapping[str, float], objective: str) -> dict[str, float]:
    """Return metrics that follow from the means of a log: the perplexity, and for ``ar`` the cross-entropy of the clean
    stream, which is its likelihood."""
    nats = values.get(NATS)
    if nats is None:
        return {}
    found = {PERPLEXITY: perplexity(nats)}
    return {**found, CLEAN: nats} if objective == "ar" else found


class TextScorer(Protocol):
    """A model that scores the targets of a text task (``models.upvla.UPVLA``)."""

    @property
    def device(self) -> torch.device: ...

    def text_scores(self, task: TextTask) -> tuple[Tensor, Tensor]: ...


@torch.no_grad()
def evaluate_text_likelihood(
    model: TextScorer, prompter: Prompter, objective: TextObjective, turn: TextTurn, seed: int = 0, draws: int = DRAWS
) -> dict[str, SumAndCount]:
    """Return sums and counts of the likelihood of held-out answers, under names of ``LIKELIHOOD_METRICS``.

    All noisy copies of an answer share one forward with its prefix. ``nats_per_token``: the likelihood (``ar``) or its
    bound, averaged over ``draws`` samples of masks; ``nats_variance``: variance of that average.
    ``estimate_spread``: standard deviation of one sample's bound divided by its mean, per conversation. ``accuracy``:
    share of scored tokens that are the most likely ones. ``clean_nats_per_token``: cross-entropy of next-token
    prediction. ``picture_gap``: increase in nats per token if images are exchanged within the batch (answers about
    images only). ``..._hidden_25_50``: of tokens in blocks with a mask ratio above 25 % and up to 50 %.
    """
    many = objective.for_evaluation(draws)
    task, nats, right = _score(model, prompter, many, turn, seed)
    bound = _bounds(task, nats, draws)  # [K, B]
    details = text_step_metrics(task, nats, right)
    found = {name: details[name] for name in (ACCURACY, *BINNED)}
    answer = task.answer_tokens
    found[NATS] = SumAndCount(bound.mean(dim=0).sum(), answer)
    found[LOSS] = SumAndCount((nats * task.weights).sum(), task.counted)
    found[VARIANCE] = SumAndCount(torch.zeros_like(answer), answer)
    found[SCORED] = SumAndCount(
        torch.full_like(answer, nats.numel() / draws if _has_masks(objective) else nats.numel()), answer
    )
    found[CLEAN] = found[NATS]
    if _has_masks(objective):
        plain, plain_nats, _ = _score(model, prompter, text_objective("ar"), turn, seed)
        found[CLEAN] = SumAndCount(plain_nats.sum(), plain.answer_tokens)
        if draws > 1:
            deviation = bound.std(dim=0)
            found[VARIANCE] = SumAndCount((deviation.square() / draws).sum(), answer)
            found[SPREAD] = _mean_of(deviation / bound.mean(dim=0).clamp_min(1e-9))
    others = with_exchanged_images(turn)
    if others is not None:
        blind, blind_nats, _ = _score(model, prompter, many, others, seed)  # with the same masks
        about_images = answer
        if turn.pictured is not None:
            about_images = turn.answer[turn.pictured].sum().to(answer)
        found[GAP] = SumAndCount((blind_nats * blind.bound_weights).sum() - found[NATS].sum, about_images)
    return found


def with_exchanged_images(turn: TextTurn) -> TextTurn | None:
    """Give each conversation about an image the image of the one before; None if there are fewer than two."""
    if turn.patches is None:
        return None
    everyone = torch.ones(turn.patches.shape[0], dtype=torch.bool)
    rows = (everyone if turn.pictured is None else turn.pictured).nonzero()[:, 0].to(turn.patches.device)
    if len(rows) < 2:
        return None
    return replace(turn, patches=turn.patches.index_copy(0, rows, turn.patches[rows.roll(1)]))


def summarize_text_likelihood(totals: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """Return what follows from sums and counts of ``LIKELIHOOD_METRICS``: standard error, answer tokens, perplexity.

    ``nats_error`` is the standard error of ``nats_per_token`` due to the sampled masks (0 for ``ar``). It measures the
    precision for these conversations, not the error from their number.
    """
    nats, answer_tokens = totals.get(NATS, (0.0, 0.0))
    if not answer_tokens:
        return {}
    variance = totals[VARIANCE][0]
    return {
        ERROR: float(variance) ** 0.5 / answer_tokens,
        COUNTS[1]: answer_tokens,
        PERPLEXITY: perplexity(nats / answer_tokens),
    }


def _has_masks(objective: TextObjective) -> bool:
    """Return whether masks are sampled. The likelihood of ``ar`` is exact."""
    return objective.name != "ar"


def _score(
    model: TextScorer, prompter: Prompter, objective: TextObjective, turn: TextTurn, seed: int
) -> tuple[TextTask, Tensor, Tensor]:
    """Return (task, [S] cross-entropies, [S] 1 where the target is the most likely token)."""
    task = objective.prepare(prompter.vocab, prompter.system_ids, turn, SampleRng(seed)).to(model.device)
    return task, *model.text_scores(task)


def _bounds(task: TextTask, nats: Tensor, draws: int) -> Tensor:
    """Return [K, B]: the bound of each sample of masks; tokens predicted from the clean stream are in all of them."""
    costs = nats * task.bound_weights
    copy_id = task.sequence.slots.copy_id[task.rows, task.slots]  # [S]: 0 clean, then two copies for each sample
    draw = torch.div(copy_id - 1, 2, rounding_mode="floor") + 1  # [S]: 0 clean
    table = torch.zeros(draws + 1, task.sequence.ids.shape[0], dtype=nats.dtype, device=nats.device)
    table.index_put_((draw, task.rows), costs, accumulate=True)
    return table[:1] + draws * table[1:]


def _mean_of(values: Tensor) -> SumAndCount:
    return SumAndCount(values.sum(), torch.full_like(values.sum(), float(values.numel())))
