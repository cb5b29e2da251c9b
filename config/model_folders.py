"""Check at start, without torch, that a model folder contains a model of the right kind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from config.parsing import ConfigError, shown

_WEIGHTS = ("*.safetensors", "*.bin", "*.index.json")
_POLICY = ("unwrapped_model/config.json", "checkpoint-*/metadata.json")
_EXPECTED: dict[str, tuple[str, tuple[str, ...]]] = {
    "model.showo.llm_model_path": ("a language model", ("config.json",)),
    "model.showo.clip_model_path": ("a CLIP model", ("config.json",)),
    "model.vq_model.vq_model_name": ("a MagVITv2 image tokenizer", _WEIGHTS),
    "model.showo.pretrained_model_path": ("a trained policy", (*_POLICY, *_WEIGHTS)),
    "model.showo.tuned_model_path": ("a trained policy", (*_POLICY, "config.json")),
}
"""By key: the kind of model, and patterns of which a local folder contains at least one."""
_WEIGHTS_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".json")


def require_model(name: str, value: str, source: str = "") -> None:
    """Raise ConfigError if `value` (a path or hub id) is a local path that cannot be the model of the key `name`."""
    path, start = Path(value), f"{name}={shown(value)}" + (f" ({source})" if source else "")
    if not path.exists() and not looks_like_hub_id(value):
        raise ConfigError(f"{start}: no such path; expected a folder, a weights file or a hub id org/name")
    if not path.is_dir():
        return
    expected, patterns = _EXPECTED[name]
    if not any(next(path.glob(pattern), None) for pattern in patterns):
        raise ConfigError(f"{start}: this folder holds no model: no {' or '.join(patterns)} in it")
    found = _kind_of_model(path / "config.json", start)
    if found not in (None, expected):
        raise ConfigError(f"{start}: this folder holds {found}; expected {expected}")


def split_revision(text: str) -> tuple[str, str | None]:
    """Return the hub id and the revision (branch, tag or commit) of `org/name@revision`; None without one."""
    repo, _, revision = text.partition("@")
    return repo, revision or None


def download_command(name: str) -> str:
    """Return the command of huggingface_hub that downloads `org/name` or `org/name@revision`."""
    repo, revision = split_revision(name)
    return f"hf download {repo}" + ("" if revision is None else f" --revision {revision}")


def looks_like_hub_id(text: str) -> bool:
    """Return True if `text` is `org/name` or `org/name@revision` and not certainly a local path."""
    text, _ = split_revision(text)
    org, slash, name = text.partition("/")
    words = all(part and part.replace("-", "").replace("_", "").replace(".", "").isalnum() for part in (org, name))
    return bool(slash) and words and not text.startswith((".", "~")) and not text.endswith(_WEIGHTS_SUFFIXES)


def _kind_of_model(file: Path, start: str) -> str | None:
    """Return the kind of model of a config.json; None if the file does not exist or does not contain it."""
    if not file.is_file():
        return None
    try:
        content: Any = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{start}: {file.name} cannot be read: {str(error).splitlines()[0]}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{start}: {file.name} holds no JSON object")
    if "blockdiff_vla" in content or "llm_model_path" in content:
        return "a trained policy"
    if content.get("_class_name") == "MAGVITv2" or "enc" in content:
        return "a MagVITv2 image tokenizer"
    kind = str(content.get("model_type", ""))
    return ("a CLIP model" if kind.startswith("clip") else "a language model") if kind else None
