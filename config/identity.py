"""Which settings a result was made with, so that a folder's results are not taken for those of other settings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from config.load import to_yaml
from config.schema import Job

NO_PART = ("experiment.", "config_path", "mmu_image_root", "question", "max_new_tokens", "dataset.params.num_workers")
"""Keys, or beginnings of keys, that what a run learns does not depend on."""


def settings_of(job: Job) -> dict[str, Any]:
    """Return dotted key -> value of all settings that a run's result depends on."""
    return _settings(yaml.safe_load(to_yaml(job)))


def settings_in(config: Path) -> dict[str, Any] | None:
    """Return the same of the ``config.yaml`` that a run wrote; None where there is none that can be read."""
    try:
        held = yaml.safe_load(config.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError):
        return None
    return _settings(held) if isinstance(held, dict) else None


def difference(had: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Return the first setting that differs, with both values, or None if all are equal.

    A key that ``had`` lacks (an older version wrote it) had its default."""
    defaults = settings_of(Job())
    for key in sorted({*had, *now}):
        old, new = had.get(key, defaults.get(key)), now.get(key, defaults.get(key))
        if old != new:
            return f"{key}={old}, now it is {new}"
    return None


def _settings(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in _flat(tree).items() if not key.startswith(NO_PART)}


def _flat(tree: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= _flat(value, f"{above}{name}.") if isinstance(value, dict) else {f"{above}{name}": value}
    return flat
