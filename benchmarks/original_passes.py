"""The original's step as something to be stepped and noted like the package's, and the proof that both compute the
same."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPVisionModel

from benchmarks.step import BACKWARD, FORWARD, FRAMES, IMAGES, PREPARE, READ, UPDATE
from benchmarks.step_problem import Problem
from benchmarks.timing import Lap, lap
from models.objectives import text_objective
from models.processing.image import normalise
from models.rng import SampleRng
from models.vision.clip_encoder import ClipTower, with_layers
from tests.benchmarks import naive_step
from training.batch_to_tasks import bundle, encode_image, encode_views, robot_task, text_task

BLOCK_SIZE = 32


def whole_tower(clip: ClipTower) -> CLIPVisionModel:
    """The tower with its last layer, which the package never builds, and with its final norm."""
    config = clip.vision_model.config
    device = clip.vision_model.embeddings.patch_embedding.weight.device
    with torch.random.fork_rng(devices=[]), device:
        tower = CLIPVisionModel(with_layers(config, int(config.num_hidden_layers) + 1))
    tower.load_state_dict(clip.vision_model.state_dict(), strict=False)
    return tower.eval().requires_grad_(False)


class Original:
    """Takes steps as the original does, with a copy of the problem's weights and torch's AdamW as it comes; notes what
    each part took."""

    def __init__(
        self, made: Problem, autocast: Callable[[], AbstractContextManager[Any]] = nullcontext, seed: int = 0
    ) -> None:
        self.made = made
        self.model = naive_step.slow_model(made.parts.model)
        self.tower = whole_tower(made.clip)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, weight_decay=0.01)
        self.noted: list[dict[str, Lap]] = []
        self._autocast = autocast
        self._draw = torch.Generator().manual_seed(seed)

    def step(self, around: Callable[[str], AbstractContextManager[Any]] | None = None) -> None:
        """One step; its parts are added to ``noted``. ``around``: what each part is done inside of."""
        made, took, device = self.made, dict[str, Lap](), self.made.parts.device
        results: dict[str, Any] = {}

        def part(name: str, work: Callable[[], Any]) -> Any:
            with nullcontext() if around is None else around(name):
                took[name] = lap(lambda: results.update({name: work()}), device)
            return results[name]

        moments = (made.robot.views, made.robot.future_views)
        part(READ, lambda: None)
        now, later = part(
            FRAMES, lambda: naive_step.encode(made.parts.vq, [normalise(m[:, 0].to(device)) for m in moments])
        )
        patches = part(IMAGES, lambda: naive_step.see(self.tower, made.text.pixels.to(device)))
        vocab = self.model.vocab

        def prepare() -> tuple[naive_step.Rows, list[naive_step.TextPass]]:
            rows = rows_of(made, now, later, patches)
            return rows, naive_step.text_passes(made.objective, rows, vocab.mask, BLOCK_SIZE, self._draw)

        rows, passes = part(PREPARE, prepare)
        with self._autocast():
            found = part(FORWARD, lambda: naive_step.losses(self.model, rows, passes))
        part(BACKWARD, lambda: torch.autograd.backward(found["image"] + found["action"] + found["learned"]))
        part(UPDATE, self._update)
        self.noted.append(took)

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
    """Largest relative difference of image, action and next-token loss between the original's main forward and the
    package's step, and of the gradient of their sum (of any parameter). (The text losses of ``mdm`` and ``bd`` are
    other ones there: ``tests/benchmarks/test_naive_step.py`` holds the reference's against what it recorded.)"""
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
