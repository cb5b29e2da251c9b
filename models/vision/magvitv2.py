"""MAGVITv2, the image tokenizer: images to 13-bit codes and back.

A convolutional encoder halves the image four times and ends in 13 channels; the code of a cell is the signs of these
channels read as a binary number (lookup-free quantisation, Yu et al. 2024, arXiv:2310.05737). Parameter names are those
of the released checkpoint (`showlab/magvitv2`), whose sizes are the defaults.

Shape letters: B batch, R resolution, h/w latent grid (R/16 when there are five levels), N = h*w codes in row order,
C channels, 13 latent channels (bits; channel 0 is the most significant).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.constants import CODEBOOK_SIZE
from common.files import expand_home, read_object
from models.pretrained.weights_io import load_strict, read_weights, resolve_model_dir, state_sha256

LATENT_CHANNELS = 13
assert CODEBOOK_SIZE == 2**LATENT_CHANNELS
NORM_GROUPS = 32


@dataclass(frozen=True)
class Tower:
    """Sizes of the encoder or decoder; one entry per level, the finest level first."""

    ch: int
    ch_mult: tuple[int, ...]
    num_res_blocks: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.ch_mult) != len(self.num_res_blocks):
            raise ValueError(f"ch_mult {self.ch_mult} and num_res_blocks {self.num_res_blocks} differ in length")
        if any(self.ch * mult % NORM_GROUPS for mult in self.ch_mult) or self.ch % NORM_GROUPS:
            raise ValueError(f"ch {self.ch} is not a multiple of {NORM_GROUPS}, the groups of the norm")

    @property
    def stride(self) -> int:
        """Pixels per latent cell, along one side."""
        return int(2 ** (len(self.ch_mult) - 1))

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Tower:
        return cls(int(fields["ch"]), tuple(fields["ch_mult"]), tuple(fields["num_res_blocks"]))


RELEASED_ENCODER = Tower(128, (1, 2, 2, 4, 4), (4, 3, 4, 3, 4))
RELEASED_DECODER = Tower(128, (1, 1, 2, 2, 4), (4, 4, 3, 4, 3))


# -------------------------------------------------------------------------------------------------------------- layers
def norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(NORM_GROUPS, channels, eps=1e-6)


def swish(x: Tensor) -> Tensor:
    """Return the activation of a norm's output; without gradients it replaces that output and takes no memory."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


class ResBlock(nn.Module):
    """Two 3x3 convolutions with pre-norm and swish around a shortcut."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.norm1 = norm(c_in)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.norm2 = norm(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(swish(self.norm1(x)))
        h = self.conv2(swish(self.norm2(h)))
        return self.nin_shortcut(x) + h if torch.is_grad_enabled() else h.add_(self.nin_shortcut(x))


class AttnBlock(nn.Module):
    """Single-head self-attention over the cells of the grid."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = norm(channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        q, k, v = (layer(y).flatten(2).transpose(1, 2) for layer in (self.q, self.k, self.v))  # each [B,h*w,C]
        seen = F.scaled_dot_product_attention(q, k, v)  # scale C^-0.5
        return x + self.proj_out(seen.transpose(1, 2).reshape(x.shape))


class Middle(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1 = ResBlock(channels, channels)
        self.attn_1 = AttnBlock(channels)
        self.block_2 = ResBlock(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Downsample(nn.Module):
    """Stride-2 convolution; the padding is on the right and the bottom only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Nearest-neighbour upsampling by 2, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """The residual blocks of one resolution, then down- or upsampling."""

    def __init__(self, c_in: int, c_out: int, blocks: int, downsample: bool = False, upsample: bool = False) -> None:
        super().__init__()
        self.block = nn.ModuleList(ResBlock(c_in if i == 0 else c_out, c_out) for i in range(blocks))
        self.downsample = Downsample(c_out) if downsample else None
        self.upsample = Upsample(c_out) if upsample else None

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        if self.downsample is not None:
            x = self.downsample(x)
        return x if self.upsample is None else self.upsample(x)


class Encoder(nn.Module):
    def __init__(self, size: Tower) -> None:
        super().__init__()
        widths = [size.ch * mult for mult in size.ch_mult]
        inputs = [size.ch, *widths[:-1]]
        self.conv_in = nn.Conv2d(3, size.ch, 3, padding=1)
        coarsest = len(widths) - 1
        self.down = nn.ModuleList(
            Level(c_in, c_out, blocks, downsample=i != coarsest)
            for i, (c_in, c_out, blocks) in enumerate(zip(inputs, widths, size.num_res_blocks, strict=True))
        )
        self.mid = Middle(widths[-1])
        self.norm_out = norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], LATENT_CHANNELS, 3, padding=1)
        self.quant_conv = nn.Conv2d(LATENT_CHANNELS, LATENT_CHANNELS, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        h = self.conv_in(pixels)  # [B,C,R,R]
        for level in self.down:
            h = level(h)
        h = self.mid(h)  # [B,C,h,w]
        return self.quant_conv(self.conv_out(swish(self.norm_out(h))))  # [B,13,h,w]


class Decoder(nn.Module):
    def __init__(self, size: Tower) -> None:
        super().__init__()
        widths = [size.ch * mult for mult in size.ch_mult]
        inputs = [*widths[1:], widths[-1]]  # runs from the coarsest level (last) to the finest (first)
        self.post_quant_conv = nn.Conv2d(LATENT_CHANNELS, LATENT_CHANNELS, 1)
        self.conv_in = nn.Conv2d(LATENT_CHANNELS, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1])
        self.up = nn.ModuleList(
            Level(c_in, c_out, blocks, upsample=i != 0)
            for i, (c_in, c_out, blocks) in enumerate(zip(inputs, widths, size.num_res_blocks, strict=True))
        )
        self.norm_out = norm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, bits: Tensor) -> Tensor:
        h = self.mid(self.conv_in(self.post_quant_conv(bits)))  # [B,C,h,w]
        for level in reversed(self.up):
            h = level(h)  # [B,C,R,R] in the end
        return self.conv_out(swish(self.norm_out(h)))  # [B,3,R,R]


class SignTable(nn.Module):
    """The fixed tables that the released file stores: code -> bits (+1/-1), and the weight of every bit."""

    embedding: Tensor  # [8192,13] float
    power_vals: Tensor  # [13] long

    def __init__(self) -> None:
        super().__init__()
        powers = 2 ** torch.arange(LATENT_CHANNELS - 1, -1, -1)
        codes = torch.arange(CODEBOOK_SIZE)
        self.register_buffer("embedding", torch.where(codes[:, None] & powers != 0, 1.0, -1.0))
        self.register_buffer("power_vals", powers)

    def codes(self, latent: Tensor) -> Tensor:
        """Return codes [B,h,w] long of latents [B,13,h,w]; an exact zero is a 0 bit."""
        # No matrix product: CUDA has none for integers.
        return ((latent > 0) * self.power_vals[:, None, None]).sum(1)

    def bits(self, codes: Tensor) -> Tensor:
        """Return [B,13,h,w] of +1/-1 for codes [B,h,w] long."""
        return self.embedding[codes].movedim(-1, 1)


@contextmanager
def without_tf32() -> Iterator[None]:
    """Switch TF32 off in matrix products and convolutions of NVIDIA GPUs."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = False
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


# ----------------------------------------------------------------------------------------------------------- tokenizer
class MagVITv2(nn.Module):
    """The image tokenizer, frozen: `encode` and `decode`."""

    def __init__(self, enc: Tower = RELEASED_ENCODER, dec: Tower = RELEASED_DECODER) -> None:
        super().__init__()
        if enc.stride != dec.stride:
            raise ValueError(f"the encoder divides the side by {enc.stride}, the decoder multiplies it by {dec.stride}")
        self.stride = enc.stride
        self.encoder = Encoder(enc)
        self.decoder = Decoder(dec)
        self.quantize = SignTable()

    def latent(self, pixels: Tensor) -> Tensor:
        """Return the encoder output before the sign, [B,13,h,w], of pixels [B,3,R,R] in [-1,1]."""
        height, width = pixels.shape[-2:]
        if height % self.stride or width % self.stride:
            raise ValueError(f"image of {height} x {width} pixels: both must be multiples of {self.stride}")
        return self.encoder(pixels)

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Return codes [B,N] long in 0..8191, row by row, of pixels [B,3,R,R] in [-1,1].

        Computed in float32, also under autocast and with ``training.enable_tf32``: a code flips when its latent comes
        near 0, and codes of a token cache, of training and of acting must not depend on the command.
        """
        with torch.autocast(pixels.device.type, enabled=False), without_tf32():
            parts = _split_for_device(pixels.to(self.encoder.conv_in.weight.dtype))
            if pixels.device.type == "cpu":
                _set_channels_last(self.encoder)
            return torch.cat([self.quantize.codes(self.latent(part)).flatten(1) for part in parts])

    @torch.no_grad()
    def decode(self, codes: Tensor, shape: tuple[int, int] | None = None) -> Tensor:
        """Return pixels [B,3,16h,16w], nominally in [-1,1], not clipped, of codes [B,N].

        Args:
            shape: the grid (h, w); a square one when left out.

        Raises:
            ValueError: N does not fill the grid, or a code is none of 0..8191.
        """
        h, w = shape or (round(codes.shape[1] ** 0.5),) * 2
        if h * w != codes.shape[1]:
            raise ValueError(f"{codes.shape[1]} codes do not fill a grid of {h} x {w}; give shape=(rows, columns)")
        if codes.numel() and (codes.min() < 0 or codes.max() >= CODEBOOK_SIZE):
            raise ValueError(f"image codes must lie in 0..{CODEBOOK_SIZE - 1}")
        with torch.autocast(codes.device.type, enabled=False):
            return self.decoder(self.quantize.bits(codes.reshape(-1, h, w)).to(self.decoder.conv_in.weight.dtype))

    @property
    def weights_hash(self) -> str:
        """SHA-256 over names, types, shapes and bytes of all tensors, computed anew on every access."""
        return state_sha256(self)

    @classmethod
    def from_dir(cls, path: str | Path) -> MagVITv2:
        """Load from a directory with `config.json` (optional `enc` and `dec` sizes) and weights, frozen."""
        return _load(*_sizes(Path(path)), Path(path))


@torch.inference_mode(False)  # weights made in inference mode cannot be trained
def _set_channels_last(module: nn.Module) -> None:
    """Change the layout, not the values, of the convolutions' weights. A second call does nothing."""
    for weight in module.parameters():
        if weight.ndim == 4 and not weight.is_contiguous(memory_format=torch.channels_last):
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)


def _split_for_device(pixels: Tensor) -> tuple[Tensor, ...]:
    """Split [B,C,R,R] for the device. On a CPU into single images, channels last as the weights: nothing is reordered,
    and only one image's activations are in memory (2.1 times as fast as a batch of 4, `docs/log.md`)."""
    if pixels.device.type != "cpu" or not len(pixels):
        return (pixels,)
    return tuple(one.contiguous(memory_format=torch.channels_last) for one in torch.split(pixels, 1))


def load_magvit(
    name_or_path: str | Path,
    pretrained_model_path: str | Path | None = None,
    key: str = "model.vq_model.vq_model_name",
) -> MagVITv2:
    """Load the frozen tokenizer of a run, on the CPU, in float32.

    Args:
        name_or_path: a directory, a weight file, or a hub id.
        pretrained_model_path: a bare weight file (its state dict plain or under `model`) that replaces the weights of
            `name_or_path`. The sizes are those of a `config.json` beside the file, else of the local directory
            `name_or_path`, else the released ones.
        key: the config key of `name_or_path`, for error messages.

    Raises:
        ValueError, FileNotFoundError: the source is not there, unreadable, or of other sizes; names it.
    """
    if pretrained_model_path is None:
        source = resolve_model_dir(name_or_path, key)
        return _load(*_sizes(source), source)
    source = expand_home(pretrained_model_path)
    if not source.exists():
        raise FileNotFoundError(f"model.vq_model.pretrained_model_path: {source} does not exist")
    folder = source if source.is_dir() else source.parent
    return _load(*_sizes(folder if _describes_magvit(folder) else expand_home(name_or_path)), source)


def _load(enc: Tower, dec: Tower, source: Path) -> MagVITv2:
    with torch.device("meta"):
        model = MagVITv2(enc, dec).float()
    table = SignTable()
    load_strict(model, read_weights(source), source)
    if not torch.equal(model.quantize.embedding, table.embedding):
        raise ValueError(f"{source}: quantize.embedding is not the +1/-1 table of 13 bits; another kind of tokenizer?")
    if not torch.equal(model.quantize.power_vals, table.power_vals):
        raise ValueError(f"{source}: quantize.power_vals are not the powers of two from 4096 to 1")
    return model.requires_grad_(False).eval()


def _describes_magvit(folder: Path) -> bool:
    fields = _config(folder)
    return fields.get("_class_name") == "MAGVITv2" or "enc" in fields


def _config(path: Path) -> dict[str, Any]:
    file = (path if path.is_dir() else path.parent) / "config.json"
    if not file.is_file():
        return {}
    return read_object(file)


def _sizes(path: Path) -> tuple[Tower, Tower]:
    fields = _config(path)
    try:
        return (
            Tower.from_fields(fields["enc"]) if "enc" in fields else RELEASED_ENCODER,
            Tower.from_fields(fields["dec"]) if "dec" in fields else RELEASED_DECODER,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: enc and dec in config.json need ch, ch_mult and num_res_blocks: {error!r}"
        ) from error
