"""Predict actions and future image codes: layouts are cached, and the forward can be compiled for fixed shapes.

Nothing that depends on the weights is cached between calls, so that a model in training acts by its present weights.
(A cache of keys and values of instructions would save a hundredth of a forward's operations and go stale after a fused
optimizer step, which torch's tensor versions do not show.)

Legend: B batch, N image codes, T chunk, L sequence, D hidden.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from models.sequence import TokenSequence, robot_sequence
from models.upvla import UPVLA, Prediction

MAX_CACHED_LAYOUTS = 16
TEXT_BUCKET = 16
"""Compiled forwards pad text spans to a multiple of this many slots, and batches to a power of two."""


class ActionPredictor:
    """Predicts from instructions and image codes with one model, in eval mode.

    ``forward``: replaces the backbone's forward by one for fixed shapes (``compiled_forward``). It receives embeddings,
    mask and positions of rows padded to the batch and text bucket.
    """

    def __init__(self, model: UPVLA, forward: Callable[..., Tensor] | None = None) -> None:
        self.model = model
        self._layouts: OrderedDict[tuple[int, ...], tuple[Tensor, Tensor]] = OrderedDict()
        self._forward = forward

    @torch.no_grad()
    def predict(
        self,
        instructions: Sequence[Sequence[int]],
        codes: Tensor,
        want_codes: bool = False,
        state: Tensor | None = None,
    ) -> Prediction:
        """Return ``UPVLA.predict`` of ``robot_sequence(vocab, instructions, codes, act_step, state=state)``.

        ``codes`` [B, N]; ``state`` [B, F] features of the robot's state, if the model reads it.
        """
        if self._forward is not None:
            return self._predict_padded(self._forward, instructions, codes, want_codes, state)
        flow = robot_sequence(self.model.vocab, instructions, codes, self.model.spec.act_step, state=state)
        mask, pos = self._layout(flow, tuple(len(ids) for ids in instructions))
        return self._predict_from_hidden(flow, self.model.backbone(self.model.embed(flow), mask, pos), want_codes)

    def _layout(self, flow: TokenSequence, lengths: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Return (mask [B, 1, L, L], positions [B, L]). Rows of one length share one mask."""
        equal_lengths = len(set(lengths)) == 1
        key = (flow.ids.shape[1], *(lengths[:1] if equal_lengths else lengths))
        if key not in self._layouts:
            slots = flow.slots.map(lambda tag: tag[:1]) if equal_lengths else flow.slots
            self._layouts[key] = flow.rule.dense(slots), slots.pos
            if len(self._layouts) > MAX_CACHED_LAYOUTS:
                self._layouts.popitem(last=False)
        self._layouts.move_to_end(key)
        mask, pos = self._layouts[key]
        return mask.expand(len(lengths), -1, -1, -1), pos.expand(len(lengths), -1)

    def _predict_padded(
        self,
        backbone: Callable[..., Tensor],
        instructions: Sequence[Sequence[int]],
        codes: Tensor,
        want_codes: bool,
        state: Tensor | None,
    ) -> Prediction:
        """Predict with rows and text slots padded to their buckets."""
        model, batch = self.model, len(instructions)
        more = _power_of_two(batch) - batch
        padded = [*instructions, *[instructions[-1]] * more]
        codes = _with_last_row_repeated(codes, more)
        state = None if state is None else _with_last_row_repeated(state, more)
        width = -(-max(map(len, padded)) // TEXT_BUCKET) * TEXT_BUCKET
        flow = robot_sequence(model.vocab, padded, codes, model.spec.act_step, width, state)
        hidden = backbone(model.embed(flow), flow.rule.dense(flow.slots), flow.slots.pos)[:batch]
        return self._predict_from_hidden(flow, hidden, want_codes)

    def _predict_from_hidden(self, flow: TokenSequence, hidden: Tensor, want_codes: bool) -> Prediction:
        """Return the prediction from hidden states [B, L, D]."""
        assert flow.image is not None
        assert flow.actions is not None
        image, actions = hidden[:, flow.image.columns], hidden[:, flow.actions.columns]
        return self.model.predict_from_hidden(image, actions, want_codes)


def _with_last_row_repeated(rows: Tensor, more: int) -> Tensor:
    return torch.cat([rows, rows[-1:].expand(more, -1)])


def _power_of_two(count: int) -> int:
    return 1 << (count - 1).bit_length()


def compiled_forward(model: UPVLA) -> Callable[..., Tensor]:
    """Return the backbone's forward, compiled at the first call of each shape.

    CUDA graphs are not used: they belong to the thread that recorded them, and a server or a robot's planner acts from
    another thread than the one that warmed the policy up.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
    return torch.compile(partial(model.backbone.forward, cache=None), dynamic=False)
