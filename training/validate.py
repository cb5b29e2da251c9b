"""Looking at the model between steps: losses on held-out data, answers to questions, predicted future frames.

All ranks do the same work on their share (losses) or the same work (answers, frames); rank 0 writes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from config.schema import Job
from models.decoding import generate
from models.images import clip_pixels, to_uint8
from models.loss import Tally
from models.sequence import robot_sequence
from training.data.batch import CoBatch, RobotBatch, collate_robot
from training.data.cotrain import Batch, Flow
from training.data.files import IMAGE_SUFFIXES
from training.metrics import Meter
from training.run import Run
from training.setup import Parts
from training.step import COUNTED, bundle, encode_picture, encode_views, future_task, generator, text_task

MEASURED_SAMPLES = 64
"""Samples of each held-out data set that an evaluation looks at, spread evenly over it."""
SHOWN_FRAMES = 4
SHOWN_PICTURES = 4
QUESTION_SEPARATOR = " *** "
MEASURES = (*(f"{name}/loss" for name in COUNTED), "text/nats_per_token", "action/mae")


class Validator:
    """Measures and shows one run's model."""

    def __init__(self, job: Job, run: Run, parts: Parts) -> None:
        self.job, self.run, self.parts, self.model = job, run, parts, parts.model
        if job.experiment.eval_every and not self._has_data:
            run.say(
                "no held-out data (dataset.params.validation_pre_shards_path_or_url, ...mmu...): nothing to evaluate on"
            )

    @property
    def _has_data(self) -> bool:
        return self.parts.heldout_robot is not None or self.parts.heldout_text is not None

    # --- losses ------------------------------------------------------------------------------------------------

    def measure(self) -> dict[str, float]:
        """Losses and the mean absolute action error on held-out data, as ``validation/...``; empty without any."""
        if not self._has_data:
            return {}
        meter = Meter()
        meter.add({name: Tally.zero(self.run.device) for name in MEASURES})  # the same names on every rank
        with self._looking():
            for number, batch in enumerate(self._heldout()):
                self._measure(batch, number, meter)
        return {f"validation/{name}": value for name, value in meter.read(self.run.sum).items()}

    def _measure(self, batch: CoBatch, number: int, meter: Meter) -> None:
        rng = generator(self.job.training.seed, "validation", number, self.run.rank)
        future = future_task(self.parts, encode_views(self.parts, batch.robot))
        tasks = bundle(self.parts, future, text_task(self.parts, encode_picture(self.parts, batch.text), rng))
        losses = self.model(tasks.future, tasks.text)
        meter.add({f"{name}/loss": getattr(losses, name) for name in COUNTED})
        meter.add({"text/nats_per_token": losses.nats})
        if tasks.future is not None and tasks.future.actions is not None:
            errors = (self.model.predict(tasks.future.sequence).actions - tasks.future.actions).abs()
            meter.add({"action/mae": Tally(errors.sum(), torch.full_like(errors.sum(), errors.numel()))})

    def _heldout(self) -> Iterator[CoBatch]:
        """Batches of this rank's share, evenly spread over each data set: robot flow first, then the mmu flow."""
        if self.parts.heldout_robot is not None:
            yield from (CoBatch(robot=batch, text=None) for batch in self._share_of(self.parts.heldout_robot))
        if self.parts.heldout_text is not None:
            yield from (CoBatch(robot=None, text=batch) for batch in self._share_of(self.parts.heldout_text))

    def _share_of(self, flow: Flow[Batch]) -> Iterator[Batch]:
        mine = spread(len(flow.dataset), MEASURED_SAMPLES)[self.run.rank :: self.run.world]
        for start in range(0, len(mine), flow.batch_size):
            yield flow.collate([flow.dataset[i] for i in mine[start : start + flow.batch_size]])

    # --- pictures and words ------------------------------------------------------------------------------------

    def show(self, step: int) -> None:
        """Log predicted future frames beside the true ones, and answers to ``question``."""
        with self._looking():
            flow = self.parts.heldout_robot or self.parts.data.robot
            if flow is not None:
                batch = collate_robot([flow.dataset[i] for i in spread(len(flow.dataset), SHOWN_FRAMES)])
                self.run.board.picture("future/now_true_predicted", self.frames(batch), step)
            for name, said in self.answers():
                self.run.board.text(f"answers/{name}", said, step)

    def frames(self, batch: RobotBatch) -> Tensor:
        """uint8 [3, H, W]: one row a sample and view; the frame now, the true later one, the predicted one."""
        views = self.job.model.vla.num_view
        codes = encode_views(self.parts, batch, with_later=False)
        assert codes is not None
        instructions = [self.parts.prompter.instruction(text) for text in batch.instructions]
        sequence = robot_sequence(self.parts.prompter.vocab, instructions, codes.now, self.job.act_step)
        predicted = self.model.predict(sequence, want_codes=True).codes
        assert predicted is not None
        pixels = to_uint8(self.parts.vq.decode(predicted.view(len(batch) * views, -1))).cpu()  # [B * V, 3, R, R]
        now, true = batch.views[:, :views].flatten(0, 1), batch.future_views[:, :views].flatten(0, 1)
        columns = torch.cat([now, true, pixels], dim=3)  # [B * V, 3, R, 3 R]
        return torch.cat(list(columns), dim=1)

    def answers(self) -> list[tuple[str, str]]:
        """(picture's name, its questions with the model's answers)."""
        names, pixels = self._pictures()
        if not names:
            return []
        questions = [question.strip() for question in self.job.question.split(QUESTION_SEPARATOR)]
        patches = None
        if self.parts.clip is not None and pixels is not None:
            patches = self.parts.clip.features(pixels.to(self.run.device)).repeat_interleave(len(questions), 0)
        asked = questions * len(names)
        said = generate(self.model, self.parts.prompter, asked, patches, self.job.max_new_tokens).texts
        pairs = [f"**{q}** {a}" for q, a in zip(asked, said, strict=True)]
        return [(n, "\n\n".join(pairs[i * len(questions) :][: len(questions)])) for i, n in enumerate(names)]

    def _pictures(self) -> tuple[list[str], Tensor | None]:
        """Names and CLIP pixels [B, 3, S, S] of the pictures that are asked about."""
        clip, root = self.parts.clip, self.job.mmu_image_root
        if root is not None:
            files = sorted(f for f in Path(root).iterdir() if f.suffix.lower() in IMAGE_SUFFIXES)[:SHOWN_PICTURES]
            if clip is None or not files:
                return [f.stem for f in files], None
            return [f.stem for f in files], torch.stack([clip_pixels(Image.open(f), clip.image_spec) for f in files])
        flow = self.parts.heldout_text or self.parts.data.text
        if flow is None:
            return [], None
        samples = [flow.dataset[i] for i in spread(len(flow.dataset), SHOWN_PICTURES)]
        return [f"picture-{s.index}" for s in samples], torch.stack([s.pixels for s in samples])

    @contextmanager
    def _looking(self) -> Iterator[None]:
        """No gradients, no dropout, the run's arithmetic; then back to training."""
        was_training = self.model.training
        self.model.eval()
        with torch.no_grad(), self.run.accelerator.autocast():
            yield
        self.model.train(was_training)


def spread(length: int, wanted: int) -> list[int]:
    """At most ``wanted`` indices, evenly over ``range(length)``."""
    count = min(length, wanted)
    return [i * length // count for i in range(count)]
