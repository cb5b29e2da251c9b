"""The sizes that benchmarks run at: one that a CPU core bears, and the real ones. Random weights; time does not depend
on what was learned.

``cpu`` is the size that the original's costs were measured at on this kind of machine (hidden 256, 4 layers, 12,003
ids, 256 codes, 669 slots, MAGVITv2 with 32 channels). ``phi`` and ``qwen3`` are the action-tuning configurations:
Phi-1.5 and Qwen3-1.7B, 512-pixel frames, released MAGVITv2, CLIP ViT-L/14 at 336 pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import CLIPVisionConfig, PhiConfig, Qwen3Config

from config.files import PROJECT_DIR
from models.pretrained.model_config import ModelConfig
from models.pretrained.model_io import Built
from models.processing.image import ClipImageSpec
from models.processing.text import Prompter, load_tokenizer
from models.upvla import UPVLA
from models.vision.clip_encoder import ClipTower
from models.vision.magvitv2 import RELEASED_DECODER, RELEASED_ENCODER, MagVITv2, Tower
from models.vocabulary import Vocabulary

TOKENIZER = PROJECT_DIR / "assets" / "tiny_phi"
"""Cuts the words of prompts; a larger vocabulary has ids that it never says."""
SYSTEM_WORDS = 28
"""Ids of the system prompt in Phi-1.5's tokenizer."""
PATCHES = 576


@dataclass(frozen=True)
class Size:
    """One problem. ``llm``: a transformers config; ``words``: ids before the special tokens; ``max_seq_length``: the
    length that the original pads instructions to, less one; ``real``: needs an accelerator."""

    name: str
    llm: Any
    words: int
    resolution: int
    max_seq_length: int
    encoder: Tower
    decoder: Tower
    clip: CLIPVisionConfig
    act_step: int = 10
    real: bool = False

    @property
    def num_vq_tokens(self) -> int:
        return (self.resolution // self.encoder.stride) ** 2

    @property
    def padded(self) -> int:
        """Slots of the original's robot row, and of its conversation: instruction, soi, codes, eoi, actions."""
        return self.max_seq_length + 1 + self.num_vq_tokens + 2 + self.act_step

    def spec(self, **changes: Any) -> ModelConfig:
        """``changes``: other fields of a ``ModelConfig``."""
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


def language_model(size: Size, device: torch.device | str = "cpu", seed: int = 0, **changes: Any) -> Built:
    """The network with random weights and a prompter whose system prompt has the original's 28 ids. ``meta`` as the
    device makes shapes alone, to count with. ``changes``: other fields of its ``ModelConfig``."""
    spec = size.spec(**changes)
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(seed)
        model = UPVLA(spec).eval()
    prompter = Prompter(load_tokenizer(TOKENIZER)[0], spec.vocab, spec.max_seq_length)
    prompter.system_ids = list(range(1, SYSTEM_WORDS + 1))
    return Built(model, prompter)


def image_tokenizer(size: Size, device: torch.device | str = "cpu", seed: int = 1) -> MagVITv2:
    """MAGVITv2, frozen, random weights. Its latents are of the size of released ones, so that codes vary."""
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(seed)
        return MagVITv2(size.encoder, size.decoder).requires_grad_(False).eval()


def clip_tower(size: Size, device: torch.device | str = "cpu", seed: int = 2) -> ClipTower:
    """CLIP's vision tower, frozen, random weights."""
    side = int(size.clip.image_size)
    image = ClipImageSpec(side, (side, side), 3, 1 / 255, (0.48, 0.46, 0.41), (0.27, 0.26, 0.28))
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(seed)
        return ClipTower(size.clip, image)


def vocabulary(size: Size) -> Vocabulary:
    return size.spec().vocab


def bearable(size: Size, device: torch.device, anyway: bool = False) -> None:
    """Raises ``SystemExit`` in one line where a real size would be run on a CPU, unless ``anyway``."""
    if size.real and device.type == "cpu" and not anyway:
        raise SystemExit(
            f"--size {size.name} is meant for a GPU (hours on a CPU); give --device cuda, --size cpu, or --anyway"
        )
