"""Log metrics: sums on the device, read seldom, written to TensorBoard, wandb and JSON lines."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from common.files import reason_of, write_text
from models.losses import SumAndCount

METRICS_FILE = "metrics.jsonl"
WANDB_ID_FILE = "wandb_id.txt"


class Meter:
    """Sums and counts since the last ``read``. They stay on the device, so that adding never waits for it.

    Every rank adds the same names in the same steps; ``read`` is a collective call.
    """

    def __init__(self) -> None:
        self._sums: dict[str, SumAndCount] = {}

    def add(self, values: Mapping[str, SumAndCount]) -> None:
        """Add sums and counts by name."""
        for name, value in values.items():
            added = SumAndCount(value.sum.detach().double(), value.count.detach().double())
            self._sums[name] = self._sums[name] + added if name in self._sums else added

    def state(self) -> dict[str, list[float]]:
        """Return name -> [sum, count] of this rank, for a checkpoint. Waits for the device."""
        return {name: [float(value.sum), float(value.count)] for name, value in self._sums.items()}

    def restore(self, state: Mapping[str, Sequence[float]], device: torch.device) -> None:
        """Add the sums and counts of ``state``."""
        pairs = {name: torch.tensor(pair, dtype=torch.float64, device=device) for name, pair in state.items()}
        self.add({name: SumAndCount(pair[0], pair[1]) for name, pair in pairs.items()})

    def read(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Return means over all ranks since the last ``read``; names with count 0 are left out.

        ``reduce`` sums a tensor over ranks. One transfer from the device, whatever the number of names.
        """
        return means(self.totals(reduce))

    def totals(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, tuple[float, float]]:
        """Return (sum, count) of every name; otherwise as ``read``."""
        names, self._sums, sums = sorted(self._sums), {}, self._sums
        if not names:
            return {}
        table = torch.stack([torch.stack([sums[n].sum, sums[n].count]) for n in names])  # [names, 2]
        return {name: (pair[0], pair[1]) for name, pair in zip(names, reduce(table).tolist(), strict=True)}


def means(totals: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """Return sum / count of every name whose count is not 0."""
    return {name: sum_ / count for name, (sum_, count) in totals.items() if count > 0}


class Writer(Protocol):
    """A backend for metrics. ``image`` is uint8 [3, H, W]. Methods raise OSError if the disk cannot be written."""

    def scalars(self, values: Mapping[str, float], step: int) -> None: ...
    def text(self, tag: str, text: str, step: int) -> None: ...
    def image(self, tag: str, image: Tensor, step: int) -> None: ...
    def close(self) -> None: ...


class WandbWriter:
    """Writes to Weights & Biases. Its files and its run id are stored in ``folder``; a resumed run uses the same id and
    so continues the same curves."""

    def __init__(self, project: str, name: str, folder: Path, config: dict[str, Any]) -> None:
        import wandb

        id_file = folder / WANDB_ID_FILE
        if not id_file.exists():
            id_file.write_text(uuid.uuid4().hex, encoding="utf-8")
        self._wandb = wandb
        self._run = wandb.init(
            project=project,
            name=name,
            dir=str(folder),
            config=config,
            id=id_file.read_text(encoding="utf-8"),
            resume="allow",
        )

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def text(self, tag: str, text: str, step: int) -> None:
        self._run.log({tag: self._wandb.Html(f"<pre>{text}</pre>")}, step=step)

    def image(self, tag: str, image: Tensor, step: int) -> None:
        self._run.log({tag: self._wandb.Image(image.permute(1, 2, 0).numpy())}, step=step)

    def close(self) -> None:
        self._run.finish()


class JsonLinesWriter:
    """Writes one JSON object a line: ``{"step": ..., tag: value, ...}``; texts too, but no images.

    A resumed run drops the lines that a killed run had written after ``step``, so that no step is logged twice. A line
    is written completely or not at all.
    """

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        if path.exists():
            lines = [
                line
                for line in path.read_text(encoding="utf-8", errors="replace").splitlines()
                if _step_of(line) <= step
            ]
            write_text(path, "".join(line + "\n" for line in lines), sync=True)
        self._file = path.open("ab", buffering=0)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self._line({"step": step, **values})

    def text(self, tag: str, text: str, step: int) -> None:
        self._line({"step": step, tag: text})

    def image(self, tag: str, image: Tensor, step: int) -> None:
        pass

    def flush_to_disk(self) -> None:
        """Flush all lines to the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()

    def _line(self, record: dict[str, Any]) -> None:
        end, rest = self._file.tell(), (json.dumps(record) + "\n").encode()
        try:
            while rest:
                rest = rest[self._file.write(rest) or 0 :]
        except OSError as error:
            self._file.truncate(end)
            raise OSError(error.errno, error.strerror, str(self.path)) from error


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (json.JSONDecodeError, KeyError, TypeError):  # an incomplete line of a killed run
        return float("inf")


class MetricsLogger:
    """Writes to all writers of a run; only the main process has any."""

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

    def image(self, tag: str, image: Tensor, step: int) -> None:
        for writer in self._writers:
            writer.image(tag, image, step)

    def flush_to_disk(self) -> None:
        """Flush JSON lines to the disk, so that a checkpoint written now never has steps that are not logged."""
        for writer in self._writers:
            if isinstance(writer, JsonLinesWriter):
                writer.flush_to_disk()

    def close(self) -> list[str]:
        """Close all writers. Returns a warning for each that could not write its last values."""
        warnings = []
        for writer in self._writers:
            try:
                writer.close()
            except OSError as error:
                warnings.append(f"warning: the last curves are missing in {type(writer).__name__} ({reason_of(error)})")
        return warnings
