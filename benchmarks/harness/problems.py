"""Problems to measure: networks of several sizes with random weights, and a training step with a made-up batch.

``tiny`` and ``tiny_qwen3`` show in seconds that a benchmark runs. ``cpu`` is a small size (hidden 256, 4 layers, 12,003
ids, 256 codes, 669 slots, MAGVITv2 with 32 channels and few blocks). ``phi`` and ``qwen3`` are the action-tuning
configurations: Phi-1.5 and Qwen3-1.7B, 512-pixel frames, released MAGVITv2, CLIP ViT-L/14 at 336 pixels. Time does not
depend on trained weights.

Sequence lengths are those of typical data, not of the limits: an instruction of 13 ids, a conversation of
``QUESTION`` + ``ANSWER`` ids. The original pads both to its limits; the package does not.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import CLIPVisionConfig, PhiConfig, Qwen3Config

from benchmarks.harness.record import Parser
from common.files import PROJECT_DIR
from config.schema import Job, Objective
from models.objectives import text_objective
from models.pretrained.model_config import ModelConfig
from models.pretrained.model_io import Built
from models.processing.image import ClipImageSpec, normalise
from models.processing.text import Prompter, load_tokenizer
from models.rng import SampleRng
from models.upvla import UPVLA
from models.vision.clip_encoder import ClipTower
from models.vision.magvitv2 import RELEASED_DECODER, RELEASED_ENCODER, MagVITv2, Tower
from training.batch_to_tasks import coefficients, encode_image, encode_views, robot_task, text_task
from training.build import Components
from training.data.batch import CoBatch, RobotBatch, RobotSample, TextBatch, collate_robot
from training.data.dataloader import CotrainLoader, Flow
from training.optim.lora import attach
from training.optim.optimizer import Schedule, build_optimizer

TOKENIZER = PROJECT_DIR / "assets" / "tiny_phi"
"""Tokenizer of the prompts; larger vocabularies have ids that it never produces."""
SYSTEM_WORDS = 28
"""Length of the system prompt in Phi-1.5's tokenizer."""
PATCHES = 576
INSTRUCTION = "push the red block to the left"
QUESTION, ANSWER = 44, 256
"""Lengths of a conversation's question and answer at real size. (The limit is 1006 in total.)"""

CLIP_FIELDS = {
    "size": {"shortest_edge": 336},
    "crop_size": {"height": 336, "width": 336},
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
"""The fields that matter of openai/clip-vit-large-patch14-336."""


@dataclass(frozen=True)
class Size:
    """Sizes of all networks.

    ``llm``: a transformers config; ``words``: ids before the special tokens; ``max_seq_length``: the length that the
    original pads instructions to, minus one; ``question``, ``answer``: ids of a conversation; ``real``: needs a GPU.
    """

    name: str
    llm: Any
    words: int
    resolution: int
    max_seq_length: int
    encoder: Tower
    decoder: Tower
    clip: CLIPVisionConfig
    act_step: int = 10
    question: int = QUESTION
    answer: int = ANSWER
    real: bool = False

    @property
    def num_vq_tokens(self) -> int:
        return (self.resolution // self.encoder.stride) ** 2

    @property
    def padded(self) -> int:
        """Return the slots of the original's robot row and conversation: instruction, soi, codes, eoi, actions."""
        return self.max_seq_length + 1 + self.num_vq_tokens + 2 + self.act_step

    def spec(self, **changes: Any) -> ModelConfig:
        """Return the ``ModelConfig`` of this size with ``changes``."""
        spec = ModelConfig(
            llm=self.llm.to_dict(),
            words=self.words,
            bos=0,
            eos=0,
            act_step=self.act_step,
            num_view=1,
            num_vq_tokens=self.num_vq_tokens,
            clip_width=int(self.clip.hidden_size),
            max_seq_length=self.max_seq_length,
            resolution=self.resolution,
        )
        return spec.updated(**changes)


def _llm(kind: type, **sizes: Any) -> Any:
    return kind(attention_dropout=0.0, **sizes)


SIZES = {
    "cpu": Size(
        name="cpu",
        llm=_llm(
            PhiConfig,
            hidden_size=256,
            intermediate_size=1024,
            num_hidden_layers=4,
            num_attention_heads=4,
            partial_rotary_factor=0.5,
        ),
        words=3800,
        resolution=256,
        max_seq_length=400,
        encoder=Tower(32, (1, 1, 1, 1, 2), (2, 1, 1, 1, 1)),
        decoder=Tower(32, (1, 1, 1, 1, 2), (1, 1, 1, 1, 2)),
        clip=CLIPVisionConfig(
            hidden_size=256,
            intermediate_size=1024,
            num_hidden_layers=4,
            num_attention_heads=4,
            image_size=48,
            patch_size=2,
        ),
        question=20,
        answer=31,  # with the question 51 ids; the original pads them to 62
    ),
    "phi": Size(
        name="phi",
        llm=_llm(
            PhiConfig,
            hidden_size=2048,
            intermediate_size=8192,
            num_hidden_layers=24,
            num_attention_heads=32,
            partial_rotary_factor=0.5,
        ),
        words=50295,
        resolution=512,
        max_seq_length=576,
        encoder=RELEASED_ENCODER,
        decoder=RELEASED_DECODER,
        clip=CLIPVisionConfig(
            hidden_size=1024,
            intermediate_size=4096,
            num_hidden_layers=24,
            num_attention_heads=16,
            image_size=336,
            patch_size=14,
        ),
        real=True,
    ),
}
SIZES["qwen3"] = replace(
    SIZES["phi"],
    name="qwen3",
    llm=_llm(
        Qwen3Config,
        hidden_size=2048,
        intermediate_size=6144,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=True,
    ),
    words=151669,
)
SIZES["tiny"] = replace(
    SIZES["cpu"],
    name="tiny",
    llm=_llm(
        PhiConfig,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        partial_rotary_factor=0.5,
    ),
    resolution=32,
    max_seq_length=40,
    encoder=Tower(32, (1, 1, 1, 1, 1), (1, 1, 1, 1, 1)),
    decoder=Tower(32, (1, 1, 1, 1, 1), (1, 1, 1, 1, 1)),
    clip=CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4
    ),
    question=6,
    answer=8,
)
SIZES["tiny_qwen3"] = replace(
    SIZES["tiny"],
    name="tiny_qwen3",
    llm=_llm(
        Qwen3Config,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        tie_word_embeddings=True,
    ),
)


def with_layers(size: Size, layers: int) -> Size:
    """Return a size whose language model has ``layers`` layers, at its real width."""
    fields = {**size.llm.to_dict(), "num_hidden_layers": layers, "layer_types": None}
    return replace(size, llm=type(size.llm)(**fields))


def language_model(size: Size, device: torch.device | str = "cpu", seed: int = 0, **changes: Any) -> Built:
    """Build the network with random weights, and a prompter whose system prompt has the original's 28 ids.

    On the device ``meta`` it has shapes only, to count operations. ``changes``: fields of its ``ModelConfig``.
    """
    spec = size.spec(**changes)
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(seed)
        model = UPVLA(spec).eval()
    prompter = Prompter(load_tokenizer(TOKENIZER)[0], spec.vocab, spec.max_seq_length)
    prompter.system_ids = list(range(1, SYSTEM_WORDS + 1))
    return Built(model, prompter)


def image_tokenizer(size: Size, device: torch.device | str = "cpu", seed: int = 1) -> MagVITv2:
    """Build MAGVITv2, frozen, with random weights; its latents have the scale of released ones, so that codes vary."""
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(seed)
        return MagVITv2(size.encoder, size.decoder).requires_grad_(False).eval()


def clip_tower(size: Size, device: torch.device | str = "cpu", seed: int = 2) -> ClipTower:
    """Build CLIP's vision tower, frozen, with random weights."""
    side = int(size.clip.image_size)
    image = ClipImageSpec(side, (side, side), 3, 1 / 255, (0.48, 0.46, 0.41), (0.27, 0.26, 0.28))
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(seed)
        return ClipTower(size.clip, image)


def add_size(parser: Parser) -> None:
    """Add ``--size`` and ``--anyway``."""
    parser.add_argument("--size", choices=sorted(SIZES), default="cpu", help="size of the networks (cpu)")
    parser.add_argument("--anyway", action="store_true", help="run a real size on a CPU")


def check_size(args: argparse.Namespace) -> Size:
    """Return the size of ``add_size``'s options. Raises ``SystemExit`` for a real size on a CPU without --anyway."""
    size = SIZES[args.size]
    if size.real and args.device.type == "cpu" and not args.anyway:
        raise SystemExit(
            f"--size {size.name} is meant for a GPU (hours on a CPU); give --device cuda, --size cpu, or --anyway"
        )
    return size


class _NoData(Dataset[RobotSample]):
    """A placeholder: batches are given directly."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> RobotSample:
        raise IndexError(index)


@contextlib.contextmanager
def shapes_only() -> Iterator[None]:
    """Disable autocast, which does not support the meta device."""
    with mock.patch("torch.autocast", return_value=contextlib.nullcontext()):
        yield


@dataclass(frozen=True)
class Problem:
    """Components of a run, and the batch of every step."""

    size: Size
    parts: Components
    batch: CoBatch

    @property
    def objective(self) -> str:
        return self.parts.objective.name

    @property
    def weights(self) -> Tensor:
        """Return the coefficients of the losses in ``COUNTED``, on the device."""
        return torch.tensor(coefficients(self.parts.job)).to(self.parts.device)

    @property
    def robot(self) -> RobotBatch:
        assert self.batch.robot is not None
        return self.batch.robot

    @property
    def text(self) -> TextBatch:
        assert self.batch.text is not None
        return self.batch.text

    @property
    def clip(self) -> ClipTower:
        assert self.parts.clip is not None
        return self.parts.clip

    def slots(self) -> int:
        """Return the number of slots of both flows in the package's step."""
        codes, turn = encode_views(self.parts, self.robot), encode_image(self.parts, self.text)
        future, text = robot_task(self.parts, codes, 0), text_task(self.parts, turn, SampleRng(0, 0))
        assert future is not None
        assert text is not None
        return future.full_sequence.ids.numel() + text.sequence.ids.numel()

    def coded(self) -> CoBatch:
        """Return the batch as a token cache gives it: with the codes of its frames, on the host."""
        views, future_views = (
            self.parts.vq.encode(normalise(views[:, 0].to(self.parts.device))).short().cpu()[:, None]
            for views in (self.robot.views, self.robot.future_views)
        )
        return replace(self.batch, robot=replace(self.robot, views=views, future_views=future_views))


def problem(
    size: Size,
    objective: Objective,
    device: torch.device,
    rows: int,
    attn_implementation: str = "sdpa",
    gradient_checkpointing: bool = False,
    job: Job | None = None,
) -> Problem:
    """Build a training step of ``rows`` robot samples and as many conversations; on the device meta shapes only.

    Loss weights are those of the action-tuning configurations, all 1. The mask token is not banned from the logits, as
    in the original, so that losses can be equal. ``job``: the other settings, adapters among them (``Job()``).
    """
    job = replace(job or Job())
    job.training = replace(
        job.training, batch_size_pre=rows, batch_size_mmu=rows, mmu_coeff=1.0, text_objective=objective
    )
    built = language_model(size, device, mask_logit_banned=False, attn_implementation=attn_implementation)
    model = built.model.to(device).train()
    attach(model, job)
    if gradient_checkpointing:
        model.backbone.enable_gradient_checkpointing()
    clip = clip_tower(size, device)
    no_data: Flow[RobotBatch] = Flow(_NoData(), collate_robot, rows, seed=0)
    parts = Components(
        job=job,
        device=device,
        model=model,
        prompter=built.prompter,
        vq=image_tokenizer(size, device).to(device),
        clip=clip.to(device),
        objective=text_objective(job),
        optimizer=build_optimizer(model, job, device),
        schedule=Schedule.of(job),
        data=CotrainLoader(no_data, None),
    )
    return Problem(size, parts, made_up_batch(size, rows))


def made_up_batch(size: Size, rows: int) -> CoBatch:
    """Return a batch of noise images and random tokens, the same for the same size."""
    draw = torch.Generator().manual_seed(3)
    shape, side = (rows, 1, 3, size.resolution, size.resolution), int(size.clip.image_size)
    question, answer = size.question, size.answer
    words = torch.randint(1, size.words, (rows, question + answer), generator=draw)
    words[:, -1] = 0  # end-of-text
    robot = RobotBatch(
        views=torch.randint(0, 256, shape, dtype=torch.uint8, generator=draw),
        future_views=torch.randint(0, 256, shape, dtype=torch.uint8, generator=draw),
        instructions=[INSTRUCTION] * rows,
        actions=torch.rand(rows, size.act_step, 7, generator=draw) * 2 - 1,
        action_is_pad=torch.zeros(rows, size.act_step, dtype=torch.bool),
        indices=torch.arange(rows),
    )
    text = TextBatch(
        ids=words.tolist(),
        answers=[[False] * question + [True] * answer] * rows,
        pixels=torch.randn(rows, 3, side, side, generator=draw),
        pictured=torch.ones(rows, dtype=torch.bool),
        indices=torch.arange(rows),
    )
    return CoBatch(robot=robot, text=text)
