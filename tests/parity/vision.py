"""Image tokenizer, CLIP tower and images against the original's numbers.

Every check takes the parity directory, raises AssertionError when a number is off, and returns the largest differences
it saw. Tolerances are those of the directory's README: codes and uint8 exactly, the rest relative to the largest value.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import CLIPVisionConfig

from models.processing.image import clip_pixels, fit, normalise, to_uint8
from models.vision.clip_encoder import load_clip, tower_shapes
from models.vision.magvitv2 import MagVITv2, load_magvit

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


def within(name: str, ours: Tensor, theirs: np.ndarray, limit: float = RELATIVE) -> float:
    difference = relative(ours, theirs)
    assert difference <= limit, f"{name}: relative difference {difference:.2e}, allowed {limit:.0e}"
    return difference


def exact(name: str, ours: Tensor, theirs: np.ndarray) -> None:
    different = int((ours != torch.from_numpy(theirs)).sum())
    assert different == 0, f"{name}: {different} of {theirs.size} values differ"


def listed(file: Path) -> dict[str, list[int]]:
    """Name -> shape of a `keys/*.tsv`."""
    rows = (line.split("\t") for line in file.read_text(encoding="utf-8").splitlines())
    return {name: [int(x) for x in shape.strip("[]").split(",") if x.strip()] for name, shape, *_ in rows}


def check_magvit(parity: Path) -> dict[str, float]:
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
    return {
        "latent": within("latent", vq.latent(pixels), data["latent"]),
        "decoded_from_codes": within("decoded_from_codes", decoded, data["decoded_from_codes"]),
        "decoded_from_random": within(
            "decoded_from_random", vq.decode(torch.from_numpy(data["random_codes"])), data["decoded_from_random"]
        ),
        "decoded_rect": within("decoded_rect", vq.decode(torch.from_numpy(data["rect_codes"]), grid), rect),
        "recon_u8 values one step off": float((flipped > 0).float().mean()),
    }


def check_magvit_keys(parity: Path) -> dict[str, float]:
    with torch.device("meta"):
        released = MagVITv2()
    ours = {name: list(tensor.shape) for name, tensor in released.state_dict().items()}
    assert ours == listed(parity / "keys" / "magvitv2.tsv")
    return {"keys": len(ours), "parameters": sum(p.numel() for p in released.parameters())}


def check_clip(parity: Path) -> dict[str, float]:
    data, generate = np.load(parity / "mmu.npz"), np.load(parity / "generate.npz")
    tower = load_clip(parity / "ckpt" / "clip")
    pixels = torch.stack([clip_pixels(data[f"raw{i}"], tower.image_spec) for i in range(len(data["pixel_values"]))])
    features = data["clip_features"]
    given = torch.from_numpy(data["pixel_values"][: len(features)])
    return {
        "pixel_values": within("pixel_values", pixels, data["pixel_values"], 1e-6),
        "generate.pixel_values": within("generate.pixel_values", pixels[:1], generate["pixel_values"], 1e-6),
        "clip_features": within("clip_features", tower.features(given), features),
    }


def check_clip_keys(parity: Path) -> dict[str, float]:
    ours = {name: list(shape) for name, shape in tower_shapes(RELEASED_CLIP).items()}
    assert ours == listed(parity / "keys" / "clip_vit_l14_336_vision.tsv")
    return {"keys": len(ours), "parameters": sum(int(np.prod(shape)) for shape in ours.values())}


CHECKS = (check_magvit, check_magvit_keys, check_clip, check_clip_keys)
