"""What a text objective has learned, on held-out conversations: more than one number, and how sure it is.

Legend: B conversations, S scored slots, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from models.draws import Draws
from models.loss import Tally, ban
from models.objectives import TextObjective, TextTask, text_objective
from models.prompting import Prompter
from models.sequence import TextTurn
from models.upvla import UPVLA

SHARES = (0.25, 0.5, 0.75, 1.0)
"""Upper ends of the bins of the hidden share of a block."""
ROWS_AT_ONCE = 1024

BINS = ("00_25", "25_50", "50_75", "75_100")
MEASURES = (
    "text/accuracy",
    "text/clean_nats_per_token",
    "text/picture_gap",
    "text/estimate_spread",
    "text/scored_per_answer_token",
    *(f"text/{what}_hidden_{bin_}" for what in ("nats", "accuracy") for bin_ in BINS),
)


@torch.no_grad()
def measure_text(
    model: UPVLA, prompter: Prompter, objective: TextObjective, turn: TextTurn, seed: int = 0, draws: int = 4
) -> dict[str, Tally]:
    """Means that add up over batches and ranks, under the names of ``MEASURES`` (where there is something to say).

    ``accuracy``: share of scored tokens that are the most likely word. ``clean_nats_per_token``: what next-token
    prediction would pay. ``picture_gap``: how many nats per token the likelihood loses when pictures are exchanged
    within the batch. ``estimate_spread``: standard deviation of one draw's bound over its mean, per conversation;
    over the root of the draws it is the relative standard error. ``..._hidden_25_50``: of tokens whose block has more
    than 25 % and up to 50 % hidden.
    """

    def ask(objective: TextObjective, turn: TextTurn, step: int) -> tuple[TextTask, Tensor, Tensor]:
        task = objective.prepare(prompter.vocab, prompter.system_ids, turn, Draws(seed, step)).to(model.device)
        return task, *_score(model, task)

    one_draw = objective.measuring(1)
    found: dict[str, Tally] = {}
    estimates = []  # [draws][B]

    def add(name: str, values: Tensor, count: Tensor | None = None) -> None:
        counted = torch.full_like(values.sum(), values.numel()) if count is None else count
        tally = Tally(values.sum(), counted)
        found[name] = found[name] + tally if name in found else tally

    for step in range(draws):
        task, nats, right = ask(one_draw, turn, step)
        rows = torch.zeros(turn.ids.shape[0], device=nats.device).index_add_(0, task.rows, nats * task.bound_weights)
        estimates.append(rows)
        add("text/accuracy", right)
        add("text/scored_per_answer_token", torch.ones_like(nats), task.answer_tokens)
        _by_share(task, nats, right, add)
    bound = torch.stack(estimates)
    if objective.name != "ar":
        add("text/estimate_spread", bound.std(dim=0) / bound.mean(dim=0).clamp_min(1e-9))
        clean, nats, _ = ask(text_objective("ar"), turn, 0)
        add("text/clean_nats_per_token", nats, clean.answer_tokens)
    if turn.patches is not None and turn.patches.shape[0] > 1:
        others = replace(turn, patches=turn.patches.roll(1, dims=0))
        task, nats, _ = ask(one_draw, others, 0)
        add("text/picture_gap", (nats * task.bound_weights).sum() - bound[0].sum(), task.answer_tokens)
    return found


def _by_share(task: TextTask, nats: Tensor, right: Tensor, add: Callable[[str, Tensor], None]) -> None:
    low = 0.0
    for high, name in zip(SHARES, BINS, strict=True):
        inside = (task.hidden_share > low) & (task.hidden_share <= high)
        add(f"text/nats_hidden_{name}", nats[inside])
        add(f"text/accuracy_hidden_{name}", right[inside])
        low = high


def _score(model: UPVLA, task: TextTask) -> tuple[Tensor, Tensor]:
    """([S] cross-entropies, [S] 1 where the target is the most likely word)."""
    hidden = model.hidden(task.sequence)[task.rows, task.slots]
    nats, right = [hidden.new_zeros(0, dtype=torch.float32)], [hidden.new_zeros(0, dtype=torch.float32)]
    for rows, targets in zip(torch.split(hidden, ROWS_AT_ONCE), torch.split(task.targets, ROWS_AT_ONCE), strict=True):
        logits = ban(model.backbone.logits(rows), model.banned_word)
        nats.append(F.cross_entropy(logits, targets, reduction="none"))
        right.append((logits.argmax(dim=-1) == targets).float())
    return torch.cat(nats), torch.cat(right)
