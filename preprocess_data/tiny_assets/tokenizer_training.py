"""Train the small MagVITv2 on images of the desk, so that its codes hold what acting needs.

A large tokenizer has seen millions of images. This one stands in for it after some ten thousand of one desk, which
needs help in what to keep: beside a coarse image, a small reader has to tell from the codes where the hand, doors,
lights and blocks are (in scene D, whose recordings say it). Then the encoder rests, and the decoder learns to draw what
the codes hold. The reader and the coarse image are thrown away: what is shipped is an ordinary MagVITv2.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from models.pretrained.weights_io import write_safetensors
from models.processing.image import fit, normalise
from models.vision.magvitv2 import LATENT_CHANNELS, MagVITv2, ResBlock, Tower
from policy_rollout.calvin.tasks import DOORS_AND_LIGHTS
from preprocess_data.desk_demos.play import Player, Settings
from preprocess_data.tiny_assets.lfq_loss import codebook_losses, straight_through
from preprocess_data.tiny_assets.scenes import random_scenes

ENCODER = Tower(32, (1, 1, 1, 2, 4), (0, 0, 1, 2, 1))
"""No residual blocks at the two finest levels: they took two thirds of the time, and acting pays it at every look."""
DECODER = Tower(32, (1, 1, 2, 2, 2), (0, 1, 1, 1, 1))
RESOLUTION = 96
SCENES = ("D", "A", "D", "B", "D", "C")
"""In turn; half of the random images are of the scene that the quickstart plays in."""
GRIPPER_EVERY = 7
"""One image in so many is the gripper camera's; no divisor of the scenes' turn, so that every scene has some."""
KEPT_OF_PLAY = 2
"""One frame of play in so many is kept."""
COARSE = 8
"""Pixels per code of the coarse image, along one side."""
STATE = (("robot_obs", (0, 1, 2, 5, 6)), ("scene_obs", (0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 13, 14, 18, 19, 20)))
"""What the reader tells: hand (place, turn, opening), doors, button, switch, lights, places of the blocks."""


@dataclass(frozen=True)
class Images:
    """``frames`` uint8 [N, 3, R, R]; ``groups`` [N]: scene of a static camera's image, -1 for the gripper camera's;
    ``states`` [N, S] as ``STATE``; NaN where the image is not of scene D's static camera."""

    frames: Tensor
    groups: Tensor
    states: Tensor

    @property
    def told(self) -> Tensor:
        """[N] bool: is the state known?"""
        return ~self.states.isnan().any(dim=1)

    def __add__(self, other: Images) -> Images:
        pairs = zip(self.fields, other.fields, strict=True)
        return Images(*(torch.cat(pair) for pair in pairs))

    def every(self, step: int) -> Images:
        """One image in ``step``."""
        return Images(*(field[::step] for field in self.fields))

    @property
    def fields(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.frames, self.groups, self.states


def random_images(count: int, seed: int) -> Images:
    """Both cameras, all scenes, everything anywhere."""
    found = []
    for index, scene in enumerate(tqdm(random_scenes(count, seed, SCENES), total=count, desc="scenes", unit="frame")):
        by_gripper = index % GRIPPER_EVERY == GRIPPER_EVERY - 1
        name = SCENES[index % len(SCENES)]
        frame = scene.gripper if by_gripper else scene.static
        state = _state({"robot_obs": scene.robot_obs, "scene_obs": scene.scene_obs})
        known = name == "D" and not by_gripper
        found.append((frame, -1 if by_gripper else "ABCD".index(name), state if known else np.full_like(state, np.nan)))
    return _stack(found)


def played_images(episodes: int, seed: int = 0) -> Images:
    """The static camera while experts play in scene D, as recordings see it."""
    player = Player(Settings(episodes=episodes, tasks=DOORS_AND_LIGHTS, seed=seed, static_size=128, gripper_size=64))
    found: list[tuple[np.ndarray, int, np.ndarray]] = []

    def keep(number: int, frame: dict[str, np.ndarray]) -> None:
        if number % KEPT_OF_PLAY == 0:
            found.append((frame["rgb_static"], "ABCD".index("D"), _state(frame)))

    for episode in tqdm(range(episodes), desc="play", unit="episode"):
        player.play(episode, keep)
    player.close()
    return _stack(found)


def _state(frame: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([np.asarray(frame[key], dtype=np.float32)[list(of)] for key, of in STATE])


def _stack(found: list[tuple[np.ndarray, int, np.ndarray]]) -> Images:
    frames, groups, states = zip(*found, strict=True)
    fitted = [torch.from_numpy(np.ascontiguousarray(fit(frame, RESOLUTION))) for frame in frames]
    return Images(torch.stack(fitted), torch.tensor(groups), torch.from_numpy(np.stack(states)).float())


class Emphasis:
    """Weight of every pixel: blocks, hand, doors and lights are few pixels, and all that matters. In a fixed camera's
    images, what differs from their mean moves; the gripper camera's images move as a whole."""

    def __init__(self, images: Images) -> None:
        self.means = {
            group: normalise(images.frames[images.groups == group][:2000:2]).mean(dim=0)
            for group in sorted({int(g) for g in images.groups if g >= 0})
        }

    def weights(self, pixels: Tensor, groups: Tensor) -> Tensor:
        """[B, 3, R, R] and [B] -> [B, 1, R, R]."""
        weights = torch.full_like(pixels[:, :1], 0.5)
        for row, group in enumerate(groups.tolist()):
            if group >= 0:
                weights[row] = 0.2 + 6 * (pixels[row] - self.means[group]).abs().mean(dim=0, keepdim=True)
        return weights


def train_encoder(
    images: Images,
    steps: int,
    batch_size: int = 24,
    learning_rate: float = 2e-3,
    seed: int = 0,
    start: MagVITv2 | None = None,
) -> tuple[MagVITv2, list[float]]:
    """A tokenizer whose encoder is trained (further than ``start``'s, whose codebook is in use already), and the
    reader's error by step (in standard deviations of the state).
    Five sixths of a batch have a known state. Deterministic on one machine."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MagVITv2(ENCODER, DECODER) if start is None else start
        cells = (images.frames.shape[-1] // model.stride) ** 2
        reader, coarse = _reader(cells, images.states.shape[1]), _coarse()
    told = images.told
    known, rest = (torch.nonzero(rows)[:, 0] for rows in (told, ~told))
    mean, spread = images.states[told].mean(dim=0), images.states[told].std(dim=0) + 1e-6
    emphasis, of_known = Emphasis(images), batch_size - batch_size // 6
    parts = nn.ModuleList([model.encoder.train().requires_grad_(True), reader, coarse])
    errors = []
    for step, optimizer, draw in _optimised(parts, steps, learning_rate, seed, "encoder"):
        chosen = torch.cat([_some(known, of_known, draw), _some(rest, batch_size - of_known, draw)])
        pixels = normalise(images.frames[chosen])
        latent = model.latent(pixels)
        signs = straight_through(latent)
        truth = (images.states[chosen[:of_known]] - mean) / spread
        reading = (reader(signs[:of_known]) - truth).abs().mean()
        small = F.avg_pool2d(pixels, model.stride // COARSE)
        weights = F.avg_pool2d(emphasis.weights(pixels, images.groups[chosen]), model.stride // COARSE)
        difference = coarse(signs) - small
        drawing = (weights * (difference.abs() + difference.square())).mean()
        # Once the codebook is in use, what it says is all that counts.
        books = 0.0 if start is not None else 0.1 * max(0.0, 1 - 3 * step / steps)
        loss = reading + drawing + codebook_losses(latent[: batch_size // 2], sharpness=0.5).total(entropy=books)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(parts.parameters(), 1.0)
        optimizer.step()
        errors.append(float(reading.detach()))
    return model.eval().requires_grad_(False), errors


def train_decoder(
    model: MagVITv2, images: Images, steps: int, batch_size: int = 8, learning_rate: float = 2e-3, seed: int = 0
) -> list[float]:
    """Teach ``model``'s decoder to draw what its codes hold; the encoder rests. Mean absolute error by step, of a range
    of 2. Half of a batch has a known state, half has not."""
    emphasis = Emphasis(images)
    known, rest = (torch.nonzero(rows)[:, 0] for rows in (images.told, ~images.told))
    decoder = model.decoder.train().requires_grad_(True)
    errors = []
    for _, optimizer, draw in _optimised(decoder, steps, learning_rate, seed, "decoder"):
        chosen = torch.cat([_some(known, batch_size - batch_size // 2, draw), _some(rest, batch_size // 2, draw)])
        pixels = normalise(images.frames[chosen])
        with torch.no_grad():
            signs = straight_through(model.latent(pixels))
        difference = decoder(signs) - pixels
        weights = emphasis.weights(pixels, images.groups[chosen])
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward((weights * (difference.abs() + difference.square())).mean())
        nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimizer.step()
        errors.append(float(difference.detach().abs().mean()))
    model.eval().requires_grad_(False)
    return errors


def _reader(cells: int, values: int) -> nn.Module:
    inner = nn.Linear(256, 256)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(LATENT_CHANNELS * cells, 256), nn.GELU(), inner, nn.GELU(), nn.Linear(256, values)
    )


def _coarse() -> nn.Module:
    width = 128
    out = nn.Conv2d(width, 3 * COARSE**2, 3, padding=1)
    start = nn.Conv2d(LATENT_CHANNELS, width, 3, padding=1)
    return nn.Sequential(start, ResBlock(width, width), ResBlock(width, width), out, nn.PixelShuffle(COARSE))


def _some(rows: Tensor, count: int, draw: torch.Generator) -> Tensor:
    return rows[torch.randint(0, len(rows), (count,), generator=draw)]


def _optimised(
    module: nn.Module, steps: int, learning_rate: float, seed: int, what: str
) -> Iterator[tuple[int, torch.optim.Optimizer, torch.Generator]]:
    """(step, optimizer, generator of the batches) with the learning rate rising and falling once."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps + 1, pct_start=0.05)
    draw = torch.Generator().manual_seed(seed)
    for step in tqdm(range(steps), desc=what, unit="step"):
        yield step, optimizer, draw
        schedule.step()


def write_magvit(model: MagVITv2, folder: Path) -> None:
    """In the layout that `models.vision.magvitv2.load_magvit` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {
        name: {"ch": tower.ch, "ch_mult": list(tower.ch_mult), "num_res_blocks": list(tower.num_res_blocks)}
        for name, tower in (("enc", ENCODER), ("dec", DECODER))
    }
    text = json.dumps({"_class_name": "MAGVITv2", **sizes}, indent=2, sort_keys=True) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")
    # Half precision is plenty, and half the bytes to commit; everyone who uses the tokenizer uses these numbers.
    state = {
        name: t.half() if name.startswith(("encoder.", "decoder.")) else t for name, t in model.state_dict().items()
    }
    write_safetensors(folder / "model.safetensors", state, metadata={"format": "pt"})
