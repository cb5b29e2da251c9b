"""Evaluate the model between steps: losses on validation data, answers to questions, predicted future frames.

All ranks do the same work on their part of the data (losses) or the same work (answers, frames); rank 0 writes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from common.command import phase_bar
from config.loading import ConfigError
from models.decoding import ActionDecoding, decode_actions, generate
from models.grounding import GROUND_METRICS
from models.losses import SumAndCount
from models.processing.image import clip_pixels, to_uint8
from models.processing.text import questions_in
from models.sequence import robot_sequence
from models.text_metrics import ACTION_METRICS as ACTION_STEP_METRICS
from models.text_metrics import DRAWS, VARIANCE, evaluate_text_likelihood, summarize_text_likelihood
from models.text_metrics import LIKELIHOOD_METRICS as TEXT_METRICS
from training.batch_to_tasks import bundle, encode_image, encode_views, robot_task, scene_task, state_features
from training.build import Components
from training.data.batch import CoBatch, RobotBatch, TextSample, collate_robot
from training.data.dataloader import Batch, Flow
from training.data.llava import LlavaDataset
from training.data.mixture import Mixture
from training.data.readers import images_in, read_image
from training.distributed.full_state import FullModel
from training.grounding.measures import SQUARES, colour_change, colour_samples, colour_squares
from training.metrics.logger import Meter, means
from training.metrics.samples import Answer, answer_sheet, future_sheet
from training.run import Run

EVAL_SAMPLES = 64
"""Samples of each validation data set that an evaluation uses, spread evenly over it."""
EVAL_SCENES = 256
"""Random scenes that an evaluation uses."""
LOGGED_FRAMES = 4
"""Samples whose predicted future frames are logged."""
LOGGED_IMAGES = 4
"""Images about which answers are logged."""
ACTION_METRICS = ("action_bd/loss", "action_bd/mae", "action_bd/forwards_per_chunk", *ACTION_STEP_METRICS)
"""Metrics of block-diffusion actions: loss, error of the decoded chunk, forwards to decode it."""
METRICS = (
    *("image/loss", "action/loss", "action/mae", "ground/loss", *GROUND_METRICS, *SQUARES),
    *ACTION_METRICS,
    *TEXT_METRICS,
)


@dataclass(frozen=True)
class ImageQuestions:
    """An image with questions: ``pixels`` [3, S, S] for CLIP; ``questions`` with the true answer, if known."""

    name: str
    file: Path
    pixels: Tensor
    questions: Mapping[str, str | None]


class Evaluator:
    """Evaluates the model of one run."""

    def __init__(self, run: Run, components: Components, full_model: FullModel) -> None:
        self.job, self.run, self.components, self.model = run.job, run, components, components.model
        self._full_model, job = full_model, run.job
        if job.experiment.eval_every and not self._has_data:
            run.log(
                "no validation data (dataset.params.validation_pre_shards_path_or_url, ...mmu...): nothing to evaluate"
            )
        if job.experiment.generate_every and job.mmu_image_root is not None:
            try:
                _ = self._images
            except ValueError as error:
                raise ConfigError(f"mmu_image_root={job.mmu_image_root}: {error}") from error

    @property
    def _has_data(self) -> bool:
        parts = self.components
        return any(
            flow is not None for flow in (parts.validation_robot, parts.validation_text, parts.validation_scenes)
        )

    def evaluate(self) -> dict[str, float]:
        """Return losses and the mean absolute action error as ``validation/...``; empty without validation data."""
        if not self._has_data:
            return {}
        meter = Meter()
        meter.add({name: SumAndCount.zero(self.run.device) for name in METRICS})  # the same names on every rank
        failure: SystemExit | None = None
        with self._eval_mode():
            try:
                flows = (self.components.validation_robot, self.components.validation_text)
                total = sum(
                    -(-len(self._share(evenly_spaced(len(flow.dataset), EVAL_SAMPLES))) // flow.batch_size)
                    for flow in flows
                    if flow is not None
                )
                hidden = not self.run.is_main_process
                for batch in phase_bar(self._batches(), desc="validation", unit="batch", total=total, disable=hidden):
                    self._add(batch, meter)
                self._add_standing_measures(meter)
            except SystemExit as error:  # a bad file; the other ranks still wait for the sums of this one
                failure = error
        totals = meter.totals(self.run.sum)
        if failure is not None:
            raise failure
        found = {**means(totals), **summarize_text_likelihood(totals), **colour_change(totals)}
        for name in (VARIANCE, *SQUARES):  # reported as a standard error, and as a ratio
            found.pop(name, None)
        return {f"validation/{name}": value for name, value in sorted(found.items())}

    def _add(self, batch: CoBatch, meter: Meter) -> None:
        turn = encode_image(self.components, batch.text)
        if turn is not None:
            seed = self.job.training.seed  # the same draws at every evaluation and on every split over ranks
            meter.add(
                evaluate_text_likelihood(self.model, self.components.prompter, self.components.objective, turn, seed)
            )
        codes = encode_views(self.components, batch.robot)
        task = bundle(self.components, robot_task(self.components, codes, measured_draws=DRAWS), None).future
        if task is None:
            return
        losses = self.model(task)
        meter.add({"image/loss": losses.image, "action/loss": losses.action, "action_bd/loss": losses.action_bd})
        meter.add({"ground/loss": losses.ground})
        meter.add({name: losses.details[name] for name in (*ACTION_STEP_METRICS, *GROUND_METRICS)})
        if task.actions is None or codes is None:
            return
        true = codes.batch.actions.to(self.run.device)  # errors are in the robot's units, not in normalized ones
        predicted = self.components.denormalize_actions(self.model.predict(task.sequence).actions)
        meter.add({"action/mae": _sum_of_absolutes(predicted - true)})
        if task.action_tokens is not None:
            decoded = decode_actions(self.model, task.sequence, ActionDecoding.of(self.job.block_diffusion))
            meter.add({"action_bd/mae": _sum_of_absolutes(self.components.denormalize_actions(decoded.actions) - true)})
            meter.add({"action_bd/forwards_per_chunk": _sum_of_absolutes(decoded.forwards.float())})

    def _add_standing_measures(self, meter: Meter) -> None:
        """Add what the actions take from the colour word, and the error of positions in random scenes."""
        parts = self.components
        if parts.validation_robot is not None and self.job.training.act_coeff > 0:
            samples = colour_samples(parts.validation_robot, EVAL_SAMPLES)
            for robot in self._read(parts.validation_robot, samples):
                codes = encode_views(parts, robot, with_later=False)
                assert codes is not None
                meter.add(colour_squares(self.model, parts, codes))
        scenes = parts.validation_scenes
        for batch in () if scenes is None else self._read(scenes, evenly_spaced(len(scenes.dataset), EVAL_SCENES)):
            codes = encode_views(parts, batch, with_later=False)
            assert codes is not None
            _, error = self.model.scene_losses(scene_task(parts, codes).to(self.run.device))
            meter.add({GROUND_METRICS[1]: error})

    def _batches(self) -> Iterator[CoBatch]:
        """Yield this rank's batches, evenly spread over each data set: robot flow first, then the mmu flow."""
        if self.components.validation_robot is not None:
            yield from (CoBatch(robot=batch, text=None) for batch in self._part_of(self.components.validation_robot))
        if self.components.validation_text is not None:
            yield from (CoBatch(robot=None, text=batch) for batch in self._part_of(self.components.validation_text))

    def _part_of(self, flow: Flow[Batch]) -> Iterator[Batch]:
        yield from self._read(flow, evenly_spaced(len(flow.dataset), EVAL_SAMPLES))

    def _share(self, samples: Sequence[int]) -> Sequence[int]:
        """Return this rank's part of some samples."""
        return samples[self.run.rank :: self.run.world]

    def _read(self, flow: Flow[Batch], samples: Sequence[int]) -> Iterator[Batch]:
        """Yield this rank's part of some samples in batches."""
        indices = self._share(samples)
        for start in range(0, len(indices), flow.batch_size):
            yield flow.collate(read_samples(flow, indices[start : start + flow.batch_size]))

    def log_samples(self, step: int) -> None:
        """Log predicted and true future frames, and answers to ``question``."""
        with self._eval_mode():
            flow = self.components.validation_robot or self.components.data.robot
            if flow is not None:
                batch = collate_robot(read_samples(flow, evenly_spaced(len(flow.dataset), LOGGED_FRAMES)))
                self.run.metrics_logger.image("future/now_predicted_true", self.frames(batch), step)
            for image, answers in self.answers():
                name, limit = f"answers/{image.name}", self.job.max_new_tokens
                self.run.metrics_logger.text(name, "\n\n".join(answer.markdown(limit) for answer in answers), step)
                if image.file.is_file():  # with cached CLIP features it need not exist
                    sheet = answer_sheet(np.asarray(read_image(image.file)), answers)
                    self.run.metrics_logger.image(f"{name}/image", sheet, step)

    def frames(self, batch: RobotBatch) -> Tensor:
        """Return uint8 [3, H, W], a captioned row for each sample and view: frame now, predicted later, true later."""
        views = self.job.model.vla.num_view
        codes = encode_views(self.components, batch, with_later=False)
        assert codes is not None
        instructions = [self.components.prompter.instruction(text) for text in batch.instructions]
        state = state_features(self.components, batch)
        state = None if state is None else state.to(self.run.device)
        vocab = self.components.prompter.vocab
        sequence = robot_sequence(vocab, instructions, codes.now, self.job.act_step, state=state)
        predicted = self.model.predict(sequence, want_codes=True).codes
        assert predicted is not None
        pixels = self._decode(predicted.view(len(batch) * views, -1))  # [B * V, 3, R, R]
        now, true = batch.views[:, :views].flatten(0, 1), batch.future_views[:, :views].flatten(0, 1)
        if batch.coded:  # the images themselves are not opened
            now, true = self._decode(now), self._decode(true)
        captions = [text for text in batch.instructions for _ in range(views)]
        return future_sheet(now, pixels, true, captions, self.job.act_step)

    def _decode(self, codes: Tensor) -> Tensor:
        """Decode codes [B, n] to images, uint8 [B, 3, R, R], on the host."""
        return to_uint8(self.components.vq.decode(codes.long().to(self.run.device))).cpu()

    def answers(self) -> list[tuple[ImageQuestions, list[Answer]]]:
        """Return images with the model's answers to their questions."""
        images = self._images
        questions = [(row, question, truth) for row, p in enumerate(images) for question, truth in p.questions.items()]
        if not questions:
            return []
        patches = None
        if self.components.clip is not None:
            pixels = torch.stack([image.pixels for image in images])
            patches = self.components.clip.features(pixels.to(self.run.device))[[row for row, _, _ in questions]]
        limit, texts = self.job.max_new_tokens, [question for _, question, _ in questions]
        generated = generate(self.model, self.components.prompter, texts, patches, limit)
        answers: list[list[Answer]] = [[] for _ in images]
        for (row, question, truth), answer, cut in zip(questions, generated.texts, generated.cut, strict=True):
            answers[row].append(Answer(question, answer, truth, bool(cut)))
        return list(zip(images, answers, strict=True))

    @cached_property
    def _images(self) -> list[ImageQuestions]:
        """Images of ``mmu_image_root``, or of conversations in the data with their first question.

        The answers of the data are those of all conversations about the same image.
        """
        asked = questions_in(self.job.question)
        clip, root = self.components.clip, self.job.mmu_image_root
        if root is not None:
            spec = None if clip is None else clip.image_spec
            return [
                ImageQuestions(
                    f.stem,
                    f,
                    torch.empty(0) if spec is None else clip_pixels(read_image(f), spec),
                    dict.fromkeys(asked),
                )
                for f in images_in(Path(root))[:LOGGED_IMAGES]
            ]
        flow = self.components.validation_text or self.components.data.text
        if flow is None:
            return []
        found = []
        for sample in read_samples(flow, evenly_spaced(len(flow.dataset), LOGGED_IMAGES)):
            if sample.pixels is not None:
                question, truth = self._first_turn(sample)
                file, known = cast("LlavaDataset | Mixture", flow.dataset).image_and_answers(sample.index)
                questions = {question: truth, **{other: known.get(other) for other in asked if other != question}}
                found.append(ImageQuestions(f"picture-{sample.index}", file, sample.pixels, questions))
        return found

    def _first_turn(self, sample: TextSample) -> tuple[str, str]:
        """Return the first question of a conversation and its answer."""
        learned = [*sample.answer, False]
        start = learned.index(True) if True in learned else len(sample.ids)  # a cut conversation may lack its answer
        stop = learned.index(False, start)
        prompter = self.components.prompter
        question = prompter.decode(sample.ids[:start]).removeprefix("USER:").removesuffix("ASSISTANT:").strip()
        return question, prompter.decode(sample.ids[start:stop])

    @contextmanager
    def _eval_mode(self) -> Iterator[None]:
        """Evaluate inside the context: all weights (of the EMA, if there is one), no gradients, no dropout."""
        was_training, ema = self.components.model.training, self.components.ema
        self.components.model.eval()
        averaged = nullcontext() if ema is None else ema.applied()
        with torch.no_grad(), self.run.accelerator.autocast(), averaged, self._full_model.materialize() as self.model:
            yield
        self.model = self.components.model.train(was_training)


def _sum_of_absolutes(errors: Tensor) -> SumAndCount:
    """Return the sum of absolute values and their number."""
    total = errors.abs().sum()
    return SumAndCount(total, torch.full_like(total, errors.numel()))


def read_samples(flow: Flow[Any], indices: Sequence[int]) -> list[Any]:
    """Read samples of a flow. Raises SystemExit that names the file if one is bad."""
    try:
        samples = [flow.dataset[i] for i in indices]
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(f"stopped while reading samples: {error}") from error
    for sample in samples:
        if isinstance(sample, TextSample):
            flow.left_out.report(sample.left_out)
            flow.left_out.report_cut([(sample.index, sample.cut)] if sample.cut else [])
    return samples


def evenly_spaced(length: int, limit: int) -> list[int]:
    """Return at most ``limit`` indices, evenly spaced in ``range(length)``."""
    count = min(length, limit)
    return [i * length // count for i in range(count)]
