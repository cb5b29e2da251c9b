"""Interface of a text objective: it turns conversations into a ``TextTask`` for the model.

Legend: B batch, L sequence, S scored slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from models.device import fields_to_device
from models.rng import SampleRng
from models.sequence import TextTurn, TokenSequence
from models.vocabulary import Vocabulary


@dataclass(frozen=True)
class TextTask:
    """Prediction of tokens in one forward of the backbone.

    ``sequence``: input of the backbone. ``rows``, ``slots`` [S]: where hidden states are gathered. ``targets`` [S]: ids
    to predict there. ``weights`` [S]: of each cross-entropy in the training loss. ``bound_weights`` [S]: of each
    cross-entropy in the negative log-likelihood (or its bound), whatever is trained. ``counted`` []: divisor of the
    training loss. ``answer_tokens`` []: real answer tokens, divisor of the likelihood for every objective, so that
    their curves are comparable. ``mask_ratio`` [S]: masked share of the block a token is predicted in (0: predicted
    from the clean stream).
    """

    sequence: TokenSequence
    rows: Tensor
    slots: Tensor
    targets: Tensor
    weights: Tensor
    bound_weights: Tensor
    counted: Tensor
    answer_tokens: Tensor
    mask_ratio: Tensor

    @property
    def clean_only(self) -> Tensor:
        """[S] True at next-token predictions of the clean stream that are added to the objective
        (``text_diffusion.ar_aux_weight``) and are no part of the likelihood."""
        return (self.bound_weights == 0) & (self.mask_ratio == 0)

    def to(self, device: torch.device | str) -> TextTask:
        return fields_to_device(self, device)


class TextObjective(Protocol):
    """Masking, layout and loss weights of a text objective. Its decoder is in ``models.decoding``."""

    @property
    def name(self) -> str: ...

    def prepare(
        self, vocab: Vocabulary, system_ids: Sequence[int], turn: TextTurn, rng: SampleRng | None = None
    ) -> TextTask:
        """Return the task of a batch of conversations.

        ``rng`` gives every sample its masks, mask ratios and block size; no global generator is used. ``turn`` must be
        on the host: finding answer slots on a device would block until it has finished.
        """
        ...

    def for_evaluation(self, num_samples: int) -> TextObjective:
        """Return the objective for validation: the likelihood, or its bound over all mask ratios at the block size of
        decoding, averaged over ``num_samples`` independent samples of masks."""
        ...
