"""A robot of two arms, 14 numbers an action: trained, evaluated, served and driven by configuration alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from config.loading import ConfigError
from models.pretrained.model_io import load_folder
from policy_rollout.policies.interface import ActionConvention, Observation, require_same_convention
from policy_rollout.policies.model_yaml import load_model_yaml
from policy_rollout.policies.upvla import UPVLAPolicy
from policy_rollout.robot.arms import ArmsGuard, make_guard
from policy_rollout.robot.remote import RemotePolicy
from policy_rollout.robot.safety import SafetyGuard, SafetyLimits
from scripts.eval_upvla_offline_actions import main as evaluate_offline
from scripts.summarize_offline_eval_json import main as summarize
from tests.serving.served import serving
from tests.training.runs import Outcome
from training.data.dataset_spec import read_contract, write_contract
from training.future_view_prediction_w_action_dataset import DataProvider

Start = Callable[..., Outcome]
DIM = 14
GROUPS = {"position": [0, 1, 2, 7, 8, 9], "rotation": [3, 4, 5, 10, 11, 12], "gripper": [6, 13]}
DATA = "dataset__params__train_pre_shards_path_or_url"
ARMS = ActionConvention(dim=DIM, groups=GROUPS)


def widen(folder: Path, dim: int = DIM) -> None:
    """Give every frame of a processed split an action of ``dim`` numbers, grippers open or closed."""
    rng, file = np.random.default_rng(0), folder / "dataset_info.json"
    episodes = json.loads(file.read_text())
    for frame in (frame for episode in episodes for frame in episode["frames"]):
        action = rng.uniform(-1, 1, dim).round(3)
        action[6::7] = np.sign(action[6::7])
        frame["rel_action"] = frame["abs_action"] = action.tolist()
    file.write_text(json.dumps(episodes))


@pytest.fixture
def arms(world: Path, tmp_path: Path) -> Path:
    """Folder with ``training`` and ``validation`` of the robot, whose contract names its groups."""
    for name, source in (("training", "robot"), ("validation", "robot_validation")):
        shutil.copytree(world / source, tmp_path / "arms" / name)
        widen(tmp_path / "arms" / name)
        write_contract(tmp_path / "arms" / name, {}, {"groups": GROUPS})
    return tmp_path / "arms"


def settings(arms: Path, **more: Any) -> dict[str, Any]:
    return {
        DATA: arms / "training",
        "model__vla__action_dim": DIM,
        "dataset__und_type": "null",
        "training__max_train_steps": 2,
        **more,
    }


def model_yaml(outcome: Outcome) -> Path:
    return outcome.folder / "config.yaml"


def policy_of(outcome: Outcome, decoder: str | None = None) -> UPVLAPolicy:
    return UPVLAPolicy.from_config(model_yaml(outcome), "cpu", outcome.folder, action_decoder=decoder)


def see(instruction: str = "open the drawer") -> Observation:
    return Observation(np.zeros((40, 40, 3), np.uint8), instruction)


def test_it_trains_with_both_heads_and_acts_with_either(run: Start, arms: Path) -> None:
    outcome = run(
        **settings(arms),
        block_diffusion__action_enabled="true",
        block_diffusion__action_num_bins=16,
        dataset__action_normalisation="quantile",
        experiment__eval_every=2,
        dataset__params__validation_pre_shards_path_or_url=arms / "validation",
    )
    last = outcome.metrics[-1]
    assert last["validation/action/mae"] > 0
    assert last["validation/action_bd/mae"] > 0
    spec = load_folder(outcome.folder).spec
    assert spec.action_dim == DIM
    assert spec.data.scale is not None
    assert [spec.data.scale.low[6], spec.data.scale.high[13]] == [-1, 1]  # grippers keep their two positions
    for decoder in ("regression", "block_diffusion"):
        policy = policy_of(outcome, decoder)
        assert policy.convention == ARMS
        assert policy.act([see(), see("push it")]).shape == (2, 4, DIM)


def test_its_last_grippers_are_kept_behind_an_episodes_end(arms: Path) -> None:
    provider = DataProvider(arms / "training", act_step=4, resolution=16, num_view=1)
    sample = provider[7]  # one before the last of the episode
    last = provider.data.actions[7]
    assert sample.action_is_pad.tolist() == [False, True, True, True]
    assert sample.actions[1:, [6, 13]].tolist() == [[last[6], last[13]]] * 3
    assert not sample.actions[1:, :6].any()


@pytest.mark.parametrize("named", [True, False])
def test_it_is_evaluated_on_a_processed_split_with_the_groups_that_its_contract_names(
    run: Start, arms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], named: bool
) -> None:
    if not named:
        for split in arms.iterdir():
            (split / "dataset_contract.json").unlink()
    outcome = run(**settings(arms))
    files = [tmp_path / "model.json", tmp_path / "mean.json"]
    data = ["--dataset-root", str(arms), "--act-step", "4"]
    policies = [
        ["--model-config", str(model_yaml(checkpoint_named(outcome))), "--device", "cpu"],
        ["--baseline", "mean"],
    ]
    for file, policy in zip(files, policies, strict=True):
        assert evaluate_offline([*data, *policy, "--output-json", str(file)]) == 0
        overall = json.loads(file.read_text())["overall"]
        assert overall["samples"] == 14  # every frame but the last of two episodes
        assert 0 < overall["mae_all"] < overall["rmse_all"]
        assert ("mae_pos" in overall, "gripper_sign_acc" in overall) == (named, named)
    capsys.readouterr()
    assert summarize(["--inputs", *map(str, files)]) == 0
    assert ("–" in capsys.readouterr().out) != named


def checkpoint_named(outcome: Outcome) -> Outcome:
    """Name the trained model in the run's own configuration, which then is a model yaml."""
    file = model_yaml(outcome)
    text = file.read_text()
    if "tuned_model_path" not in text:
        file.write_text(text.replace("  showo:\n", f"  showo:\n    tuned_model_path: {outcome.folder}\n", 1))
    return outcome


def test_it_is_served_to_both_protocols_and_to_the_robots_client(run: Start, arms: Path) -> None:
    messages = pytest.importorskip("vla_eval.protocol.messages", reason="make venv-dev brings vla-eval")
    from websockets.sync.client import connect

    policy = policy_of(run(**settings(arms)))
    with serving(policy) as served:
        remote = RemotePolicy(served.url())
        assert remote.convention == ARMS
        np.testing.assert_allclose(remote.act([see()]), policy.act([see()]), atol=1e-6)
        remote.close()
        with connect(served.url("/vla-eval")) as socket:
            hello = messages.Message(messages.MessageType.HELLO, messages.make_hello_payload(), seq=1)
            socket.send(messages.pack_message(hello))
            spec = messages.unpack_message(socket.recv(5)).payload["action_spec"]
            assert {name: part["dims"] for name, part in spec.items()} == {"position": 6, "rotation": 6, "gripper": 2}
            seen = {"images": {"rgb_static": see().rgb_static}, "task_description": "open the drawer"}
            socket.send(messages.pack_message(messages.Message(messages.MessageType.OBSERVATION, seen, seq=2)))
            action = messages.unpack_message(socket.recv(20)).payload["actions"]
            assert action.shape == (DIM,)
            assert set(np.abs(action[[6, 13]])) == {1.0}


def test_the_robots_client_turns_its_actions_into_targets_of_both_arms() -> None:
    guard = make_guard(ARMS, SafetyLimits(max_step_m=0.01))
    assert isinstance(guard, ArmsGuard)
    guard.start_at(np.zeros((2, 6)))
    action = np.zeros(DIM)
    action[[0, 9, 10, 13]] = 1.0  # the left arm along x, the right one along z and turning; its gripper opens
    command = guard.command(action, None)
    np.testing.assert_allclose(command.pose[:, :3], [[0.01, 0, 0], [0, 0, 0.01]])
    np.testing.assert_allclose(command.pose[:, 3], [0, 0.05])
    assert np.asarray(command.gripper).tolist() == [-1, 1]
    assert guard.hits["position step"] == 2
    again = guard.hold()
    assert again is not None
    np.testing.assert_array_equal(again.pose, command.pose)
    assert isinstance(make_guard(ActionConvention(), SafetyLimits()), SafetyGuard)
    with pytest.raises(ValueError, match=r"actions of 14 numbers with action\.groups None"):
        make_guard(ActionConvention(dim=DIM), SafetyLimits())


def test_another_size_of_config_data_or_checkpoint_is_one_error(run: Start, arms: Path, world: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.vla\.action_dim is 7, but the actions of .* have 14 numbers; set"):
        run(**{**settings(arms), "model__vla__action_dim": 7})
    with pytest.raises(ConfigError, match=r"model\.vla\.action_dim is 14, but the actions of .* have 7 numbers; set"):
        run(model__vla__action_dim=DIM)
    with pytest.raises(ConfigError, match=r"declares the action's dim as 14, but .* as None"):
        run(**settings(arms, dataset__params__validation_pre_shards_path_or_url=world / "robot_validation"))
    outcome = run("seven", training__max_train_steps=1, dataset__und_type="null", experiment__save_every=1)
    with pytest.raises(ConfigError, match=r"model\.vla\.action_dim is 14, but .* was trained with 7"):
        run("seven", **settings(arms, experiment__resume_from_checkpoint="latest"))
    text = model_yaml(checkpoint_named(outcome)).read_text().replace("action_dim: 7", "action_dim: 14")
    model_yaml(outcome).write_text(text)
    yaml = load_model_yaml(model_yaml(outcome))
    with pytest.raises(ConfigError, match=r"model\.vla\.action_dim=14 .*, but the checkpoint .* was made with 7"):
        yaml.require_agreement(load_folder(outcome.folder).spec, outcome.folder)
    with pytest.raises(ValueError, match=r"dim 14 \(policy\) vs 7"):
        require_same_convention(ARMS, ActionConvention(), "the environment")


def test_it_may_start_from_a_model_of_seven_numbers(run: Start, arms: Path) -> None:
    seven = run("seven", training__max_train_steps=1, dataset__und_type="null")
    start = {"model__showo__load_from_showo": "true", "model__showo__pretrained_model_path": seven.folder}
    fourteen = run(
        "fourteen", **settings(arms, **start, training__max_train_steps=1, optimizer__params__learning_rate=1e-12)
    )
    ours, theirs = fourteen.weights(), seven.weights()
    assert ours["to_logits.0.weight"].shape[0] == 4 * DIM
    assert all(torch.allclose(ours[name], theirs[name]) for name in theirs if not name.startswith("to_logits."))


def test_a_contract_and_its_data_have_one_size(arms: Path) -> None:
    contract = arms / "training" / "dataset_contract.json"
    assert read_contract(arms / "training").action["dim"] == DIM
    written = json.loads(contract.read_text())
    for change, words in (
        ({"dim": 15}, r"statistics\.min must be 15 finite numbers"),
        ({"dim": 13}, r"different indices from 0 to 12"),
        ({"dim": 0}, r"action\.dim must be an integer of at least 1"),
        ({"groups": {"fingers": [1]}}, r"unknown action\.groups\.fingers; allowed: position, rotation, gripper"),
        ({"groups": {"gripper": [14]}}, r"different indices from 0 to 13"),
        ({"groups": {"gripper": [6], "position": [6]}}, r"different indices from 0 to 13"),
    ):
        contract.write_text(json.dumps({**written, "action": {**written["action"], **change}}))
        with pytest.raises(ValueError, match=words):
            read_contract(arms / "training")
    contract.write_text(json.dumps(written))
    widen(arms / "training", 21)
    with pytest.raises(ValueError, match=r"action\.dim is 14, but the actions of dataset_info\.json have 21 numbers"):
        DataProvider(arms / "training", act_step=4, resolution=16, num_view=1)


def test_models_that_were_saved_before_have_seven(run: Start) -> None:
    outcome = run(training__max_train_steps=1, dataset__und_type="null")
    file = outcome.folder / "config.json"
    saved = json.loads(file.read_text())
    assert saved["blockdiff_vla"].pop("action_dim") == 7
    assert "dim" not in saved["blockdiff_vla"]["action_convention"]
    file.write_text(json.dumps(saved))
    assert policy_of(outcome).act([see()]).shape == (1, 4, 7)
