"""Throughput of a run: tokens and model operations per second, and the share of the device's peak.

Operations are those of the language model in forward and backward, without the padding, the recomputation of gradient
checkpointing, and the frozen image tokenizer and CLIP ("model FLOPs", PaLM, arXiv 2204.02311, appendix B). A multiply
and an add are two operations.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.losses import SumAndCount
from models.sequence import Work
from models.upvla import UPVLA

TOKENS, PAIRS, SCORED = WORK = ("speed/tokens", "speed/pairs", "speed/scored")
"""Names of the sums of a step from which the rates are computed."""
PEAK_TFLOPS = {
    "A100": 312.0,
    "A40": 149.7,
    "A6000": 154.8,
    "B200": 2250.0,
    "H100 NVL": 835.0,
    "H100 PCIe": 756.0,
    "H100": 989.0,
    "H200": 989.0,
    "L40S": 362.0,
    "MI250X": 191.5,
    "MI300X": 1307.0,
    "RTX 4090": 165.2,
    "RTX 6000 Ada": 364.2,
}
"""Peak of dense 16-bit matrix products with 32-bit sums by GPU name, in TFLOP/s, from the vendors' data sheets."""
MATRIX = {"cpu": 512, "cuda": 4096}
"""Edge of the matrices whose product is timed where no data sheet applies."""


def work_metrics(work: Work, per_step: Tensor) -> dict[str, SumAndCount]:
    """Return the ``WORK`` metrics of a micro-batch, which become means per optimizer step."""
    values = (work.tokens, work.pairs, work.scored)
    return {name: SumAndCount(value, per_step) for name, value in zip(WORK, values, strict=True)}


@dataclass(frozen=True)
class ModelFlops:
    """Operations of forward and backward for each unit of ``Work``."""

    token: float
    pair: float
    scored: float

    @classmethod
    def of(cls, model: UPVLA) -> ModelFlops:
        """Return the operations of a model before it is wrapped for its processes.

        Frozen matrices (LoRA) have no gradient of their own. Every matrix counts for every token, which is too much for
        a mixture of experts.
        """
        config = model.backbone.config
        layers, heads = config.num_hidden_layers, config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // heads
        lm = model.backbone.lm
        head, tables = lm.get_output_embeddings().weight, [m for m in lm.modules() if isinstance(m, nn.Embedding)]
        other = {id(head), *(id(table.weight) for table in tables)}
        body = [weight for weight in lm.parameters() if weight.ndim == 2 and id(weight) not in other]
        return cls(_flops(body), 12.0 * layers * heads * size, _flops([head]))

    def count(self, values: Mapping[str, float]) -> float:
        """Return the operations of a step from its ``WORK`` metrics."""
        return self.token * values[TOKENS] + self.pair * values[PAIRS] + self.scored * values[SCORED]


def _flops(weights: list[Tensor]) -> float:
    """Return the operations per row of matrix products: forward, gradient of the input, and of trained weights."""
    return float(sum(weight.numel() * (6 if weight.requires_grad else 4) for weight in weights))


class Throughput:
    """Rates of a run on ``world`` equal devices. ``peak``: operations per second of a device that the utilisation is
    relative to; ``peak_source``: where it comes from."""

    def __init__(self, model: UPVLA, device: torch.device, mixed_precision: str, world: int) -> None:
        self.device, self.world = device, world
        self._flops = ModelFlops.of(model)
        self.peak, self.peak_source = device_peak(device, mixed_precision)

    def rates(self, values: Mapping[str, float], steps_per_s: float) -> dict[str, float]:
        """Return step time, tokens per second of all devices, TFLOP/s per device and utilisation.

        ``values``: the ``WORK`` metrics, means per step over the whole run's devices.
        """
        flops_per_s = self._flops.count(values) * steps_per_s / self.world
        return {
            "speed/step_s": 1 / steps_per_s,
            "speed/tokens_per_s": values[TOKENS] * steps_per_s,
            "speed/model_tflops": flops_per_s / 1e12,
            "speed/mfu": flops_per_s / self.peak,
        }

    def peak_memory_gb(self) -> float:
        """Return the most memory that this process has held: allocated on the GPU, or resident on a CPU."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 1e9
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def device_peak(device: torch.device, mixed_precision: str) -> tuple[float, str]:
    """Return the peak operations per second of a device, and where the number comes from.

    The data sheet's peak for known GPUs in 16 bits; otherwise the rate of a large matrix product, timed once.
    """
    if device.type == "cuda" and mixed_precision in ("bf16", "fp16"):
        name = torch.cuda.get_device_name(device)
        known = [card for card in PEAK_TFLOPS if card in name]
        if known:
            card = max(known, key=len)
            return PEAK_TFLOPS[card] * 1e12, f"the data sheet of {card}"
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(mixed_precision)
    dtype = half if device.type == "cuda" and half is not None else torch.float32
    edge = MATRIX.get(device.type, MATRIX["cpu"])
    return _timed_product(edge, device, dtype), f"a matrix product of {edge} x {edge} on this device"


def _timed_product(edge: int, device: torch.device, dtype: torch.dtype) -> float:
    """Return the operations per second of the fastest of five matrix products."""
    left, right = (torch.ones(edge, edge, dtype=dtype, device=device) for _ in range(2))
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        torch.mm(left, right)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    return float(2 * edge**3 / min(seconds))
