"""The text step as it is written first: a copy of the batch for every pass, and logits of every slot.

What the shared-prefix layout is compared with: in its losses (they must be equal) and in what they cost.

    ar    [P x0]                      one pass, full logits
    mdm   [P x_t], [P x̄_t]            a pass per view, each with its own prefix
    bd    [P x0 | P x_t], [P x0 | P x̄_t]   a pass per view; each repeats the clean conversation, and the noisy copy
                                      repeats the prefix (BD3-LM's training pass, arXiv 2503.09573)

What is hidden, and what it weighs, is taken from a prepared task: only the layout, the mask and the scoring are done
again here, with explicit comparisons of positions and none of the package's rules.

Legend: B batch, L slots of a pass, C clean slots, N slots of the noisy copy, W views, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from models.attention_mask import Kind
from models.objectives import TextTask
from models.sequence import Span, TextTurn, clean_text_sequence
from models.upvla import UPVLA

NOBODY = -100
"""Target of slots that are not scored: ``ignore_index`` of torch's cross-entropy."""


@dataclass(frozen=True)
class Passes:
    """All passes of a batch as one duplicated batch, W * B rows.

    ``ids``, ``pos``, ``targets``, ``weights`` [W * B, L]; ``mask`` [W * B, 1, L, L]; ``patches`` [W * B, P, C] stand at
    each of ``patch_spans``; ``counted``: what the loss is divided by.
    """

    ids: Tensor
    pos: Tensor
    mask: Tensor
    targets: Tensor
    weights: Tensor
    patches: Tensor | None
    patch_spans: tuple[Span, ...]
    counted: Tensor

    def to(self, device: torch.device) -> Passes:
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if isinstance(getattr(self, f.name), Tensor)}
        return replace(self, **{name: tensor.to(device) for name, tensor in tensors.items()})


def passes(model: UPVLA, system_ids: list[int], turn: TextTurn, task: TextTask) -> Passes:
    """The passes that compute what ``task`` computes. Conversations of one answer, as masked diffusion in copies
    without a clean stream knows no other."""
    clean = clean_text_sequence(model.vocab, system_ids, turn)
    width = clean.ids.shape[1]
    tags = task.sequence.slots
    views = int(tags.copy_id.max())
    rows = [_noisy_copy(clean.ids, clean.slots.kind, task, view) for view in range(1, views + 1)]
    paired = bool((tags.block_start[tags.valid] >= 0).any()) and not _one_block(task)
    clean_start = torch.full_like(clean.ids, -1)
    parts = []
    for ids, kind, start in rows or [(clean.ids, clean.slots.kind, clean_start)]:
        if paired:
            ids, kind = torch.cat([clean.ids, ids], dim=1), torch.cat([clean.slots.kind, kind], dim=1)
            start = torch.cat([clean_start, start], dim=1)
        parts.append((ids, kind, start))
    ids, kind, start = (torch.cat(column) for column in zip(*parts, strict=True))
    noisy_from = width if paired else 0
    length = ids.shape[1]
    pos = torch.cat([torch.arange(noisy_from), torch.arange(length - noisy_from)]).expand_as(ids)
    targets, weights = _scores(task, max(views, 1), noisy_from, ids.shape)
    spans = [] if clean.patch_span is None else [clean.patch_span]
    if paired and clean.patch_span is not None:
        spans.append(Span(width + clean.patch_span.start, width + clean.patch_span.stop))
    return Passes(
        ids=ids,
        pos=pos,
        mask=_mask(kind, pos, start, noisy_from),
        targets=targets,
        weights=weights,
        patches=None if turn.patches is None else turn.patches.repeat(max(views, 1), 1, 1),
        patch_spans=tuple(spans),
        counted=task.counted,
    )


def _one_block(task: TextTask) -> bool:
    """Each row has one block: no clean answer is seen by anybody."""
    slots = task.sequence.slots
    noisy = slots.copy_id > 0
    return all(len(torch.unique(start[here])) <= 1 for start, here in zip(slots.block_start, noisy, strict=True))


def _noisy_copy(clean: Tensor, kinds: Tensor, task: TextTask, view: int) -> tuple[Tensor, Tensor, Tensor]:
    """(ids, kind, start of the block) [B, N]: the whole conversation with the answer as that view shows it."""
    tags = task.sequence.slots
    here = (tags.copy_id == view) & tags.valid
    width = max(clean.shape[1], int(tags.pos[here].max()) + 1)
    ids, kind = F.pad(clean, (0, width - clean.shape[1])), F.pad(kinds, (0, width - clean.shape[1]))
    start = torch.full_like(ids, -1)
    row, column = here.nonzero(as_tuple=True)
    at = (row, tags.pos[row, column])
    ids[at], start[at] = task.sequence.ids[row, column], tags.block_start[row, column]
    kind[at] = int(Kind.ANSWER)
    return ids, kind, start


def _mask(kind: Tensor, pos: Tensor, start: Tensor, noisy_from: int) -> Tensor:
    """[W * B, 1, L, L], True attends. A block sees what is before it and itself; all else looks back; everybody sees
    the image of its own copy. With a clean copy, a block sees what is before it there."""
    length = kind.shape[1]
    q, k = torch.arange(length)[:, None], torch.arange(length)[None]
    same_copy = (q >= noisy_from) == (k >= noisy_from)
    q_pos, k_pos = pos[:, :, None], pos[:, None]
    q_start, k_start = start[:, :, None], start[:, None]
    plain = (q_start < 0) & same_copy & ((k_pos <= q_pos) | (kind[:, None] == Kind.PATCH))
    in_reach = (k < noisy_from) if noisy_from else (k_start < 0)
    block = (q_start >= 0) & ((in_reach & (k_pos < q_start)) | (k_start == q_start))
    mask = (plain | block) & (kind[:, None] != Kind.PAD)
    return (mask | torch.eye(length, dtype=torch.bool))[:, None]  # padding, which nobody reads, sees itself


def _scores(task: TextTask, views: int, noisy_from: int, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """Target and weight of every slot of every pass. What is read from the clean stream is read in each pass, and
    counts a share of one in each."""
    tags = task.sequence.slots
    batch = shape[0] // views
    targets, weights = torch.full(shape, NOBODY), torch.zeros(shape)
    for row, slot, target, weight in zip(
        task.rows.tolist(), task.slots.tolist(), task.targets.tolist(), task.weights.tolist(), strict=True
    ):
        view, at = int(tags.copy_id[row, slot]), int(tags.pos[row, slot])
        for copy in range(views) if view == 0 else [view - 1]:
            cell = (copy * batch + row, at if view == 0 else noisy_from + at)
            assert targets[cell] in (NOBODY, target), "a slot reads one token"
            targets[cell] = target
            weights[cell] += weight / (views if view == 0 else 1)
    return targets, weights


def loss(model: UPVLA, batch: Passes) -> Tensor:
    """The training loss: [W * B, L, V] logits, cross-entropy at every slot, weights."""
    embeds = model.backbone.embed(batch.ids)
    if batch.patches is not None:
        assert model.projector is not None
        for span in batch.patch_spans:
            patches = model.projector(batch.patches)
            embeds = torch.cat([embeds[:, : span.start], patches, embeds[:, span.stop :]], dim=1)
    hidden = model.backbone(embeds, batch.mask, batch.pos)
    logits = model.backbone.logits(hidden)  # [W * B, L, V]
    if model.banned_token is not None:
        logits[..., model.banned_token] = float("-inf")
    losses = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=NOBODY, reduction="none")
    return (losses * batch.weights.flatten()).sum() / batch.counted
