"""Diffusion of answers: mask tokens, predict them. Block diffusion and masked diffusion are this one objective.

    bd   blocks of a fixed, drawn or growing size             [P | x0 | v1 | v2]
    mdm  one block, the whole answer: x0 is never read        [P | v1 | v2]

Sources: BD3-LM (arXiv 2503.09573) for the layout and its mask, Fast-dLLM v2 (2509.26328) for complementary copies and
the shifted prediction, Fast-dVLM (2604.06832) for the causal clean stream with the image in it.

Legend: B batch, L sequence, C slots of a noisy copy, W noisy copies, S scored slots, n tokens of a block, k of them
masked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal

import torch
from torch import Tensor

from config.schema import BlockDiffusion, TextDiffusion, TextMDM
from models.attention_mask import Kind
from models.objectives.base import TextTask
from models.objectives.block_size import BlockSizes, Fixed, block_sizes
from models.objectives.elbo_weights import FULL, Ratio, exact_elbo_weight, uniform_ratio_weight
from models.objectives.layout import Canvas, append_noisy_copies, apply_mask, build_canvas, drop_unread_clean_tokens
from models.rng import SampleRng
from models.sequence import Span, TextTurn, TokenSequence, clean_text_sequence
from models.vocabulary import Vocabulary


@dataclass(frozen=True)
class Diffusion:
    """The objective of ``bd`` and ``mdm``.

    ``sizes``: tokens per block; with ``whole_answer`` the answer is one block, padded to a multiple of that size.
    ``prediction``: ``shift`` predicts a token from the slot before it, as AR does, and the first token of a block from
    the clean stream; ``aligned`` predicts it from its own slot. ``weighting``: ``nelbo`` or ``uniform`` (every masked
    token has weight 1). ``complementary``: a second copy masks the tokens that the first shows. ``ar_aux_weight``:
    weight of the clean stream's next-token loss. ``pairs``: independent samples of masks, averaged.
    """

    name: str
    sizes: BlockSizes
    whole_answer: bool = False
    ratio: Ratio = FULL
    complementary: bool = True
    prediction: Literal["shift", "aligned"] = "shift"
    weighting: Literal["nelbo", "uniform"] = "nelbo"
    ar_aux_weight: float = 0.0
    pairs: int = 1

    def prepare(
        self, vocab: Vocabulary, system_ids: Sequence[int], turn: TextTurn, rng: SampleRng | None = None
    ) -> TextTask:
        """Return the task of predicting masked tokens of the answers in ``turn``."""
        return self.task(vocab, clean_text_sequence(vocab, system_ids, turn), turn.samples, rng)

    def task(
        self, vocab: Vocabulary, clean: TokenSequence, samples: Sequence[int], rng: SampleRng | None = None
    ) -> TextTask:
        """Draw masks, build the sequence, and return which slot predicts which token with which weight.

        ``clean``: a stream whose answers are of kind ``ANSWER``, on the host; ``samples`` [B]: key of each row's random
        numbers.
        """
        # 1. A canvas of blocks over the answers of the clean stream.
        generators = [(rng or SampleRng()).of(sample) for sample in samples]
        sizes = [self.sizes.size((rng or SampleRng()).step, g) for g in generators]
        canvas = build_canvas(clean, vocab, sizes, self.whole_answer)
        # 2. The tokens that each noisy copy masks.
        masked = self._draw_masks(canvas, generators)  # [W, B, C]
        # 3. [P | x0 | v1 | v2]
        read = clean if self.ar_aux_weight else drop_unread_clean_tokens(clean, canvas)
        sequence, spans = append_noisy_copies(read, canvas, masked, vocab.mask)
        # 4. Scored slots: (row, slot, target, weight in the loss, weight in the bound).
        rows = [self._masked_rows(canvas, copy, span) for copy, span in zip(masked, spans, strict=True)]
        if self.prediction == "shift":
            rows.append(self._first_rows(canvas, masked))
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
            mask_ratio=scored.mask_ratio,
        )

    @property
    def num_copies(self) -> int:
        """W, noisy copies in one sequence."""
        return self.pairs * (2 if self.complementary else 1)

    def _draw_masks(self, canvas: Canvas, generators: Sequence[torch.Generator]) -> Tensor:
        """Draw a mask ratio for each block, then a mask for each token; return masked tokens [W, B, C].

        A complementary copy masks the tokens that the first one shows.
        """
        masked = torch.zeros(self.num_copies, *canvas.ids.shape, dtype=torch.bool)
        for row, generator in enumerate(generators):
            real = canvas.real[row]
            block = canvas.block[row][real]
            blocks = int(block[-1]) + 1 if block.numel() else 0
            for number in range(self.pairs):
                ratio = self.ratio.of(torch.rand(blocks, generator=generator))[block]
                primary = apply_mask(torch.rand(block.shape, generator=generator), ratio, torch.ones_like(block).bool())
                copies = [primary, ~primary] if self.complementary else [primary]
                for copy, chosen in enumerate(copies):
                    masked[number * len(copies) + copy, row, real] = chosen
        return masked

    def _masked_rows(self, canvas: Canvas, masked: Tensor, span: Span) -> _Scored:
        """Return the masked tokens that are predicted from slots of their own noisy copy."""
        shift = self.prediction == "shift"
        where = masked & ~canvas.first if shift else masked
        count = canvas.masked_count(masked)
        bound = exact_elbo_weight(count, canvas.size, self.ratio, self.complementary) / self.num_copies
        if self.weighting == "uniform":
            loss = masked.float()
        else:
            loss = uniform_ratio_weight(count, canvas.size) / self.num_copies
        rows, columns = where.nonzero(as_tuple=True)
        slots = span.start + columns - (1 if shift else 0)  # a block's slots are neighbours
        at, mask_ratio = (rows, columns), count / canvas.size.clamp_min(1)
        return _Scored(rows, slots, canvas.ids[at], loss[at], bound[at], mask_ratio[at])

    def _first_rows(self, canvas: Canvas, masked: Tensor) -> _Scored:
        """Return the first tokens of blocks, which are predicted from the clean slot before.

        No mask affects that slot, so the weight is the expectation over masks, exactly 1 (``uniform``: 1 for each copy
        that masks the token).
        """
        rows, columns = canvas.first.nonzero(as_tuple=True)
        slots = canvas.column[rows, columns] - 1
        ones = torch.ones(rows.shape[0])
        loss = masked.sum(0)[rows, columns].float() if self.weighting == "uniform" else ones
        return _Scored(rows, slots, canvas.ids[rows, columns], loss, ones, torch.zeros_like(ones))

    def _clean_rows(self, clean: TokenSequence) -> _Scored:
        """Return next-token predictions of the clean stream; they are no part of the bound."""
        rows, columns = (clean.slots.kind == Kind.ANSWER).nonzero(as_tuple=True)
        weight = torch.full((rows.shape[0],), self.ar_aux_weight)
        nothing = torch.zeros_like(weight)
        return _Scored(rows, columns - 1, clean.ids[rows, columns], weight, nothing, nothing)

    def for_evaluation(self, num_samples: int) -> Diffusion:
        """Return the objective with ratios from all of (0, 1), complementary copies, the block size of decoding, and
        ``num_samples`` pairs of copies."""
        return replace(self, sizes=Fixed(self.sizes.final), ratio=FULL, complementary=True, pairs=num_samples)


@dataclass(frozen=True)
class _Scored:
    """Scored slots, all [S]: sequence row, slot whose hidden state predicts, id to predict, weights in loss and bound,
    mask ratio of the block."""

    rows: Tensor
    slots: Tensor
    targets: Tensor
    weights: Tensor
    bound: Tensor
    mask_ratio: Tensor

    @classmethod
    def join(cls, parts: Sequence[_Scored]) -> _Scored:
        return cls(*(torch.cat([getattr(part, f.name) for part in parts]) for f in fields(cls)))


def block_diffusion(blocks: BlockDiffusion, text: TextDiffusion) -> Diffusion:
    """Return the objective ``bd``: an answer is predicted block by block, the tokens of a block in any order."""
    return Diffusion(
        name="bd",
        sizes=block_sizes(blocks),
        ratio=Ratio(low=blocks.mask_eps),
        complementary=blocks.complementary_mask,
        prediction=text.prediction,
        weighting=text.weighting,
        ar_aux_weight=text.ar_aux_weight,
    )


def masked_diffusion(mdm: TextMDM, complementary: bool, text: TextDiffusion) -> Diffusion:
    """Return the objective ``mdm``: the whole answer is one block, its tokens are predicted in any order."""
    return Diffusion(
        name="mdm",
        sizes=Fixed(mdm.canvas_multiple),
        whole_answer=True,
        ratio=Ratio(mdm.min_mask_ratio, mdm.max_mask_ratio),
        complementary=complementary,
        prediction=text.prediction,
        weighting=text.weighting,
        ar_aux_weight=text.ar_aux_weight,
    )
