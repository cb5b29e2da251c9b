"""The seam of a text objective: a conversation in, a prepared problem for the model out.

Legend: B batch, L sequence, S scored slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from models.device import send
from models.rng import SampleRng
from models.sequence import TextTurn, TokenSequence
from models.vocabulary import Vocabulary


@dataclass(frozen=True)
class TextTask:
    """A text problem that one forward of the backbone solves.

    ``sequence``: what the backbone reads. ``rows``, ``slots`` [S]: where hidden states are gathered. ``targets`` [S]:
    ids to predict there. ``weights`` [S]: of each cross-entropy in the training loss. ``bound_weights`` [S]: of each
    cross-entropy in the negative log-likelihood (or its bound), whatever is trained. ``counted`` []: what the training
    loss is divided by. ``answer_tokens`` []: real answer tokens, by which the likelihood is divided, so that the curves
    of all objectives share one axis. ``mask_ratio`` [S]: of the block a token is read in, how much is hidden (0: it
    is read from the clean stream).
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
        """[S] True at next-token predictions of the clean stream that are learned beside the objective
        (``text_diffusion.ar_aux_weight``) and no part of the likelihood."""
        return (self.bound_weights == 0) & (self.mask_ratio == 0)

    def to(self, device: torch.device | str) -> TextTask:
        def move(tensor: Tensor) -> Tensor:
            return send(tensor, device)

        return replace(
            self,
            sequence=self.sequence.to(device),
            rows=move(self.rows),
            slots=move(self.slots),
            targets=move(self.targets),
            weights=move(self.weights),
            bound_weights=move(self.bound_weights),
            counted=move(self.counted),
            answer_tokens=move(self.answer_tokens),
            mask_ratio=move(self.mask_ratio),
        )


class TextObjective(Protocol):
    """Corruption, layout and loss weights of one way to learn text. The decoder of each is in ``models.decoding``."""

    @property
    def name(self) -> str: ...

    def prepare(
        self, vocab: Vocabulary, system_ids: Sequence[int], turn: TextTurn, draws: SampleRng | None = None
    ) -> TextTask:
        """Conversations -> a task. ``draws`` gives every sample its masks, ratios and block size; nothing global is
        touched.

        Work on the host's ids (before they go to the device): finding the answer's slots would otherwise make the
        device wait."""
        ...

    def measuring(self, draws: int) -> TextObjective:
        """The objective that held-out data are measured with: the likelihood (or its bound, over all mask ratios, at
        the block size that answers are decoded with), averaged over this many independent draws per sample."""
        ...
