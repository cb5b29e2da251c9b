"""UPVLA: embed -> backbone -> the scored logits, and actions.

One network reads text, pictures and image tokens; it predicts the frame T steps ahead, a chunk of T actions, and
words (UP-VLA, arXiv 2501.18867, on Show-o's backbone).

Legend: B batch, L sequence, D hidden, V vocabulary, T chunk, A action size, N image codes of all views, S scored slots.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig

from models.backbones import Backbone
from models.heads import PooledRegression
from models.loss import Tally, token_cross_entropy
from models.objectives.base import TextTask
from models.sequence import TokenSequence
from models.spec import ModelSpec


@dataclass(frozen=True)
class FutureTask:
    """What the robot flow learns from one batch.

    ``sequence``: from ``robot_sequence``; ``targets`` [B, N + 2]: ids of the future frame (None: no image loss);
    ``actions`` [B, T, A] with ``action_weight`` [B, T] (1 counts a step, 0 leaves it out); None: no action loss.
    """

    sequence: TokenSequence
    targets: Tensor | None
    actions: Tensor | None
    action_weight: Tensor | None = None
    label_smoothing: float = 0.0

    def to(self, device: torch.device | str) -> FutureTask:
        def move(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device, non_blocking=True)

        return replace(
            self,
            sequence=self.sequence.to(device),
            targets=move(self.targets),
            actions=move(self.actions),
            action_weight=move(self.action_weight),
        )


@dataclass(frozen=True)
class Losses:
    """Sums and counts of one micro-batch: ``image`` over span slots, ``action`` over numbers, ``text`` over what the
    text objective counts. ``nats``: negative log-likelihood of the answers, or its bound, over answer tokens."""

    image: Tally
    action: Tally
    text: Tally
    nats: Tally


@dataclass(frozen=True)
class Prediction:
    """``actions`` [B, T, A]; ``codes`` [B, N]: image codes of the frame T steps ahead, when asked for."""

    actions: Tensor
    codes: Tensor | None = None


class UPVLA(nn.Module):
    """The trainable network. Image tokenizer and CLIP tower are frozen and stand outside."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.vocab = spec.vocab
        self.backbone = Backbone(_llm_config(spec), self.vocab.size, spec.attn_implementation)
        width = self.backbone.hidden_size
        self.projector = None if spec.clip_width is None else projector(spec.clip_width, width)
        self.action_head = PooledRegression(width, spec.act_step)

    @property
    def device(self) -> torch.device:
        return self.action_head.out.weight.device

    # --- the one call of a training step -----------------------------------------------------------------------

    def forward(self, future: FutureTask | None = None, text: TextTask | None = None) -> Losses:
        """Losses of one micro-batch. One call covers both flows: wrappers (DDP, DeepSpeed, FSDP) hook it once."""
        zero = Tally.zero(self.device)
        image, action = (zero, zero) if future is None else self.future_losses(future)
        words, nats = (zero, zero) if text is None else self.text_loss(text)
        return Losses(image=image, action=action, text=words, nats=nats)

    def future_losses(self, task: FutureTask) -> tuple[Tally, Tally]:
        """Cross-entropy of the future frame's codes over the image span (same slot, no shift; full vocabulary, as
        released weights were trained), and squared error of the actions."""
        hidden = self.hidden(task.sequence)
        image = action = Tally.zero(hidden.device)
        if task.targets is not None:
            assert task.sequence.image is not None
            span = hidden[:, task.sequence.image.columns].flatten(0, 1)  # [B * (N + 2), D]
            losses = token_cross_entropy(
                self.backbone.head, span, task.targets.flatten(), label_smoothing=task.label_smoothing
            )
            image = Tally(losses.sum(), torch.tensor(float(losses.numel()), device=hidden.device))
        if task.actions is not None:
            predicted = self._actions(task.sequence, hidden).float()  # [B, T, A]
            errors = (predicted - task.actions).square()
            weight = torch.ones_like(errors[..., 0]) if task.action_weight is None else task.action_weight
            action = Tally((errors * weight[..., None]).sum(), weight.sum() * errors.shape[-1])
        return image, action

    def text_loss(self, task: TextTask) -> tuple[Tally, Tally]:
        """(training loss; negative log-likelihood or its bound per real answer token)."""
        losses = self.text_cross_entropy(task)
        return (
            Tally((losses * task.weights).sum(), task.counted),
            Tally((losses.detach() * task.bound_weights).sum(), task.answer_tokens),
        )

    def text_cross_entropy(self, task: TextTask) -> Tensor:
        """[S] cross-entropies at the scored slots."""
        hidden = self.hidden(task.sequence)
        scored = hidden[task.rows, task.slots]  # [S, D]
        return token_cross_entropy(self.backbone.head, scored, task.targets, banned=self.banned_word)

    # --- pieces ------------------------------------------------------------------------------------------------

    @property
    def banned_word(self) -> int | None:
        """The id no text head predicts: the mask can be read, never said."""
        return self.vocab.mask if self.spec.mask_logit_banned else None

    def embed(self, sequence: TokenSequence) -> Tensor:
        """[B, L, D]: word and code embeddings, with projected CLIP patches at the patch span."""
        embeds = self.backbone.embed(sequence.ids)
        if sequence.patches is None or sequence.patch_span is None:
            return embeds
        if self.projector is None:
            raise ValueError("this model has no projector for pictures: it was built with model.showo.w_clip_vit=false")
        patches = self.projector(sequence.patches.to(embeds.dtype)).to(embeds.dtype)
        span = sequence.patch_span
        return torch.cat([embeds[:, : span.start], patches, embeds[:, span.stop :]], dim=1)

    def hidden(self, sequence: TokenSequence) -> Tensor:
        """[B, L, D] hidden states after the final norm."""
        mask = sequence.rule.dense(sequence.slots)
        return self.backbone(self.embed(sequence), mask, sequence.slots.pos)

    def _actions(self, sequence: TokenSequence, hidden: Tensor) -> Tensor:
        assert sequence.actions is not None
        actions: Tensor = self.action_head(hidden[:, sequence.actions.columns])
        return actions

    @torch.no_grad()
    def predict(self, sequence: TokenSequence, want_codes: bool = False) -> Prediction:
        """Act: one forward, no logits unless ``want_codes`` (then only those of image codes at image slots)."""
        hidden = self.hidden(sequence)
        actions = self._actions(sequence, hidden).float()
        if not want_codes:
            return Prediction(actions)
        assert sequence.image is not None
        inner = hidden[:, sequence.image.start + 1 : sequence.image.stop - 1]
        return Prediction(actions, self._code_logits(inner).argmax(dim=-1))

    def _code_logits(self, hidden: Tensor) -> Tensor:
        """[..., D] -> [..., codebook_size] in float32."""
        head = self.backbone.lm.get_output_embeddings()
        rows = slice(self.vocab.first_code, self.vocab.mask)
        bias = None if head.bias is None else head.bias[rows]
        return F.linear(hidden, head.weight[rows], bias).float()


def projector(clip_width: int, width: int) -> nn.Sequential:
    """CLIP patch -> backbone embedding: two linear layers with an exact GELU between."""
    return nn.Sequential(nn.Linear(clip_width, width), nn.GELU(), nn.Linear(width, width))


def _llm_config(spec: ModelSpec) -> Any:
    settings = copy.deepcopy(dict(spec.llm))
    return AutoConfig.for_model(settings.pop("model_type"), **settings)
