"""Between a batch's arrival and the end of its step the host never waits for the device.

The device is ``meta``: its tensors have shapes and no content, so that whoever reads one (``item``, ``nonzero``, a
boolean index, a comparison that decides) fails. What is only a wait on a GPU, a copy from ordinary memory, is listed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.harness.problems import SIZES, Problem, problem
from config.schema import Augment, Objective
from models.losses import SumAndCount
from models.rng import SampleRng
from training.batch_to_tasks import COUNTED, bundle, encode_image, encode_views, robot_task, text_task
from training.failure.loss_monitor import LossMonitor
from training.metrics.logger import Meter

META = torch.device("meta")


class Copies(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Copies between host and device that the host waits for."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.waits: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default and not kwargs.get("non_blocking"):
            self._see(args[0].device, kwargs.get("device"), func)
        if func is torch.ops.aten.copy_.default and not (len(args) > 2 and args[2]):
            self._see(args[1].device, args[0].device, func)
        return func(*args, **kwargs)

    def _see(self, source: torch.device, target: torch.device | None, func: object) -> None:
        if target is not None and (source == META) != (torch.device(target) == META):
            self.waits.append(f"{func}: {source} to {target}")


class Writing(TorchFunctionMode):
    """Tensors written on the host straight onto the device, which is such a copy too."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        device = kwargs.get("device")
        if func in (torch.tensor, torch.as_tensor) and device is not None and torch.device(device) == META:
            self.waits.append(f"{func.__name__}({args})")
        return func(*args, **kwargs)


@contextlib.contextmanager
def watched() -> Any:
    copies, writing = Copies(), Writing()
    with copies, writing:
        yield [copies.waits, writing.waits]


@pytest.fixture(autouse=True)
def _without_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Autocast knows no meta device; it makes no difference to who waits."""
    monkeypatch.setattr(torch, "autocast", lambda *args, **settings: contextlib.nullcontext())


def step(made: Problem, weights: Tensor) -> Mapping[str, SumAndCount]:
    """One step as the trainer takes it, but for accelerate. Returns what is noted for the log."""
    parts, batch = made.parts, made.batch
    codes = encode_views(parts, batch.robot, 3)
    turn = encode_image(parts, batch.text)
    tasks = bundle(parts, robot_task(parts, codes, 3), text_task(parts, turn, SampleRng(0, 3)))
    losses = parts.model(tasks.future, tasks.text)
    sums = torch.stack([getattr(losses, name).sum for name in COUNTED])
    shares = weights * sums / torch.ones_like(sums)
    torch.autograd.backward(shares.sum())
    norm = torch.nn.utils.clip_grad_norm_(parts.model.parameters(), 1.0)
    parts.optimizer.step()
    parts.optimizer.zero_grad(set_to_none=True)
    meter, watch = Meter(), LossMonitor(20.0, META)
    noted = {"total": SumAndCount(shares.sum(), torch.ones_like(sums[0])), **losses.details}
    meter.add(noted)
    meter.add(noted)
    watch.update(3, shares.sum(), norm)
    return noted


@pytest.mark.parametrize("objective", ["ar", "mdm", "bd"])
@pytest.mark.parametrize("augmented", [False, True], ids=["plain", "augmented"])
def test_a_step_never_waits_for_the_device(objective: Objective, augmented: bool) -> None:
    made = problem(SIZES["cpu"], objective, META, rows=2)
    if augmented:
        made.parts.job.dataset.augment = Augment(crop=0.1, shift=0.1, brightness=0.1)
        made.parts.job.block_diffusion.action_enabled = True
    weights = made.weights
    with watched() as waits:
        step(made, weights)
    assert waits == [[], []]


def test_waiting_is_noticed() -> None:
    values = torch.zeros(3, device=META)
    with watched() as waits:
        values + torch.ones(3).to(META)
        torch.tensor([1.0], device=META)
    assert [len(found) for found in waits] == [1, 1]
    for reads in (Tensor.item, Tensor.nonzero, Tensor.tolist, lambda t: t[t > 0], lambda t: bool((t > 0).any())):
        with pytest.raises((RuntimeError, NotImplementedError)):
            reads(values if reads is not Tensor.item else values.sum())
