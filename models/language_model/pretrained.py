"""Load the weights of a language model by the key names of its family, and save its remote code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.dynamic_module_utils import custom_object_save
from transformers.utils import logging

from models.language_model.backbone import Backbone, as_trained, has_own_code
from models.pretrained.folders import CODE_FOLDER
from models.pretrained.weights_io import describe_mismatch, load_strict, require_finite


@torch.no_grad()
def load_pretrained(backbone: Backbone, config: Any, state: Mapping[str, Tensor], source: Path, words: int) -> bool:
    """Load the weights of a plain language model into a backbone; returns whether query/key norms were in them.

    ``config``: as the language model's folder has it; ``state``: the file's content; ``words``: the first rows of
    embedding and head that are the model's own. The other rows stay as they are. transformers reads the state, as it
    knows the names of every family: with or without a prefix, of earlier versions, with a tied head left out.

    Raises ``ValueError`` naming keys that are missing, unexpected, of another shape or not finite.
    """
    lm = backbone.lm
    parts = {id(p) for m in (lm.get_input_embeddings(), lm.get_output_embeddings()) for p in m.parameters()}
    tables = {name: p for name, p in lm.named_parameters(remove_duplicate=False) if id(p) in parts}
    has = {
        name: key for name in tables for key in (name, name.removeprefix(f"{lm.base_model_prefix}.")) if key in state
    }
    rows = {name: len(state[key]) for name, key in has.items()}
    size = max(rows.values(), default=config.vocab_size)  # a file may be padded beyond its config.json
    whole = dict(state) | {key: _with_rows(state[key], size) for name, key in has.items()}
    theirs, absent = _as_transformers_reads(type(lm), as_trained(config, size), whole, source)
    loaded = dict(theirs.state_dict())
    for name, parameter in tables.items():
        known = min(rows.get(name, size), words, len(parameter))  # more of theirs is padding
        loaded[name] = torch.cat([loaded[name][:known], parameter[known:]])
    load_strict(lm, loaded, source)
    return not absent


def _with_rows(table: Tensor, size: int) -> Tensor:
    """Return [n] or [n, D] padded with zeros to ``size`` rows."""
    return torch.cat([table, table.new_zeros(size - len(table), *table.shape[1:])]) if len(table) < size else table


def _as_transformers_reads(
    kind: Any, config: Any, state: Mapping[str, Tensor], source: Path
) -> tuple[nn.Module, list[str]]:
    """Return (the language model in float32, the norms of Phi that are missing in its file)."""
    with torch.random.fork_rng(devices=[]), _quiet():
        theirs, found = kind.from_pretrained(
            None,
            config=config,
            state_dict=dict(state),
            dtype=torch.float32,
            attn_implementation="eager",
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    norms = ("q_layernorm.weight", "q_layernorm.bias", "k_layernorm.weight", "k_layernorm.bias")
    optional = norms if config.model_type == "phi" else ()
    missing = sorted(found["missing_keys"])
    absent = [name for name in missing if name.endswith(optional)] if optional else []
    resized = [f"{name} is {list(had)}, not {list(wants)}" for name, had, wants in sorted(found["mismatched_keys"])]
    problem = describe_mismatch(
        [name for name in missing if name not in absent], sorted(found["unexpected_keys"]), resized
    )
    if problem:
        raise ValueError(f"{source} does not fit the model that its config.json describes; keys {problem}")
    require_finite(theirs.state_dict(), source)
    return theirs, absent


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the key table and the progress bar of transformers; errors are raised in one line."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def save_code(backbone: Backbone, folder: Path) -> None:
    """Write config.json and code of a language model with remote code into the folder of a saved model."""
    if has_own_code(backbone.config):
        target = folder / CODE_FOLDER
        target.mkdir(exist_ok=True)
        backbone.config.save_pretrained(str(target))
        custom_object_save(backbone.lm, str(target))
