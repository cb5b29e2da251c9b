"""Where is the hand in predicted future frames? Measured by a probe that regresses its position from image codes.

    predicted   the model's codes of the frame T steps later
    present     the codes of the present frame, in place of the prediction
    true        the codes of the true frame T steps later: the error of the probe itself

The position read from each is compared with the recorded position of the hand T steps later. The probe is trained on
true frames of other recordings, never on predictions.

Shape letters: S samples, F frames, N codes of the static camera, K bits of a code, T steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from common.command import progress_bar
from common.statistics import Interval, clustered_rate
from common.tables import markdown_table, percent
from policy_rollout.benchmarks.offline import Sample, Window
from policy_rollout.policies.upvla import Observation, UPVLAPolicy

NEAR = 0.03
"""Metres: a hand is where it belongs within this distance. A motion beyond it makes a moving sample."""
PROBE_FRAMES = 4000
SAMPLES = 300
BATCH = 16
WIDTH = 256
"""Width of both hidden layers of the probe."""
EPOCHS = 60
NOISE = 0.05
"""Fraction of the input bits that training flips, against overfitting to single codes."""
SOURCES = ("predicted", "present", "true")

Codes = NDArray[np.int64]
Positions = NDArray[np.float32]
Progress = Callable[[int], None]


class Recording(Protocol):
    """A split with windows and frames: ``CalvinSplit`` or ``ProcessedSplit``."""

    @property
    def annotations(self) -> Sequence[Window]: ...

    def frame(self, index: int, keys: Sequence[str]) -> dict[str, NDArray[Any]]: ...


@dataclass(frozen=True)
class HandProbe:
    """A perceptron from the bits of an image's codes to the position of the hand in metres."""

    network: nn.Module
    bits: int
    mean: Tensor
    scale: Tensor

    def positions(self, codes: Codes) -> Positions:
        """Return positions [S, 3] in metres from codes [S, N]."""
        with torch.inference_mode():
            found = self.network(as_bits(codes, self.bits)) * self.scale + self.mean
        positions: Positions = found.numpy()
        return positions


def as_bits(codes: Codes, bits: int) -> Tensor:
    """Return the bits of codes [S, N] as -1 and +1, float32 [S, N * K]."""
    found = (torch.from_numpy(codes)[..., None] >> torch.arange(bits)) & 1
    return (2 * found - 1).flatten(1).float()


def train_probe(codes: Codes, positions: Positions, bits: int, seed: int = 0) -> HandProbe:
    """Train the probe on codes [F, N] of true frames and the positions [F, 3] of the hand in them. Deterministic."""
    inputs, targets = as_bits(codes, bits), torch.from_numpy(positions)
    mean, scale = targets.mean(0), targets.std(0).clamp_min(1e-3)
    targets = (targets - mean) / scale
    rng = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sizes = (inputs.shape[1], WIDTH, WIDTH, 3)
        layers = [layer for i, o in pairwise(sizes) for layer in (nn.Linear(i, o), nn.GELU())]
        network = nn.Sequential(*layers[:-1])
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.05)
    steps = EPOCHS * -(-len(inputs) // 128)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps)
    for _ in range(EPOCHS):
        for rows in torch.split(torch.randperm(len(inputs), generator=rng), 128):
            flips = 1 - 2 * (torch.rand(inputs[rows].shape, generator=rng) < NOISE).float()
            loss = nn.functional.smooth_l1_loss(network(inputs[rows] * flips), targets[rows], beta=0.1)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return HandProbe(network.eval(), bits, mean, scale)


def probe_of(
    policy: UPVLAPolicy,
    recording: Recording,
    frames: int = PROBE_FRAMES,
    seed: int = 0,
    progress: Progress = lambda n: None,
) -> HandProbe:
    """Train the probe for the policy's image tokenizer on frames spread evenly over the windows of a recording."""
    every = sorted({frame for window in recording.annotations for frame in range(window.start, window.end + 1)})
    chosen = [every[i] for i in np.linspace(0, len(every) - 1, min(frames, len(every))).astype(int)]
    codes, positions = [], []
    for start in range(0, len(chosen), BATCH):
        seen = [observe(recording, frame, "", policy) for frame in chosen[start : start + BATCH]]
        codes.append(_static(policy, policy.encode(seen)))
        positions += [_position(observation) for observation in seen]
        progress(len(seen))
    return train_probe(np.concatenate(codes), np.stack(positions), _bits(policy), seed)


@dataclass(frozen=True)
class FutureFrames:
    """Positions [S, 3] of the hand in metres, read from each of ``SOURCES`` and recorded, of S samples.

    ``windows`` [S]: number of each sample's window; samples of one window are not independent.
    """

    samples: list[Sample]
    windows: NDArray[np.int64]
    read: dict[str, Positions]
    now: Positions
    later: Positions

    def errors(self, source: str) -> NDArray[np.float32]:
        """Return the distances [S] in metres between the position read from ``source`` and the recorded one."""
        distances: NDArray[np.float32] = np.linalg.norm(self.read[source] - self.later, axis=1)
        return distances

    @property
    def moving(self) -> NDArray[np.bool_]:
        """[S] True if the hand moves by more than ``NEAR`` in the T steps."""
        return np.asarray(np.linalg.norm(self.later - self.now, axis=1) > NEAR)

    def near(self, source: str, moving_only: bool = False) -> Interval:
        """Return the share of samples whose hand is within ``NEAR``; its interval accounts for windows."""
        used = self.moving if moving_only else np.ones(len(self.samples), dtype=bool)
        hits, groups = (self.errors(source) <= NEAR)[used], self.windows[used]
        return clustered_rate(np.bincount(groups, hits), np.bincount(groups))

    def rows(self) -> list[list[str]]:
        """Return a row of the table for each source."""
        names = {"predicted": "predicted frame", "present": "present frame in its place", "true": "true frame (probe)"}
        return [
            [
                names[source],
                percent(self.near(source)),
                percent(self.near(source, moving_only=True)),
                f"{1000 * float(np.median(self.errors(source))):.0f}",
            ]
            for source in SOURCES
        ]

    def table(self) -> str:
        """Return the results as a Markdown table."""
        near = f"{100 * NEAR:.0f} cm"
        head = ["hand read from", f"within {near} [95 %]", f"hand moves more than {near}", "median error, mm"]
        return markdown_table(head, self.rows())

    def summary(self, steps: int) -> str:
        """Return the table with its conditions. ``steps``: T."""
        windows = len(np.unique(self.windows))
        return (
            f"Hand in the predicted static image, {steps} control steps ahead: {len(self.samples)} held-out frames of "
            f"{windows} windows, {int(self.moving.sum())} of them with a moving hand.\n\n{self.table()}"
        )

    def as_json(self) -> dict[str, Any]:
        """Return the results as JSON values: shares with intervals, median errors in metres."""
        found: dict[str, Any] = {"samples": len(self.samples), "moving": int(self.moving.sum()), "near_m": NEAR}
        for source in SOURCES:
            shares = {"near": self.near(source), "near_moving": self.near(source, moving_only=True)}
            found[source] = {name: vars(share) for name, share in shares.items()}
            found[source]["median_error_m"] = float(np.median(self.errors(source)))
        return found


def evaluate(
    policy: UPVLAPolicy,
    training: Recording,
    held_out: Recording,
    probe_frames: int = PROBE_FRAMES,
    samples: int = SAMPLES,
    seed: int = 0,
) -> FutureFrames:
    """Train the probe on a recording and measure predicted frames on another one, with progress bars.

    Raises ``ValueError`` or ``OSError`` in one line if a recording lacks windows, frames or states.
    """
    for recording in (held_out, training):
        ((_, sample),) = list_samples(recording.annotations, policy.act_step, 1)
        observe(recording, sample.start, sample.instruction, policy)
    with progress_bar(total=probe_frames, desc="frames of the probe", unit="frame") as bar:
        probe = probe_of(policy, training, probe_frames, seed, lambda count: _advance(bar, count))
    with progress_bar(total=samples, desc="predicted frames", unit="frame") as bar:
        return measure(policy, held_out, probe, samples, lambda count: _advance(bar, count))


def _advance(bar: tqdm[None], count: int) -> None:
    bar.update(count)


def measure(
    policy: UPVLAPolicy,
    recording: Recording,
    probe: HandProbe,
    samples: int = SAMPLES,
    progress: Progress = lambda n: None,
) -> FutureFrames:
    """Read the hand from predicted, present and true frames of held-out windows.

    Raises ``ValueError`` if no window is longer than T steps.
    """
    chosen = list_samples(recording.annotations, policy.act_step, samples)
    read: dict[str, list[Positions]] = {source: [] for source in SOURCES}
    now, later = [], []
    for start in range(0, len(chosen), BATCH):
        batch = [sample for _, sample in chosen[start : start + BATCH]]
        seen = [observe(recording, sample.start, sample.instruction, policy) for sample in batch]
        after = [observe(recording, sample.start + policy.act_step, sample.instruction, policy) for sample in batch]
        codes = policy.predict_codes(seen), policy.encode(seen), policy.encode(after)
        for source, found in zip(SOURCES, codes, strict=True):
            read[source].append(probe.positions(_static(policy, found)))
        now += [_position(observation) for observation in seen]
        later += [_position(observation) for observation in after]
        progress(len(batch))
    positions = {source: np.concatenate(parts) for source, parts in read.items()}
    groups = np.array([window for window, _ in chosen])
    return FutureFrames([sample for _, sample in chosen], groups, positions, np.stack(now), np.stack(later))


def list_samples(windows: Iterable[Window], act_step: int, limit: int) -> list[tuple[int, Sample]]:
    """Return (number of the window, sample) for frames whose frame T steps later is in the window, evenly spread."""
    every = [
        (number, Sample(window.task or "", window.instruction, frame, act_step))
        for number, window in enumerate(windows)
        for frame in range(window.start, window.end + 1 - act_step)
    ]
    if not every:
        raise ValueError(f"no window of the held-out recording has more than {act_step} frames: nothing to predict")
    return [every[i] for i in np.linspace(0, len(every) - 1, min(limit, len(every))).astype(int)]


def observe(recording: Recording, frame: int, instruction: str, policy: UPVLAPolicy) -> Observation:
    """Return what the policy observes in a recorded frame, with ``robot_obs``."""
    arrays = recording.frame(frame, (*policy.cameras, "robot_obs"))
    return Observation(arrays["rgb_static"], instruction, arrays.get("rgb_gripper"), arrays["robot_obs"])


def _position(observation: Observation) -> Positions:
    assert observation.robot_obs is not None
    return np.asarray(observation.robot_obs[:3], dtype=np.float32)


def _static(policy: UPVLAPolicy, codes: Codes) -> Codes:
    """Return the codes [S, N] of the static camera, the first view."""
    return codes[:, : policy.spec.num_vq_tokens]


def _bits(policy: UPVLAPolicy) -> int:
    return int(policy.spec.codebook_size - 1).bit_length()
