"""Looking at the model between steps: losses on held-out data, answers to questions, predicted future frames.

All ranks do the same work on their share (losses) or the same work (answers, frames); rank 0 writes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from config.load import ConfigError
from config.schema import Job
from models.decoding import ActionDecoding, decode_actions, generate
from models.losses import SumAndCount
from models.processing.image import clip_pixels, to_uint8
from models.processing.text import questions_in
from models.sequence import robot_sequence
from models.text_metrics import ACTION_METRICS, DRAWS, VARIANCE, evaluate_text_likelihood, summarize_text_likelihood
from models.text_metrics import LIKELIHOOD_METRICS as TEXT_MEASURES
from training.batch_to_tasks import bundle, encode_image, encode_views, robot_task
from training.build import Parts
from training.data.batch import CoBatch, RobotBatch, TextSample, collate_robot
from training.data.dataloader import Batch, Flow
from training.data.readers import images_in, read_image
from training.distributed.full_state import Whole
from training.metrics_logger import Meter, means
from training.run import Run

MEASURED_SAMPLES = 64
"""Samples of each held-out data set that an evaluation looks at, spread evenly over it."""
SHOWN_FRAMES = 4
SHOWN_IMAGES = 4
ACTION_MEASURES = ("action_bd/loss", "action_bd/mae", "action_bd/forwards_per_chunk", *ACTION_METRICS)
"""Of block-diffusion actions: their loss, and how far decoding them is from what was recorded."""
MEASURES = ("image/loss", "action/loss", "action/mae", *ACTION_MEASURES, *TEXT_MEASURES)


@dataclass(frozen=True)
class Image:
    """Something to ask about: ``pixels`` as CLIP wants them [3, S, S]; ``questions`` with the true answer, if known."""

    name: str
    pixels: Tensor
    questions: Sequence[tuple[str, str | None]]


class Validator:
    """Measures and shows one run's model."""

    def __init__(self, job: Job, run: Run, parts: Parts, whole: Whole) -> None:
        self.job, self.run, self.parts, self.model, self.whole = job, run, parts, parts.model, whole
        if job.experiment.eval_every and not self._has_data:
            run.say(
                "no held-out data (dataset.params.validation_pre_shards_path_or_url, ...mmu...): nothing to evaluate on"
            )
        if job.experiment.generate_every and job.mmu_image_root is not None:
            try:
                self._images()
            except ValueError as error:
                raise ConfigError(f"mmu_image_root={job.mmu_image_root}: {error}") from error

    @property
    def _has_data(self) -> bool:
        return self.parts.heldout_robot is not None or self.parts.heldout_text is not None

    # --- losses ------------------------------------------------------------------------------------------------

    def measure(self) -> dict[str, float]:
        """Losses and the mean absolute action error on held-out data, as ``validation/...``; empty without any."""
        if not self._has_data:
            return {}
        meter = Meter()
        meter.add({name: SumAndCount.zero(self.run.device) for name in MEASURES})  # the same names on every rank
        stopped: SystemExit | None = None
        with self._looking():
            try:
                for batch in self._heldout():
                    self._measure(batch, meter)
            except SystemExit as error:  # a bad file; the other ranks wait for this one's sums all the same
                stopped = error
        totals = meter.totals(self.run.sum)
        if stopped is not None:
            raise stopped
        found = {**means(totals), **summarize_text_likelihood(totals)}
        found.pop(VARIANCE, None)  # told as an error
        return {f"validation/{name}": value for name, value in sorted(found.items())}

    def _measure(self, batch: CoBatch, meter: Meter) -> None:
        turn = encode_image(self.parts, batch.text)
        if turn is not None:
            seed = self.job.training.seed  # the same draws at every evaluation and on every split over ranks
            meter.add(evaluate_text_likelihood(self.model, self.parts.prompter, self.parts.objective, turn, seed))
        codes = encode_views(self.parts, batch.robot)
        task = bundle(self.parts, robot_task(self.parts, codes, measured_draws=DRAWS), None).future
        if task is None:
            return
        losses = self.model(task)
        meter.add({"image/loss": losses.image, "action/loss": losses.action, "action_bd/loss": losses.action_bd})
        meter.add({name: losses.details[name] for name in ACTION_METRICS})
        if task.actions is None or codes is None:
            return
        true = codes.batch.actions.to(self.run.device)  # errors are told in the robot's units, however it learns
        predicted = self.parts.denormalize_actions(self.model.predict(task.sequence).actions)
        meter.add({"action/mae": _absolute(predicted - true)})
        if task.action_tokens is not None:
            decoded = decode_actions(self.model, task.sequence, ActionDecoding.of(self.job.block_diffusion))
            meter.add({"action_bd/mae": _absolute(self.parts.denormalize_actions(decoded.actions) - true)})
            meter.add({"action_bd/forwards_per_chunk": _absolute(decoded.forwards.float())})

    def _heldout(self) -> Iterator[CoBatch]:
        """Batches of this rank's share, evenly spread over each data set: robot flow first, then the mmu flow."""
        if self.parts.heldout_robot is not None:
            yield from (CoBatch(robot=batch, text=None) for batch in self._share_of(self.parts.heldout_robot))
        if self.parts.heldout_text is not None:
            yield from (CoBatch(robot=None, text=batch) for batch in self._share_of(self.parts.heldout_text))

    def _share_of(self, flow: Flow[Batch]) -> Iterator[Batch]:
        mine = spread(len(flow.dataset), MEASURED_SAMPLES)[self.run.rank :: self.run.world]
        for start in range(0, len(mine), flow.batch_size):
            yield flow.collate(read_samples(flow, mine[start : start + flow.batch_size]))

    # --- images and words ------------------------------------------------------------------------------------

    def show(self, step: int) -> None:
        """Log predicted future frames beside the true ones, and answers to ``question``."""
        with self._looking():
            flow = self.parts.heldout_robot or self.parts.data.robot
            if flow is not None:
                batch = collate_robot(read_samples(flow, spread(len(flow.dataset), SHOWN_FRAMES)))
                self.run.board.image("future/now_true_predicted", self.frames(batch), step)
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
        pixels = self._decoded(predicted.view(len(batch) * views, -1))  # [B * V, 3, R, R]
        now, true = batch.views[:, :views].flatten(0, 1), batch.future_views[:, :views].flatten(0, 1)
        if batch.coded:  # the images themselves are not opened
            now, true = self._decoded(now), self._decoded(true)
        columns = torch.cat([now, true, pixels], dim=3)  # [B * V, 3, R, 3 R]
        return torch.cat(list(columns), dim=1)

    def _decoded(self, codes: Tensor) -> Tensor:
        """[B, n] -> uint8 [B, 3, R, R], on the host."""
        return to_uint8(self.parts.vq.decode(codes.long().to(self.run.device))).cpu()

    def answers(self) -> list[tuple[str, str]]:
        """(image's name, what it was asked and what the model said)."""
        images = self._images()
        asked = [(row, question, truth) for row, p in enumerate(images) for question, truth in p.questions]
        if not asked:
            return []
        patches = None
        if self.parts.clip is not None:
            pixels = torch.stack([image.pixels for image in images])
            patches = self.parts.clip.features(pixels.to(self.run.device))[[row for row, _, _ in asked]]
        questions = [question for _, question, _ in asked]
        made = generate(self.model, self.parts.prompter, questions, patches, self.job.max_new_tokens)
        ends = [f" *(cut at max_new_tokens={self.job.max_new_tokens})*" if cut else "" for cut in made.cut]
        said = [text + end for text, end in zip(made.texts, ends, strict=True)]
        lines: list[list[str]] = [[] for _ in images]
        for (row, question, truth), answer in zip(asked, said, strict=True):
            lines[row].append(f"**{question}** {answer}" + (f" *(in the data: {truth})*" if truth else ""))
        return [(image.name, "\n\n".join(told)) for image, told in zip(images, lines, strict=True)]

    def _images(self) -> list[Image]:
        """The images of ``mmu_image_root``, or some of the conversations' own with their question and answer."""
        questions = [(question, None) for question in questions_in(self.job.question)]
        clip, root = self.parts.clip, self.job.mmu_image_root
        if root is not None:
            spec = None if clip is None else clip.image_spec
            return [
                Image(f.stem, torch.empty(0) if spec is None else clip_pixels(read_image(f), spec), questions)
                for f in images_in(Path(root))[:SHOWN_IMAGES]
            ]
        flow = self.parts.heldout_text or self.parts.data.text
        if flow is None:
            return []
        samples = read_samples(flow, spread(len(flow.dataset), SHOWN_IMAGES))
        return [
            Image(f"image-{s.index}", s.pixels, [self._first_turn(s), *questions])
            for s in samples
            if s.pixels is not None
        ]

    def _first_turn(self, sample: TextSample) -> tuple[str, str]:
        """The first question of a conversation, and its answer."""
        learned = [*sample.answer, False]
        start = learned.index(True) if True in learned else len(sample.ids)  # a cut conversation may lack its answer
        stop = learned.index(False, start)
        prompter = self.parts.prompter
        asked = prompter.decode(sample.ids[:start]).removeprefix("USER:").removesuffix("ASSISTANT:").strip()
        return asked, prompter.decode(sample.ids[start:stop])

    @contextmanager
    def _looking(self) -> Iterator[None]:
        """The whole network (its average, where one is kept), no gradients, no dropout, the run's arithmetic; then back
        to training."""
        was_training, average = self.parts.model.training, self.parts.average
        self.parts.model.eval()
        averaged = nullcontext() if average is None else average.applied()
        with torch.no_grad(), self.run.accelerator.autocast(), averaged, self.whole.at_hand() as self.model:
            yield
        self.model = self.parts.model.train(was_training)


def _absolute(errors: Tensor) -> SumAndCount:
    """Of numbers: the sum of their sizes, and how many there are."""
    total = errors.abs().sum()
    return SumAndCount(total, torch.full_like(total, errors.numel()))


def read_samples(flow: Flow[Any], indices: Sequence[int]) -> list[Any]:
    """Samples to look at. A bad file among them ends the run with its name, as it does in training."""
    try:
        samples = [flow.dataset[i] for i in indices]
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(f"stopped while looking at data: {error}") from error
    for sample in samples:
        if isinstance(sample, TextSample):
            flow.left_out.tell(sample.left_out)
            flow.left_out.report_cut([(sample.index, sample.cut)] if sample.cut else [])
    return samples


def spread(length: int, wanted: int) -> list[int]:
    """At most ``wanted`` indices, evenly over ``range(length)``."""
    count = min(length, wanted)
    return [i * length // count for i in range(count)]
