"""The switch in whole runs: the same robot losses, comparable likelihoods, and text that is learned."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from models.pretrained.model_io import load_folder
from tests.training.runs import Outcome, same, train

OBJECTIVES = ["ar", "mdm", "bd"]
SMALL = {"block_diffusion__block_size": 4, "text_mdm__canvas_multiple": 8}


def test_the_switch_changes_the_text_loss_and_nothing_else(world: Path, tmp_path: Path) -> None:
    first = {
        name: train(
            world, tmp_path / name, name, training__text_objective=name, training__max_train_steps=1, **SMALL
        ).metrics[0]
        for name in OBJECTIVES
    }
    for name in ("mdm", "bd"):
        for kept in ("image/loss", "action/loss"):
            assert first[name][kept] == first["ar"][kept]
        assert first[name]["text/loss"] != first["ar"]["text/loss"]
        # A network of small random weights: every word costs about log V, in bounds too. The continuation adds to it.
        assert 0.7 < first[name]["text/nats_per_token"] / first["ar"]["text/nats_per_token"] < 2.5


@pytest.mark.parametrize("name", ["mdm", "bd"])
def test_text_is_learned_and_measured(world: Path, tmp_path: Path, name: str) -> None:
    done = train(
        world,
        tmp_path / "out",
        name,
        training__text_objective=name,
        training__max_train_steps=60,
        training__pre_coeff=0.0,
        training__act_coeff=0.0,
        training__batch_size_mmu=4,
        experiment__log_every=1,
        experiment__eval_every=60,
        experiment__generate_every=60,
        dataset__params__validation_mmu_shards_path_or_url=world / "chat",
        **SMALL,
    )
    curve = done.curve("text/nats_per_token")
    assert sum(curve[-6:]) / 6 < 0.6 * curve[0]
    held_out = done.curve("validation/text/nats_per_token")
    assert math.isfinite(held_out[-1])
    assert held_out[-1] < curve[0]
    learned = load_folder(done.folder).spec.decoding  # it decodes as it was trained
    assert (learned.text_objective, learned.text_block_size, learned.text_canvas_multiple) == (
        name,
        4,
        8,
    )


@pytest.mark.parametrize("name", ["mdm", "bd"])
def test_accumulating_hides_the_same_words_and_takes_the_same_step(
    run: Callable[..., Outcome], world: Path, tmp_path: Path, name: str
) -> None:
    knobs = {"training__text_objective": name, "optimizer__params__epsilon": 1e-3, **SMALL}
    one = train(world, tmp_path / "one", name, training__batch_size_pre=4, training__batch_size_mmu=4, **knobs)
    two = train(world, tmp_path / "two", name, training__gradient_accumulation_steps=2, **knobs)
    assert two.curve("text/loss") == pytest.approx(one.curve("text/loss"), rel=2e-6)
    assert two.curve("total/loss") == pytest.approx(one.curve("total/loss"), rel=2e-6)
    assert same(one.weights(), two.weights(), tolerance=2e-6)
