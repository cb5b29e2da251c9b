"""Both data flows of a run, micro-step by micro-step, each a pure function of where the run stands in it.

Every flow is an endless stream: its samples in a new random order, then again in another, and so on. With G = batch
size x processes, a micro-step takes the next G samples of that stream, dealt out to the processes like cards. So

* a run that resumes reads on exactly where it stopped (``Position``: the samples taken of each stream), with any number
  of data workers, across epochs, and with any number of processes;
* nothing is dropped, and nothing comes twice before everything came once; the batch at the end of a pass is filled
  from the next one, as often as needed where the data set is smaller than G;
* no global random number generator is touched.

``dataset.combined_loader_mode`` says which flows a micro-step has, and what is called an epoch. With R and M the
micro-steps that one pass over the robot and the mmu data takes:

=================  =====================================================  ======================
mode               micro-step t has                                       an epoch is
=================  =====================================================  ======================
min_size           both flows, batch t of each                            min(R, M) micro-steps
max_size_cycle     both flows, batch t of each                            max(R, M) micro-steps
max_size           both, until the shorter is through; then the longer    max(R, M) micro-steps
sequential         the robot flow for R micro-steps, then mmu for M       R + M micro-steps
=================  =====================================================  ======================

In the first two no flow is ever restarted before it is through, so that they differ only in what an epoch is called.
(In the original, min_size cut the longer flow at the same place and in the same order every epoch.)
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
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
"""Patches of CLIP ViT-L/14 at 336 pixels, whose place the original leaves in a conversation's length."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Failure:
    """An error on its way from a data worker, without the worker's traceback."""

    kind: type[ValueError] | type[FileNotFoundError]
    message: str


class _Fetch(Dataset[Any]):
    """A whole batch as one item, so that a worker hands over either the batch or the sentence that says why not."""

    def __init__(self, dataset: Samples[Any], collate: Callable[[Sequence[Any]], Any]) -> None:
        self.dataset, self.collate = dataset, collate

    def __getitems__(self, indices: list[int]) -> Any:
        try:
            if isinstance(self.dataset, DataProvider) and self.dataset.tokens is not None:
                return self.dataset.batch(indices)
            return self.collate([self.dataset[index] for index in indices])
        except FileNotFoundError as error:
            return _Failure(FileNotFoundError, str(error))
        except ValueError as error:
            return _Failure(ValueError, str(error))
        except BaseException as error:  # torch hands on an Exception only, and only one that can be pickled
            fail(error)


def _as_it_is(batch: Any) -> Any:
    return batch


@dataclass(frozen=True)
class Flow(Generic[Batch]):
    """One data set, how it is batched, and on which process."""

    dataset: Samples[Any]
    collate: Callable[[Sequence[Any]], Batch]
    batch_size: int  # per process
    seed: int
    workers: int = 0
    rank: int = 0
    world: int = 1
    order: Order | None = None  # of a pass; None: a permutation of the data set
    left_out: LeftOut = field(default_factory=LeftOut, compare=False)  # found while training
    sample_bytes: int = 0  # of the tensors of a sample, as far as workers hand them over

    @property
    def in_flight(self) -> int:
        """Bytes of shared memory that finished batches may take."""
        return self.sample_bytes * self.batch_size * self.workers * PREFETCH

    @property
    def together(self) -> int:
        """Samples that all processes take in a micro-step."""
        return self.batch_size * self.world

    @property
    def steps(self) -> int:
        """Micro-steps in which every sample has come at least once."""
        return self.left(0)

    def left(self, taken: int) -> int:
        """Micro-steps until every sample has come, if an epoch has taken this many already."""
        return max(0, -(-(len(self.dataset) - taken) // self.together))

    def batches(self, start: int = 0) -> Iterator[Batch]:
        """This process's batches without end, beginning ``start`` samples into the stream of all processes."""
        sampler = StepSampler(len(self.dataset), self.batch_size, self.seed, start, self.rank, self.world, self.order)
        loader = DataLoader(
            _Fetch(self.dataset, self.collate),
            batch_sampler=sampler,
            collate_fn=_as_it_is,
            num_workers=self.workers,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # or else making the iterator would draw from the global one
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
    """Iterating it gives one CoBatch per micro-step, without end, from the beginning of the data."""

    robot: Flow[RobotBatch] | None
    text: Flow[TextBatch] | None
    mode: LoaderMode = "max_size_cycle"

    def __post_init__(self) -> None:
        if self.robot is None and self.text is None:
            raise ValueError("there is neither a robot nor an mmu flow to train on")

    def timetable(self, start: Position = START) -> Timetable:
        """Micro-steps from ``start`` on."""
        first = None
        if self.robot is not None and self.text is not None:
            first = self.robot.left(start.robot.in_epoch), self.text.left(start.text.in_epoch)
        return Timetable(
            self.mode,
            robot=None if self.robot is None else self.robot.steps,
            text=None if self.text is None else self.text.steps,
            first=first,
        )

    @property
    def in_flight(self) -> int:
        """Bytes of shared memory that finished batches of both flows may take."""
        return sum(flow.in_flight for flow in (self.robot, self.text) if flow is not None)

    @property
    def epoch_steps(self) -> int:
        """Micro-steps of an epoch, as ``mode`` counts them."""
        return self.timetable().epoch_steps

    def __iter__(self) -> Iterator[CoBatch]:
        return self.batches(START)

    def batches(self, start: Position) -> Generator[CoBatch, None, None]:
        """From ``start`` on. Raises ValueError or FileNotFoundError naming a file that is bad."""
        table = self.timetable(start)
        robot = self.robot.batches(start.robot.samples) if self.robot is not None else iter(())
        text = self.text.batches(start.text.samples) if self.text is not None else iter(())
        for step in itertools.count():
            robot_number, text_number = table.at(step)
            yield CoBatch(
                robot=None if robot_number is None else next(robot),
                text=None if text_number is None else next(text),
            )

    def after(self, start: Position, micro_steps: int) -> Position:
        """Where a run stands that was at ``start`` and took so many micro-steps."""
        table = self.timetable(start)
        given = table.before(micro_steps)
        same_epoch, place = table.in_epoch(micro_steps)
        ends = []
        for flow, had, batches, placed in zip(
            (self.robot, self.text), (start.robot, start.text), given, place, strict=True
        ):
            size = 0 if flow is None else flow.together
            ends.append(FlowProgress(had.samples + batches * size, (had.in_epoch if same_epoch else 0) + placed * size))
        return Position(*ends)

    def describe(self) -> str:
        """One line for the log: samples, batches, epoch."""
        parts = [
            f"{name} {len(flow.dataset)} samples in batches of {flow.batch_size} x {flow.world} ({flow.steps} a pass)"
            for name, flow in (("robot flow", self.robot), ("mmu flow", self.text))
            if flow is not None
        ]
        return f"{', '.join(parts)}; an epoch is {self.epoch_steps} micro-steps ({self.mode})"


def robot_dataset(job: Job, root: str, vq: MagVITv2 | None = None) -> DataProvider:
    """The provider that ``dataset.gen_type`` names, over a processed split: of the codes that ``vq`` once made of its
    images, where there are any (``dataset.params.token_cache``), else of images."""
    return DataProvider(
        root,
        act_step=job.act_step,
        resolution=job.dataset.preprocessing.resolution,
        num_view=job.model.vla.num_view,
        tokens=None if vq is None else token_cache(job, root, vq),
    )


def text_dataset(
    job: Job,
    prompter: Prompter,
    image_spec: ClipImageSpec | None,
    root: str,
    patches: int = CLIP_PATCHES,
    image_root: str | None = None,
    clip: ClipTower | None = None,
) -> LlavaDataset:
    """``clip``: the tower whose patches are read in place of images, if they were made before."""
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
    """What the mmu flow walks: one source, or several by weight."""
    params = job.dataset.params
    roots, one = params.train_mmu_sources, params.train_mmu_shards_path_or_url
    if not roots and one is None:
        raise ValueError(
            "dataset.params.train_mmu_shards_path_or_url is not set; give a folder with LLaVA's json, or train "
            "without the mmu flow by dataset.und_type=null"
        )
    roots = roots or [str(one)]
    given = params.train_mmu_image_roots
    images: Sequence[str | None] = given * len(roots) if len(given) == 1 else (given or [None] * len(roots))
    sources = [
        text_dataset(job, prompter, image_spec, root, patches, image_root, clip)
        for root, image_root in zip(roots, images, strict=True)
    ]
    with_images = [source for source in sources if set(source.used) - {TEXT_ALONE}]
    seen = [source for source in with_images if source.features is None]
    if 0 < len(seen) < len(with_images):
        raise ValueError(
            f"{seen[0].path}: CLIP's patches of its images were not made before, those of other sources were, and a "
            "batch has patches or images; make them (preprocess_data/clip_features.py), or set "
            "dataset.params.clip_cache=false"
        )
    return Mixture(sources, params.train_mmu_weights) if params.train_mmu_sources else sources[0]


def describe_conversations(flow: Flow[TextBatch] | None) -> list[str]:
    """What the data of an mmu flow holds and what of it is left out, line by line."""
    data = None if flow is None else flow.dataset
    return data.summary() if isinstance(data, LlavaDataset | Mixture) else []


def describe_token_cache(flow: Flow[RobotBatch] | None) -> list[str]:
    """Which token cache a robot flow reads, in a line."""
    data = None if flow is None else flow.dataset
    return [data.tokens.describe()] if isinstance(data, DataProvider) and data.tokens is not None else []


def conversation_budget(job: Job, prompter: Prompter, patches: int = CLIP_PATCHES) -> int:
    """Ids a conversation may have: as many as make its sequence as long as a one-camera robot sequence.

    Both are M + n + T + 3 long, with M = max_seq_length, n = num_vq_tokens, T = act_step: the original stacks them.
    The mmu sequence has the task token, the system prompt, two marks and P patches before the conversation.
    Raises ValueError when nothing is left.
    """
    length, codes = job.dataset.preprocessing.max_seq_length, job.model.showo.num_vq_tokens
    system = len(prompter.system_ids)
    budget = length + codes + job.act_step - patches - system
    budget = min(budget, prompter.tokenizer.model_max_length - system)
    if budget < 1:
        raise ValueError(
            f"dataset.preprocessing.max_seq_length={length} leaves no place for conversations beside {patches} image "
            f"patches and a system prompt of {system} ids; it must be at least {length + 1 - budget}"
        )
    return budget


def _conversation_bytes(
    data: LlavaDataset | Mixture, image_spec: ClipImageSpec | None, patches: int, clip: ClipTower | None
) -> int:
    """Bytes of a conversation's image in float32: its pixels, or CLIP's patches if those are read."""
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
    """Both flows of a job for process ``rank`` of ``world``.

    ``image_spec``: how CLIP wants images (None: images are not opened); ``patches``: how many it makes of one;
    ``vq``, ``clip``: whose codes and patches are read in place of images, if they were made before.
    Raises ValueError or FileNotFoundError in the user's words when the data is missing or wrong.
    """
    params, training = job.dataset.params, job.training
    demonstrations = robot_dataset(job, params.train_pre_shards_path_or_url, vq)
    robot = Flow(
        dataset=demonstrations,
        collate=collate_robot,
        batch_size=training.batch_size_pre,
        seed=flow_seed(training.seed, "robot"),
        # Handing a batch of codes over from another process takes longer than gathering it.
        workers=params.num_workers if demonstrations.tokens is None else 0,
        rank=rank,
        world=world,
        sample_bytes=2 * job.model.vla.num_view * 3 * job.dataset.preprocessing.resolution**2,
    )
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
    loader = CotrainLoader(robot, text, job.dataset.combined_loader_mode)
    for name, flow in (("robot", robot), ("mmu", text)):
        if flow is not None and len(flow.dataset) < flow.batch_size * world:
            logger.warning(
                "the %s data has %d samples, fewer than one batch of all processes (%d): samples repeat within it",
                name,
                len(flow.dataset),
                flow.batch_size * world,
            )
    return loader
