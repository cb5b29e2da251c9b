"""The original's checkpoint and recorded inputs, as our models and batches."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.testing import assert_allclose
from torch import Tensor

from models.objectives import TextTask, text_objective
from models.pretrained.model_io import Built, UpstreamSettings, load_folder
from models.sequence import TextTurn, TokenSequence, robot_sequence

RELATIVE = 2e-5  # of the largest value: hidden states, logits
LOSS = 1e-5
STATES_CLOSE = 1e-4  # gradients and stepped weights: two summation orders apart


def read_json(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def close(ours: Tensor, theirs: np.ndarray, relative: float = RELATIVE) -> None:
    assert_allclose(ours.detach().numpy(), theirs, rtol=0, atol=relative * float(np.abs(theirs).max()))


def upstream_settings(parity: Path, max_seq_length: int | None = None) -> UpstreamSettings:
    """What the original's folder leaves out; ``max_seq_length`` is that of the robot flow where it is not given."""
    if max_seq_length is None:
        max_seq_length = read_json(parity / "pre_text.json")["max_text_len"]
    resolution = np.load(parity / "pre_1view.npz")["images_static"].shape[-1]
    return UpstreamSettings(
        llm_model_path=str(parity / "ckpt/phi"), max_seq_length=max_seq_length, resolution=resolution
    )


def upstream(parity: Path, max_seq_length: int | None = None) -> Built:
    """The original's checkpoint; its text head leaves the mask's logit in, so ours does here."""
    built = load_folder(parity / "ckpt/upvla_run", upstream=upstream_settings(parity, max_seq_length))
    built.model.spec = replace(built.model.spec, mask_logit_banned=False)
    return built


def robot(parity: Path, views: int, built: Built, pad: bool) -> tuple[TokenSequence, Any]:
    arrays = np.load(parity / f"pre_{views}view.npz")
    texts = read_json(parity / "pre_text.json")
    instructions = [built.prompter.instruction(text) for text in texts["texts"]]
    codes = torch.tensor(arrays["codes_now"])
    width = texts["max_text_len"] + 1 if pad else None
    return robot_sequence(built.model.vocab, instructions, codes, built.spec.act_step, width), arrays


def quotes_a_role(turns: list[dict[str, str]]) -> bool:
    """The original re-tokenises pieces, stumbles over a quoted role, and learns nothing from such a record."""
    return any("ASSISTANT:" in turn["value"] for turn in turns)


def conversations(parity: Path, built: Built) -> TextTurn:
    """The conversations of `collated_*`, cut to its width, with CLIP features of the parity arrays."""
    arrays = np.load(parity / "mmu.npz")
    count, width = arrays["collated_input_ids"].shape
    spoken = read_json(parity / "mmu_text.json")["conversations"][:count]
    rows = [built.prompter.conversation([(turn["from"], turn["value"]) for turn in turns]) for turns in spoken]
    return TextTurn.of_rows(
        [row.ids[:width] for row in rows],
        [row.answer[:width] for row in rows],
        built.model.vocab.pad,
        patches=torch.tensor(arrays["clip_features"]),
    )


def text_task(parity: Path, built: Built) -> TextTask:
    return text_objective("ar").prepare(built.model.vocab, built.prompter.system_ids, conversations(parity, built))
