"""UPVLA: one network that reads text, images and image codes, and predicts a future frame, actions and words.

It predicts the frame T steps ahead and a chunk of T actions (UP-VLA, arXiv 2501.18867, on Show-o's backbone).

Legend: B batch, L sequence, D hidden, V vocabulary, T chunk, A action size, N image codes of all views, S scored slots.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig

from models.action.head import PooledRegression
from models.action.insulation import insulate
from models.attention_mask import TILE
from models.device import fields_to_device
from models.grounding import GROUND_METRICS, PositionHead, PositionTargets, SceneTask, position_losses
from models.language_model import Backbone
from models.losses import SumAndCount, cross_entropy_with_accuracy, token_cross_entropy
from models.objectives.base import TextTask
from models.pretrained.model_config import ModelConfig
from models.sequence import TokenSequence, Work
from models.text_metrics import ACTION_METRICS, action_step_metrics, text_step_metrics, zero_metrics


@dataclass(frozen=True)
class RobotTask:
    """Training task of the robot flow for one batch.

    ``sequence``: from ``robot_sequence``; ``targets`` [B, N + 2]: ids of the future frame (None: no image loss);
    ``actions`` [B, T, A] with ``action_weight`` [B, T] (1 includes a step, 0 excludes it); None: no action loss.
    ``action_loss``: ``mse`` (squared errors) or ``l1`` (absolute errors). ``insulated``: the action loss has no
    gradient into the backbone. ``action_tokens``: the chunk as tokens after the sequence
    (``models.objectives.action_diffusion``); None: no block-diffusion actions. ``positions``: of the objects that the
    instructions name; ``scenes``: further rows, in which only positions are learned; None: no ground loss.
    """

    sequence: TokenSequence
    targets: Tensor | None
    actions: Tensor | None
    action_weight: Tensor | None = None
    action_loss: str = "mse"
    insulated: bool = False
    label_smoothing: float = 0.0
    action_tokens: TextTask | None = None
    positions: PositionTargets | None = None
    scenes: SceneTask | None = None

    @property
    def full_sequence(self) -> TokenSequence:
        """Input of the forward: the robot flow and the action tokens after it.

        Action tokens are laid out on the host without the image codes, so the ids of the flow, and the state, are taken
        from ``sequence``.
        """
        if self.action_tokens is None:
            return self.sequence
        full = self.action_tokens.sequence
        tokens = full.ids[:, self.sequence.ids.shape[1] :]
        return replace(
            full,
            ids=torch.cat([self.sequence.ids, tokens], dim=1),
            state=self.sequence.state,
            state_given=self.sequence.state_given,
        )

    def to(self, device: torch.device | str) -> RobotTask:
        return fields_to_device(self, device)


@dataclass(frozen=True)
class Losses:
    """Sums and counts of one micro-batch.

    ``image`` over span slots, ``action`` over numbers, ``text`` over what the text objective counts. ``nats``: negative
    log-likelihood of the answers, or its bound, over answer tokens. ``action_bd``: block-diffusion actions, over what
    their objective counts. ``ground``: positions of named objects, over numbers. ``work``: size of the forward passes.
    ``details``: further metrics (``models.text_metrics.STEP_METRICS``, ``ACTION_METRICS``,
    ``models.grounding.GROUND_METRICS``).
    """

    image: SumAndCount
    action: SumAndCount
    text: SumAndCount
    nats: SumAndCount
    action_bd: SumAndCount
    ground: SumAndCount
    work: Work
    details: Mapping[str, SumAndCount] = field(default_factory=dict)


@dataclass(frozen=True)
class Prediction:
    """``actions`` [B, T, A]; ``codes`` [B, N]: image codes of the frame T steps ahead, if requested."""

    actions: Tensor
    codes: Tensor | None = None


class UPVLA(nn.Module):
    """The trainable network, without the frozen image tokenizer and CLIP tower."""

    def __init__(self, spec: ModelConfig, llm: Any = None) -> None:
        """``llm``: the transformers config of the language model; None: built from ``spec.llm``, whose type
        transformers must know."""
        super().__init__()
        self.spec = spec
        self.vocab = spec.vocab
        llm = llm_config(spec) if llm is None else llm
        self.backbone = Backbone(llm, self.vocab.size, spec.attn_implementation)
        width = self.backbone.hidden_size
        self.projector = None if spec.clip_width is None else projector(spec.clip_width, width)
        self.action_head = PooledRegression(width, spec.act_step, spec.action_dim)
        state = spec.data.state_convention
        self.state_encoder = None if state is None else projector(state.features, width)
        self.ground_head = None if spec.data.workspace is None else PositionHead(width)
        self.code_bits = None
        """One vector for each bit of an image code (lookup-free quantisation), beside the code's own embedding."""
        if spec.code_bits:
            self.code_bits = nn.Linear(self.vocab.code_bit_count, width, bias=False)
            nn.init.normal_(self.code_bits.weight, std=float(getattr(llm, "initializer_range", 0.02)))
        self.length_multiple = TILE if self.backbone.uses_flex_attention else 1
        """In training, sequences are padded to a multiple of this many slots (``training.length_multiple``)."""
        self.float()  # whatever torch's default type is

    @property
    def device(self) -> torch.device:
        return self.action_head.out.weight.device

    # --- the one call of a training step -----------------------------------------------------------------------

    def forward(self, future: RobotTask | None = None, text: TextTask | None = None) -> Losses:
        """Return the losses of one micro-batch. One call for both flows: wrappers (DDP, DeepSpeed, FSDP) hook it
        once."""
        zero = SumAndCount.zero(self.device)
        image = action = action_bd = ground = zero
        action_metrics = zero_metrics(zero.sum.device, (*ACTION_METRICS, *GROUND_METRICS))
        sequences = [] if text is None else [text.sequence]
        if future is not None:
            state, sequence = self.encode_state(future.sequence), future.full_sequence
            sequences += [sequence, *([] if future.scenes is None else [future.scenes.sequence])]
            hidden = self.hidden_states(sequence, state)
            image, action = self.robot_losses(future, hidden, state)
            if future.action_tokens is not None:
                action_bd, metrics = self.action_token_losses(future.action_tokens, hidden)
                action_metrics |= metrics
            ground, metrics = self.ground_losses(future, hidden)
            action_metrics |= metrics
        text_loss, nats, details = (
            (zero, zero, zero_metrics(zero.sum.device)) if text is None else self.text_losses(text)
        )
        return Losses(
            image=image,
            action=action,
            text=text_loss,
            nats=nats,
            action_bd=action_bd,
            ground=ground,
            work=Work.of(sequences, _scored_slots(future, text), self.device),
            details={**details, **action_metrics},
        )

    def robot_losses(
        self, task: RobotTask, hidden: Tensor | None = None, state: Tensor | None = None
    ) -> tuple[SumAndCount, SumAndCount]:
        """Return the image loss and the action loss.

        The image loss is the cross-entropy of the future frame's codes over the image span (same slot, no shift, full
        vocabulary, as released weights were trained), the action loss a squared error (absolute, with
        ``task.action_loss`` l1). ``hidden`` [B, L, D]: hidden states of ``task.full_sequence``, if already computed,
        with ``state`` [B, D], the encoded state that they were computed from.
        """
        if hidden is None:
            state = self.encode_state(task.sequence)
            hidden = self.hidden_states(task.sequence, state)
        image = action = SumAndCount.zero(hidden.device)
        if task.targets is not None:
            assert task.sequence.image is not None
            span = hidden[:, task.sequence.image.columns].flatten(0, 1)  # [B * (N + 2), D]
            losses = token_cross_entropy(
                self.backbone.head, span, task.targets.flatten(), label_smoothing=task.label_smoothing
            )
            image = SumAndCount(losses.sum(), torch.full((), float(losses.numel()), device=hidden.device))
        if task.actions is not None:
            assert task.sequence.actions is not None
            slots = hidden[:, task.sequence.actions.columns]
            predicted = self.action_head(insulate(slots, state) if task.insulated else slots).float()  # [B, T, A]
            errors = predicted - task.actions
            errors = errors.abs() if task.action_loss == "l1" else errors.square()
            weight = torch.ones_like(errors[..., 0]) if task.action_weight is None else task.action_weight
            action = SumAndCount((errors * weight[..., None]).sum(), weight.sum() * errors.shape[-1])
        return image, action

    def ground_losses(self, task: RobotTask, hidden: Tensor) -> tuple[SumAndCount, dict[str, SumAndCount]]:
        """Return (loss of the positions in the robot flow and in its scenes; errors, as in ``GROUND_METRICS``).

        ``hidden`` [B, L, D]: hidden states of the same forward as for the robot losses.
        """
        loss, errors = SumAndCount.zero(hidden.device), {}
        if task.positions is not None:
            loss, errors[GROUND_METRICS[0]] = self._positions(task.sequence, hidden, task.positions)
        if task.scenes is not None:
            of_scenes, errors[GROUND_METRICS[1]] = self.scene_losses(task.scenes)
            loss = loss + of_scenes
        return loss, errors

    def scene_losses(self, task: SceneTask) -> tuple[SumAndCount, SumAndCount]:
        """Return (loss of the positions in random scenes; their error in millimetres)."""
        return self._positions(task.sequence, self.hidden_states(task.sequence), task.positions)

    def _positions(
        self, sequence: TokenSequence, hidden: Tensor, targets: PositionTargets
    ) -> tuple[SumAndCount, SumAndCount]:
        assert self.ground_head is not None
        assert sequence.actions is not None
        return position_losses(self.ground_head(hidden[:, sequence.actions.columns]), targets)

    def text_losses(self, task: TextTask) -> tuple[SumAndCount, SumAndCount, dict[str, SumAndCount]]:
        """Return (training loss; negative log-likelihood or its bound per real answer token; metrics)."""
        losses, right = self.text_scores(task)
        return (
            SumAndCount((losses * task.weights).sum(), task.counted),
            SumAndCount((losses.detach() * task.bound_weights).sum(), task.answer_tokens),
            text_step_metrics(task, losses, right),
        )

    def action_token_losses(self, task: TextTask, hidden: Tensor) -> tuple[SumAndCount, dict[str, SumAndCount]]:
        """Return (training loss of block-diffusion actions; metrics). ``hidden`` [B, L, D]: hidden states of the same
        forward as for the robot losses."""
        losses, right = self._scores(task, hidden)
        return SumAndCount((losses * task.weights).sum(), task.counted), action_step_metrics(task, losses, right)

    def text_loss(self, task: TextTask) -> tuple[SumAndCount, SumAndCount]:
        """Return ``text_losses`` without the metrics."""
        return self.text_losses(task)[:2]

    def text_scores(self, task: TextTask) -> tuple[Tensor, Tensor]:
        """Return [S] cross-entropies at the scored slots, and [S] 1 where the target is the most likely token."""
        return self._scores(task, self.hidden_states(task.sequence))

    def _scores(self, task: TextTask, hidden: Tensor) -> tuple[Tensor, Tensor]:
        scored = hidden[task.rows, task.slots]  # [S, D]
        return cross_entropy_with_accuracy(self.backbone.head, scored, task.targets, banned=self.banned_token)

    # --- pieces ------------------------------------------------------------------------------------------------

    @property
    def banned_token(self) -> int | None:
        """The id that no text head predicts: the mask is an input, never an output."""
        return self.vocab.mask if self.spec.mask_logit_banned else None

    def embed(self, sequence: TokenSequence, state: Tensor | None = None) -> Tensor:
        """Return [B, L, D]: embeddings of tokens, with projected CLIP patches at the patch span, and with the encoded
        state (``state`` [B, D], if already computed) added at the action slots."""
        embeds = self._add_code_bits(self.backbone.embed(sequence.ids), sequence)
        state = self.encode_state(sequence) if state is None else state
        if state is not None:
            embeds = _add_at_actions(embeds, sequence, state)
        if sequence.patches is None or sequence.patch_span is None:
            return embeds
        if self.projector is None:
            raise ValueError("this model has no projector for images: it was built with model.showo.w_clip_vit=false")
        patches = self.projector(sequence.patches.to(embeds.dtype)).to(embeds.dtype)
        span = sequence.patch_span
        return torch.cat([embeds[:, : span.start], patches, embeds[:, span.stop :]], dim=1)

    def _add_code_bits(self, embeds: Tensor, sequence: TokenSequence) -> Tensor:
        if self.code_bits is None or sequence.image is None:
            return embeds
        codes = slice(sequence.image.start + 1, sequence.image.stop - 1)  # without <|soi|> and <|eoi|>
        of_bits = self.code_bits(self.vocab.code_bits(sequence.ids[:, codes]).to(embeds.dtype)).to(embeds.dtype)
        return torch.cat([embeds[:, : codes.start], embeds[:, codes] + of_bits, embeds[:, codes.stop :]], dim=1)

    def encode_state(self, sequence: TokenSequence) -> Tensor | None:
        """Return the encoded states [B, D], zeros where they are left out; None if the sequence has no state."""
        if sequence.state is None:
            return None
        if self.state_encoder is None:
            raise ValueError("this model reads no state: it was built with model.vla.proprioception=none")
        weight = next(self.state_encoder.parameters())
        encoded: Tensor = self.state_encoder(sequence.state.to(weight.dtype))
        if sequence.state_given is not None:
            encoded = torch.where(sequence.state_given[:, None], encoded, 0)
        return encoded

    def hidden_states(self, sequence: TokenSequence, state: Tensor | None = None) -> Tensor:
        """Return [B, L, D] hidden states after the final norm. ``state``: as in ``embed``."""
        length = sequence.ids.shape[1]
        sequence = sequence.padded(self.length_multiple if self.training else 1, self.vocab.pad)
        mask = self.backbone.mask(sequence.rule, sequence.slots)
        return self.backbone(self.embed(sequence, state), mask, sequence.slots.pos)[:, :length]

    @torch.no_grad()
    def predict(self, sequence: TokenSequence, want_codes: bool = False) -> Prediction:
        """Predict actions with one forward; logits, of image codes at image slots only, are computed if
        ``want_codes``."""
        assert sequence.image is not None
        assert sequence.actions is not None
        hidden = self.hidden_states(sequence)
        return self.predict_from_hidden(
            hidden[:, sequence.image.columns], hidden[:, sequence.actions.columns], want_codes
        )

    @torch.no_grad()
    def predict_from_hidden(self, image: Tensor, actions: Tensor, want_codes: bool = False) -> Prediction:
        """Predict from the hidden states of the image span [B, N + 2, D] and of the action slots [B, T, D]."""
        chunk = self.action_head(actions).float()
        if not want_codes:
            return Prediction(chunk)
        return Prediction(chunk, self.code_logits(image[:, 1:-1]).argmax(dim=-1))

    def code_logits(self, hidden: Tensor, count: int | None = None) -> Tensor:
        """Return float32 logits of the first ``count`` image codes (None: all; action bins are the first).

        ``hidden`` is [..., D].
        """
        first = self.vocab.first_code
        return self.backbone.logits(hidden, slice(first, self.vocab.mask if count is None else first + count))


def _scored_slots(future: RobotTask | None, text: TextTask | None) -> int:
    """Return the number of slots of a micro-batch of which logits over the vocabulary are computed."""
    tasks = [text, None if future is None else future.action_tokens]
    images = None if future is None else future.targets
    return sum(len(task.slots) for task in tasks if task is not None) + (0 if images is None else images.numel())


def _add_at_actions(embeds: Tensor, sequence: TokenSequence, state: Tensor) -> Tensor:
    """Return embeddings [B, L, D] with the encoded states [B, D] added at the action slots."""
    assert sequence.actions is not None
    span = sequence.actions
    slots = embeds[:, span.columns] + state[:, None].to(embeds.dtype)
    return torch.cat([embeds[:, : span.start], slots, embeds[:, span.stop :]], dim=1)


def projector(features: int, width: int) -> nn.Sequential:
    """Return the map from CLIP patches, or from a state, to backbone embeddings: two linear layers with an exact GELU
    between."""
    return nn.Sequential(nn.Linear(features, width), nn.GELU(), nn.Linear(width, width))


def llm_config(spec: ModelConfig) -> Any:
    """Return the transformers config in ``spec.llm``. Raises ``ValueError`` for a type unknown to transformers."""
    settings = copy.deepcopy(dict(spec.llm))
    settings.pop("auto_map", None)  # remote code runs only if enabled (``models.pretrained.model_io``)
    return AutoConfig.for_model(settings.pop("model_type"), **settings)
