"""Next-token prediction: layout ``[P x0]``, cross-entropy of every answer token given everything before it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from models.attention_mask import Kind
from models.objectives.base import TextTask
from models.rng import SampleRng
from models.sequence import TextTurn, clean_text_sequence
from models.vocabulary import Vocabulary


class Autoregressive:
    """The text objective of UP-VLA and AR-VLA; its loss is the exact negative log-likelihood."""

    name = "ar"

    def prepare(
        self, vocab: Vocabulary, system_ids: Sequence[int], turn: TextTurn, rng: SampleRng | None = None
    ) -> TextTask:
        """Return the task: the token at an answer slot is predicted from the slot before it. ``rng`` is not used."""
        sequence = clean_text_sequence(vocab, system_ids, turn)
        rows, columns = (sequence.slots.kind == Kind.ANSWER).nonzero(as_tuple=True)  # [S], [S]
        ones = torch.ones(rows.shape[0], device=rows.device)
        return TextTask(
            sequence=sequence,
            rows=rows,
            slots=columns - 1,
            targets=sequence.ids[rows, columns],
            weights=ones,
            bound_weights=ones,
            counted=ones.sum(),
            answer_tokens=ones.sum(),
            mask_ratio=torch.zeros_like(ones),
        )

    def for_evaluation(self, num_samples: int) -> Autoregressive:
        """Return this objective: its likelihood is exact."""
        return self
