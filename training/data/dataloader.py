"""The two data flows of a run as batches, each a pure function of the position of the run in its data.

Every flow is an endless stream of passes over its samples, each pass in a new random order. With G = batch size x
processes, a micro-step takes the next G samples of that stream and deals them out to the processes in turn. So

* a resumed run continues exactly where it stopped (``Position``: the samples read of each stream), with any number of
  data workers, across epochs, and with any number of processes;
* no sample is dropped, and none repeats before all were used; the batch at the end of a pass is filled from the next
  pass, several times if the data set is smaller than G;
* no global random number generator is used.

``dataset.combined_loader_mode`` selects the flows of a micro-step and the length of an epoch. With R and M the
micro-steps of one pass over the robot and the mmu data:

=================  =====================================================  ======================
mode               micro-step t has                                       an epoch is
=================  =====================================================  ======================
min_size           both flows, batch t of each                            min(R, M) micro-steps
max_size_cycle     both flows, batch t of each                            max(R, M) micro-steps
max_size           both until the shorter ends; then the longer           max(R, M) micro-steps
sequential         the robot flow for R micro-steps, then mmu for M       R + M micro-steps
=================  =====================================================  ======================

In the first two modes no flow restarts before its pass ends, so that they differ only in the length of an epoch.
(In the original, min_size cut the longer flow at the same place and in the same order every epoch.)
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from config.schema import Job, LoaderMode
from models.processing.image import ClipImageSpec
from models.processing.text import Prompter
from models.vision.clip_encoder import ClipTower
from models.vision.magvitv2 import MagVITv2
from training.data.batch import CoBatch, RobotBatch, Samples, TextBatch, collate_robot, collate_text
from training.data.caches.clip_cache import clip_cache
from training.data.caches.token_cache import token_cache
from training.data.llava import TEXT_ALONE, LeftOut, LlavaDataset
from training.data.mixture import Mixture
from training.data.sampling_order import START, FlowProgress, Order, Position, StepSampler, Timetable, flow_seed
from training.data.worker_processes import PREFETCH, fail, receive
from training.future_view_prediction_w_action_dataset import DataProvider

Batch = TypeVar("Batch", RobotBatch, TextBatch)

CLIP_PATCHES = 576
"""Patches of CLIP ViT-L/14 at 336 pixels, which the original subtracts from the length of a conversation."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Failure:
    """An error of a data worker, without its traceback."""

    kind: type[ValueError] | type[FileNotFoundError]
    message: str


class _Fetch(Dataset[Any]):
    """A data set of whole batches, so that a worker sends either a batch or a one-line error."""

    def __init__(self, dataset: Samples[Any], collate: Callable[[Sequence[Any]], Any]) -> None:
        self.dataset, self.collate = dataset, collate

    def __getitems__(self, indices: list[int]) -> Any:
        try:
            if type(self.dataset) is DataProvider:  # a subclass may read samples in another way
                return self.dataset.batch(indices)
            return self.collate([self.dataset[index] for index in indices])
        except FileNotFoundError as error:
            return _Failure(FileNotFoundError, str(error))
        except ValueError as error:
            return _Failure(ValueError, str(error))
        except BaseException as error:  # torch forwards only an Exception that can be pickled
            fail(error)


def _identity(batch: Any) -> Any:
    return batch


@dataclass(frozen=True)
class Flow(Generic[Batch]):
    """A data set, its batch size, and the process that reads it."""

    dataset: Samples[Any]
    collate: Callable[[Sequence[Any]], Batch]
    batch_size: int  # per process
    seed: int
    workers: int = 0
    rank: int = 0
    world: int = 1
    order: Order | None = None  # order of a pass; None: a permutation of the data set
    left_out: LeftOut = field(default_factory=LeftOut, compare=False)  # found while training
    sample_bytes: int = 0  # tensors of a sample that workers send

    @property
    def in_flight(self) -> int:
        """Bytes of shared memory that finished batches may occupy."""
        return self.sample_bytes * self.batch_size * self.workers * PREFETCH

    @property
    def global_batch_size(self) -> int:
        """Samples of all processes in a micro-step."""
        return self.batch_size * self.world

    @property
    def steps(self) -> int:
        """Micro-steps in which every sample is used at least once."""
        return self.remaining_steps(0)

    def remaining_steps(self, used: int) -> int:
        """Return the micro-steps left in an epoch that has used this many samples."""
        return max(0, -(-(len(self.dataset) - used) // self.global_batch_size))

    def batches(self, start: int = 0) -> Iterator[Batch]:
        """Yield this process's batches, endless, beginning ``start`` samples into the stream of all processes."""
        sampler = StepSampler(len(self.dataset), self.batch_size, self.seed, start, self.rank, self.world, self.order)
        loader = DataLoader(
            _Fetch(self.dataset, self.collate),
            batch_sampler=sampler,
            collate_fn=_identity,
            num_workers=self.workers,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # otherwise creating the iterator draws from the global one
        )
        for batch in receive(loader):
            if isinstance(batch, _Failure):
                raise batch.kind(batch.message)
            if isinstance(batch, TextBatch):
                self.left_out.report(batch.left_out)
                self.left_out.report_cut(batch.cut)
            yield batch


@dataclass(frozen=True)
class CotrainLoader:
    """Yields one CoBatch per micro-step, endless, from the beginning of the data."""

    robot: Flow[RobotBatch] | None
    text: Flow[TextBatch] | None
    mode: LoaderMode = "max_size_cycle"
    scenes: Flow[RobotBatch] | None = None  # random scenes, a batch of which accompanies each batch of the robot flow

    def __post_init__(self) -> None:
        if self.robot is None and self.text is None:
            raise ValueError("there is neither a robot nor an mmu flow to train on")

    def timetable(self, start: Position = START) -> Timetable:
        """Return the timetable of micro-steps from ``start`` on."""
        first = None
        if self.robot is not None and self.text is not None:
            first = self.robot.remaining_steps(start.robot.in_epoch), self.text.remaining_steps(start.text.in_epoch)
        return Timetable(
            self.mode,
            robot=None if self.robot is None else self.robot.steps,
            text=None if self.text is None else self.text.steps,
            first=first,
        )

    @property
    def in_flight(self) -> int:
        """Bytes of shared memory that finished batches of both flows may occupy."""
        return sum(flow.in_flight for flow in (self.robot, self.text, self.scenes) if flow is not None)

    @property
    def epoch_steps(self) -> int:
        """Micro-steps of an epoch in this mode."""
        return self.timetable().epoch_steps

    def __iter__(self) -> Iterator[CoBatch]:
        return self.batches(START)

    def batches(self, start: Position) -> Generator[CoBatch, None, None]:
        """Yield batches from ``start`` on. Raises ValueError or FileNotFoundError naming a bad file."""
        table = self.timetable(start)
        robot = self.robot.batches(start.robot.samples) if self.robot is not None else iter(())
        text = self.text.batches(start.text.samples) if self.text is not None else iter(())
        scenes = self._scene_batches(start)
        for step in itertools.count():
            robot_number, text_number = table.at(step)
            robot_batch = None if robot_number is None else next(robot)
            if robot_batch is not None and self.scenes is not None:
                robot_batch = replace(robot_batch, scenes=next(scenes))
            yield CoBatch(robot=robot_batch, text=None if text_number is None else next(text))

    def _scene_batches(self, start: Position) -> Iterator[RobotBatch]:
        """Return the batches of scenes from ``start`` on; there were as many before as of the robot flow."""
        if self.scenes is None or self.robot is None:
            return iter(())
        done = start.robot.samples // self.robot.global_batch_size
        return self.scenes.batches(done * self.scenes.global_batch_size)

    def after(self, start: Position, micro_steps: int) -> Position:
        """Return the position of a run ``micro_steps`` after ``start``."""
        table = self.timetable(start)
        batches = table.before(micro_steps)
        same_epoch, place = table.in_epoch(micro_steps)
        ends = []
        for flow, before, count, in_epoch in zip(
            (self.robot, self.text), (start.robot, start.text), batches, place, strict=True
        ):
            size = 0 if flow is None else flow.global_batch_size
            epoch_start = before.in_epoch if same_epoch else 0
            ends.append(FlowProgress(before.samples + count * size, epoch_start + in_epoch * size))
        return Position(*ends)

    def describe(self) -> str:
        """Return one line for the log: samples, batches, epoch."""
        parts = [
            f"{name} {len(flow.dataset)} samples in batches of {flow.batch_size} x {flow.world} ({flow.steps} a pass)"
            for name, flow in (("robot flow", self.robot), ("mmu flow", self.text), ("scenes", self.scenes))
            if flow is not None
        ]
        return f"{', '.join(parts)}; an epoch is {self.epoch_steps} micro-steps ({self.mode})"


def robot_dataset(job: Job, root: str, vq: MagVITv2 | None = None) -> DataProvider:
    """Return the data set of a processed split (``dataset.gen_type``), with positions of objects if they are learned.

    ``vq``: read its cached codes in place of images, if there are any (``dataset.params.token_cache``).
    """
    return DataProvider(
        root,
        act_step=job.act_step,
        resolution=job.dataset.preprocessing.resolution,
        num_view=job.model.vla.num_view,
        tokens=None if vq is None else token_cache(job, root, vq),
        action_key=job.dataset.action_key,
        with_positions=job.training.ground_coeff > 0,
    )


def robot_flow(job: Job, data: DataProvider, name: str, batch_size: int, rank: int, world: int) -> Flow[RobotBatch]:
    """Return the training flow of a robot data set; ``name`` seeds its order."""
    # Sending a batch of codes from another process takes longer than gathering it.
    workers = job.dataset.params.num_workers if data.tokens is None else 0
    size, seed = 2 * job.model.vla.num_view * 3 * job.dataset.preprocessing.resolution**2, job.training.seed
    return Flow(data, collate_robot, batch_size, flow_seed(seed, name), workers, rank, world, sample_bytes=size)


def text_dataset(
    job: Job,
    prompter: Prompter,
    image_spec: ClipImageSpec | None,
    root: str,
    patches: int = CLIP_PATCHES,
    image_root: str | None = None,
    clip: ClipTower | None = None,
) -> LlavaDataset:
    """Return the data set of one source of conversations.

    ``clip``: read its cached patches in place of images, if there are any (``dataset.params.clip_cache``).
    """
    params = job.dataset.params
    return LlavaDataset(
        root,
        prompter,
        image_spec,
        max_ids=conversation_budget(job, prompter, patches),
        image_root=image_root,
        on_bad_record=params.on_bad_record,
        text_only=params.text_only,
        features=None if clip is None else clip_cache(job, root, image_root, clip),
    )


def training_conversations(
    job: Job,
    prompter: Prompter,
    image_spec: ClipImageSpec | None,
    patches: int = CLIP_PATCHES,
    clip: ClipTower | None = None,
) -> LlavaDataset | Mixture:
    """Return the training data of the mmu flow: one source, or several mixed by weight."""
    params = job.dataset.params
    roots, one = params.train_mmu_sources, params.train_mmu_shards_path_or_url
    if not roots and one is None:
        raise ValueError(
            "dataset.params.train_mmu_shards_path_or_url is not set; give a folder with LLaVA's json, or train "
            "without the mmu flow by dataset.und_type=null"
        )
    roots = roots or [str(one)]
    folders = params.train_mmu_image_roots
    images: Sequence[str | None] = folders * len(roots) if len(folders) == 1 else (folders or [None] * len(roots))
    sources = [
        text_dataset(job, prompter, image_spec, root, patches, image_root, clip)
        for root, image_root in zip(roots, images, strict=True)
    ]
    with_images = [source for source in sources if set(source.used) - {TEXT_ALONE}]
    uncached = [source for source in with_images if source.features is None]
    if 0 < len(uncached) < len(with_images):
        raise ValueError(
            f"{uncached[0].path} has no cached CLIP patches, but other sources have, and a batch holds either "
            "patches or images; make them (preprocess_data/clip_features.py), or set "
            "dataset.params.clip_cache=false"
        )
    return Mixture(sources, params.train_mmu_weights) if params.train_mmu_sources else sources[0]


def describe_conversations(flow: Flow[TextBatch] | None) -> list[str]:
    """Return lines for the log: records of an mmu flow that are used and left out."""
    data = None if flow is None else flow.dataset
    return data.summary() if isinstance(data, LlavaDataset | Mixture) else []


def describe_token_cache(flow: Flow[RobotBatch] | None) -> list[str]:
    """Return a line for the log if a robot flow reads a token cache."""
    data = None if flow is None else flow.dataset
    return [data.tokens.describe()] if isinstance(data, DataProvider) and data.tokens is not None else []


def conversation_budget(job: Job, prompter: Prompter, patches: int = CLIP_PATCHES) -> int:
    """Return the most ids of a conversation, so that its sequence is as long as a one-camera robot sequence.

    Both are M + n + T + 3 long, with M = max_seq_length, n = num_vq_tokens, T = act_step: the original stacks them.
    The mmu sequence has the task token, the system prompt, two marks and P patches before the conversation.
    Raises ValueError if this is less than 1.
    """
    length, codes = job.dataset.preprocessing.max_seq_length, job.model.showo.num_vq_tokens
    system = len(prompter.system_ids)
    budget = length + codes + job.act_step - patches - system
    budget = min(budget, prompter.tokenizer.model_max_length - system)
    if budget < 1:
        raise ValueError(
            f"dataset.preprocessing.max_seq_length={length} leaves no room for conversations after {patches} image "
            f"patches and a system prompt of {system} ids; it must be at least {length + 1 - budget}"
        )
    return budget


def _conversation_bytes(
    data: LlavaDataset | Mixture, image_spec: ClipImageSpec | None, patches: int, clip: ClipTower | None
) -> int:
    """Return the bytes of a conversation's image in float32: pixels, or CLIP patches if those are read."""
    sources = data.sources if isinstance(data, Mixture) else [data]
    if clip is not None and any(source.features is not None for source in sources):
        return patches * clip.width * 4
    return 0 if image_spec is None else 3 * image_spec.crop[0] * image_spec.crop[1] * 4


def cotrain_loader(
    job: Job,
    prompter: Prompter,
    image_spec: ClipImageSpec | None,
    rank: int = 0,
    world: int = 1,
    patches: int = CLIP_PATCHES,
    vq: MagVITv2 | None = None,
    clip: ClipTower | None = None,
) -> CotrainLoader:
    """Return both flows of a job for process ``rank`` of ``world``.

    ``image_spec``: CLIP's image preparation (None: images are not opened); ``patches``: CLIP patches of an image;
    ``vq``, ``clip``: networks whose cached codes and patches are read in place of images. Raises ValueError or
    FileNotFoundError for missing or wrong data.
    """
    params, training = job.dataset.params, job.training
    demonstrations = robot_dataset(job, params.train_pre_shards_path_or_url, vq)
    robot = robot_flow(job, demonstrations, "robot", training.batch_size_pre, rank, world)
    scenes: Flow[RobotBatch] | None = None
    if params.ground_shards_path is not None and training.ground_coeff > 0:
        drawn = robot_dataset(job, params.ground_shards_path, vq)
        scenes = robot_flow(job, drawn, "scenes", training.batch_size_ground, rank, world)
    text: Flow[TextBatch] | None = None
    if job.dataset.und_type is not None and training.batch_size_mmu > 0:
        conversations = training_conversations(job, prompter, image_spec, patches, clip)
        text = Flow(
            dataset=conversations,
            collate=collate_text,
            batch_size=training.batch_size_mmu,
            seed=flow_seed(training.seed, "mmu"),
            workers=params.num_workers,
            rank=rank,
            world=world,
            order=conversations.order if isinstance(conversations, Mixture) else None,
            sample_bytes=_conversation_bytes(conversations, image_spec, patches, clip),
        )
    loader = CotrainLoader(robot, text, job.dataset.combined_loader_mode, scenes)
    for name, flow in (("robot", robot), ("mmu", text), ("ground", scenes)):
        if flow is not None and len(flow.dataset) < flow.batch_size * world:
            logger.warning(
                "the %s data has %d samples, fewer than one batch of all processes (%d): samples repeat within it",
                name,
                len(flow.dataset),
                flow.batch_size * world,
            )
    return loader
