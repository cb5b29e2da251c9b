"""A checkpoint alone names a model: nobody has to write a model yaml."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.files import PROJECT_DIR
from config.parsing import ConfigError
from models.pretrained import weights_io
from policy_rollout import calvin_evaluate_upvla, policy_upvla, serve
from policy_rollout.policies.interface import Observation
from policy_rollout.policies.model_yaml import load_model_yaml, yaml_of
from policy_rollout.policies.upvla import UPVLAPolicy
from scripts import eval_upvla_offline_actions
from tests.policy.saved_model import write_model


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's output folder with its configuration, as training leaves it."""
    shutil.move(write_model(tmp_path), tmp_path / "run" / "config.yaml")
    return tmp_path / "run"


@pytest.mark.parametrize("part", ["", "checkpoint-3", "checkpoint-3/unwrapped_model"])
def test_the_configuration_of_the_run_is_the_model_yaml(run: Path, part: str) -> None:
    config = load_model_yaml(None, run / part)
    assert (config.path, config.checkpoint) == (run / "config.yaml", str((run / part).resolve()))
    config.require_checkpoint()


def test_a_checkpoint_alone_acts_as_with_a_yaml_that_names_it(run: Path) -> None:
    image = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    observation = Observation(image, "open the drawer")
    chunks = [UPVLAPolicy.from_config(yaml, "cpu", run).act([observation])[0] for yaml in (None, run / "config.yaml")]
    np.testing.assert_array_equal(*chunks)


@pytest.mark.parametrize(
    ("description", "name"),
    [
        ({"blockdiff_vla": {"framework": "mdmvla"}}, "mdmvla_model.yaml"),
        ({"blockdiff_vla": {"framework": ""}}, "upvla_model.yaml"),
        ({"llm_model_path": "microsoft/phi-1_5"}, "upvla_model.yaml"),  # of the original
    ],
)
def test_without_that_configuration_the_yaml_of_the_framework_is_read(
    description: dict[str, Any], name: str, tmp_path: Path
) -> None:
    folder = tmp_path / "a" / "b" / "model"  # no config.yaml in or above it
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(description), encoding="utf-8")
    assert yaml_of(folder) == PROJECT_DIR / "policy_rollout" / name
    weights = folder / "pytorch_model.bin"
    weights.touch()
    assert yaml_of(weights).name == name


def test_a_hub_id_is_downloaded_before_its_configuration_is_read(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights_io, "resolve_model_dir", lambda name, key: run if name == "someone/policy" else None)
    assert load_model_yaml(None, "someone/policy").path == run / "config.yaml"


@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [
        (None, "give a checkpoint .* or a model yaml"),
        ("./nowhere", r"checkpoint \./nowhere: there is no such checkpoint"),
        ("outputs/tiny_nobody", "there is no such checkpoint; give an existing path"),  # not asked of the hub
        ("outputs/debug_bdvla_1step", "make it with: python train_blockdiff_vla.py config=./config/debug_bdvla"),
    ],
)
def test_no_model_or_one_that_does_not_exist_is_refused(
    checkpoint: str | None, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        load_model_yaml(None, checkpoint)


@pytest.mark.parametrize(
    ("main", "arguments", "message"),
    [
        (eval_upvla_offline_actions.main, ["--dataset-root", "x"], "--checkpoint or --model-config is required"),
        (
            eval_upvla_offline_actions.main,
            ["--dataset-root", "x", "--baseline", "mean", "--checkpoint", "y"],
            "leave out --checkpoint",
        ),
        (serve.main, [], "--checkpoint or --model-config is required"),
        (policy_upvla.main, [], "--checkpoint or --model-config is required"),
        (policy_upvla.main, ["--server", "ws://x", "--checkpoint", "y"], "leave out --checkpoint"),
    ],
)
def test_commands_refuse_no_model_and_two_models(
    main: Any, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_the_evaluation_asks_for_a_checkpoint_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(SystemExit) as end:
        calvin_evaluate_upvla.command(["environment=desk"])
    assert end.value.code == 2
    assert "checkpoint or model_config has to be given" in capsys.readouterr().err
