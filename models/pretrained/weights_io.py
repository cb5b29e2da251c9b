"""Find, read, check and write weight files.

Reading never executes code from the file (safetensors, or torch pickles with `weights_only=True`). A mismatch is an
error that names the file and the keys; nothing is loaded partially.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from common.command import bytes_bar
from common.files import atomic_path, expand_home, give_usual_mode
from config.model_folders import download_command, looks_like_hub_id, split_revision
from models.pretrained.safetensors_file import Writable, stream_safetensors

ADAPTERS_FILE = "adapters.safetensors"
"""Adapters without their frozen weights (``models.pretrained.adapters``)."""
# In the order in which a directory is searched; a sharded file's index counts as the file.
WEIGHT_NAMES = (
    "model.safetensors",
    "pytorch_model.safetensors",
    "diffusion_pytorch_model.safetensors",
    "pytorch_model.bin",
    "diffusion_pytorch_model.bin",
    ADAPTERS_FILE,
)
HUB_TIMEOUT_S = 8.0
NAMES_SHOWN = 6
# The restricted unpickler is a small stack machine: on arbitrary bytes it fails in any of these ways.
DAMAGED = (
    pickle.UnpicklingError, RuntimeError, EOFError, OSError, ArithmeticError, AssertionError, AttributeError,
    LookupError, TypeError, ValueError, struct.error, zipfile.BadZipFile,
)  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------- find
def find_weights(folder: Path) -> Path | None:
    """Return the weight file (or the index of a sharded one) of a directory, or None."""
    for name in WEIGHT_NAMES:
        for candidate in (folder / name, folder / f"{name}.index.json"):
            if candidate.is_file():
                return candidate
    return None


def resolve_model_dir(
    name: str | Path, key: str, weights: bool = True, needs: Sequence[str] = ("config.json",)
) -> Path:
    """Return the local path of a model: a directory or file, or a snapshot of a Hugging Face hub id.

    A hub id is looked up in the local cache first, so a run on a machine without network starts at once; only then is
    the hub asked, with a short time limit.

    Args:
        name: a path (`~` is expanded), or a hub id such as `showlab/magvitv2` or `org/name@revision`.
        key: the config key that holds `name`, for the error message.
        weights: fetch the weights too; False when only configuration and tokenizer are needed.
        needs: the other files without which a cached snapshot does not count as complete.

    Raises:
        ValueError: neither a local path nor reachable as a hub id; the message says what to do.
    """
    path = expand_home(name)
    if path.exists():
        return path
    text = str(name)
    if not looks_like_hub_id(text):
        raise ValueError(
            f"{key}: {text} does not exist; give an existing directory or file, or a hub id such as organisation/model"
        )
    cached = cached_snapshot(text, weights, needs)
    return cached if cached is not None else _download(text, key, weights)


def cached_snapshot(repo: str, weights: bool, needs: Sequence[str]) -> Path | None:
    """Return the snapshot of a hub id in the hub cache if it is complete, else None."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    repo, revision = split_revision(repo)
    try:
        folder = Path(snapshot_download(repo, revision=revision, local_files_only=True, allow_patterns=list(needs)))
    except (LocalEntryNotFoundError, HFValidationError):
        return None
    needed = [folder / name for name in needs]
    if weights:
        file = find_weights(folder)
        needed += [folder / WEIGHT_NAMES[0]] if file is None else weight_parts(file)
    return folder if all(part.is_file() for part in needed) else None


def _download(name: str, key: str, weights: bool) -> Path:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    # The transport's base error: httpx's in huggingface_hub 1, httpx2's in 2, and always imported there.
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # isort: skip

    repo, revision = split_revision(name)
    advice = (
        f"download it where there is network ({download_command(name)}) and set {key} to the local directory, "
        "or set HF_HOME to a cache that holds it"
    )
    try:
        # A call of its own, because snapshot_download has no time limit.
        info = HfApi().model_info(repo, revision=revision, timeout=HUB_TIMEOUT_S)
        wanted = _wanted([file.rfilename for file in info.siblings or ()], weights)
        return Path(snapshot_download(repo, revision=revision, allow_patterns=wanted, etag_timeout=HUB_TIMEOUT_S))
    except HFValidationError as error:
        raise ValueError(f"{key}: {repo} is neither an existing path nor a valid hub id") from error
    except RevisionNotFoundError as error:
        raise ValueError(f"{key}: the model {repo} on the hub has no branch, tag or commit {revision}") from error
    except RepositoryNotFoundError as error:
        raise ValueError(
            f"{key}: {repo} is neither an existing path nor a model this account can read on the Hugging Face hub"
        ) from error
    except (HfHubHTTPError, HTTPError, OSError) as error:  # OSError: offline mode, no such name, refused, timed out
        raise ValueError(
            f"{key}: {repo} is no existing path and not in the local Hugging Face cache, and the hub cannot be reached "
            f"({type(error).__name__}); {advice}"
        ) from error


def _wanted(names: Sequence[str], weights: bool) -> list[str]:
    """Return the files of a hub repository to fetch: configuration, tokenizer, and one format of the weights."""
    top = [name for name in names if "/" not in name]
    wanted = [name for name in top if name.endswith((".json", ".txt", ".model", ".jinja", ".yaml"))]
    wanted += [name for name in names if name.startswith(("tokenizer/", "language_model/"))]  # of models saved here
    if weights:
        safe = [name for name in top if name.endswith(".safetensors")]
        wanted += safe or [name for name in top if name.endswith(".bin")]
    return wanted


# ---------------------------------------------------------------------------------------------------------------- read
def read_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """Return all tensors of a weight file, or of a directory with one, on the CPU.

    Understands `.safetensors`, torch pickles (`.bin`, `.pt`, `.pth`, ...), the `*.index.json` of sharded files, and
    files that keep the state dict under the key `model`.

    Raises:
        FileNotFoundError: no such file, or a directory without weights, or a shard is missing.
        ValueError: the file is damaged, holds anything but tensors, or would need code to be executed.
    """
    path = Path(path)
    if path.is_dir():
        found = find_weights(path)
        if found is None:
            raise FileNotFoundError(f"{path} holds no weights; looked for {', '.join(WEIGHT_NAMES)} (or .index.json)")
        require_whole(found)
        path = found
    if not path.is_file():
        raise FileNotFoundError(f"weight file {path} does not exist")
    state: dict[str, torch.Tensor] = {}
    for part in weight_parts(path):
        if not part.is_file():
            raise FileNotFoundError(f"weight file {part} does not exist, though {path} lists it")
        state.update(_read_file(part))
    return state


def require_whole(file: Path) -> None:
    """Raise ValueError for a file of adapters, where a whole model is needed."""
    if file.name == ADAPTERS_FILE:
        raise ValueError(
            f"{file} holds adapters alone, which only acting, answering and resuming read; name the final model of the "
            "run, or a checkpoint that was saved with experiment.save_adapters_only=false"
        )


def files_sha256(path: Path) -> str:
    """Return the digest of the weight files of a directory (or of one file), the identity of a model.

    Raises FileNotFoundError for a directory without weights."""
    file = path if path.is_file() else find_weights(path)
    if file is None:
        raise FileNotFoundError(f"{path} holds no weights ({', '.join(WEIGHT_NAMES)})")
    digest, parts = hashlib.sha256(), weight_parts(file)
    with bytes_bar(f"checksum of {path}", sum(part.stat().st_size for part in parts)) as bar:
        for part in parts:
            with part.open("rb") as stream:
                while piece := stream.read(1 << 22):
                    digest.update(piece)
                    bar.update(len(piece))
    return digest.hexdigest()


def state_sha256(module: nn.Module) -> str:
    """Return the digest of names, types, shapes and bytes of all tensors of a network, independent of its files."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def weight_parts(path: Path) -> list[Path]:
    """Return the files of a weight file: itself, or the shards that an `.index.json` lists."""
    if path.suffix != ".json":
        return [path]
    try:
        shards = sorted(set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is not an index of sharded weights (no readable weight_map)") from error
    return [path.parent / str(shard) for shard in shards]


def _read_file(path: Path) -> dict[str, torch.Tensor]:
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} is not a readable safetensors file (damaged or cut off?): {error}") from error
    try:
        # Memory-mapped where the format allows: a 6 GB file then costs no second copy in memory.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except DAMAGED as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{path} cannot be read as plain weights: it is damaged, cut off, or holds Python objects that would run "
            f"code; save only its state dict ({why})"
        ) from error
    return _state_dict(content, path)


def _state_dict(content: Any, path: Path) -> dict[str, torch.Tensor]:
    if isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
        content = content["model"]
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a state dict")
    strange = [str(name) for name, value in content.items() if not isinstance(value, torch.Tensor)]
    if strange:
        raise ValueError(f"{path} is not a state dict: {_some(strange)} hold no tensors")
    return {str(name): value for name, value in content.items()}


# --------------------------------------------------------------------------------------------------------------- check
def load_strict(
    module: nn.Module,
    state: Mapping[str, torch.Tensor],
    source: str | Path,
    allow_missing: Sequence[str] = (),
    named: Callable[[str], str] = str,
) -> list[str]:
    """Load a state dict into a module, all of it or not at all.

    Parameters on the meta device are replaced by (copies of) the file's tensors in the module's dtype.

    Args:
        source: the file's name, for the error message.
        allow_missing: prefixes of keys (`"token_learner."`) that may be absent; a prefix is absent whole or not at all.
        named: what the file calls a key, for the error message.

    Returns:
        The keys that were absent and allowed to be, in the module's order.

    Raises:
        ValueError: missing or unexpected keys, other shapes, or numbers that are not finite; names the first few.
    """
    expected = module.state_dict()
    absent = check_state({name: tensor.shape for name, tensor in expected.items()}, state, source, allow_missing, named)
    on_meta = any(tensor.is_meta for tensor in expected.values())
    if on_meta:
        state = {name: tensor.to(expected[name].dtype, copy=True) for name, tensor in state.items()}
    module.load_state_dict(dict(state), strict=False, assign=on_meta)
    return absent


def check_state(
    expected: Mapping[str, torch.Size],
    state: Mapping[str, torch.Tensor],
    source: str | Path,
    allow_missing: Sequence[str] = (),
    named: Callable[[str], str] = str,
) -> list[str]:
    """Compare a state dict with the expected names and shapes; returns and raises as `load_strict`."""
    missing = [name for name in expected if name not in state]
    allowed = [prefix for prefix in allow_missing if not any(name.startswith(prefix) for name in state)]
    absent = [name for name in missing if name.startswith(tuple(allowed))]
    missing = [name for name in missing if not name.startswith(tuple(allowed))]
    unexpected = [name for name in state if name not in expected]
    resized = [
        f"{named(name)} is {list(state[name].shape)}, not {list(shape)}"
        for name, shape in expected.items()
        if name in state and state[name].shape != shape
    ]
    problem = describe_mismatch([*map(named, missing)], [*map(named, unexpected)], resized)
    if problem:
        raise ValueError(f"{source} does not fit the model it is loaded into; keys {problem}")
    require_finite({named(name): tensor for name, tensor in state.items()}, source)
    return absent


def describe_mismatch(missing: Sequence[str], unexpected: Sequence[str], resized: Sequence[str]) -> str:
    """Return the mismatched keys of a state dict, the first few of each kind; empty if there are none."""
    kinds = (("missing", missing), ("unexpected", unexpected), ("of another shape", resized))
    return "; ".join(f"{len(names)} {what}: {_some(names)}" for what, names in kinds if names)


def require_finite(state: Mapping[str, torch.Tensor], source: str | Path) -> None:
    """Raise ``ValueError`` naming the tensors that hold NaN or infinity."""
    with bytes_bar(f"reading {source}", sum(tensor.nbytes for tensor in state.values())) as bar:
        bad = []
        for name, tensor in state.items():
            bad += not_finite({name: tensor})
            bar.update(tensor.nbytes)
    if bad:
        raise ValueError(
            f"{source} holds numbers that are not finite (NaN or infinity) in {len(bad)} of {len(state)} tensors: "
            f"{_some(bad)}; take an earlier checkpoint, or get the file again"
        )


def not_finite(tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """Return the names of the tensors with NaN or infinity."""
    return [name for name, tensor in tensors.items() if not _is_finite(tensor.detach())]


def _is_finite(tensor: torch.Tensor) -> bool:
    if not tensor.is_floating_point() or tensor.is_meta or not tensor.numel():
        return True
    if tensor.element_size() == 1:  # 8-bit floats have no minimum of their own
        tensor = tensor.float()
    return all(bool(end.isfinite()) for end in tensor.aminmax())  # one pass, nothing allocated; NaN wins in both


def _some(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more


# --------------------------------------------------------------------------------------------------------------- write
def write_safetensors(
    path: str | Path, tensors: Mapping[str, Writable], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file under a temporary name, then move it into place: readers see all of it or none.

    Tensors are written one by one, so that no second copy of a model is in memory (``stream_safetensors``, which also
    has the errors). The same tensors and ``metadata`` (default: the format) give the same bytes. Tied weights, two
    names for one storage, are an error; omit the second name.
    """
    with atomic_path(Path(path)) as scratch:
        stream_safetensors(scratch, tensors, metadata or {"format": "pt"})
        give_usual_mode(scratch)
