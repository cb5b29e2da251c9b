"""Find the model in a folder that training wrote: a run's output folder, a checkpoint, a model folder."""

from __future__ import annotations

import filecmp
from pathlib import Path

from common.files import expand_home, read_object
from models.pretrained.model_card import CARD_FILE, is_card
from models.pretrained.weights_io import WEIGHT_NAMES, find_weights, weight_parts

CONFIG_FILE = "config.json"
TOKENIZER_FOLDER = "tokenizer"
CODE_FOLDER = "language_model"
"""config.json and code of a language model that transformers does not know."""
SPEC_FIELD = "blockdiff_vla"
"""Key of ``config.json`` with the description of the model (``models.pretrained.model_config``)."""
STEP_FIELD = "global_step"
"""Key of ``config.json``: optimizer steps of the weights. Older versions and the original do not write it."""


def model_folder(path: str | Path) -> Path:
    """Return the folder with ``config.json`` and weights behind any of the paths that ``load_folder`` takes.

    If an output folder holds a final model and checkpoints, the one with more optimizer steps is returned. Raises
    ``FileNotFoundError`` if there is no model, ``ValueError`` if it is unknown which of the two is newer.
    """
    path = expand_home(path)
    if not path.exists():
        raise FileNotFoundError(f"checkpoint {path} does not exist")
    if path.is_file():
        if (path.parent / CONFIG_FILE).is_file():
            return path.parent
    else:
        steps = sorted(path.glob("checkpoint-*/metadata.json"), key=_step_of, reverse=True)
        saved = [folder for file in steps if _holds_model(folder := file.parent / "unwrapped_model")]
        if _holds_model(path / "unwrapped_model"):
            return path / "unwrapped_model"
        if _holds_model(path):
            return _newer_model(path, saved[0]) if saved else path
        if saved:
            return saved[0]
    raise FileNotFoundError(
        f"{path}: no {CONFIG_FILE} with weights beside it, neither here nor in unwrapped_model or checkpoint-*"
    )


def is_copy(folder: Path, other: Path) -> bool:
    """Return True if both folders hold weights, and the same bytes of them."""
    ours, theirs = _weight_files(folder), _weight_files(other)
    return (
        bool(ours)
        and len(ours) == len(theirs)
        and all(filecmp.cmp(one, two, shallow=False) for one, two in zip(ours, theirs, strict=True))
    )


def model_files(folder: Path) -> list[Path]:
    """Return the files of a model that lie directly in ``folder``, weights first: without them it is no model."""
    weights = [folder / f"{name}{end}" for name in WEIGHT_NAMES for end in ("", ".index.json")]
    parts = [part for file in weights if file.is_file() for part in (file, *weight_parts(file))]
    others = (CONFIG_FILE, TOKENIZER_FOLDER, CODE_FOLDER)
    card = [folder / CARD_FILE] if is_card(folder / CARD_FILE) else []
    return [path for path in dict.fromkeys([*parts, *(folder / name for name in others), *card]) if path.exists()]


def _weight_files(folder: Path) -> list[Path]:
    file = find_weights(folder)
    return [] if file is None else [part for part in weight_parts(file) if part.is_file()]


def _holds_model(folder: Path) -> bool:
    return (folder / CONFIG_FILE).is_file() and find_weights(folder) is not None


def _newer_model(final: Path, saved: Path) -> Path:
    """Return the newer one of a run's final model and its newest checkpoint's model."""
    step = read_object(final / CONFIG_FILE).get(STEP_FIELD)
    if isinstance(step, int):
        return final if step >= _step_of(saved) else saved
    if is_copy(final, saved):
        return final
    raise ValueError(
        f"{final} holds a final model without {STEP_FIELD} in its {CONFIG_FILE}, and {saved.parent.name} holds other "
        f"weights, so it is unknown which of them is newer; name {find_weights(final)} or {saved.parent}"
    )


def _step_of(inside: Path) -> int:
    """Return the step of the ``checkpoint-<step>`` that directly holds this file or folder."""
    step = inside.parent.name.rpartition("-")[2]
    return int(step) if step.isdigit() else -1
