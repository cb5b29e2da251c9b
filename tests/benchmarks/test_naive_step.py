"""The slow reference of a training step computes what the original computed, and what the package computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from models.pretrained.model_io import Built, to_disk_names
from tests.benchmarks import naive_step
from tests.parity import flows
from tests.parity.where import parity_dir


@pytest.fixture(scope="module")
def parity() -> Path:
    return parity_dir()


def recorded(parity: Path, built: Built) -> naive_step.Rows:
    """The batch of the original's recorded steps."""
    arrays = np.load(parity / "pre_1view.npz")
    turn, prompter = flows.conversations(parity, built), built.prompter
    length = int(flows.read_json(parity / "mmu_text.json")["max_text_len"])
    texts = flows.read_json(parity / "pre_text.json")["texts"]
    assert turn.lengths is not None
    real = turn.lengths.tolist()
    assert turn.patches is not None
    return naive_step.rows_of(
        built.model.vocab,
        [prompter.instruction(text) for text in texts],
        torch.tensor(arrays["codes_now"]),
        torch.tensor(arrays["codes_future"]),
        torch.tensor(arrays["actions"]),
        prompter.system_ids,
        [row[:n].tolist() for row, n in zip(turn.ids, real, strict=True)],
        [row[:n].tolist() for row, n in zip(turn.answer, real, strict=True)],
        turn.patches,
        length,
    )


@pytest.mark.parity
@pytest.mark.parametrize("objective", ["ar", "mdm", "bd"])
def test_its_losses_and_gradients_are_those_that_the_original_recorded(parity: Path, objective: str) -> None:
    built = flows.upstream(parity, max_seq_length=flows.read_json(parity / "mmu_text.json")["max_text_len"])
    model = naive_step.slow_model(built.model.train().requires_grad_(True))
    arrays = np.load(parity / f"step_{objective}.npz")
    expected = flows.read_json(parity / "steps.json")[objective]
    rows = recorded(parity, built)
    passes = []
    for flow, (ids, may_hide) in zip(("pre", "mmu"), rows.words, strict=True):
        if objective == "mdm":
            passes.append(naive_step.masked_pass(ids, torch.tensor(arrays[f"{flow}_masked_pos"]), model.vocab.mask))
        if objective == "bd":
            hidden, size = torch.tensor(arrays[f"{flow}_primary_mask"]), int(expected["block_size"])
            passes.append(naive_step.block_pass(ids, hidden, may_hide, size, model.vocab.mask))
        if objective != "ar":
            np.testing.assert_array_equal(may_hide, arrays[f"{flow}_valid_mask"])
            np.testing.assert_array_equal(passes[-1].ids, arrays[f"{flow}_input_ids"])
            np.testing.assert_array_equal(passes[-1].labels, arrays[f"{flow}_labels"])
    found = naive_step.losses(model, rows, passes)
    for name, theirs in (("image", "loss_pre"), ("action", "loss_act"), ("text", "loss_mmu"), ("learned", "loss_text")):
        assert_allclose(found[name].item(), arrays[theirs], rtol=1e-5, err_msg=name)
    losses = {"pre": found["image"], "act": found["action"], "text": found["learned"]}
    total = torch.stack([weight * losses[name] for name, weight in expected["coefficients"].items()]).sum()
    assert_allclose(total.item(), expected["total"], rtol=1e-5)
    torch.autograd.backward(total)
    parameters = to_disk_names(dict(model.named_parameters()))
    for name, norm in expected["grad_norms"].items():
        gradient = parameters[name].grad
        if norm is not None and gradient is not None:
            assert_allclose(gradient.norm().item(), norm, rtol=2e-4, atol=1e-6, err_msg=name)
