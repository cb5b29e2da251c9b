"""Which optimizer state a resumed run gets: each parameter its own, or none at all."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import AdamW

from config.loading import ConfigError
from tests.training.launches import launch, sharded, start
from tests.training.runs import Outcome, same
from training.checkpointing.manifest import METADATA, write_manifest
from training.checkpointing.optimizer_state import reorder
from training.optim.optimizer import group_names, parameter_groups

Start = Callable[..., Outcome]
NORMS = "[backbone.lm.model.layers.0.input_layernorm.*]"
OTHER_NORMS = "[backbone.lm.model.layers.1.input_layernorm.*]"
"""Lists of equal shapes: torch would give the one's moments to the other."""
CONSTANT = {"lr_scheduler__scheduler": "constant", "experiment__save_every": 1}
"""A learning rate that the number of steps has no say in."""


def rewrite(checkpoint: Path, *missing: str, **change: Any) -> None:
    """Give a checkpoint another record, as another version would have written it."""
    record = json.loads((checkpoint / METADATA).read_text())
    (checkpoint / METADATA).unlink()
    more = {"conditions": record["conditions"], "optimizer": record["optimizer"], **change}
    more = {name: value for name, value in more.items() if name not in missing}
    write_manifest(checkpoint, record["global_step"], record["data"], more)


def test_another_freeze_list_of_equal_shapes_is_refused_with_the_names(run: Start) -> None:
    run(experiment__save_every=1, training__freeze=NORMS)
    with pytest.raises(ConfigError, match="trained other parameters") as refused:
        run(experiment__resume_from_checkpoint="latest", training__max_train_steps=3, training__freeze=OTHER_NORMS)
    output = str(refused.value)
    assert "backbone.lm.model.layers.0.input_layernorm.weight" in output
    assert "backbone.lm.model.layers.1.input_layernorm.weight" in output
    assert "training.freeze" in output
    assert "pretrained_model_path" in output
    assert "\n" not in output


def test_another_optimizer_is_refused_with_both_names(run: Start) -> None:
    pytest.importorskip("bitsandbytes")
    for one, other in (("adamw", "adamw_8bit"), ("adamw_8bit", "adamw")):
        run(one, optimizer__name=one)
        with pytest.raises(ConfigError, match=rf"^optimizer.name={other}, but .* holds the state of {one}"):
            run(one, optimizer__name=other, experiment__resume_from_checkpoint="latest", training__max_train_steps=3)


def test_the_kind_of_optimizer_is_known_from_older_checkpoints_too(run: Start) -> None:
    first = run(experiment__save_every=1)
    record = json.loads((first.folder / "checkpoint-2" / METADATA).read_text())
    conditions = {**record["conditions"], "optimizer.name": "adamw_8bit"}
    rewrite(first.folder / "checkpoint-2", "optimizer", conditions=conditions)
    with pytest.raises(ConfigError, match="holds the state of adamw_8bit"):
        run(experiment__resume_from_checkpoint="latest", training__max_train_steps=3)


def test_a_checkpoint_without_names_is_resumed_where_that_is_safe(
    run: Start, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = {**CONSTANT, "training__freeze": NORMS}
    whole = run("whole", **settings, training__max_train_steps=3)
    first = run("run", **settings)
    rewrite(first.folder / "checkpoint-2", "optimizer")
    on = {"experiment__resume_from_checkpoint": "latest", "training__max_train_steps": 3}
    with pytest.raises(ConfigError, match="trained other parameters"):
        run("run", **{**settings, "training__freeze": OTHER_NORMS}, **on)
    assert same(whole.weights(), run("run", **settings, **on).weights())
    older = run("older", **settings)
    rewrite(older.folder / "checkpoint-2", "optimizer", "conditions")
    capfd.readouterr()
    assert same(whole.weights(), run("older", **settings, **on).weights())
    assert "matched by position" in capfd.readouterr().out


def test_the_same_parameters_in_another_order_get_their_own_state(
    run: Start, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = run("whole", **CONSTANT, training__max_train_steps=4)

    def backwards(model: nn.Module) -> list[list[str]]:
        return [names[::-1] for names in group_names(model)]

    with monkeypatch.context() as patch:
        for module in ("training.optim.optimizer", "training.checkpointing.optimizer_state"):
            patch.setattr(f"{module}.group_names", backwards)
        run("run", **CONSTANT)
    capfd.readouterr()
    on = {"experiment__resume_from_checkpoint": "latest", "training__max_train_steps": 4}
    resumed = run("run", **CONSTANT, **on)
    assert "in another order" in capfd.readouterr().out
    assert same(whole.weights(), resumed.weights())


def test_moments_follow_the_names() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    optimizer = AdamW(parameter_groups(model, 0.1))
    model(torch.randn(5, 3)).square().sum().backward()
    optimizer.step()
    saved, names = optimizer.state_dict(), group_names(model)
    other = [names[1][::-1], names[0]]
    named = dict(model.named_parameters())
    again = AdamW([{"params": [named[name] for name in group], "weight_decay": 0.2} for group in other])
    again.load_state_dict(reorder(saved, names, other, again.state_dict()["param_groups"]))
    for parameter in model.parameters():
        assert torch.equal(again.state[parameter]["exp_avg"], optimizer.state[parameter]["exp_avg"])
    assert [group["weight_decay"] for group in again.param_groups] == [0.2, 0.2]


def test_settings_of_the_optimizer_are_the_jobs_not_the_checkpoints(run: Start) -> None:
    """Torch puts weight decay and betas of the saved state in place of those of the new run."""
    before = run(**CONSTANT).weights()
    on = {"experiment__resume_from_checkpoint": "latest", "training__max_train_steps": 3}
    resumed = run(**CONSTANT, **on, optimizer__params__weight_decay=30.0)  # decays to almost nothing: 1 - 0.003 * 30
    name = "showo.model.layers.0.self_attn.q_proj.weight"
    assert resumed.weights()[name].norm() < 0.95 * before[name].norm()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "zero2", "fsdp2"])
def test_other_parameters_are_refused_however_the_state_is_shared(world: Path, tmp_path: Path, kind: str) -> None:
    options = sharded(kind)
    over = ("experiment.save_every=1", "training.max_train_steps=1")
    launch(world, tmp_path / "out", *options, (*over, f"training.freeze={NORMS}"))
    again = ("experiment.resume_from_checkpoint=latest", "training.max_train_steps=2")
    done = start(world, tmp_path / "out", *options, (*over, *again, f"training.freeze={OTHER_NORMS}"))
    assert done.returncode != 0
    assert "trained other parameters" in done.stderr
