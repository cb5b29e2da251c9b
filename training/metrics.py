"""What a run says about itself: sums on the device, read seldom, written to TensorBoard, wandb and JSON lines."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from models.loss import Tally

METRICS_FILE = "metrics.jsonl"


class Meter:
    """Tallies since the last reading. They stay on the device, so that adding never waits for it.

    Every rank adds the same names in the same steps; ``read`` is a collective call.
    """

    def __init__(self) -> None:
        self._tallies: dict[str, Tally] = {}

    def add(self, tallies: Mapping[str, Tally]) -> None:
        for name, tally in tallies.items():
            kept = Tally(tally.sum.detach().double(), tally.count.detach().double())
            self._tallies[name] = self._tallies[name] + kept if name in self._tallies else kept

    def read(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Means over everything counted on all ranks since the last reading; names that counted nothing are left out.

        ``reduce`` sums a tensor over ranks. One transfer from the device, whatever the number of names.
        """
        names, self._tallies, tallies = sorted(self._tallies), {}, self._tallies
        if not names:
            return {}
        table = torch.stack([torch.stack([tallies[n].sum, tallies[n].count]) for n in names])  # [names, 2]
        sums, counts = reduce(table).T.tolist()
        return {n: s / c for n, s, c in zip(names, sums, counts, strict=True) if c > 0}


class Writer(Protocol):
    """Where metrics go. ``picture`` is uint8 [3, H, W]."""

    def scalars(self, values: Mapping[str, float], step: int) -> None: ...
    def text(self, tag: str, text: str, step: int) -> None: ...
    def picture(self, tag: str, picture: Tensor, step: int) -> None: ...
    def close(self) -> None: ...


class TensorBoardWriter:
    """Event files under ``folder``. A resumed run hides what a killed one had written beyond ``step``."""

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=step + 1)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        for tag, value in values.items():
            self._writer.add_scalar(tag, value, step)
        self._writer.flush()

    def text(self, tag: str, text: str, step: int) -> None:
        self._writer.add_text(tag, text, step)

    def picture(self, tag: str, picture: Tensor, step: int) -> None:
        self._writer.add_image(tag, picture, step)

    def close(self) -> None:
        self._writer.close()


class WandbWriter:
    """Weights & Biases, where it is installed. Its files go to the run's own folder."""

    def __init__(self, project: str, name: str, folder: Path, config: dict[str, Any]) -> None:
        import wandb

        self._wandb = wandb
        self._run = wandb.init(project=project, name=name, dir=str(folder), config=config, resume="allow")

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def text(self, tag: str, text: str, step: int) -> None:
        self._run.log({tag: self._wandb.Html(f"<pre>{text}</pre>")}, step=step)

    def picture(self, tag: str, picture: Tensor, step: int) -> None:
        self._run.log({tag: self._wandb.Image(picture.permute(1, 2, 0).numpy())}, step=step)

    def close(self) -> None:
        self._run.finish()


class JsonLinesWriter:
    """One JSON object a line: ``{"step": ..., tag: value, ...}``; texts too, pictures not.

    A resumed run drops the lines that a killed one had written beyond ``step``, so that no step is told twice.
    """

    def __init__(self, path: Path, step: int) -> None:
        if path.exists():
            kept = [line for line in path.read_text().splitlines() if _step_of(line) <= step]
            beside = path.with_suffix(".tmp")
            beside.write_text("".join(line + "\n" for line in kept))
            os.replace(beside, path)
        self._file = path.open("a", buffering=1)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self._line({"step": step, **values})

    def text(self, tag: str, text: str, step: int) -> None:
        self._line({"step": step, tag: text})

    def picture(self, tag: str, picture: Tensor, step: int) -> None:
        pass

    def close(self) -> None:
        self._file.close()

    def _line(self, record: dict[str, Any]) -> None:
        self._file.write(json.dumps(record) + "\n")


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (json.JSONDecodeError, KeyError):  # the half line of a killed run
        return float("inf")


class Board:
    """All writers of a run behind one; a rank that does not write has none."""

    def __init__(self) -> None:
        self._writers: list[Writer] = []

    def add(self, writer: Writer) -> None:
        self._writers.append(writer)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        for writer in self._writers:
            writer.scalars(values, step)

    def text(self, tag: str, text: str, step: int) -> None:
        for writer in self._writers:
            writer.text(tag, text, step)

    def picture(self, tag: str, picture: Tensor, step: int) -> None:
        for writer in self._writers:
            writer.picture(tag, picture, step)

    def close(self) -> None:
        for writer in self._writers:
            writer.close()
