"""TensorBoard: tags in groups, training and validation loss in one chart, constants once.

Metrics have other names in ``metrics.jsonl``, which do not change: there ``image/loss`` is the training loss that is
``loss/image`` here, and ``validation/image/loss`` is ``loss_val/image``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from models.text_metrics import CLEAN, LOSS, NATS

OPTIMIZER = ("lr", "grad_norm")
VALIDATION = "validation/"
LOSSES = ("total", "image", "action", "text", "action_bd", "ground")
"""Losses that have a chart of their own."""
COPIES = frozenset({NATS, CLEAN})
"""Metrics that are equal to the text loss for the text objective ``ar``."""


def tag_of(name: str) -> str:
    """Return the tag of a metric: a group (``loss``, ``loss_val``, ``optim``, ``speed``, ``details``) and a name."""
    prefix = "_val" if name.startswith(VALIDATION) else ""
    bare = name.removeprefix(VALIDATION)
    kind, _, measure = bare.rpartition("/")
    if measure == "loss" and kind in LOSSES:
        return f"loss{prefix}/{kind}"
    if bare == "action/mae":
        return f"loss{prefix}/action_mae"
    if bare in OPTIMIZER:
        return f"optim/{bare}"
    if bare.startswith("speed/"):
        return bare
    return f"details{prefix}/{bare.replace('/', '_')}"


def _is_copy(name: str, values: Mapping[str, float]) -> bool:
    """Return True if a metric of ``ar`` repeats the text loss of the same values."""
    bare = name.removeprefix(VALIDATION)
    return bare in COPIES and f"{name.removesuffix(bare)}{LOSS}" in values


def layout() -> dict[str, dict[str, list[object]]]:
    """Return the page "Custom Scalars": a chart for each loss, with its training and validation curve."""
    charts: dict[str, list[object]] = {
        name: ["Multiline", [f"^loss/{name}$", f"^loss_val/{name}$"]] for name in LOSSES if name != "total"
    }
    return {
        "Losses (training, validation)": {"total": ["Multiline", ["^loss/total$"]], **charts},
        "Optimizer": {name: ["Multiline", [f"^optim/{name}$"]] for name in OPTIMIZER},
    }


class TensorBoardWriter:
    """Writes event files under ``folder``. A resumed run hides what a killed run had written after ``step``.

    ``objective``: the text objective; for ``ar``, copies of the text loss are left out. A detail with the value of the
    step before it is written once, so that a constant is one point.
    """

    def __init__(self, folder: Path, step: int, objective: str = "") -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._restore_hook = _silence_writer_thread()
        self._writer = SummaryWriter(str(folder), purge_step=step + 1)
        self._writer.add_custom_scalars(layout())
        self._objective, self._last = objective, dict[str, float]()

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            if self._objective == "ar" and _is_copy(name, values):
                continue
            tag = tag_of(name)
            if tag.startswith("details") and self._last.get(tag) == value:
                continue
            self._last[tag] = value
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


def _silence_writer_thread() -> Callable[[], None]:
    """Stop TensorBoard's writer thread from printing a traceback of disk errors; the next call raises them anyway.

    Returns a function that restores the previous hook.
    """
    previous = threading.excepthook

    def hook(args: threading.ExceptHookArgs) -> None:
        if not (isinstance(args.exc_value, OSError) and type(args.thread).__name__ == "_AsyncWriterThread"):
            previous(args)

    def restore() -> None:
        if threading.excepthook is hook:
            threading.excepthook = previous

    threading.excepthook = hook
    return restore
