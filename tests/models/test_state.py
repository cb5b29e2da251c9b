"""The robot's state as an input: its features, where they are added, and what changes by them."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from common.constants import CALVIN_STATE
from models.action.inference import ActionPredictor
from models.action.state import StateConvention, calvin_state
from models.attention_mask import Kind
from models.decoding import ActionDecoding, decode_actions
from models.decoding.kv_cache import CachedPrefix
from models.pretrained.initial_weights import load_weights
from models.pretrained.model_config import ModelConfig
from models.pretrained.model_io import load_folder, save_folder
from models.pretrained.weights_io import read_weights
from models.sequence import TokenSequence, robot_sequence
from models.upvla import UPVLA
from tests.models.action_problems import BINS, Built, acting_model, codes_of, diffusion, future, robot, telling_model

STATE = calvin_state().to_json()


def states(rows: int, seed: int = 0) -> Tensor:
    """[B, 15]"""
    return torch.rand(rows, 15, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def features(rows: int, seed: int = 0) -> Tensor:
    return calvin_state().apply(states(rows, seed))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return acting_model(tmp_path_factory.mktemp("pose"), state=STATE)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return acting_model(tmp_path_factory.mktemp("none"))


def with_state(sequence: TokenSequence, given: Tensor | None = None, seed: int = 0) -> TokenSequence:
    return replace(sequence, state=features(sequence.ids.shape[0], seed), state_given=given)


# --- features --------------------------------------------------------------------------------------------------------
def test_the_features_of_a_pose() -> None:
    convention = StateConvention(15, (0, 1, 2), (3, 4, 5), (14,), "euler_xyz", (1.0, 2.0, 3.0), (0.5, 0.0, 2.0))
    state = torch.arange(15.0)
    expected = [-2.0, -1.0, -0.5, *torch.tensor([3.0, 4.0, 5.0]).sin(), *torch.tensor([3.0, 4.0, 5.0]).cos(), 14.0]
    torch.testing.assert_close(convention.apply(state), torch.tensor(expected))
    assert convention.features == 10
    torch.testing.assert_close(convention.apply(torch.stack([state, state]).double()), torch.tensor([expected] * 2))


def test_an_angle_and_the_same_angle_a_turn_later_are_one_feature() -> None:
    state = states(4)
    turned = state.clone()
    turned[:, 3:6] += 2 * torch.pi
    torch.testing.assert_close(calvin_state().apply(turned), calvin_state().apply(state), rtol=1e-5, atol=1e-5)


def test_other_rotations_are_read_as_they_are() -> None:
    declared = {"dim": 8, "groups": {"position": [0, 1, 2], "rotation": [3, 4, 5, 6]}, "rotation": "quaternion_xyzw"}
    convention = StateConvention.of(declared, dict.fromkeys(range(8), 0.0), dict.fromkeys(range(8), 1.0))
    assert convention.features == 7
    state = torch.arange(8.0)
    assert torch.equal(convention.apply(state), state[:7])


def test_a_convention_is_the_same_after_json() -> None:
    rows = dict(enumerate(torch.rand(15).tolist()))
    convention = StateConvention.of({"dim": 15, "groups": {"position": [2, 0], "gripper": [14]}}, rows, rows)
    assert StateConvention.from_json(json.loads(json.dumps(convention.to_json()))) == convention


def test_a_state_without_declared_numbers_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"state\.groups names no position, rotation or gripper among the 9 numbers"):
        StateConvention.of({"dim": 9, "groups": {}}, {}, {})
    with pytest.raises(ValueError, match=r"state\.groups must hold different indices from 0 to 8"):
        StateConvention.of({"dim": 9, "groups": {"position": [9]}}, {}, {})


# --- the option off --------------------------------------------------------------------------------------------------
def test_a_model_without_the_option_is_described_and_named_as_before(plain: Built, built: Built) -> None:
    model, reader = plain[0], built[0]
    assert model.state_encoder is None
    assert "state" not in model.spec.to_json()
    assert (model.spec.proprioception, reader.spec.proprioception) == ("none", "pose")
    assert ModelConfig.from_json(json.loads(json.dumps(reader.spec.to_json()))).data == reader.spec.data
    ours, theirs = dict(reader.named_parameters()), dict(model.named_parameters())
    assert set(ours) - set(theirs) == {f"state_encoder.{part}" for part in ("0.weight", "0.bias", "2.weight", "2.bias")}
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items()), "the same initial weights"


def test_a_state_in_a_model_that_reads_none_is_an_error(plain: Built) -> None:
    with pytest.raises(ValueError, match=r"this model reads no state: .* model\.vla\.proprioception=none"):
        plain[0].hidden_states(with_state(robot(plain)))


# --- where it is added -----------------------------------------------------------------------------------------------
@torch.no_grad()
def test_only_the_embeddings_of_action_slots_change_by_the_encoded_state(built: Built) -> None:
    model, bare = built[0], robot(built)
    seen = with_state(bare)
    difference = model.embed(seen) - model.embed(bare)
    assert model.state_encoder is not None
    assert bare.actions is not None
    expected = model.state_encoder(seen.state)[:, None].expand(-1, model.spec.act_step, -1)
    torch.testing.assert_close(difference[:, bare.actions.columns], expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(difference.any(-1), bare.slots.kind == Kind.ACTION)


@torch.no_grad()
def test_slots_that_attend_no_action_slot_do_not_change(built: Built) -> None:
    model, bare = built[0], robot(built)
    changed = (model.hidden_states(with_state(bare)) - model.hidden_states(bare)).abs().amax(-1) > 0
    reached = (bare.slots.kind == Kind.IMAGE) | (bare.slots.kind == Kind.ACTION)
    assert torch.equal(changed, reached)


@torch.no_grad()
def test_a_dropped_state_is_the_flow_without_one(built: Built) -> None:
    model, bare = built[0], robot(built)
    mixed = model.hidden_states(with_state(bare, given=torch.tensor([True, False])))
    assert torch.equal(mixed[1], model.hidden_states(bare)[1])
    assert torch.equal(mixed[0], model.hidden_states(with_state(bare))[0])


@torch.no_grad()
def test_rows_do_not_mix(built: Built) -> None:
    model, seen = built[0], with_state(robot(built))
    assert seen.state is not None
    other = replace(seen, state=seen.state.flip(0))
    alone = replace(robot(built, rows=[0]), state=seen.state[:1])
    batched = model.predict(seen).actions
    assert not torch.allclose(batched, model.predict(other).actions, atol=1e-3)
    torch.testing.assert_close(batched[:1], model.predict(alone).actions, rtol=1e-4, atol=1e-5)


# --- losses ----------------------------------------------------------------------------------------------------------
def gradient(built: Built, given: Tensor | None, loss: str) -> float:
    task = future(built, None)
    task = replace(task, sequence=with_state(task.sequence, given))
    built[0].zero_grad()
    getattr(built[0](task), loss).sum.backward()
    assert built[0].state_encoder is not None
    grads = [parameter.grad for parameter in built[0].state_encoder.parameters()]
    assert all(grad is not None for grad in grads), "part of every step, for processes that wait for all gradients"
    return sum(float(grad.abs().sum()) for grad in grads if grad is not None)


@pytest.mark.parametrize("loss", ["action", "image"])
def test_gradients_reach_the_encoder_unless_every_state_is_dropped(built: Built, loss: str) -> None:
    assert gradient(built, None, loss) > 0
    assert gradient(built, torch.tensor([False, True]), loss) > 0
    assert gradient(built, torch.tensor([False, False]), loss) == 0


@torch.no_grad()
def test_action_tokens_read_the_state_and_change_no_other_loss(built: Built) -> None:
    tasks = [future(built, objective) for objective in (None, diffusion())]
    bare, tokens = (replace(task, sequence=with_state(task.sequence)) for task in tasks)
    ours, theirs = built[0](tokens), built[0](bare)
    torch.testing.assert_close(ours.image.sum, theirs.image.sum)
    torch.testing.assert_close(ours.action.sum, theirs.action.sum)
    without = built[0](tasks[1])
    assert not torch.allclose(ours.action_bd.sum, without.action_bd.sum)
    assert not torch.allclose(ours.action.sum, without.action.sum)


# --- acting ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("fixed_shapes", [False, True])
def test_acting_predicts_what_one_forward_predicts(built: Built, fixed_shapes: bool) -> None:
    model, rows = built[0], [[5, 6, 7], [5, 9, 9, 4], [6, 6, 7]]
    codes, state = codes_of(built, range(3)), features(3)
    whole = model.predict(robot_sequence(model.vocab, rows, codes, model.spec.act_step, state=state), want_codes=True)
    # Three rows are padded to four for fixed shapes; the forward itself is not compiled here.
    reader = ActionPredictor(model, partial(model.backbone.forward, cache=None) if fixed_shapes else None)
    found = reader.predict(rows, codes, want_codes=True, state=state)
    torch.testing.assert_close(found.actions, whole.actions, rtol=1e-4, atol=1e-5)
    assert found.codes is not None
    assert whole.codes is not None
    assert torch.equal(found.codes, whole.codes)


@torch.no_grad()
def test_decoded_tokens_read_the_state(tmp_path: Path) -> None:
    built = telling_model(tmp_path, state=STATE)
    model, seen = built[0], with_state(robot(built))
    hidden, _ = CachedPrefix(model, seen).forward()
    valid = seen.slots.valid
    torch.testing.assert_close(hidden[valid], model.hidden_states(seen)[valid], rtol=1e-4, atol=1e-4)
    how = ActionDecoding(0.3, 8)
    actions = decode_actions(model, seen, how).actions
    alone = decode_actions(model, replace(robot(built, rows=[1]), state=features(2)[1:]), how).actions
    assert torch.equal(actions[1:], alone)
    assert not torch.equal(actions, decode_actions(model, robot(built), how).actions)


# --- files -----------------------------------------------------------------------------------------------------------
def test_a_saved_model_keeps_the_convention_and_the_new_keys(built: Built, tmp_path: Path) -> None:
    model, prompter = built
    save_folder(model, prompter, tmp_path)
    again = load_folder(tmp_path).model
    assert again.spec.data == model.spec.data
    seen = with_state(robot(built))
    torch.testing.assert_close(again.predict(seen).actions, model.predict(seen).actions, rtol=1e-4, atol=1e-5)
    names = set(read_weights(tmp_path))
    assert {name for name in names if name.startswith("state_encoder.")} == {
        "state_encoder.0.weight", "state_encoder.0.bias", "state_encoder.2.weight", "state_encoder.2.bias",
    }  # fmt: skip
    assert all(
        name.startswith(("showo.", "mm_projector.", "token_learner.", "to_logits.0.", "state_")) for name in names
    )


def test_a_start_without_an_encoder_gets_a_new_one(plain: Built, tmp_path: Path) -> None:
    save_folder(*plain, tmp_path / "none")
    file = tmp_path / "none" / "model.safetensors"
    model = acting_model(tmp_path / "llm", state=STATE)[0]
    with torch.no_grad():
        for parameter in model.action_head.parameters():
            parameter.zero_()
    before = [p.clone() for p in model.state_encoder.parameters()] if model.state_encoder is not None else []
    (note,) = load_weights(model, file, initial=True)
    assert note == "the checkpoint has no state encoder that reads these numbers: it starts from random weights"
    assert model.state_encoder is not None
    assert all(torch.equal(a, b) for a, b in zip(before, model.state_encoder.parameters(), strict=True))
    ours = dict(model.named_parameters())
    assert all(torch.equal(ours[name], tensor) for name, tensor in plain[0].named_parameters())
    with pytest.raises(ValueError, match=r"4 missing: state_encoder\.0\.weight"):
        load_weights(model, file)  # a saved model of this description has one


def test_a_start_that_reads_a_state_does_not_lose_it_silently(built: Built, plain: Built, tmp_path: Path) -> None:
    save_folder(*built, tmp_path)
    file = tmp_path / "model.safetensors"
    with pytest.raises(ValueError, match=r"reads the robot's state, and model\.vla\.proprioception is none; set"):
        load_weights(plain[0], file, initial=True)
    other = StateConvention(8, (0, 1, 2), (3, 4, 5), (7,), "axis_angle", (0.0,) * 3, (1.0,) * 3)
    model: UPVLA = acting_model(tmp_path / "llm", state=other.to_json())[0]
    assert load_weights(model, file, initial=True) == (
        "the checkpoint has no state encoder that reads these numbers: it starts from random weights",
    )
    assert model.spec.decoding.action_bins == BINS


def test_a_position_that_is_constant_up_to_rounding_is_not_scaled() -> None:
    convention = StateConvention.of(CALVIN_STATE, dict.fromkeys(range(15), 0.1), dict.fromkeys(range(15), 1e-9))
    assert convention.apply(torch.full((1, 15), 0.2))[0, 0] == pytest.approx(0.1, abs=1e-6)


@pytest.mark.parametrize("state", [np.array(["a"] * 15), np.full(15, 1e300), np.zeros((1, 15)), np.arange(14) / 3])
def test_an_observation_that_is_no_state_is_one_line(state: Any) -> None:
    with pytest.raises(ValueError, match="reads a robot_obs of 15 finite numbers, found") as error:
        calvin_state().read([state])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("change", [{"mean": [0.0]}, {"std": None}, {"position": [0, 1, 99]}, {"dim": "x"}])
def test_a_description_with_another_state_is_an_error(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"state (must have dim, position|has indices)"):
        StateConvention.from_json({**calvin_state().to_json(), **change})
