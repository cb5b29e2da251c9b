"""Diffusion of answers: hide tokens, read them back. Block diffusion and masked diffusion are this one objective.

    bd   blocks of a fixed, drawn or growing size             [P | x0 | v1 | v2]
    mdm  one block, the whole answer: nobody reads x0         [P | v1 | v2]

Sources: BD3-LM (arXiv 2503.09573) for the layout and its mask, Fast-dLLM v2 (2509.26328) for complementary views and
the shifted reading, Fast-dVLM (2604.06832) for the causal clean stream with the image in it.

Legend: B batch, L sequence, C slots of a view, W views, S scored slots, n tokens of a block, k of them hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal

import torch
from torch import Tensor

from models.attention_mask import Kind
from models.objectives.base import TextTask
from models.objectives.block_size import BlockSizes, Fixed
from models.objectives.elbo_weights import FULL, Ratio, exact_elbo_weight, uniform_ratio_weight
from models.objectives.layout import Canvas, append_noisy_copies, build_canvas, drop_unread_clean_tokens, hide
from models.rng import SampleRng
from models.sequence import Span, TextTurn, TokenSequence, clean_text_sequence
from models.vocabulary import Vocabulary


@dataclass(frozen=True)
class Diffusion:
    """The objective of ``bd`` and ``mdm``.

    ``sizes``: tokens per block; with ``whole`` the answer is one block, continued to a multiple of that size.
    ``prediction``: ``shift`` reads a token from the slot before it, as AR does, the first token of a block from the
    clean stream; ``aligned`` reads it from its own slot. ``weighting``: ``nelbo`` or ``uniform`` (every hidden token
    counts 1). ``complementary``: a second view hides what the first shows. ``ar_aux_weight``: of the clean stream's
    next-token loss, added. ``pairs``: independent draws per sample, averaged.
    """

    name: str
    sizes: BlockSizes
    whole: bool = False
    ratio: Ratio = FULL
    complementary: bool = True
    prediction: Literal["shift", "aligned"] = "shift"
    weighting: Literal["nelbo", "uniform"] = "nelbo"
    ar_aux_weight: float = 0.0
    pairs: int = 1

    def prepare(
        self, vocab: Vocabulary, system_ids: Sequence[int], turn: TextTurn, draws: SampleRng | None = None
    ) -> TextTask:
        """A conversation's answers are what is hidden and read back."""
        return self.task(vocab, clean_text_sequence(vocab, system_ids, turn), turn.samples, draws)

    def task(
        self, vocab: Vocabulary, clean: TokenSequence, samples: Sequence[int], draws: SampleRng | None = None
    ) -> TextTask:
        """Draw what is hidden, lay out the one sequence, and say where which token is read and what it weighs.

        ``clean``: a stream whose answers are of kind ``ANSWER``, on the host; ``samples`` [B]: name each row's draws.
        """
        # 1. A canvas of blocks over the answers of the clean stream.
        generators = [(draws or SampleRng()).of(sample) for sample in samples]
        sizes = [self.sizes.size((draws or SampleRng()).step, g) for g in generators]
        canvas = build_canvas(clean, vocab, sizes, self.whole)
        # 2. What each view hides.
        hidden = self._hidden(canvas, generators)  # [W, B, C]
        # 3. [P | x0 | v1 | v2]
        read = clean if self.ar_aux_weight else drop_unread_clean_tokens(clean, canvas)
        sequence, spans = append_noisy_copies(read, canvas, hidden, vocab.mask)
        # 4. Rows of (where, which, weight in the loss, weight in the bound).
        rows = [self._view_rows(canvas, view, span) for view, span in zip(hidden, spans, strict=True)]
        if self.prediction == "shift":
            rows.append(self._first_rows(canvas, hidden))
        scored = _Scored.join(rows)
        answer_tokens = (clean.slots.kind == Kind.ANSWER).sum().float()
        counted = answer_tokens if self.weighting == "nelbo" else scored.weights.sum()
        if self.ar_aux_weight:
            scored = _Scored.join([scored, self._clean_rows(clean)])
        return TextTask(
            sequence=sequence,
            rows=scored.rows,
            slots=scored.slots,
            targets=scored.targets,
            weights=scored.weights,
            bound_weights=scored.bound,
            counted=counted,
            answer_tokens=answer_tokens,
            mask_ratio=scored.share,
        )

    @property
    def views(self) -> int:
        """W: noisy copies in one sequence."""
        return self.pairs * (2 if self.complementary else 1)

    def _hidden(self, canvas: Canvas, generators: Sequence[torch.Generator]) -> Tensor:
        """[W, B, C]: a ratio for each block, then a draw for each token; the complement hides the rest."""
        views = torch.zeros(self.views, *canvas.ids.shape, dtype=torch.bool)
        for row, generator in enumerate(generators):
            real = canvas.real[row]
            block = canvas.block[row][real]
            blocks = int(block[-1]) + 1 if block.numel() else 0
            for number in range(self.pairs):
                ratio = self.ratio.of(torch.rand(blocks, generator=generator))[block]
                primary = hide(torch.rand(block.shape, generator=generator), ratio, torch.ones_like(block).bool())
                copies = [primary, ~primary] if self.complementary else [primary]
                for copy, covered in enumerate(copies):
                    views[number * len(copies) + copy, row, real] = covered
        return views

    def _view_rows(self, canvas: Canvas, hidden: Tensor, span: Span) -> _Scored:
        """Hidden tokens that are read from a view's own slots."""
        shift = self.prediction == "shift"
        where = hidden & ~canvas.first if shift else hidden
        count = canvas.hidden_count(hidden)
        bound = exact_elbo_weight(count, canvas.size, self.ratio, self.complementary) / self.views
        if self.weighting == "uniform":
            loss = hidden.float()
        else:
            loss = uniform_ratio_weight(count, canvas.size) / self.views
        rows, columns = where.nonzero(as_tuple=True)
        slots = span.start + columns - (1 if shift else 0)  # a block's slots are neighbours
        at, share = (rows, columns), count / canvas.size.clamp_min(1)
        return _Scored(rows, slots, canvas.ids[at], loss[at], bound[at], share[at])

    def _first_rows(self, canvas: Canvas, hidden: Tensor) -> _Scored:
        """First tokens of blocks, read from the clean slot before: no mask has a say there, so the weight is the
        expectation of what masks would give, exactly 1 (uniform: once for each view that hides it)."""
        rows, columns = canvas.first.nonzero(as_tuple=True)
        slots = canvas.column[rows, columns] - 1
        ones = torch.ones(rows.shape[0])
        loss = hidden.sum(0)[rows, columns].float() if self.weighting == "uniform" else ones
        return _Scored(rows, slots, canvas.ids[rows, columns], loss, ones, torch.zeros_like(ones))

    def _clean_rows(self, clean: TokenSequence) -> _Scored:
        """Next-token prediction of the clean stream; no part of the bound."""
        rows, columns = (clean.slots.kind == Kind.ANSWER).nonzero(as_tuple=True)
        weight = torch.full((rows.shape[0],), self.ar_aux_weight)
        nothing = torch.zeros_like(weight)
        return _Scored(rows, columns - 1, clean.ids[rows, columns], weight, nothing, nothing)

    def measuring(self, draws: int) -> Diffusion:
        """Ratios from all of (0, 1), pairs of views, the block size of decoding, ``draws`` pairs per sample."""
        return replace(self, sizes=Fixed(self.sizes.final), ratio=FULL, complementary=True, pairs=draws)


@dataclass(frozen=True)
class _Scored:
    """Scored slots, all [S]: sequence row, slot that is read, id to predict, weights in loss and bound, hidden share of
    the block."""

    rows: Tensor
    slots: Tensor
    targets: Tensor
    weights: Tensor
    bound: Tensor
    share: Tensor

    @classmethod
    def join(cls, parts: Sequence[_Scored]) -> _Scored:
        return cls(*(torch.cat([getattr(part, f.name) for part in parts]) for f in fields(cls)))
