"""Training with the robot's state: dropped reproducibly, resumed exactly, trained with adapters and averages, refused
where data have none."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from config.loading import ConfigError
from models.pretrained.model_io import load_folder
from policy_rollout.policies.interface import Observation
from policy_rollout.policies.upvla import UPVLAPolicy
from tests.training.launches import launch, sharded
from tests.training.runs import Outcome, same, train
from tests.training.test_resume import NUMBERS
from training.batch_to_tasks import drop_conditions
from training.data.dataset_spec import write_contract
from training.data.episode_index import read_index

Start = Callable[..., Outcome]
DATA, VALIDATION = "dataset__params__train_pre_shards_path_or_url", "dataset__params__validation_pre_shards_path_or_url"
POSE = {"model__vla__proprioception": "pose"}
ROBOT_ONLY = {"dataset__und_type": "null"}


def give_states(folder: Path, size: int = 15, seed: int = 0) -> Path:
    rng, file = np.random.default_rng(seed), folder / "dataset_info.json"
    episodes = json.loads(file.read_text())
    for frame in (frame for episode in episodes for frame in episode["frames"]):
        frame["state"] = rng.uniform(-1, 1, size).round(3).tolist()
    file.write_text(json.dumps(episodes))
    return folder


@pytest.fixture(scope="module")
def robot(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pose")
    for name in ("robot", "robot_validation"):
        shutil.copytree(world / name, root / name)
        give_states(root / name)
    return root / "robot"


def see(state: Any, instruction: str = "open the drawer") -> Observation:
    return Observation(np.zeros((40, 40, 3), np.uint8), instruction, robot_obs=state)


def policy_of(outcome: Outcome) -> UPVLAPolicy:
    return UPVLAPolicy.from_config(outcome.folder / "config.yaml", "cpu", outcome.folder)


# --- a run -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("decoder", ["regression", "block_diffusion"])
def test_it_trains_evaluates_and_acts(run: Start, robot: Path, decoder: str) -> None:
    tokens = {"block_diffusion__action_enabled": "true", "block_diffusion__action_num_bins": 16}
    tokens |= {"block_diffusion__action_infer_enabled": "true"}
    outcome = run(
        **POSE,
        **ROBOT_ONLY,
        **(tokens if decoder == "block_diffusion" else {}),
        **{DATA: robot, VALIDATION: robot.parent / "robot_validation"},
        training__state_dropout_prob=0.3,
        training__max_train_steps=6,
        optimizer__params__learning_rate=0.02,
        experiment__eval_every=6,
        experiment__generate_every=6,
    )
    assert outcome.metrics[-1]["validation/action/mae"] > 0
    convention = load_folder(outcome.folder).spec.data.state_convention
    states = np.asarray(read_index(robot).states)
    assert convention is not None
    np.testing.assert_allclose(convention.mean, states[:, :3].mean(axis=0), rtol=1e-5, atol=1e-6)
    policy = policy_of(outcome)
    assert policy.action_decoder == decoder
    assert policy.state is not None
    policy.warm_up()
    rng = np.random.default_rng(3)
    one, other = rng.uniform(-1, 1, 15), rng.uniform(-1, 1, 15)
    together = policy.act([see(one), see(other)])
    np.testing.assert_allclose(together[1], policy.act([see(other)])[0], atol=1e-5)
    assert np.abs(together[0] - together[1]).max() > 1e-4
    assert policy.predict_codes([see(one)]).shape == (1, 4)


def test_an_observation_without_a_state_is_one_line(run: Start, robot: Path) -> None:
    policy = policy_of(run(**POSE, **ROBOT_ONLY, **{DATA: robot}, training__max_train_steps=1))
    for state, words in (
        (None, r"this model reads the robot's state .* but the observation has no robot_obs; send its 15 numbers"),
        (np.zeros(7), r"this model reads a robot_obs of 15 finite numbers, found array"),
        (np.full(15, np.nan), r"this model reads a robot_obs of 15 finite numbers, found array"),
    ):
        with pytest.raises(ValueError, match=words):
            policy.act([see(np.zeros(15)), see(state)])


def test_without_the_option_states_in_the_data_change_no_byte(run: Start, world: Path, robot: Path) -> None:
    bare, seen = run("bare", **{DATA: world / "robot"}), run("seen", **{DATA: robot})
    assert (bare.folder / "model.safetensors").read_bytes() == (seen.folder / "model.safetensors").read_bytes()
    configs = [(outcome.folder / "config.json").read_text() for outcome in (bare, seen)]
    assert configs[0] == configs[1]
    assert '"state"' not in configs[0]
    assert bare.curve("total/loss") == seen.curve("total/loss")


def test_a_batch_that_has_no_robot_flow_leaves_the_encoder_alone(run: Start, robot: Path) -> None:
    outcome = run(**POSE, **{DATA: robot}, dataset__combined_loader_mode="sequential", training__max_train_steps=9)
    assert all(np.isfinite(outcome.curve("total/loss")))


# --- dropout ---------------------------------------------------------------------------------------------------------
def test_states_are_dropped_by_seed_step_and_sample_and_apart_from_instructions() -> None:
    together = drop_conditions(range(200), 0.5, 1, 3, "state")
    assert [drop_conditions([i], 0.5, 1, 3, "state")[0] for i in range(200)] == together
    assert 60 < sum(together) < 140
    for other in (drop_conditions(range(200), 0.5, 1, 4, "state"), drop_conditions(range(200), 0.5, 1, 3)):
        assert other != together


def test_dropping_nothing_is_training_without_dropout(run: Start, robot: Path) -> None:
    settings = {**POSE, **ROBOT_ONLY, DATA: robot}
    never, always_given = run("zero", **settings, training__state_dropout_prob=0.0), run("none", **settings)
    assert same(never.weights(), always_given.weights())
    often = run("often", **settings, training__state_dropout_prob=0.9)
    assert not same(never.weights(), often.weights())


# --- resuming, averages, adapters, frozen parts ----------------------------------------------------------------------
def test_a_resumed_run_is_the_uninterrupted_one(run: Start, robot: Path, tmp_path: Path) -> None:
    settings = {
        **POSE,
        DATA: robot,
        "training__state_dropout_prob": 0.5,
        "training__ema_decay": 0.5,
        "training__max_train_steps": 4,
        "experiment__save_every": 2,
    }
    whole = run("whole", **settings)
    shutil.copytree(whole.folder / "checkpoint-2", tmp_path / "resumed" / "checkpoint-2")
    shutil.copy(whole.folder / "metrics.jsonl", tmp_path / "resumed")
    resumed = run("resumed", **settings, experiment__resume_from_checkpoint="latest")
    assert same(whole.weights(), resumed.weights())
    assert all(resumed.curve(tag) == whole.curve(tag) for tag in NUMBERS)
    (average,) = [p for p in whole.folder.glob("checkpoint-4/**/*.safetensors") if "state_encoder.0.weight" in _names(p)
                  and "unwrapped_model" not in str(p)][:1] or [None]  # fmt: skip
    assert average is not None, "the encoder is part of the average and of the trained weights next to it"


def _names(file: Path) -> str:
    return " ".join(load_file(file))


def test_another_option_or_other_states_do_not_continue_a_run(run: Start, robot: Path, tmp_path: Path) -> None:
    settings = {**ROBOT_ONLY, DATA: robot, "training__max_train_steps": 1, "experiment__save_every": 1}
    again = {"experiment__resume_from_checkpoint": "latest"}
    run("bare", **settings)
    with pytest.raises(ConfigError, match=r"model\.vla\.proprioception is pose, but .* was trained with none; choose"):
        run("bare", **settings, **again, **POSE)
    run("pose", **settings, **POSE)
    with pytest.raises(ConfigError, match=r"model\.vla\.proprioception is none, but .* was trained with pose; choose"):
        run("pose", **settings, **again)
    other = give_states(shutil.copytree(robot, tmp_path / "other"), seed=5)
    with pytest.raises(ConfigError, match=r"other states, or has other statistics of them, than the data of"):
        run("pose", **{**settings, DATA: other}, **again, **POSE)


def test_adapters_are_trained_next_to_the_whole_encoder(run: Start, robot: Path) -> None:
    pytest.importorskip("peft")
    settings = {**POSE, **ROBOT_ONLY, DATA: robot, "lora__rank": 2, "training__max_train_steps": 2}
    settings |= {"experiment__save_every": 1, "training__pre_coeff": 0.0}
    before, after = run("a", **settings, optimizer__params__learning_rate=1e-12), run("b", **settings)
    changed = {name for name, tensor in after.weights().items() if not torch.allclose(tensor, before.weights()[name])}
    assert {name for name in changed if name.startswith("state_encoder.")} == {
        f"state_encoder.{part}" for part in ("0.weight", "0.bias", "2.weight", "2.bias")
    }
    frozen = run("c", **settings, training__freeze="[state_encoder.*]")
    first = before.weights()
    assert all(torch.allclose(t, first[n]) for n, t in frozen.weights().items() if n.startswith("state_encoder."))


def test_an_encoder_that_no_loss_reaches_is_not_trained(run: Start, robot: Path) -> None:
    settings = {**POSE, DATA: robot, "training__act_coeff": 0.0}
    image, neither = run("image", **settings), run("neither", **settings, training__pre_coeff=0.0)
    start = run("start", **settings, optimizer__params__learning_rate=1e-12)
    names = [name for name in start.weights() if name.startswith("state_encoder.")]
    assert all(torch.equal(neither.weights()[n], start.weights()[n]) or n.endswith("bias") for n in names)
    assert not torch.allclose(image.weights()[names[1]], neither.weights()[names[1]], atol=1e-5)


def test_a_start_without_a_state_learns_one(run: Start, robot: Path) -> None:
    bare = run("bare", **ROBOT_ONLY, **{DATA: robot}, training__max_train_steps=1)
    start = {"model__showo__load_from_showo": "true", "model__showo__pretrained_model_path": bare.folder}
    settings = {**ROBOT_ONLY, DATA: robot, **start, "training__max_train_steps": 1}
    pose = run("pose", **settings, **POSE, optimizer__params__learning_rate=1e-12)
    assert all(torch.allclose(pose.weights()[name], tensor) for name, tensor in bare.weights().items())
    back = {**settings, "model__showo__pretrained_model_path": pose.folder}
    with pytest.raises(ConfigError, match=r"reads the robot's state, and model\.vla\.proprioception is none; set"):
        run("back", **back)


# --- refusals --------------------------------------------------------------------------------------------------------
def test_data_without_states_or_with_others_are_one_line(
    run: Start, world: Path, robot: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match=r"the frames of .*robot/dataset_info\.json have no 'state'; convert"):
        run(**POSE, **{DATA: world / "robot"})
    with pytest.raises(ConfigError, match=r"robot_validation/dataset_info\.json have no 'state'"):
        run(**POSE, **{DATA: robot, VALIDATION: world / "robot_validation"})
    other = shutil.copytree(robot, tmp_path / "other")
    groups = {"dim": 15, "groups": {"position": [0, 1, 2], "rotation": [3, 4, 5], "gripper": [6]}}
    write_contract(other, {}, states=np.asarray(read_index(other).states), state=groups)
    with pytest.raises(ConfigError, match=r"declares the state's gripper as \(14,\), but .*other as \(6,\); convert"):
        run(**POSE, **{DATA: robot, VALIDATION: other})
    run(**ROBOT_ONLY, **{DATA: robot, VALIDATION: other}, training__max_train_steps=1)  # nobody reads them


def test_settings_that_contradict_the_option_are_named(run: Start, robot: Path) -> None:
    with pytest.raises(ConfigError, match=r"training\.state_dropout_prob=1: a state that is always left out"):
        run(**POSE, **{DATA: robot}, training__state_dropout_prob=1)
    with pytest.raises(ConfigError, match=r"model\.vla\.proprioception=joints"):
        run(model__vla__proprioception="joints")


def test_a_dropout_that_nothing_reads_is_logged(run: Start, capsys: pytest.CaptureFixture[str]) -> None:
    run(training__state_dropout_prob=0.5, training__max_train_steps=1)
    assert "training.state_dropout_prob=0.5 has no effect with model.vla.proprioception=none" in capsys.readouterr().out


# --- several processes -----------------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "zero2", "fsdp2"])
def test_two_processes_take_the_steps_of_one(world: Path, robot: Path, tmp_path: Path, kind: str) -> None:
    if kind.startswith("zero"):
        pytest.importorskip("deepspeed")
    options = {DATA: robot, **POSE, "training__state_dropout_prob": 0.5}
    whole = {"training__batch_size_pre": 4, "training__batch_size_mmu": 4, "optimizer__params__epsilon": 1e-3}
    one = train(world, tmp_path / "one", **whole, **options)
    given = tuple(f"{name.replace('__', '.')}={value}" for name, value in options.items())
    two = launch(world, tmp_path / "two", *sharded(kind), given)
    assert two.curve("total/loss") == pytest.approx(one.curve("total/loss"), rel=3e-6)
    assert same(one.weights(), two.weights(), tolerance=5e-6)
    assert policy_of(two).act([see(np.zeros(15))]).shape == (1, 4, 7)
