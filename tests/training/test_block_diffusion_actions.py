"""Whole runs with block-diffusion actions in addition to the regression head."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from config.loading import ConfigError
from models.pretrained.model_io import load_folder
from tests.training.runs import Outcome, same, train

Start = Callable[..., Outcome]
ACTIONS = {"block_diffusion__action_enabled": "true", "block_diffusion__action_num_bins": 16}


def test_the_other_losses_of_the_first_step_are_what_they_are_without(world: Path, tmp_path: Path) -> None:
    without, combined = (
        train(world, tmp_path / name, training__max_train_steps=1, **knobs).metrics[0]
        for name, knobs in (("without", {}), ("beside", ACTIONS))
    )
    assert "action_bd/loss" not in without
    assert combined["text/loss"] == without["text/loss"]
    for name in ("image/loss", "action/loss"):
        assert combined[name] == pytest.approx(without[name], rel=1e-6)
    assert combined["total/loss"] == pytest.approx(without["total/loss"] + combined["action_bd/loss"], rel=1e-6)


def test_they_are_learned_measured_and_declared_in_the_checkpoint(world: Path, tmp_path: Path) -> None:
    done = train(
        world,
        tmp_path / "out",
        training__max_train_steps=60,
        training__pre_coeff=0.0,
        training__batch_size_pre=4,
        dataset__und_type="null",
        experiment__eval_every=60,
        dataset__params__validation_pre_shards_path_or_url=world / "robot_validation",
        block_diffusion__action_infer_steps=2,
        block_diffusion__action_infer_enabled="true",
        **ACTIONS,
    )
    curve = done.curve("action_bd/loss")
    assert sum(curve[-5:]) / 5 < 0.6 * curve[0]
    last = done.metrics[-1]
    assert last["validation/action_bd/loss"] < curve[0]
    assert last["validation/action_bd/nats_per_token"] < curve[0]
    assert 0 < last["validation/action_bd/mae"] < 2
    assert 4 <= last["validation/action_bd/forwards_per_chunk"] <= 8  # four steps of at most two forwards
    assert 0 <= last["validation/action_bd/accuracy_hidden_50_75"] <= 1
    learned = load_folder(done.folder).spec.decoding
    assert (learned.action_bins, learned.action_block_size, learned.action_prediction) == (
        16,
        7,
        "shift",
    )
    assert (learned.action_decoder, learned.action_infer_steps) == ("block_diffusion", 2)


def test_accumulating_hides_the_same_tokens_and_takes_the_same_step(world: Path, tmp_path: Path) -> None:
    knobs = {"optimizer__params__epsilon": 1e-3, "dataset__params__mask_action_padding": "true", **ACTIONS}
    one = train(world, tmp_path / "one", training__batch_size_pre=4, training__batch_size_mmu=4, **knobs)
    two = train(world, tmp_path / "two", training__gradient_accumulation_steps=2, **knobs)
    assert two.curve("action_bd/loss") == pytest.approx(one.curve("action_bd/loss"), rel=2e-6)
    assert two.curve("total/loss") == pytest.approx(one.curve("total/loss"), rel=2e-6)
    assert same(one.weights(), two.weights(), tolerance=2e-6)


def test_their_weight_is_relative_to_that_of_the_regression(run: Start) -> None:
    heavy = run(training__max_train_steps=1, training__act_coeff=0.5, block_diffusion__action_coeff=3.0, **ACTIONS)
    first = heavy.metrics[0]
    expected = first["image/loss"] + 0.5 * first["action/loss"] + first["text/loss"] + 1.5 * first["action_bd/loss"]
    assert first["total/loss"] == pytest.approx(expected, rel=1e-6)


def test_they_are_refused_where_actions_weigh_nothing(run: Start) -> None:
    with pytest.raises(ConfigError, match=r"block_diffusion\.action_enabled=true: needs training\.act_coeff above 0"):
        run(training__act_coeff=0, **ACTIONS)


def test_a_run_goes_on_with_the_same_bins_alone(run: Start) -> None:
    run("out", experiment__save_every=1, training__max_train_steps=1, **ACTIONS)
    more = {"training__max_train_steps": 2, "experiment__resume_from_checkpoint": "latest"}
    with pytest.raises(ConfigError, match=r"block_diffusion\.action_num_bins is 32, but .* was trained with 16"):
        run("out", **{**ACTIONS, "block_diffusion__action_num_bins": 32, **more})
    assert load_folder(run("out", **ACTIONS, **more).folder).spec.decoding.action_bins == 16
