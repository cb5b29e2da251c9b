"""Train the small MagVITv2 on images of the desk, so that its codes contain what actions need.

A released tokenizer was trained on millions of images. This one has about ten thousand images of one desk, and needs
further losses: from the codes, a small reader predicts the states of hand, doors, lights and blocks (in scene D, whose
recordings contain them), and another network a coarse image. Then the encoder is frozen, and the decoder learns to
reconstruct images. Reader and coarse image are discarded: the result is an ordinary MagVITv2.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.command import progress_bar
from models.pretrained.weights_io import write_safetensors
from models.processing.image import fit, normalise
from models.vision.magvitv2 import LATENT_CHANNELS, MagVITv2, ResBlock, Tower
from policy_rollout.calvin.tasks import DOORS_AND_LIGHTS
from policy_rollout.desk import SCENES as ALL_SCENES
from policy_rollout.desk import DeskEnv
from policy_rollout.desk.layout import WORKSPACE
from preprocess_data.desk_demos.play import Player, Settings
from preprocess_data.tiny_assets.lfq_loss import codebook_losses, straight_through

DRAWER_RANGE_M, SLIDER_RANGE_M, SWITCH_ON_RAD = 0.22, 0.28, 0.088
ENCODER = Tower(32, (1, 1, 1, 2, 4), (0, 0, 1, 2, 1))
"""No residual blocks at the two finest levels, which take two thirds of the time of each policy call."""
DECODER = Tower(32, (1, 1, 2, 2, 2), (0, 1, 1, 1, 1))
RESOLUTION = 96
SCENES = ("D", "A", "D", "B", "D", "C")
"""In turn; half of the random images are of the scene of the quickstart."""
GRIPPER_EVERY = 7
"""Every seventh image is from the gripper camera; not a divisor of the number of scenes, so that each has some."""
PLAY_STRIDE = 2
"""Every second frame of play is used."""
COARSE = 8
"""Pixels per code of the coarse image, along one side."""
STATE = (("robot_obs", (0, 1, 2, 5, 6)), ("scene_obs", (0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 13, 14, 18, 19, 20)))
"""Targets of the reader: hand (position, yaw, opening), doors, button, switch, lights, positions of the blocks."""


@dataclass(frozen=True)
class Scene:
    """`scene_obs` (24,) and `robot_obs` (15,) as CALVIN's, and the frames of both cameras (uint8 HWC)."""

    scene_obs: np.ndarray
    robot_obs: np.ndarray
    static: np.ndarray
    gripper: np.ndarray


def random_scenes(count: int, seed: int, scenes: tuple[str, ...] = tuple(ALL_SCENES)) -> Iterator[Scene]:
    """Yield scenes with random doors, lights, blocks and hand; the same ones for the same seed."""
    environments = {name: DeskEnv(scene=name) for name in dict.fromkeys(scenes)}
    for index in range(count):
        rng = np.random.default_rng([seed, index])
        env = environments[scenes[index % len(scenes)]]
        obs = env.reset(seed=int(rng.integers(1 << 31)))
        scene, robot = np.array(obs["scene_obs"]), np.array(obs["robot_obs"])
        scene[0] = rng.choice([0.0, SLIDER_RANGE_M, rng.uniform(0, SLIDER_RANGE_M)])
        scene[1] = rng.choice([0.0, DRAWER_RANGE_M, rng.uniform(0, DRAWER_RANGE_M)])
        bulb, led = rng.integers(0, 2, size=2)
        scene[3:6] = SWITCH_ON_RAD * bulb, bulb, led
        low, high = (np.array(corner) for corner in WORKSPACE)
        robot[:3] = rng.uniform([low[0], low[1], 0.46], [high[0], -0.02, high[2]])
        robot[5] += rng.uniform(-1.5, 1.5)
        robot[6] = rng.choice([0.0, 0.04, 0.08])
        obs = env.reset(robot, scene, render=True)
        frames = obs["rgb_obs"]
        yield Scene(np.array(obs["scene_obs"]), np.array(obs["robot_obs"]), frames["rgb_static"], frames["rgb_gripper"])
    for env in environments.values():
        env.close()


@dataclass(frozen=True)
class Images:
    """N images with their states.

    ``frames``: uint8 [N, 3, R, R]; ``groups`` [N]: scene of a static camera's image, -1 for the gripper camera;
    ``states`` [N, S]: see ``STATE``, NaN for images that are not of scene D's static camera.
    """

    frames: Tensor
    groups: Tensor
    states: Tensor

    @property
    def known(self) -> Tensor:
        """Return whether each state is known, bool [N]."""
        return ~self.states.isnan().any(dim=1)

    def __add__(self, other: Images) -> Images:
        pairs = zip(self.fields, other.fields, strict=True)
        return Images(*(torch.cat(pair) for pair in pairs))

    def every(self, step: int) -> Images:
        """Return every ``step``-th image."""
        return Images(*(field[::step] for field in self.fields))

    @property
    def fields(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.frames, self.groups, self.states


def random_images(count: int, seed: int) -> Images:
    """Return images of both cameras in random scenes."""
    found = []
    for index, scene in enumerate(
        progress_bar(random_scenes(count, seed, SCENES), total=count, desc="scenes", unit="frame")
    ):
        by_gripper = index % GRIPPER_EVERY == GRIPPER_EVERY - 1
        name = SCENES[index % len(SCENES)]
        frame = scene.gripper if by_gripper else scene.static
        state = state_of({"robot_obs": scene.robot_obs, "scene_obs": scene.scene_obs})
        known = name == "D" and not by_gripper
        found.append((frame, -1 if by_gripper else "ABCD".index(name), state if known else np.full_like(state, np.nan)))
    return stack_images(found)


def played_images(episodes: int, seed: int = 0) -> Images:
    """Return images of the static camera in recordings of experts in scene D."""
    player = Player(Settings(episodes=episodes, tasks=DOORS_AND_LIGHTS, seed=seed, static_size=128, gripper_size=64))
    found: list[tuple[np.ndarray, int, np.ndarray]] = []

    def add(number: int, frame: dict[str, np.ndarray]) -> None:
        if number % PLAY_STRIDE == 0:
            found.append((frame["rgb_static"], "ABCD".index("D"), state_of(frame)))

    for episode in progress_bar(range(episodes), desc="play", unit="episode"):
        player.play(episode, add)
    player.close()
    return stack_images(found)


def state_of(frame: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the values of ``STATE`` of a frame, float32 [S]."""
    return np.concatenate([np.asarray(frame[key], dtype=np.float32)[list(of)] for key, of in STATE])


def stack_images(found: Sequence[tuple[np.ndarray, int, np.ndarray]]) -> Images:
    """Return images from tuples of an image (uint8 HWC), its group and its state."""
    frames, groups, states = zip(*found, strict=True)
    fitted = [torch.from_numpy(np.ascontiguousarray(fit(frame, RESOLUTION))) for frame in frames]
    return Images(torch.stack(fitted), torch.tensor(groups), torch.from_numpy(np.stack(states)).float())


class Emphasis:
    """Weights of pixels, because blocks, hand, doors and lights are few pixels.

    In a fixed camera's images, pixels that differ from the mean image are weighted more; the gripper camera's images
    change as a whole.
    """

    def __init__(self, images: Images) -> None:
        self.means = {
            group: normalise(images.frames[images.groups == group][:2000:2]).mean(dim=0)
            for group in sorted({int(g) for g in images.groups if g >= 0})
        }

    def weights(self, pixels: Tensor, groups: Tensor) -> Tensor:
        """Return the weights [B, 1, R, R] of pixels [B, 3, R, R] of ``groups`` [B]."""
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
    """Train a tokenizer's encoder; return the tokenizer, and the reader's error of each step in standard deviations.

    ``start``: continue to train the encoder of this tokenizer, whose codebook is in use already. Five sixths of a batch
    have a known state. Deterministic on one machine.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MagVITv2(ENCODER, DECODER) if start is None else start
        cells = (images.frames.shape[-1] // model.stride) ** 2
        reader, coarse = _reader(cells, images.states.shape[1]), _coarse()
    labeled = images.known
    known, unknown = (torch.nonzero(rows)[:, 0] for rows in (labeled, ~labeled))
    mean, spread = images.states[labeled].mean(dim=0), images.states[labeled].std(dim=0) + 1e-6
    emphasis, of_known = Emphasis(images), batch_size - batch_size // 6
    parts = nn.ModuleList([model.encoder.train().requires_grad_(True), reader, coarse])
    errors = []
    for step, optimizer, draw in _optimised(parts, steps, learning_rate, seed, "encoder"):
        chosen = torch.cat([_sample(known, of_known, draw), _sample(unknown, batch_size - of_known, draw)])
        pixels = normalise(images.frames[chosen])
        latent = model.latent(pixels)
        signs = straight_through(latent)
        target = (images.states[chosen[:of_known]] - mean) / spread
        error = (reader(signs[:of_known]) - target).abs().mean()
        small = F.avg_pool2d(pixels, model.stride // COARSE)
        weights = F.avg_pool2d(emphasis.weights(pixels, images.groups[chosen]), model.stride // COARSE)
        difference = coarse(signs) - small
        reconstruction = (weights * (difference.abs() + difference.square())).mean()
        # The entropy of the codebook matters only until the codebook is in use.
        entropy = 0.0 if start is not None else 0.1 * max(0.0, 1 - 3 * step / steps)
        codebook = codebook_losses(latent[: batch_size // 2], sharpness=0.5).total(entropy=entropy)
        loss = error + reconstruction + codebook
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(parts.parameters(), 1.0)
        optimizer.step()
        errors.append(float(error.detach()))
    return model.eval().requires_grad_(False), errors


def train_decoder(
    model: MagVITv2, images: Images, steps: int, batch_size: int = 8, learning_rate: float = 2e-3, seed: int = 0
) -> list[float]:
    """Train ``model``'s decoder with a frozen encoder; return the mean absolute error of each step, of a range of 2.

    Half of a batch have a known state.
    """
    emphasis = Emphasis(images)
    known, unknown = (torch.nonzero(rows)[:, 0] for rows in (images.known, ~images.known))
    decoder = model.decoder.train().requires_grad_(True)
    errors = []
    for _, optimizer, draw in _optimised(decoder, steps, learning_rate, seed, "decoder"):
        chosen = torch.cat(
            [_sample(known, batch_size - batch_size // 2, draw), _sample(unknown, batch_size // 2, draw)]
        )
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


def _sample(rows: Tensor, count: int, draw: torch.Generator) -> Tensor:
    return rows[torch.randint(0, len(rows), (count,), generator=draw)]


def _optimised(
    module: nn.Module, steps: int, learning_rate: float, seed: int, what: str
) -> Iterator[tuple[int, torch.optim.Optimizer, torch.Generator]]:
    """Yield (step, optimizer, generator of the batches); the learning rate rises and falls once."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps + 1, pct_start=0.05)
    draw = torch.Generator().manual_seed(seed)
    for step in progress_bar(range(steps), desc=what, unit="step"):
        yield step, optimizer, draw
        schedule.step()


def write_magvit(model: MagVITv2, folder: Path) -> None:
    """Write the tokenizer in the layout that `models.vision.magvitv2.load_magvit` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {
        name: {"ch": tower.ch, "ch_mult": list(tower.ch_mult), "num_res_blocks": list(tower.num_res_blocks)}
        for name, tower in (("enc", ENCODER), ("dec", DECODER))
    }
    text = json.dumps({"_class_name": "MAGVITv2", **sizes}, indent=2, sort_keys=True) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")
    # Half precision suffices and halves the committed bytes.
    state = {
        name: t.half() if name.startswith(("encoder.", "decoder.")) else t for name, t in model.state_dict().items()
    }
    write_safetensors(folder / "model.safetensors", state, metadata={"format": "pt"})
