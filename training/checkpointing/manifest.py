"""Write and check the manifest of a checkpoint (``metadata.json``).

    {"global_step": 300, "data": {...}, "conditions": {...}, "files": {name: [bytes, crc32]}, "crc32": ...}

``data``: position of the run in its data. ``conditions``: the settings that the numbers of later steps depend on. The
last ``crc32`` covers everything before it, so that a flipped bit in the manifest is found too.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from common.command import bytes_bar
from common.files import flush, reason_of
from training.data.sampling_order import FlowProgress, Position

METADATA = "metadata.json"
NAME = re.compile(r"checkpoint-(\d+)")
CHUNK = 8 << 20
THREADS = 4
"""Files that are read at the same time; zlib releases the interpreter lock."""


@dataclass(frozen=True)
class Checkpoint:
    """A folder with the state after ``step`` optimizer steps.

    ``position``: position of the run in its data; None in checkpoints older than this entry. ``record``: content of
    ``metadata.json``.
    """

    path: Path
    step: int
    position: Position | None = None
    record: Mapping[str, Any] = field(default_factory=dict)

    @property
    def model_dir(self) -> Path:
        return self.path / "unwrapped_model"

    @property
    def state_dir(self) -> Path:
        return self.path / "training_state"


def list_checkpoints(output_dir: Path) -> list[Path]:
    """Return the ``checkpoint-<step>`` folders of a run, oldest first, damaged ones included."""
    found = [(int(m[1]), p) for p in output_dir.glob("checkpoint-*") if p.is_dir() and (m := NAME.fullmatch(p.name))]
    return [path for _, path in sorted(found)]


def open_checkpoint(path: Path, checksums: bool = True) -> Checkpoint:
    """Read a checkpoint's manifest and check every file it lists. Raises ValueError if one is missing or changed.

    ``checksums``: False compares sizes only, which reads no file.
    """
    metadata = path / METADATA
    try:
        record = json.loads(metadata.read_text(encoding="utf-8"))
        checksum = record.pop("crc32", None)
        if checksum is not None and checksum != _checksum_of(record):
            raise ValueError("its checksum is wrong")
        step, files, position = int(record["global_step"]), dict(record.get("files", {})), _position(record.get("data"))
    except FileNotFoundError:
        raise ValueError(f"{path} is not a checkpoint of a training run: it has no {METADATA}") from None
    except OSError as error:
        raise ValueError(f"{metadata} cannot be read: {reason_of(error)}") from error
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:  # json's are ValueErrors
        raise ValueError(f"{metadata} is damaged: {error}") from error
    _check_files(path, files, checksums)
    checkpoint = Checkpoint(path, step, position, record)
    if not checkpoint.state_dir.is_dir():
        raise ValueError(
            f"{path} holds weights but no training state, so it cannot be resumed; "
            "to start from its weights set model.showo.pretrained_model_path to it"
        )
    return checkpoint


def _check_files(path: Path, files: Mapping[str, Any], checksums: bool) -> None:
    """Check sizes, which is cheap, then checksums. ``files``: name -> [bytes, crc32], or bytes in early checkpoints."""
    sizes = {name: entry[0] if isinstance(entry, list) else entry for name, entry in files.items()}
    for name, size in sizes.items():
        file = path / name
        found = file.stat().st_size if file.is_file() else None
        if found != size:
            raise ValueError(f"{file} is damaged: {size} bytes expected, {'none' if found is None else found} found")
    sums = {name: entry[1] for name, entry in files.items() if checksums and isinstance(entry, list)}
    measured = _measure_all(f"checking {path}", [path / name for name in sums])
    for name, (found_size, found_sum) in zip(sums, measured, strict=True):
        if found_sum != sums[name]:
            raise ValueError(f"{path / name} is damaged: its {found_size} bytes do not have the checksum they had")


def _measure_all(what: str, files: Sequence[Path]) -> Iterator[tuple[int, str]]:
    """Yield ``measure`` of all files, in their order, with a progress bar."""
    with bytes_bar(what, sum(file.stat().st_size for file in files)) as bar, ThreadPoolExecutor(THREADS) as pool:
        for found in pool.map(measure, files):
            bar.update(found[0])
            yield found


def measure(file: Path) -> tuple[int, str]:
    """Return (bytes, crc32 as eight hexadecimal digits) of a file."""
    size, value = 0, 0
    try:
        with file.open("rb") as stream:
            while chunk := stream.read(CHUNK):
                size += len(chunk)
                value = zlib.crc32(chunk, value)
    except OSError as error:  # a bad sector
        raise ValueError(f"{file} cannot be read: {reason_of(error)}") from error
    return size, f"{value:08x}"


def write_manifest(path: Path, step: int, data: Mapping[str, Any], more: Mapping[str, Any]) -> None:
    """Write ``metadata.json`` for the files in the folder, and flush all of them to the disk."""
    files = sorted(file for file in path.rglob("*") if file.is_file())
    measured = _measure_all(f"checksums of {path}", files)
    listed = {str(file.relative_to(path)): list(entry) for file, entry in zip(files, measured, strict=True)}
    record: dict[str, Any] = {"global_step": step, "data": data, **more, "files": listed}
    (path / METADATA).write_text(
        json.dumps({**record, "crc32": _checksum_of(record)}, indent=1) + "\n", encoding="utf-8"
    )
    for file in [*files, path / METADATA]:
        flush(file)
    for folder in [*(f for f in path.rglob("*") if f.is_dir()), path]:
        flush(folder)


def position_to_json(position: Position) -> dict[str, Any]:
    """Return the position as ``metadata.json`` stores it."""
    return asdict(position)


def _position(data: Mapping[str, Any] | None) -> Position | None:
    if not data:
        return None
    return Position(
        *(FlowProgress(int(data[flow]["samples"]), int(data[flow]["in_epoch"])) for flow in ("robot", "text")),
    )


def _checksum_of(record: Mapping[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(record, sort_keys=True).encode()):08x}"
