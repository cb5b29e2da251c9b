"""How much device memory a step will take, before anything is moved there.

What stays (weights, gradients, optimizer, average, frozen networks) is counted. What comes and goes is found by taking
the step itself, with the run's own settings, on tensors that have shapes but no content (torch's FakeTensorMode), on
the longest rows the configuration allows, while the bytes of all living tensors are added up; with one and with two
layers of the backbone, from which the others follow.

Not in it: what the driver and its libraries take (about 0.5 GB on CUDA), and holes in the allocator's pages.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from config.schema import Job
from models.rng import SampleRng
from models.sequence import TextTurn
from models.upvla import UPVLA
from training.batch_to_tasks import COUNTED, RobotCodes, Tasks, bundle, robot_task, text_task
from training.build import Parts
from training.data.batch import RobotBatch
from training.data.dataloader import conversation_budget
from training.optim.optimizer import BLOCK, SMALLEST_IN_8_BITS
from training.run import Run

GIB = 1 << 30
SPARE = 0.93
"""Share of a device that tensors can have: the rest goes to the driver and to holes."""
SMALL = 0.01
"""Share of a device below which what stays is told alone: trying out a step costs seconds, too long for a toy."""
BUCKETS = 1 << 30
"""Bytes of the buffers in which DeepSpeed exchanges gradients (two of 5e8 bytes or so)."""
ZERO3_LIVE = 1_000_000_000
"""Parameters that ZeRO-3 keeps gathered at most (its stage3_max_live_parameters)."""


@dataclass(frozen=True)
class Sharing:
    """How the processes share what stays. ``world`` processes; ``zero``: 0 (every process has all), 1, 2 or 3 as in
    ZeRO (FSDP2 is a 3); ``rounded``: DeepSpeed computes with 16-bit weights and keeps 32-bit ones aside."""

    world: int = 1
    zero: int = 0
    rounded: bool = False

    @classmethod
    def of(cls, accelerator: Accelerator) -> Sharing:
        """How the processes of this launch share."""
        world, kind = accelerator.num_processes, accelerator.distributed_type
        if kind == DistributedType.DEEPSPEED:
            stage = int(accelerator.state.deepspeed_plugin.zero_stage)
            return cls(world, stage, rounded=accelerator.mixed_precision != "no")
        return cls(world, 3 if kind == DistributedType.FSDP else 0)

    def share(self, since: int) -> int:
        """Divisor of what is shared from this stage on."""
        return self.world if self.zero >= since else 1


@dataclass(frozen=True)
class Estimate:
    """Bytes on the device of one process, at the worst moment of a step."""

    weights: int
    gradients: int
    optimizer: int
    average: int
    frozen: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.average + self.frozen + self.activations

    def line(self, device: str, room: int | None) -> str:
        parts = {
            "weights": self.weights,
            "gradients": self.gradients,
            "optimizer": self.optimizer,
            "average": self.average,
            "frozen networks": self.frozen,
            "activations": self.activations,
        }
        told = ", ".join(f"{name} {said(size)}" for name, size in parts.items() if size)
        has = "" if room is None else f"; {device} has {said(room)}"
        most = f"at most {said(self.total)} a process, at the longest rows: " if self.activations else ""
        return f"  memory   {most}{told}{has}"


def said(size: int) -> str:
    return f"{size / GIB:.1f} GB" if size >= GIB else f"{size / (1 << 20):.0f} MB"


def tell(run: Run, parts: Parts) -> None:
    """Print the estimate of a run before anything is wrapped or moved."""
    if run.writes:
        for line in lines(parts, Sharing.of(run.accelerator)):
            run.say(line)


def lines(parts: Parts, sharing: Sharing) -> list[str]:
    """What to tell the user: the estimate, and what helps if it does not fit."""
    room, device = room_on(parts.device), str(parts.device)
    stays = staying(parts, sharing)
    if room is not None and stays.total < SMALL * room:
        return [f"{stays.line(device, room)} (a step is tried out from {SMALL:.0%} of that on)"]
    found = estimate(parts, sharing)
    told = [found.line(device, room)]
    if room is not None and found.total > SPARE * room:
        told.append(f"  warning  this will probably not fit. {remedies(parts.job)}")
    return told


def remedies(job: Job) -> str:
    """What makes a run smaller, of what it does not do yet."""
    settings = job.training
    found = [
        ("model.gradient_checkpointing=true", not job.model.gradient_checkpointing),
        ("training.mixed_precision=bf16", settings.mixed_precision == "no"),
        (f"training.batch_size_pre={settings.batch_size_pre // 2}", settings.batch_size_pre > 1),
        (f"training.batch_size_mmu={settings.batch_size_mmu // 2}", settings.batch_size_mmu > 1),
        ("optimizer.name=adamw_8bit", job.optimizer.name == "adamw" and job.lora.rank == 0),
        ("lora.rank=32", job.lora.rank == 0),
    ]
    return "Smaller: " + ", ".join(text for text, helps in found if helps) + ", or a preset (preset=24gb)"


def room_on(device: torch.device) -> int | None:
    """Bytes that a process may have on the device: all of a GPU, what is free of the host's memory."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    meminfo = Path("/proc/meminfo")
    if device.type != "cpu" or not meminfo.is_file():
        return None
    free = next(line for line in meminfo.read_text(encoding="utf-8").splitlines() if line.startswith("MemAvailable:"))
    return int(free.split()[1]) * 1024


def estimate(parts: Parts, sharing: Sharing | None = None) -> Estimate:
    """The memory of one step of a run. Nothing is computed; it takes some seconds at real size."""
    sharing = sharing or Sharing()
    return replace(staying(parts, sharing), activations=max(_step(parts, sharing), _looking(parts)))


def staying(parts: Parts, sharing: Sharing) -> Estimate:
    """What does not come and go, counted."""
    trained = [p for p in parts.model.parameters() if p.requires_grad]
    return Estimate(
        weights=_weights(parts.model, sharing),
        gradients=_gradients(trained, sharing),
        optimizer=_optimizer(parts, trained, sharing),
        average=0 if parts.job.training.ema_decay is None else 4 * _numbers(trained),
        frozen=sum(_bytes(m) for m in (parts.vq, parts.clip) if m is not None),
        activations=0,
    )


# --- what stays -------------------------------------------------------------------------------------------------------


def _numbers(parameters: list[nn.Parameter]) -> int:
    return sum(p.numel() for p in parameters)


def _bytes(module: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in [*module.parameters(), *module.buffers()])


def _weights(model: nn.Module, sharing: Sharing) -> int:
    whole = _bytes(model) // (2 if sharing.rounded else 1)
    if sharing.zero < 3:
        return whole
    numbers = sum(p.numel() for p in model.parameters())
    return whole // sharing.world + 2 * min(numbers, ZERO3_LIVE)


def _gradients(trained: list[nn.Parameter], sharing: Sharing) -> int:
    size = _numbers(trained) * (2 if sharing.rounded else 4)
    if sharing.zero:
        return size // sharing.share(2) + BUCKETS
    return size * (2 if sharing.world > 1 else 1)  # DDP exchanges a copy


def _optimizer(parts: Parts, trained: list[nn.Parameter], sharing: Sharing) -> int:
    tables = {id(p) for m in parts.model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    size = 0
    for p in trained:
        if parts.job.optimizer.name == "adamw" or id(p) in tables or p.numel() < SMALLEST_IN_8_BITS:
            size += 8 * p.numel()
        else:
            size += 2 * (p.numel() + 4 * p.numel() // BLOCK)
    # ZeRO-1 and 2 keep 32-bit copies of this process's share of weights and gradients, FSDP and DDP do not.
    own_copy = 8 * _numbers(trained) if 1 <= sharing.zero < 3 or sharing.rounded else 0
    return (size + own_copy) // sharing.share(1)


# --- what comes and goes ----------------------------------------------------------------------------------------------


class Living(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the bytes of all tensors made while it is on, as long as they live and do not become a gradient.
    ``now``: how many; ``most``: the most at once."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.most = self.now = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._see(tensor)
        self.most = max(self.most, self.now)
        return out

    def ignore(self, module: nn.Module) -> None:
        """What was there before is not counted."""
        for tensor in [*module.parameters(), *module.buffers()]:
            self._known.add(tensor.untyped_storage())

    def became_gradient(self, parameter: Tensor) -> None:
        """Gradients are counted among what stays."""
        assert parameter.grad is not None
        self.now -= parameter.grad.untyped_storage().nbytes()

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage in self._known:
            return
        self._known.add(storage)
        size = storage.nbytes()
        self.now += size
        weakref.finalize(storage, self._gone, size)

    def _gone(self, size: int) -> None:
        self.now -= size


def _step(parts: Parts, sharing: Sharing) -> int:
    """The most that forward and backward of one micro-batch of the longest rows hold beside gradients.

    Looked at with one and with two layers, from which the others follow: at the start of the backward every layer
    adds as much as the one before. Later, between the backwards of the two flows, autograd holds the gradients of one
    until those of the other come. In the first micro-batch these become the gradients; in later ones they come on top.
    """
    tasks, layers = longest(parts), len(layers_of(parts.model))
    counts = (layers,) if layers <= 2 else (1, 2)
    found = [_with_layers(parts, sharing, tasks, count) for count in counts]
    most, kept = (one + (layers - counts[0]) * (two - one) for one, two in zip(found[0], found[-1], strict=True))
    if tasks.future is None or tasks.text is None or parts.job.training.gradient_accumulation_steps == 1:
        return most
    shared = [p for p in parts.model.backbone.parameters() if p.requires_grad]
    return max(most, kept + _numbers(shared) * (2 if sharing.rounded else 4))


def _with_layers(parts: Parts, sharing: Sharing, tasks: Tasks, layers: int) -> tuple[int, int]:
    """With so many layers: (the most there ever is, what the robot flow's forward leaves for its backward)."""
    living, settings = Living(), parts.job.training
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(settings.mixed_precision)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = hollow(parts.model, half if sharing.rounded else None)
        del layers_of(model)[layers:]
        model.backbone.set_attn_implementation("sdpa")  # FlexAttention looks at its mask; it takes no more than this
        model.train()
        living.ignore(model)
        for p in model.parameters():
            if p.requires_grad:
                p.register_post_accumulate_grad_hook(living.became_gradient)
        autocast = torch.autocast(parts.device.type, half, enabled=half is not None and not sharing.rounded)
        with living:
            with autocast:
                losses = model(tasks.future, None)
            kept = living.now
            del losses
            with autocast:
                losses = model(tasks.future, tasks.text)
            total: Tensor = torch.stack([getattr(losses, name).sum for name in COUNTED]).sum()
            torch.autograd.backward(total)
    return living.most, kept


def layers_of(model: UPVLA) -> nn.ModuleList:
    """The layers of the backbone, whatever its transformers class calls them."""
    lists = [m for m in model.backbone.lm.base_model.modules() if isinstance(m, nn.ModuleList)]
    return next(found for found in lists if len(found) == int(model.backbone.config.num_hidden_layers))


def _looking(parts: Parts) -> int:
    """The most that the frozen networks hold while they look at a micro-batch."""
    job, size = parts.job, parts.job.dataset.preprocessing.resolution
    frames = job.training.batch_size_pre * job.model.vla.num_view * (2 if job.training.pre_coeff > 0 else 1)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        with _living(hollow(parts.vq)) as (vq, tokenizer):
            vq.encode(torch.empty(frames, 3, size, size, device=parts.device))
        if parts.clip is None or not job.training.batch_size_mmu:
            return tokenizer.most
        with _living(hollow(parts.clip)) as (clip, tower):
            height, width = parts.clip.image_spec.crop
            clip.features(torch.empty(job.training.batch_size_mmu, 3, height, width, device=parts.device))
    return max(tokenizer.most, tower.most)


@contextmanager
def _living(module: Any) -> Iterator[tuple[Any, Living]]:
    living = Living()
    living.ignore(module)
    with living:
        yield module, living


def hollow(module: Any, dtype: torch.dtype | None = None) -> Any:
    """A copy of a module whose parameters and buffers have shapes only (made inside a FakeTensorMode)."""
    memo: dict[int, Any] = {}
    for p in module.parameters():
        empty = torch.empty(p.shape, dtype=dtype or p.dtype, device=_device(p))
        memo[id(p)] = nn.Parameter(empty, requires_grad=p.requires_grad)
    for b in module.buffers():
        memo[id(b)] = torch.empty(b.shape, dtype=b.dtype, device=_device(b))
    return copy.deepcopy(module, memo)


def _device(tensor: Tensor) -> torch.device:
    return torch.device("cpu") if tensor.device.type == "meta" else tensor.device


def longest(parts: Parts) -> Tasks:
    """One micro-batch of rows as long as the configuration lets them be."""
    job, spec = parts.job, parts.model.spec
    rows, turns = job.training.batch_size_pre, job.training.batch_size_mmu
    codes = torch.zeros(rows, spec.num_image_tokens, dtype=torch.long)
    actions = torch.zeros(rows, spec.act_step, spec.action_dim)
    robot = RobotBatch(
        views=torch.empty(rows, 0),
        future_views=torch.empty(rows, 0),
        instructions=["turn " * spec.max_seq_length] * rows,
        actions=actions,
        action_is_pad=torch.zeros(rows, spec.act_step, dtype=torch.bool),
        indices=torch.arange(rows),
    )
    future = robot_task(parts, RobotCodes(codes, codes if job.training.pre_coeff > 0 else None, robot), 0)
    turn = None
    if job.dataset.und_type is not None and turns:
        patches = 0 if parts.clip is None else parts.clip.num_patches
        room = conversation_budget(job, parts.prompter, patches)
        ids = torch.full((turns, room), parts.prompter.vocab.eos)
        images = None if parts.clip is None else torch.zeros(turns, patches, spec.clip_width or 0)
        turn = TextTurn(ids, torch.ones_like(ids, dtype=torch.bool), images, torch.arange(turns))
    return bundle(parts, future, text_task(parts, turn, SampleRng(job.training.seed, 0)))
