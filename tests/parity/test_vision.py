"""Image tokenizer, CLIP tower and images equal the original's.

Tolerances are those of the parity directory's README: codes and uint8 exactly, the rest relative to the largest value.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import CLIPVisionConfig

from models.processing.image import clip_pixels, fit, normalise, to_uint8
from models.vision.clip_encoder import load_clip, tower_shapes
from models.vision.magvitv2 import MagVITv2, load_magvit

pytestmark = pytest.mark.parity

RELATIVE = 2e-5
RELEASED_CLIP = CLIPVisionConfig(
    hidden_size=1024,
    intermediate_size=4096,
    num_hidden_layers=24,
    num_attention_heads=16,
    image_size=336,
    patch_size=14,
    projection_dim=768,
)


def relative(ours: Tensor, theirs: np.ndarray) -> float:
    """Largest difference, as a part of the largest value."""
    expected = torch.from_numpy(theirs)
    assert ours.shape == expected.shape, f"{list(ours.shape)} is not {list(expected.shape)}"
    return float((ours.float() - expected).abs().max() / expected.abs().max())


def within(name: str, ours: Tensor, theirs: np.ndarray, limit: float = RELATIVE) -> None:
    difference = relative(ours, theirs)
    assert difference <= limit, f"{name}: relative difference {difference:.2e}, allowed {limit:.0e}"


def exact(name: str, ours: Tensor, theirs: np.ndarray) -> None:
    different = int((ours != torch.from_numpy(theirs)).sum())
    assert different == 0, f"{name}: {different} of {theirs.size} values differ"


def listed(file: Path) -> dict[str, list[int]]:
    """Name -> shape of a `keys/*.tsv`."""
    rows = (line.split("\t") for line in file.read_text(encoding="utf-8").splitlines())
    return {name: [int(x) for x in shape.strip("[]").split(",") if x.strip()] for name, shape, *_ in rows}


def test_the_image_tokenizer_has_the_originals_codes_and_images(parity: Path) -> None:
    data = np.load(parity / "magvit.npz")
    vq = load_magvit(parity / "ckpt" / "magvit")
    pixels = torch.from_numpy(data["pixel_values"])
    raw = [data[f"raw{i}"] for i in range(len(pixels))]

    ours = torch.stack([normalise(torch.from_numpy(fit(image, pixels.shape[-1]))) for image in raw])
    exact("pixel_values", ours, data["pixel_values"])
    exact("codes", vq.encode(pixels), data["codes"])
    exact("quantized", vq.quantize.bits(vq.quantize.codes(vq.latent(pixels))), data["quantized"])
    exact("bit_rows", vq.quantize.embedding[torch.from_numpy(data["bit_index"])], data["bit_rows"])

    decoded = vq.decode(torch.from_numpy(data["codes"]))
    recon = to_uint8(torch.from_numpy(data["decoded_from_codes"])).permute(0, 2, 3, 1)
    exact("recon_u8", recon, data["recon_u8"])
    flipped = (to_uint8(decoded).permute(0, 2, 3, 1).int() - recon.int()).abs()
    assert flipped.max() <= 1, "our own decoded image differs by more than one step of truncation"
    rect = data["decoded_rect_2x3"]
    grid = (rect.shape[2] // vq.stride, rect.shape[3] // vq.stride)
    within("latent", vq.latent(pixels), data["latent"])
    within("decoded_from_codes", decoded, data["decoded_from_codes"])
    within("decoded_from_random", vq.decode(torch.from_numpy(data["random_codes"])), data["decoded_from_random"])
    within("decoded_rect", vq.decode(torch.from_numpy(data["rect_codes"]), grid), rect)


def test_the_image_tokenizer_has_the_released_names_and_shapes(parity: Path) -> None:
    with torch.device("meta"):
        released = MagVITv2()
    ours = {name: list(tensor.shape) for name, tensor in released.state_dict().items()}
    assert ours == listed(parity / "keys" / "magvitv2.tsv")


def test_the_clip_tower_has_the_originals_pixels_and_features(parity: Path) -> None:
    data, generate = np.load(parity / "mmu.npz"), np.load(parity / "generate.npz")
    tower = load_clip(parity / "ckpt" / "clip")
    pixels = torch.stack([clip_pixels(data[f"raw{i}"], tower.image_spec) for i in range(len(data["pixel_values"]))])
    features = data["clip_features"]
    given = torch.from_numpy(data["pixel_values"][: len(features)])
    within("pixel_values", pixels, data["pixel_values"], 1e-6)
    within("generate.pixel_values", pixels[:1], generate["pixel_values"], 1e-6)
    within("clip_features", tower.features(given), features)


def test_the_clip_tower_has_the_released_names_and_shapes(parity: Path) -> None:
    ours = {name: list(shape) for name, shape in tower_shapes(RELEASED_CLIP).items()}
    assert ours == listed(parity / "keys" / "clip_vit_l14_336_vision.tsv")
