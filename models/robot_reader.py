"""Robot flows read for acting: an instruction once, however often it is acted on.

Text slots look back only (``models.masks.ROBOT``), and the instruction comes first: what the layers keep of it, their
keys and values, does not depend on the picture. It is computed once per instruction and put before the picture of
every step, with the numbers that one forward over everything gives.

Legend: B batch, U different instructions, M text slots, n ids of an instruction, N image codes, T chunk, H heads,
d head width, D hidden.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache

from models.sequence import TokenSequence, robot_sequence
from models.upvla import UPVLA, Prediction

KEPT_SLOTS = 1024
"""Ids of instructions that are kept at most, some eighty instructions: 0.4 GB of Phi-1.5 in float32."""
KEPT_LAYOUTS = 16
TEXT_BUCKET = 16
"""Compiled forwards see text spans of a multiple of so many slots, and batches of a power of two."""


class RobotReader:
    """Predicts from instructions and image codes with one model, in eval mode.

    ``compiled``: ``torch.compile`` with fixed shapes, compiled anew at the first call of each
    batch and text bucket. It reads every flow whole: shapes that stay are worth more to it than a dozen slots.
    """

    def __init__(self, model: UPVLA, kept_slots: int = KEPT_SLOTS, compiled: bool = False) -> None:
        self.model = model
        self.kept_slots = kept_slots
        self._kept: OrderedDict[tuple[int, ...], Tensor] = OrderedDict()  # ids -> [layers, 2, H, n, d]
        self._layouts: OrderedDict[tuple[int, ...], tuple[Tensor, Tensor]] = OrderedDict()
        self._parameters = list(model.backbone.parameters())
        self._weights = 0
        self._compiled: Callable[..., Tensor] | None = _compile(model) if compiled else None

    @torch.no_grad()
    def predict(self, instructions: Sequence[Sequence[int]], codes: Tensor, want_codes: bool = False) -> Prediction:
        """``UPVLA.predict`` of ``robot_sequence(vocab, instructions, codes, act_step)``. ``codes`` [B, N]."""
        if self._compiled is not None:
            return self._predict_compiled(self._compiled, instructions, codes, want_codes)
        flow = robot_sequence(self.model.vocab, instructions, codes, self.model.spec.act_step)
        assert flow.image is not None
        width = flow.image.start
        mask, pos = self._layout(flow, tuple(len(ids) for ids in instructions))
        cache = self._cache(self._prefixes(instructions))
        embeds = self.model.backbone.embed(flow.ids[:, width:])
        hidden = self.model.backbone(embeds, mask, pos, cache)  # [B, N + 2 + T, D]
        split = len(flow.image)
        return self.model.read_out(hidden[:, :split], hidden[:, split:], want_codes)

    # --- instructions ------------------------------------------------------------------------------------------

    def _prefixes(self, instructions: Sequence[Sequence[int]]) -> Tensor:
        """[B, layers, 2, H, M, d]: keys and values of each row's instruction, at the right edge."""
        if (weights := self._weights_now()) != self._weights:
            self._kept.clear()
            self._weights = weights
        names = [tuple(ids) for ids in instructions]
        wanted = list(dict.fromkeys(names))  # U
        missing = [name for name in wanted if name not in self._kept]
        for name, prefix in zip(missing, self._read(missing) if missing else [], strict=True):
            self._kept[name] = prefix
        for name in wanted:
            self._kept.move_to_end(name)
        longest = max(map(len, wanted))
        padded = torch.stack([F.pad(self._kept[name], (0, 0, longest - len(name), 0)) for name in wanted])
        while len(self._kept) > 1 and sum(map(len, self._kept)) > self.kept_slots:
            self._kept.popitem(last=False)
        if len(wanted) == 1:
            return padded.expand(len(names), *padded.shape[1:])
        rows = [wanted.index(name) for name in names]
        return padded if rows == list(range(len(wanted))) else padded[rows]

    def _read(self, instructions: Sequence[Sequence[int]]) -> list[Tensor]:
        """[layers, 2, H, n, d] of each: one forward over the instructions alone."""
        model = self.model
        no_codes = torch.zeros(len(instructions), 0, dtype=torch.long, device=model.device)
        flow = robot_sequence(model.vocab, instructions, no_codes, act_step=0)
        assert flow.image is not None
        width = flow.image.start
        slots = flow.slots.map(lambda tag: tag[:, :width])
        cache = DynamicCache(config=model.backbone.config)
        model.backbone(model.backbone.embed(flow.ids[:, :width]), flow.rule.dense(slots), slots.pos, cache)
        kept = torch.stack([torch.stack([layer.keys, layer.values], dim=1) for layer in cache.layers], dim=1)
        return [row[..., width - len(ids) :, :].clone() for row, ids in zip(kept, instructions, strict=True)]

    def _cache(self, prefixes: Tensor) -> DynamicCache:
        cache = DynamicCache(config=self.model.backbone.config)
        for number, layer in enumerate(prefixes.unbind(dim=1)):
            cache.update(layer[:, 0], layer[:, 1], number)
        return cache

    def _weights_now(self) -> int:
        """Another number when a parameter of the backbone was changed in place, or moved."""
        return hash(tuple((p.data_ptr(), p._version) for p in self._parameters))

    # --- shapes ------------------------------------------------------------------------------------------------

    def _layout(self, flow: TokenSequence, lengths: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """(mask [B, 1, N + 2 + T, L], positions [B, N + 2 + T]) of the slots behind the instructions. Rows of one
        length share one mask."""
        assert flow.image is not None
        alike = len(set(lengths)) == 1
        key = (flow.ids.shape[1], *(lengths[:1] if alike else lengths))
        if key not in self._layouts:
            slots = flow.slots.map(lambda tag: tag[:1]) if alike else flow.slots
            behind = slots.map(lambda tag: tag[:, flow.image.start :])  # type: ignore[union-attr]
            self._layouts[key] = flow.rule.between(behind, slots), behind.pos
            if len(self._layouts) > KEPT_LAYOUTS:
                self._layouts.popitem(last=False)
        self._layouts.move_to_end(key)
        mask, pos = self._layouts[key]
        return mask.expand(len(lengths), -1, -1, -1), pos.expand(len(lengths), -1)

    def _predict_compiled(
        self, backbone: Callable[..., Tensor], instructions: Sequence[Sequence[int]], codes: Tensor, want_codes: bool
    ) -> Prediction:
        """The whole flow, with rows and text slots filled up to their buckets."""
        model, batch = self.model, len(instructions)
        filled = [*instructions, *[instructions[-1]] * (_power_of_two(batch) - batch)]
        codes = torch.cat([codes, codes[-1:].expand(len(filled) - batch, -1)])
        width = -(-max(map(len, filled)) // TEXT_BUCKET) * TEXT_BUCKET
        flow = robot_sequence(model.vocab, filled, codes, model.spec.act_step, pad_to=width)
        hidden = backbone(model.embed(flow), flow.rule.dense(flow.slots), flow.slots.pos)[:batch]
        assert flow.image is not None
        assert flow.actions is not None
        return model.read_out(hidden[:, flow.image.columns], hidden[:, flow.actions.columns], want_codes)


def _power_of_two(count: int) -> int:
    return 1 << (count - 1).bit_length()


def _compile(model: UPVLA) -> Callable[..., Tensor]:
    """The backbone's forward, compiled for each shape. Without CUDA graphs: those belong to the thread that recorded
    them, and a server or a robot's planner acts from another one than that which warmed the policy up."""
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
    return torch.compile(partial(model.backbone.forward, cache=None), dynamic=False)
