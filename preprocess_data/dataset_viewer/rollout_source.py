"""Read recorded rollouts of a closed-loop evaluation for the viewer: its records, and the films of its chains."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageSequence

from policy_rollout.closed_loop.interface import ChainRecord
from policy_rollout.closed_loop.records import RESULTS_FILE, attempts
from policy_rollout.reports.results import read_results
from policy_rollout.reports.rollout_video import RATE
from preprocess_data.dataset_viewer.interface import EpisodeView, Floats, ImageArray, Label, Source


class RolloutSource:
    """The recorded chains of an evaluation. The films have captions, and no actions are stored."""

    kind = "rollouts of a closed-loop evaluation"
    action_names: tuple[str, ...] = ()

    def __init__(self, path: Path) -> None:
        self.path = path
        self._results = read_results(path)
        films = {
            chain.index: sorted((path / "videos").glob(f"chain_{chain.index:04d}_*")) for chain in self._results.chains
        }
        self._chains = [(chain, films[chain.index][0]) for chain in self._results.chains if films[chain.index]]
        if not self._chains:
            raise ValueError(f"{path} has no recorded chain; evaluate with num_videos=N")
        self._frames = lru_cache(maxsize=2)(_frames)
        self.rate = self._frames(self._chains[0][1])[1]

    def __len__(self) -> int:
        return len(self._chains)

    def labels(self) -> Iterator[Label]:
        for chain, film in self._chains:
            yield Label(", ".join(chain.tasks), chain.tasks[0], len(self._frames(film)[0]))

    def actions(self) -> tuple[Iterator[Floats], str]:
        return iter(()), "there are none"

    def notes(self) -> list[str]:
        return [
            self._results.environment,
            *self._results.conditions,
            f"{len(self._chains)} of {len(self._results.chains)} chains were recorded",
        ]

    def episode(self, number: int) -> EpisodeView:
        chain, film = self._chains[number]
        frames = self._frames(film)[0]
        return EpisodeView(
            number=number,
            title=", ".join(chain.tasks),
            note=_outcome(chain),
            length=len(frames),
            cameras=("film",),
            image=lambda camera, moment: frames[moment],
        )


def _outcome(chain: ChainRecord) -> str:
    tried = [f"{task} {'done' if done else 'not done'} in {steps} steps" for task, done, steps in attempts(chain)]
    return f"chain {chain.index}: {chain.completed} of {len(chain.tasks)} done ({', '.join(tried)})"


def _frames(film: Path) -> tuple[list[ImageArray], float]:
    """Return the frames of a film and their number per second."""
    if film.suffix == ".gif":
        return _gif_frames(film)
    try:
        import av
    except ImportError:
        raise ValueError(f"{film}: reading it needs the package PyAV: pip install av") from None
    with av.open(str(film)) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        return frames, float(stream.average_rate)


def _gif_frames(film: Path) -> tuple[list[ImageArray], float]:
    """Return the frames; Pillow stores equal successive ones once, with a longer duration."""
    with Image.open(film) as animation:
        stored = [
            (np.asarray(frame.convert("RGB")), frame.info["duration"]) for frame in ImageSequence.Iterator(animation)
        ]
    interval = max(1, round(min(milliseconds for _, milliseconds in stored) * RATE / 1000))
    rate = RATE / interval
    counts = [max(1, round(milliseconds * rate / 1000)) for _, milliseconds in stored]
    return [image for (image, _), count in zip(stored, counts, strict=True) for _ in range(count)], rate


def open_rollouts(path: Path) -> Source | None:
    """Return the rollouts in the output folder of an evaluation or of the demo, or None."""
    return RolloutSource(path) if (path / RESULTS_FILE).is_file() and (path / "videos").is_dir() else None
