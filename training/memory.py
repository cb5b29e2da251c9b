"""Estimate of the device memory that one training step takes, for `scripts/estimate_memory.py`.

What stays (weights, gradients, optimizer state, weight average, frozen networks) is counted. The peak of the
activations is found by one step on tensors that have shapes but no content (torch FakeTensorMode), on the longest rows
that the configuration allows.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from config.schema import Job
from models.objectives import text_objective
from models.pretrained.model_io import build
from models.rng import SampleRng
from models.sequence import TextTurn
from models.vision.clip_encoder import load_clip
from models.vision.magvitv2 import load_magvit
from training.batch_to_tasks import COUNTED, RobotCodes, Tasks, bundle, robot_task, text_task
from training.build import Components
from training.build.network import freeze_modules_without_loss
from training.build.setup import needs_clip
from training.data.batch import RobotBatch
from training.data.dataloader import conversation_budget
from training.grounding.targets import Sentence
from training.optim import lora
from training.optim.freeze import freeze
from training.optim.optimizer import BLOCK, SMALLEST_IN_8_BITS

BUCKETS = 1 << 30
"""Bytes of the two buffers in which DeepSpeed exchanges gradients."""
ZERO3_LIVE = 1_000_000_000
"""Number of parameters that ZeRO-3 keeps gathered at most (its stage3_max_live_parameters)."""


@dataclass(frozen=True)
class Sharding:
    """Which part of the training state each of ``world`` processes holds.

    zero: the ZeRO stage; 0 is DDP or one process, and FSDP2 counts as 3. half_weights: DeepSpeed computes with 16-bit
    weights and keeps 32-bit copies in the optimizer.
    """

    world: int = 1
    zero: int = 0
    half_weights: bool = False

    def divisor(self, stage: int) -> int:
        """Return the number of processes among which ZeRO splits what it splits from ``stage`` on."""
        return self.world if self.zero >= stage else 1


def read_launch(path: Path, job: Job) -> Sharding:
    """Return the sharding of an accelerate launch file. Raise ValueError if it is not one."""
    try:
        fields = yaml.safe_load(path.read_text(encoding="utf-8"))
        world, kind = int(fields["num_processes"]), fields["distributed_type"]
        if kind == "DEEPSPEED":
            stage = int(fields["deepspeed_config"]["zero_stage"])
            return Sharding(world, stage, half_weights=job.training.mixed_precision != "no")
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"--launch {path}: not a launch file of accelerate ({error!r})") from error
    return Sharding(world, 3 if kind == "FSDP" else 0)


@dataclass(frozen=True)
class Estimate:
    """Bytes on the device of one process at the peak of a step."""

    weights: int
    gradients: int
    optimizer: int
    average: int
    frozen: int
    activations: int

    @property
    def total(self) -> int:
        """Return the sum of all parts, in bytes."""
        return sum(asdict(self).values())


def estimate(parts: Components, sharding: Sharding | None = None) -> Estimate:
    """Return the memory of one training step. Nothing is computed."""
    counted = count_state(parts, sharding or Sharding())
    return replace(counted, activations=max(_step_peak(parts, sharding or Sharding()), _encoding_peak(parts)))


def count_state(parts: Components, sharding: Sharding) -> Estimate:
    """Return the estimate without activations."""
    trained = [p for p in parts.model.parameters() if p.requires_grad]
    return Estimate(
        weights=_weights(parts.model, sharding),
        gradients=_gradients(trained, sharding),
        optimizer=_optimizer(parts, trained, sharding),
        average=0 if parts.job.training.ema_decay is None else 4 * _numel(trained),
        frozen=sum(_bytes(m) for m in (parts.vq, parts.clip) if m is not None),
        activations=0,
    )


def _numel(parameters: list[nn.Parameter]) -> int:
    return sum(p.numel() for p in parameters)


def _bytes(module: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in [*module.parameters(), *module.buffers()])


def _weights(model: nn.Module, sharding: Sharding) -> int:
    full = _bytes(model) // (2 if sharding.half_weights else 1)
    if sharding.zero < 3:
        return full
    return full // sharding.world + 2 * min(_numel(list(model.parameters())), ZERO3_LIVE)


def _gradients(trained: list[nn.Parameter], sharding: Sharding) -> int:
    size = _numel(trained) * (2 if sharding.half_weights else 4)
    if sharding.zero:
        sums = 4 * _numel(trained) if sharding.zero == 1 and sharding.half_weights else 0  # of micro-batches, unsharded
        return size // sharding.divisor(2) + sums + BUCKETS
    return size * (2 if sharding.world > 1 else 1)  # DDP exchanges a copy


def _optimizer(parts: Components, trained: list[nn.Parameter], sharding: Sharding) -> int:
    tables = {id(p) for m in parts.model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    size = 0
    for p in trained:
        if parts.job.optimizer.name == "adamw" or id(p) in tables or p.numel() < SMALLEST_IN_8_BITS:
            size += 8 * p.numel()
        else:
            size += 2 * (p.numel() + 4 * p.numel() // BLOCK)
    # ZeRO-1 and 2 keep 32-bit copies of this process's share of weights and gradients; FSDP and DDP do not.
    copies = 8 * _numel(trained) if 1 <= sharding.zero < 3 or sharding.half_weights else 0
    return (size + copies) // sharding.divisor(1)


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Count the bytes of all storages that are created while the mode is active, until they are freed.

    now: bytes alive; peak: the most that were alive at once.
    """

    def __init__(self, existing: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = self.now = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet(tensor.untyped_storage() for tensor in existing)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and (storage := tensor.untyped_storage()) not in self._known:
                self._known.add(storage)
                self.now += storage.nbytes()
                weakref.finalize(storage, self._freed, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return out

    def exclude_gradient(self, parameter: Tensor) -> None:
        """Subtract the gradient of a parameter, which is counted elsewhere."""
        assert parameter.grad is not None
        self.now -= parameter.grad.untyped_storage().nbytes()

    def _freed(self, size: int) -> None:
        self.now -= size


def _step_peak(parts: Components, sharding: Sharding) -> int:
    """Return the peak of forward and backward of one micro-batch of the longest rows, without stored gradients.

    With accumulation it is a later micro-batch: the gradients exist, and those of both flows come on top of them.
    """
    tasks, training = longest_rows(parts), parts.job.training
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(training.mixed_precision)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = _without_content(parts.model, half if sharding.half_weights else None)
        model.backbone.set_attn_implementation(
            "sdpa"
        )  # FlexAttention reads the content of its mask; it takes no more than this
        model.train()
        trained = [p for p in model.parameters() if p.requires_grad]
        gradients = [torch.empty_like(p) for p in trained] if training.gradient_accumulation_steps > 1 else []
        for p, gradient in zip(trained, gradients, strict=False):
            p.grad = gradient
        live = LiveBytes([*model.parameters(), *model.buffers(), *gradients])
        for p in () if gradients else trained:
            p.register_post_accumulate_grad_hook(live.exclude_gradient)
        with live:
            with torch.autocast("cpu", half, enabled=half is not None and not sharding.half_weights):
                losses = model(tasks.future, tasks.text)
            total: Tensor = torch.stack([getattr(losses, name).sum for name in COUNTED]).sum()
            torch.autograd.backward(total)
    return live.peak


def _encoding_peak(parts: Components) -> int:
    """Return the peak of the frozen networks while they encode the images of one micro-batch."""
    job, size = parts.job, parts.job.dataset.preprocessing.resolution
    training = job.training
    frames = training.batch_size_pre * job.model.vla.num_view * (2 if training.pre_coeff > 0 else 1)
    if job.dataset.params.ground_shards_path is not None and training.ground_coeff > 0:
        frames = max(frames, training.batch_size_ground * job.model.vla.num_view)
    with _frozen(parts.vq) as (vq, live):
        vq.encode(torch.empty(frames, 3, size, size))
    if parts.clip is None or not job.training.batch_size_mmu:
        return live.peak
    with _frozen(parts.clip) as (clip, live_clip):
        clip.features(torch.empty(job.training.batch_size_mmu, 3, *parts.clip.image_spec.crop))
    return max(live.peak, live_clip.peak)


@contextmanager
def _frozen(module: nn.Module) -> Iterator[tuple[Any, LiveBytes]]:
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        fake = _without_content(module)
        with LiveBytes([*fake.parameters(), *fake.buffers()]) as live:
            yield fake, live


def _without_content(module: Any, dtype: torch.dtype | None = None) -> Any:
    """Return a copy of a module whose tensors have shapes only; to be called in a FakeTensorMode."""
    memo: dict[int, Any] = {}
    for p in module.parameters():
        memo[id(p)] = nn.Parameter(torch.empty(p.shape, dtype=dtype or p.dtype), requires_grad=p.requires_grad)
    for b in module.buffers():
        memo[id(b)] = torch.empty(b.shape, dtype=b.dtype)
    return copy.deepcopy(module, memo)


def longest_rows(parts: Components) -> Tasks:
    """Return one micro-batch of rows as long as the configuration allows."""
    job, spec = parts.job, parts.model.spec
    training, turns = job.training, job.training.batch_size_mmu
    codes = _longest_robot_rows(parts, training.batch_size_pre, with_later=training.pre_coeff > 0)
    if job.dataset.params.ground_shards_path is not None and training.ground_coeff > 0:
        codes = replace(codes, scenes=_longest_robot_rows(parts, training.batch_size_ground, with_later=False))
    sentence = Sentence(codes.batch.instructions[0], 0)
    future = robot_task(replace(parts, sentences=[sentence]), codes, 0)
    turn = None
    if job.dataset.und_type is not None and turns:
        patches = 0 if parts.clip is None else parts.clip.num_patches
        ids = torch.full((turns, conversation_budget(job, parts.prompter, patches)), parts.prompter.vocab.eos)
        images = None if parts.clip is None else torch.zeros(turns, patches, spec.clip_width or 0)
        turn = TextTurn(ids, torch.ones_like(ids, dtype=torch.bool), images, torch.arange(turns))
    return bundle(parts, future, text_task(parts, turn, SampleRng(job.training.seed, 0)))


def _longest_robot_rows(parts: Components, rows: int, with_later: bool) -> RobotCodes:
    """Return rows of the robot flow with the longest instructions, and everything that the configuration reads."""
    spec = parts.model.spec
    state, grounded = spec.data.state_convention, parts.job.training.ground_coeff > 0
    batch = RobotBatch(
        views=torch.empty(rows, 0),
        future_views=torch.empty(rows, 0),
        instructions=["turn " * spec.max_seq_length] * rows,
        actions=torch.zeros(rows, spec.act_step, spec.action_dim),
        action_is_pad=torch.zeros(rows, spec.act_step, dtype=torch.bool),
        indices=torch.arange(rows),
        states=None if state is None else torch.zeros(rows, state.dim),
        positions=torch.zeros(rows, 1, 3) if grounded else None,
        targets=torch.zeros(rows, dtype=torch.long) if grounded else None,
    )
    codes = torch.zeros(rows, spec.num_image_tokens, dtype=torch.long)
    return RobotCodes(codes, codes if with_later else None, batch)


def build_shapes(job: Job) -> Components:
    """Return the networks of a job, the trained one on the meta device. Raise ValueError naming key or file."""
    built = build(job, device="meta")
    lora.attach(built.model, job)
    freeze_modules_without_loss(job, built.model)
    freeze(built.model, job.training.freeze)
    if job.model.gradient_checkpointing:
        built.model.backbone.enable_gradient_checkpointing()
    vq = load_magvit(job.model.vq_model.vq_model_name, job.model.vq_model.pretrained_model_path)
    clip = load_clip(job.model.showo.clip_model_path) if needs_clip(job) else None
    unused: Any = None
    cpu, objective = torch.device("cpu"), text_objective(job)
    return Components(job, cpu, built.model, built.prompter, vq, clip, objective, unused, unused, unused)
