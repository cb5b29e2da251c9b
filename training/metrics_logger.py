"""What a run says about itself: sums on the device, read seldom, written to TensorBoard, wandb and JSON lines."""

from __future__ import annotations

import json
import os
import threading
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
    """Tallies since the last reading. They stay on the device, so that adding never waits for it.

    Every rank adds the same names in the same steps; ``read`` is a collective call.
    """

    def __init__(self) -> None:
        self._tallies: dict[str, SumAndCount] = {}

    def add(self, tallies: Mapping[str, SumAndCount]) -> None:
        for name, tally in tallies.items():
            kept = SumAndCount(tally.sum.detach().double(), tally.count.detach().double())
            self._tallies[name] = self._tallies[name] + kept if name in self._tallies else kept

    def state(self) -> dict[str, list[float]]:
        """Name -> [sum, count] of this rank, for a checkpoint. Waits for the device."""
        return {name: [float(tally.sum), float(tally.count)] for name, tally in self._tallies.items()}

    def restore(self, state: Mapping[str, Sequence[float]], device: torch.device) -> None:
        """Go on counting from ``state``."""
        pairs = {name: torch.tensor(pair, dtype=torch.float64, device=device) for name, pair in state.items()}
        self.add({name: SumAndCount(pair[0], pair[1]) for name, pair in pairs.items()})

    def read(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Means over everything counted on all ranks since the last reading; names that counted nothing are left out.

        ``reduce`` sums a tensor over ranks. One transfer from the device, whatever the number of names.
        """
        return means(self.totals(reduce))

    def totals(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, tuple[float, float]]:
        """As ``read``, but (sum, count) of every name."""
        names, self._tallies, tallies = sorted(self._tallies), {}, self._tallies
        if not names:
            return {}
        table = torch.stack([torch.stack([tallies[n].sum, tallies[n].count]) for n in names])  # [names, 2]
        return {name: (pair[0], pair[1]) for name, pair in zip(names, reduce(table).tolist(), strict=True)}


def means(totals: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """Of everything that counted something."""
    return {name: sum_ / count for name, (sum_, count) in totals.items() if count > 0}


class Writer(Protocol):
    """Where metrics go. ``image`` is uint8 [3, H, W]. What cannot be written is an ``OSError``."""

    def scalars(self, values: Mapping[str, float], step: int) -> None: ...
    def text(self, tag: str, text: str, step: int) -> None: ...
    def image(self, tag: str, image: Tensor, step: int) -> None: ...
    def close(self) -> None: ...


class TensorBoardWriter:
    """Event files under ``folder``. A resumed run hides what a killed one had written beyond ``step``."""

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._restore_hook = _leave_disk_errors_to_the_caller()
        self._writer = SummaryWriter(str(folder), purge_step=step + 1)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        for tag, value in values.items():
            self._writer.add_scalar(tag, value, step)
        self._writer.flush()

    def text(self, tag: str, text: str, step: int) -> None:
        self._writer.add_text(tag, text, step)

    def image(self, tag: str, image: Tensor, step: int) -> None:
        self._writer.add_image(tag, image, step)

    def close(self) -> None:
        try:
            self._writer.close()
        finally:
            self._restore_hook()


def _leave_disk_errors_to_the_caller() -> Callable[[], None]:
    """TensorBoard writes in a thread of its own, which prints a traceback and then raises the same error at the next
    call: one of the two is enough. Return a function that restores the hook of before."""
    told = threading.excepthook

    def tell(args: threading.ExceptHookArgs) -> None:
        if not (isinstance(args.exc_value, OSError) and type(args.thread).__name__ == "_AsyncWriterThread"):
            told(args)

    def restore() -> None:
        if threading.excepthook is tell:
            threading.excepthook = told

    threading.excepthook = tell
    return restore


class WandbWriter:
    """Weights & Biases, where it is installed. Its files go to the run's own folder, and so does its name for the run,
    by which a resumed one goes on in the same curves."""

    def __init__(self, project: str, name: str, folder: Path, config: dict[str, Any]) -> None:
        import wandb

        kept = folder / WANDB_ID_FILE
        if not kept.exists():
            kept.write_text(uuid.uuid4().hex, encoding="utf-8")
        self._wandb = wandb
        self._run = wandb.init(
            project=project,
            name=name,
            dir=str(folder),
            config=config,
            id=kept.read_text(encoding="utf-8"),
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
    """One JSON object a line: ``{"step": ..., tag: value, ...}``; texts too, images not.

    A resumed run drops the lines that a killed one had written beyond ``step``, so that no step is told twice. A line
    is written whole or not at all.
    """

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        if path.exists():
            kept = [
                line
                for line in path.read_text(encoding="utf-8", errors="replace").splitlines()
                if _step_of(line) <= step
            ]
            write_text(path, "".join(line + "\n" for line in kept), sync=True)
        self._file = path.open("ab", buffering=0)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self._line({"step": step, **values})

    def text(self, tag: str, text: str, step: int) -> None:
        self._line({"step": step, tag: text})

    def image(self, tag: str, image: Tensor, step: int) -> None:
        pass

    def on_disk(self) -> None:
        """Nothing that was written so far can get lost any more."""
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
    except (json.JSONDecodeError, KeyError, TypeError):  # the half line of a killed run
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

    def image(self, tag: str, image: Tensor, step: int) -> None:
        for writer in self._writers:
            writer.image(tag, image, step)

    def on_disk(self) -> None:
        """What was told so far has to be there at least as long as a checkpoint that is written now."""
        for writer in self._writers:
            if isinstance(writer, JsonLinesWriter):
                writer.on_disk()

    def close(self) -> list[str]:
        """Returns what could not be written any more."""
        warnings = []
        for writer in self._writers:
            try:
                writer.close()
            except OSError as error:
                warnings.append(f"warning: the last curves are missing in {type(writer).__name__} ({reason_of(error)})")
        return warnings
