"""Robot flows read for acting: layouts made once, and forwards compiled for their shapes.

Nothing that depends on the weights is kept between two calls, so a model that is still learning acts by its present
weights, whoever changes them and however. (Keys and values of instructions used to be kept: a hundredth of the
operations of a forward, and stale after a fused optimizer step, which torch's tensor versions do not show.)

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

KEPT_LAYOUTS = 16
TEXT_BUCKET = 16
"""Compiled forwards see text spans of a multiple of so many slots, and batches of a power of two."""


class RobotReader:
    """Predicts from instructions and image codes with one model, in eval mode.

    ``compiled``: ``torch.compile`` with fixed shapes, compiled anew at the first call of each batch and text bucket.
    """

    def __init__(self, model: UPVLA, compiled: bool = False) -> None:
        self.model = model
        self._layouts: OrderedDict[tuple[int, ...], tuple[Tensor, Tensor]] = OrderedDict()
        self._compiled: Callable[..., Tensor] | None = _compile(model) if compiled else None

    @torch.no_grad()
    def predict(self, instructions: Sequence[Sequence[int]], codes: Tensor, want_codes: bool = False) -> Prediction:
        """``UPVLA.predict`` of ``robot_sequence(vocab, instructions, codes, act_step)``. ``codes`` [B, N]."""
        if self._compiled is not None:
            return self._predict_compiled(self._compiled, instructions, codes, want_codes)
        flow = robot_sequence(self.model.vocab, instructions, codes, self.model.spec.act_step)
        mask, pos = self._layout(flow, tuple(len(ids) for ids in instructions))
        return self._read_out(flow, self.model.backbone(self.model.embed(flow), mask, pos), want_codes)

    def _layout(self, flow: TokenSequence, lengths: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """(mask [B, 1, L, L], positions [B, L]). Rows of one length share one mask."""
        alike = len(set(lengths)) == 1
        key = (flow.ids.shape[1], *(lengths[:1] if alike else lengths))
        if key not in self._layouts:
            slots = flow.slots.map(lambda tag: tag[:1]) if alike else flow.slots
            self._layouts[key] = flow.rule.dense(slots), slots.pos
            if len(self._layouts) > KEPT_LAYOUTS:
                self._layouts.popitem(last=False)
        self._layouts.move_to_end(key)
        mask, pos = self._layouts[key]
        return mask.expand(len(lengths), -1, -1, -1), pos.expand(len(lengths), -1)

    def _predict_compiled(
        self, backbone: Callable[..., Tensor], instructions: Sequence[Sequence[int]], codes: Tensor, want_codes: bool
    ) -> Prediction:
        """The same, with rows and text slots filled up to their buckets."""
        model, batch = self.model, len(instructions)
        filled = [*instructions, *[instructions[-1]] * (_power_of_two(batch) - batch)]
        codes = torch.cat([codes, codes[-1:].expand(len(filled) - batch, -1)])
        width = -(-max(map(len, filled)) // TEXT_BUCKET) * TEXT_BUCKET
        flow = robot_sequence(model.vocab, filled, codes, model.spec.act_step, pad_to=width)
        hidden = backbone(model.embed(flow), flow.rule.dense(flow.slots), flow.slots.pos)[:batch]
        return self._read_out(flow, hidden, want_codes)

    def _read_out(self, flow: TokenSequence, hidden: Tensor, want_codes: bool) -> Prediction:
        """``hidden`` [B, L, D]."""
        assert flow.image is not None
        assert flow.actions is not None
        return self.model.read_out(hidden[:, flow.image.columns], hidden[:, flow.actions.columns], want_codes)


def _power_of_two(count: int) -> int:
    return 1 << (count - 1).bit_length()


def _compile(model: UPVLA) -> Callable[..., Tensor]:
    """The backbone's forward, compiled for each shape. Without CUDA graphs: those belong to the thread that recorded
    them, and a server or a robot's planner acts from another one than that which warmed the policy up."""
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
    return torch.compile(partial(model.backbone.forward, cache=None), dynamic=False)
