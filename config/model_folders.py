"""What a model folder has to hold, checked at start without torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from config.values import ConfigError, shown

_WEIGHTS = ("*.safetensors", "*.bin", "*.index.json")
HOLDS: dict[str, tuple[str, ...]] = {
    "model.showo.llm_model_path": ("config.json",),
    "model.showo.clip_model_path": ("config.json",),
    "model.vq_model.vq_model_name": _WEIGHTS,
    "model.showo.pretrained_model_path": ("unwrapped_model/config.json", "checkpoint-*/metadata.json", *_WEIGHTS),
    "model.showo.tuned_model_path": ("unwrapped_model/config.json", "checkpoint-*/metadata.json", "config.json"),
}
"""By key: patterns of which a local folder holds at least one."""
WEIGHT_FILES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".json")


def require_model(name: str, value: str, source: str = "") -> None:
    """Raise ConfigError if `value` (a path or hub id) is a local path that cannot be the model of the key `name`."""
    path, start = Path(value), f"{name}={shown(value)}" + (f" ({source})" if source else "")
    if not path.exists():
        if looks_like_hub_id(value):
            return
        raise ConfigError(f"{start}: no such path; expected a folder, a weights file or a hub id org/name")
    if not path.is_dir():
        return
    wanted = HOLDS[name]
    if not any(next(path.glob(pattern), None) for pattern in wanted):
        raise ConfigError(f"{start}: this folder holds no model: no {' or '.join(wanted)} in it")
    found = kind_of_model(path / "config.json", start)
    if found and name in EXPECTED and found != EXPECTED[name]:
        raise ConfigError(f"{start}: this folder holds {KINDS[found]}; expected {KINDS[EXPECTED[name]]}")


KINDS = {
    "clip": "a CLIP model",
    "magvit": "a MagVITv2 image tokenizer",
    "language": "a language model",
    "policy": "a trained policy",
}
EXPECTED = {
    "model.showo.llm_model_path": "language",
    "model.showo.clip_model_path": "clip",
    "model.vq_model.vq_model_name": "magvit",
    "model.showo.pretrained_model_path": "policy",
    "model.showo.tuned_model_path": "policy",
}


def kind_of_model(file: Path, start: str) -> str | None:
    """Return which of KINDS a config.json describes; None if there is none, or if it does not say."""
    if not file.is_file():
        return None
    try:
        content: Any = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{start}: {file.name} cannot be read: {reason}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{start}: {file.name} holds no JSON object")
    made_by = str(content.get("_class_name", ""))
    if "blockdiff_vla" in content or "llm_model_path" in content:
        return "policy"
    if made_by == "MAGVITv2" or "enc" in content:
        return "magvit"
    kind = str(content.get("model_type", ""))
    return ("clip" if kind.startswith("clip") else "language") if kind else None


def looks_like_hub_id(text: str) -> bool:
    """Return whether `text` is `org/name`, and not something that can only be a local path."""
    org, slash, name = text.partition("/")
    words = all(part and part.replace("-", "").replace("_", "").replace(".", "").isalnum() for part in (org, name))
    return bool(slash) and words and not text.startswith((".", "~")) and not text.endswith(WEIGHT_FILES)
