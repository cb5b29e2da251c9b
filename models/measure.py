"""What a text objective has learned, on held-out conversations: more than one number, and how sure it is.

Legend: B conversations, S scored slots, K independent draws of what is hidden.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from models.losses import SumAndCount
from models.objectives import TextObjective, TextTask, text_objective
from models.processing.text import Prompter
from models.rng import SampleRng
from models.sequence import TextTurn
from models.text_metrics import ACCURACY, BINNED, CLEAN, COUNTS, NATS, PERPLEXITY, perplexity, text_details
from models.upvla import UPVLA

LOSS, GAP, SPREAD = "text/loss", "text/picture_gap", "text/estimate_spread"
SCORED, VARIANCE = "text/scored_per_answer_token", "text/nats_variance"
ERROR = "text/nats_error"
"""Standard error of ``NATS``, made of ``VARIANCE`` when everything is added up (``text_figures``)."""

MEASURES = (LOSS, NATS, VARIANCE, ACCURACY, *BINNED, CLEAN, GAP, SPREAD, SCORED)
DRAWS = 4
"""Independent draws of what is hidden per conversation, two complementary views each, all in one forward."""


@torch.no_grad()
def evaluate_text_likelihood(
    model: UPVLA, prompter: Prompter, objective: TextObjective, turn: TextTurn, seed: int = 0, draws: int = DRAWS
) -> dict[str, SumAndCount]:
    """Means that add up over batches and ranks, under names of ``MEASURES`` (where there is something to say).

    Many views of each answer share one forward with its prefix. ``nats_per_token``: the likelihood (``ar``) or its
    bound, averaged over the draws; ``nats_variance``: of that average, see ``text_figures``. ``estimate_spread``:
    standard deviation of one draw's bound over its mean, per conversation. ``accuracy``: share of scored tokens that
    are the most likely word. ``clean_nats_per_token``: what next-token prediction would pay. ``picture_gap``: how many
    nats per token the likelihood loses when images are exchanged within the batch (of answers about images).
    ``..._hidden_25_50``: of tokens whose block has more than 25 % and up to 50 % hidden.
    """
    many = objective.measuring(draws)
    task, nats, right = _ask(model, prompter, many, turn, seed)
    bound = _bounds(task, nats, draws)  # [K, B]
    details = text_details(task, nats, right)
    found = {name: details[name] for name in (ACCURACY, *BINNED)}
    answer = task.answer_tokens
    found[NATS] = SumAndCount(bound.mean(dim=0).sum(), answer)
    found[LOSS] = SumAndCount((nats * task.weights).sum(), task.counted)
    found[VARIANCE] = SumAndCount(torch.zeros_like(answer), answer)
    found[SCORED] = SumAndCount(
        torch.full_like(answer, nats.numel() / draws if _drawn(objective) else nats.numel()), answer
    )
    found[CLEAN] = found[NATS]
    if _drawn(objective):
        plain, plain_nats, _ = _ask(model, prompter, text_objective("ar"), turn, seed)
        found[CLEAN] = SumAndCount(plain_nats.sum(), plain.answer_tokens)
        if draws > 1:
            deviation = bound.std(dim=0)
            found[VARIANCE] = SumAndCount((deviation.square() / draws).sum(), answer)
            found[SPREAD] = _mean_of(deviation / bound.mean(dim=0).clamp_min(1e-9))
    others = with_exchanged_images(turn)
    if others is not None:
        blind, blind_nats, _ = _ask(model, prompter, many, others, seed)  # the same words are hidden
        about_images = answer
        if turn.pictured is not None:
            about_images = turn.answer[turn.pictured].sum().to(answer)
        found[GAP] = SumAndCount((blind_nats * blind.bound_weights).sum() - found[NATS].sum, about_images)
    return found


def with_exchanged_images(turn: TextTurn) -> TextTurn | None:
    """Each conversation about an image with the image of the one before; None where there are not two."""
    if turn.patches is None:
        return None
    everyone = torch.ones(turn.patches.shape[0], dtype=torch.bool)
    rows = (everyone if turn.pictured is None else turn.pictured).nonzero()[:, 0].to(turn.patches.device)
    if len(rows) < 2:
        return None
    return replace(turn, patches=turn.patches.index_copy(0, rows, turn.patches[rows.roll(1)]))


def text_figures(totals: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """What follows from sums and counts of ``MEASURES``: ``nats_error``, the standard error of ``nats_per_token`` that
    comes from what was drawn to be hidden (0 for ``ar``; it says how exact the number is for these conversations, not
    how many there were), its perplexity, and over how many answer tokens it was taken."""
    nats, answer_tokens = totals.get(NATS, (0.0, 0.0))
    if not answer_tokens:
        return {}
    variance = totals[VARIANCE][0]
    return {
        ERROR: float(variance) ** 0.5 / answer_tokens,
        COUNTS[1]: answer_tokens,
        PERPLEXITY: perplexity(nats / answer_tokens),
    }


def _drawn(objective: TextObjective) -> bool:
    """Is something hidden at random? The likelihood of ``ar`` is exact."""
    return objective.name != "ar"


def _ask(
    model: UPVLA, prompter: Prompter, objective: TextObjective, turn: TextTurn, seed: int
) -> tuple[TextTask, Tensor, Tensor]:
    """(task, [S] cross-entropies, [S] 1 where the target is the most likely word)."""
    task = objective.prepare(prompter.vocab, prompter.system_ids, turn, SampleRng(seed)).to(model.device)
    return task, *model.text_scores(task)


def _bounds(task: TextTask, nats: Tensor, draws: int) -> Tensor:
    """[K, B]: what each draw alone says of each conversation; tokens read from the clean stream are in all of them."""
    costs = nats * task.bound_weights
    view = task.sequence.slots.view[task.rows, task.slots]  # [S]: 0 clean, then two views for each draw
    draw = torch.div(view - 1, 2, rounding_mode="floor") + 1  # [S]: 0 clean
    table = torch.zeros(draws + 1, task.sequence.ids.shape[0], dtype=nats.dtype, device=nats.device)
    table.index_put_((draw, task.rows), costs, accumulate=True)
    return table[:1] + draws * table[1:]


def _mean_of(values: Tensor) -> SumAndCount:
    return SumAndCount(values.sum(), torch.full_like(values.sum(), float(values.numel())))
