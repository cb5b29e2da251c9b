"""Take optimizer steps as the package does and as the original does, time their parts, and compare their results."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPVisionModel

from benchmarks.harness.problems import Problem
from benchmarks.harness.timing import Lap, lap
from models.objectives import text_objective
from models.processing.image import normalise
from models.rng import SampleRng
from models.upvla import Losses
from models.vision.clip_encoder import ClipTower, with_layers
from tests.benchmarks import naive_step
from training.batch_to_tasks import (
    COUNTED,
    Tasks,
    bundle,
    coefficients,
    encode_image,
    encode_views,
    robot_task,
    text_task,
)
from training.build import Components
from training.data.batch import CoBatch

READ, FRAMES, IMAGES, PREPARE, FORWARD, BACKWARD, UPDATE = PARTS = (
    "read the data",
    "frames to codes",
    "images to patches",
    "prepare the tasks",
    "forward",
    "backward",
    "optimizer",
)
Around = Callable[[str], AbstractContextManager[Any]]
Autocast = Callable[[], AbstractContextManager[Any]]


class TimedStep:
    """A training step that times its parts; ``times``: seconds by part, of each step that was taken.

    ``wait``: after each part, wait for the device. Without it a step is as fast as in a run, and ``times`` are those of
    the host.
    """

    def __init__(self, device: torch.device, wait: bool = True) -> None:
        self.times: list[dict[str, Lap]] = []
        self._device = device if wait else torch.device("cpu")
        self._around: Around = lambda name: nullcontext()

    def step(self, around: Around | None = None) -> None:
        """Take one step. ``around``: makes the context manager, by name, that each part runs in."""
        if around is not None:
            self._around = around
        self.times.append({})
        self._step()

    def _step(self) -> None:
        raise NotImplementedError

    def _part(self, name: str, work: Callable[[], Any]) -> Any:
        result: list[Any] = []
        with self._around(name):
            self.times[-1][name] = lap(lambda: result.append(work()), self._device)
        return result[0]


class PackageStep(TimedStep):
    """The package's step on an endless iterator of batches."""

    def __init__(
        self, parts: Components, batches: Iterator[CoBatch], autocast: Autocast = nullcontext, wait: bool = True
    ) -> None:
        super().__init__(parts.device, wait)
        self.parts = parts
        self._autocast, self._batches = autocast, batches
        self._weights = torch.tensor(coefficients(parts.job)).to(parts.device)

    def _step(self) -> None:
        parts, part, number = self.parts, self._part, len(self.times) - 1
        batch = part(READ, lambda: next(self._batches))
        codes = part(FRAMES, lambda: encode_views(parts, batch.robot))
        turn = part(IMAGES, lambda: encode_image(parts, batch.text))
        draws = SampleRng(parts.job.training.seed, number)
        tasks = part(PREPARE, lambda: bundle(parts, robot_task(parts, codes, number), text_task(parts, turn, draws)))
        with self._autocast():
            losses = part(FORWARD, lambda: parts.model(tasks.future, tasks.text))
        part(BACKWARD, lambda: torch.autograd.backward(self._total(losses, tasks)))
        part(UPDATE, self._update)

    def _total(self, losses: Losses, tasks: Tasks) -> Tensor:
        sums = torch.stack([getattr(losses, name).sum for name in COUNTED])
        return (self._weights * sums / tasks.counts.clamp_min(1.0).to(sums.device)).sum()

    def _update(self) -> None:
        limit = self.parts.job.training.max_grad_norm
        if limit is not None:
            torch.nn.utils.clip_grad_norm_(self.parts.model.parameters(), limit)
        self.parts.optimizer.step()
        self.parts.optimizer.zero_grad(set_to_none=True)


BLOCK_SIZE = 32


def whole_tower(clip: ClipTower) -> CLIPVisionModel:
    """Return the tower with its last layer and final norm, which the package does not build."""
    config = clip.vision_model.config
    device = clip.vision_model.embeddings.patch_embedding.weight.device
    with torch.random.fork_rng(devices=[]), device:
        tower = CLIPVisionModel(with_layers(config, int(config.num_hidden_layers) + 1))
    tower.load_state_dict(clip.vision_model.state_dict(), strict=False)
    return tower.eval().requires_grad_(False)


class OriginalStep(TimedStep):
    """The original's step, with a copy of the problem's weights and torch's default AdamW."""

    def __init__(self, made: Problem, autocast: Autocast = nullcontext, seed: int = 0) -> None:
        super().__init__(made.parts.device)
        self.made = made
        self.model = naive_step.slow_model(made.parts.model)
        self.tower = whole_tower(made.clip)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, weight_decay=0.01)
        self._autocast = autocast
        self._draw = torch.Generator().manual_seed(seed)

    def _step(self) -> None:
        made, part, device = self.made, self._part, self.made.parts.device
        moments = (made.robot.views, made.robot.future_views)
        part(READ, lambda: None)
        now, later = part(
            FRAMES, lambda: naive_step.encode(made.parts.vq, [normalise(m[:, 0].to(device)) for m in moments])
        )
        patches = part(IMAGES, lambda: naive_step.see(self.tower, made.text.pixels.to(device)))

        def prepare() -> tuple[naive_step.Rows, list[naive_step.TextPass]]:
            rows = rows_of(made, now, later, patches)
            passes = naive_step.text_passes(made.objective, rows, self.model.vocab.mask, BLOCK_SIZE, self._draw)
            return rows, passes

        rows, passes = part(PREPARE, prepare)
        with self._autocast():
            found = part(FORWARD, lambda: naive_step.losses(self.model, rows, passes))
        part(BACKWARD, lambda: torch.autograd.backward(found["image"] + found["action"] + found["learned"]))
        part(UPDATE, self._update)

    def _update(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def rows_of(made: Problem, now: Tensor, later: Tensor, patches: Tensor) -> naive_step.Rows:
    prompter, robot, text = made.parts.prompter, made.robot, made.text
    instructions = [prompter.instruction(one) for one in robot.instructions]
    actions = robot.actions.to(now.device)
    return naive_step.rows_of(
        prompter.vocab,
        instructions,
        now,
        later,
        actions,
        prompter.system_ids,
        text.ids,
        text.answers,
        patches,
        made.size.max_seq_length,
    )


def differences(made: Problem) -> dict[str, float]:
    """Return the largest relative differences between the original's main forward and the package's step.

    ``loss``: of image, action and next-token loss; ``gradient``: of the gradient of their sum, over all parameters. The
    original's text losses of ``mdm`` and ``bd`` are different ones; ``tests/benchmarks/test_naive_step.py`` compares
    them with recorded values.
    """
    parts, slow = made.parts, naive_step.slow_model(made.parts.model)
    codes = encode_views(parts, made.robot)
    turn = encode_image(parts, made.text)
    assert codes is not None
    assert codes.later is not None
    assert turn is not None
    assert turn.patches is not None
    tasks = bundle(parts, robot_task(parts, codes), text_task(parts, turn, SampleRng(0, 0), text_objective("ar")))
    ours = parts.model(tasks.future, tasks.text)
    theirs = naive_step.main_losses(slow, rows_of(made, codes.now, codes.later, turn.patches))
    pairs = [(getattr(ours, name).mean, theirs[name]) for name in ("image", "action", "text")]
    loss = max(abs(float(a.detach()) / float(b.detach()) - 1) for a, b in pairs)
    torch.autograd.backward(torch.stack([a for a, _ in pairs]).sum())
    torch.autograd.backward(torch.stack([b for _, b in pairs]).sum())
    gradient = 0.0
    for p, q in zip(parts.model.parameters(), slow.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), "both ways reach the same parameters"
        if p.grad is not None and q.grad is not None:
            gradient = max(gradient, float((p.grad - q.grad).norm() / q.grad.norm().clamp_min(1e-6)))
    parts.model.zero_grad(set_to_none=True)
    return {"loss": loss, "gradient": gradient}
