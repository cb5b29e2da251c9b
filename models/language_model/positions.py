"""Check of sequence lengths against a language model's positions."""

from __future__ import annotations

from typing import Any


def beyond_positions(config: Any, length: int, what: str, remedy: str) -> str | None:
    """Return a line if ``length`` positions are more than a transformers ``config`` was made for.

    Raise ``ValueError`` if the model has no embedding for them. Rotary positions extrapolate, but were not trained.
    """
    limit = getattr(config, "max_position_embeddings", None)
    if limit is None or length <= limit:
        return None
    line = (
        f"{what} reach position {length}, but the {config.model_type} backbone is made for "
        f"max_position_embeddings={limit}; {remedy}"
    )
    if getattr(config, "rope_parameters", None) is None and getattr(config, "rope_theta", None) is None:
        raise ValueError(line)
    return line
