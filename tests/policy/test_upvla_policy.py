"""Acting with a saved model: one path, batched, from any name of the checkpoint; and a yaml that cannot mislead."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
import pytest
import torch

from common.files import PROJECT_DIR
from config.loading import load_job
from config.parsing import ConfigError
from models.decoding import ActionDecoding
from models.pretrained.model_config import CALVIN_RELATIVE
from models.pretrained.model_io import load_folder
from models.vision.magvitv2 import load_magvit
from policy_rollout.closed_loop.single_task import Episode, run_episodes
from policy_rollout.policies.baselines import ConstantPolicy, RandomPolicy
from policy_rollout.policies.interface import ImagePredictor
from policy_rollout.policies.model_yaml import load_model_yaml
from policy_rollout.policies.upvla import (
    CAMERAS,
    ActionConvention,
    Observation,
    UPVLAPolicy,
    pick_device,
    require_same_convention,
)
from tests.policy.saved_model import RESOLUTION, write_model, write_tokenizer_of_images, write_yaml

T = 4


def observe(seed: int, instruction: str = "open the drawer", gripper: bool = True) -> Observation:
    rng = np.random.default_rng(seed)
    return Observation(
        rgb_static=rng.integers(0, 256, (50, 60, 3), dtype=np.uint8),
        rgb_gripper=rng.integers(0, 256, (40, 40, 3), dtype=np.uint8) if gripper else None,
        instruction=instruction,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("one_view")
    write_model(made, act_step=T)
    return made


@pytest.fixture(scope="module")
def policy(folder) -> UPVLAPolicy:
    return UPVLAPolicy.from_config(folder / "model.yaml", device="cpu")


@pytest.fixture(scope="module")
def two_views(tmp_path_factory) -> UPVLAPolicy:
    return UPVLAPolicy.from_config(write_model(tmp_path_factory.mktemp("two_views"), act_step=T, num_view=2), "cpu")


MIXED = [observe(0), observe(1, "push the blue block to the left, then turn on the light"), observe(2, "")]


def test_a_batch_gives_what_single_observations_give(policy):
    together = policy.act(MIXED)
    assert together.shape == (3, T, 7)
    assert together.dtype == np.float32
    for chunk, observation in zip(together, MIXED, strict=True):
        np.testing.assert_allclose(policy.act([observation])[0], chunk, atol=1e-5)


def test_the_order_of_a_batch_does_not_matter(policy):
    np.testing.assert_allclose(policy.act(MIXED[::-1])[::-1], policy.act(MIXED), atol=1e-5)


def test_image_and_instruction_both_change_the_actions(policy):
    one, other_words, other_image = policy.act([observe(0), observe(0, "lift the red block"), observe(5)])
    assert np.abs(one - other_words).max() > 1e-4
    assert np.abs(one - other_image).max() > 1e-4


def test_a_one_view_model_neither_needs_nor_reads_the_gripper_camera(policy):
    assert policy.cameras == CAMERAS[:1]
    with_gripper, without = policy.act([observe(0), observe(0, gripper=False)])
    np.testing.assert_array_equal(with_gripper, without)


def test_a_two_view_model_reads_the_gripper_camera_and_says_when_it_is_missing(two_views):
    assert two_views.cameras == CAMERAS
    seen = observe(0)
    other = Observation(rgb_static=seen.rgb_static, rgb_gripper=observe(9).rgb_gripper, instruction=seen.instruction)
    one, two = two_views.act([seen, other])
    assert np.abs(one - two).max() > 1e-4
    with pytest.raises(ValueError, match=r"2 cameras.*rgb_gripper"):
        two_views.act([observe(0, gripper=False)])


def test_acting_computes_no_logits_and_decodes_no_image(policy, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError

    monkeypatch.setattr(policy.model, "code_logits", refuse)
    monkeypatch.setattr(policy.vq, "decode", refuse)
    policy.act([observe(0)])


def test_an_image_that_several_observations_share_is_read_once(two_views, monkeypatch):
    encoded: list[int] = []
    encode = two_views.vq.encode
    monkeypatch.setattr(two_views.vq, "encode", lambda pixels: encoded.append(len(pixels)) or encode(pixels))
    seen, other = observe(0), observe(1)
    told = Observation(seen.rgb_static, "lift the red block", seen.rgb_gripper)
    together = two_views.act([seen, told, other])
    assert encoded == [4]  # two moments, two cameras each
    for chunk, observation in zip(together, [seen, told, other], strict=True):
        np.testing.assert_allclose(two_views.act([observation])[0], chunk, atol=1e-5)


def test_in_bf16_matrices_are_held_as_autocast_would_cast_them(folder):
    def acting(precision: str) -> UPVLAPolicy:
        built = load_folder(folder / "run")
        return UPVLAPolicy(built, load_magvit(folder / "vq"), precision=precision)

    held, casting = acting("bf16"), acting("no")
    casting._precision = torch.bfloat16
    cast_in_every_forward = casting.act(MIXED)
    np.testing.assert_array_equal(held.act(MIXED), cast_in_every_forward)
    assert not np.array_equal(acting("no").act(MIXED), cast_in_every_forward)
    linear = held.model.backbone.lm.model.layers[0].mlp.fc1
    assert linear.weight.dtype == torch.bfloat16
    assert held.model.backbone.lm.get_input_embeddings().weight.dtype == torch.float32


def test_a_precision_that_is_requested_stands_above_the_yamls(folder, tmp_path):
    file = write_yaml(tmp_path / "bf16.yaml", folder, training__mixed_precision="bf16")
    assert UPVLAPolicy.from_config(file, "cpu").precision == "bf16"
    assert UPVLAPolicy.from_config(file, "cpu", precision="no").precision == "no"


def test_on_a_cpu_nothing_is_compiled_whatever_the_model_yaml_says(folder, tmp_path, policy, monkeypatch):
    monkeypatch.setattr(torch, "compile", None)
    file = write_yaml(tmp_path / "compiled.yaml", folder, training__compile=True)
    np.testing.assert_array_equal(UPVLAPolicy.from_config(file, "cpu").act(MIXED), policy.act(MIXED))


@pytest.mark.parametrize("views", [1, 2])
def test_the_predicted_frames_are_images_of_every_view(policy, two_views, views):
    acting = policy if views == 1 else two_views
    images = acting.predict_future(MIXED)
    assert images.shape == (3, views, RESOLUTION, RESOLUTION, 3)
    assert images.dtype == np.uint8
    codes = acting.predict_codes(MIXED)
    assert codes.shape == (3, 4 * views)
    alone = acting.predict_future(MIXED[1:2])[0].astype(int)
    assert np.abs(alone - images[1]).max() <= 1  # truncation to whole grey levels


@pytest.mark.parametrize("views", [1, 2])
def test_one_pass_gives_the_actions_and_the_frames_of_two_calls(policy, two_views, views, monkeypatch):
    acting = policy if views == 1 else two_views
    actions, images, codes = acting.act(MIXED), acting.predict_future(MIXED), acting.predict_codes(MIXED)
    calls: list[str] = []
    encode, forward = acting.vq.encode, acting.model.backbone.forward
    monkeypatch.setattr(acting.vq, "encode", lambda pixels: calls.append("encode") or encode(pixels))
    monkeypatch.setattr(acting.model.backbone, "forward", lambda *inputs: calls.append("forward") or forward(*inputs))
    chunks, frames = acting.act_and_predict(MIXED)
    np.testing.assert_array_equal(chunks, actions)
    np.testing.assert_array_equal(frames, images)
    assert calls == ["encode", "forward"]
    chunks, found = acting.act_with_codes(MIXED)
    np.testing.assert_array_equal(chunks, actions)
    np.testing.assert_array_equal(found, codes)
    assert isinstance(acting, ImagePredictor)
    assert acting.predicts_with_actions


@pytest.mark.parametrize("name", ["run", "run/checkpoint-3", "run/checkpoint-3/unwrapped_model"])
def test_every_name_of_a_checkpoint_acts_the_same(folder, policy, name):
    other = UPVLAPolicy.from_config(folder / "model.yaml", "cpu", checkpoint=folder / name)
    np.testing.assert_array_equal(other.act(MIXED), policy.act(MIXED))
    assert other.source.weights_sha256 == policy.source.weights_sha256


def test_a_bare_weights_file_acts_the_same(folder, policy):
    file = folder / "run/checkpoint-3/unwrapped_model/model.safetensors"
    other = UPVLAPolicy.from_config(folder / "model.yaml", "cpu", checkpoint=file)
    np.testing.assert_array_equal(other.act(MIXED), policy.act(MIXED))
    assert other.source.weights_sha256 == policy.source.weights_sha256


def test_another_checkpoint_has_another_digest(tmp_path, policy):
    other = UPVLAPolicy.from_config(write_model(tmp_path, act_step=T, seed=1), "cpu")
    assert other.source.weights_sha256 != policy.source.weights_sha256


def test_a_bare_image_tokenizer_file_replaces_the_folders_weights(folder, tmp_path, policy):
    (tmp_path / "other_vq").mkdir()
    bare = write_tokenizer_of_images(tmp_path / "other_vq", seed=5) / "model.safetensors"
    yaml = write_yaml(tmp_path / "m.yaml", folder, model__vq_model__pretrained_model_path=str(bare))
    assert not np.allclose(UPVLAPolicy.from_config(yaml, "cpu").act(MIXED), policy.act(MIXED), atol=1e-4)


def test_a_runs_own_config_with_the_checkpoint_added_is_a_model_yaml(folder, tmp_path, policy):
    yaml = write_yaml(
        tmp_path / "config.yaml",
        folder,
        training__text_objective="ar",
        training__mixed_precision="no",
        experiment__name="a run",
        dataset__params__train_pre_shards_path_or_url="/not/needed/to/act",
        act_step=T,
    )
    np.testing.assert_array_equal(UPVLAPolicy.from_config(yaml, "cpu").act(MIXED), policy.act(MIXED))


@pytest.mark.parametrize(
    ("key", "value", "declared"),
    [
        ("act_step", 7, "4"),
        ("model__vla__num_view", 2, "1"),
        ("dataset__preprocessing__resolution", 64, "32"),
        ("dataset__preprocessing__max_seq_length", 99, "24"),
        ("model__showo__vocab_size", 58498, ""),
        ("model__showo__w_clip_vit", False, "true"),
    ],
)
def test_a_key_that_contradicts_the_checkpoint_is_refused_naming_both(folder, tmp_path, key, value, declared):
    yaml = write_yaml(tmp_path / "m.yaml", folder, **{key: value})
    with pytest.raises(ConfigError) as caught:
        UPVLAPolicy.from_config(yaml, "cpu")
    message = str(caught.value)
    assert key.replace("__", ".") in message
    assert declared in message
    assert "unwrapped_model" in message
    assert "\n" not in message


def test_a_key_that_repeats_what_the_checkpoint_says_is_welcome(folder, tmp_path):
    yaml = write_yaml(tmp_path / "m.yaml", folder, act_step=T, dataset__preprocessing__resolution=RESOLUTION)
    assert UPVLAPolicy.from_config(yaml, "cpu").act_step == T


def test_an_unknown_key_is_refused_with_the_one_that_was_meant(folder, tmp_path):
    yaml = write_yaml(tmp_path / "m.yaml", folder, model__vla__num_views=2)
    with pytest.raises(ConfigError, match=r"model\.vla\.num_views.*did you mean"):
        UPVLAPolicy.from_config(yaml, "cpu")


def test_a_yaml_without_a_checkpoint_is_refused(folder, tmp_path):
    yaml = write_yaml(tmp_path / "m.yaml", folder, model__showo__tuned_model_path="")
    with pytest.raises(ConfigError, match=r"model\.showo\.tuned_model_path has to be given"):
        UPVLAPolicy.from_config(yaml, "cpu")


@pytest.mark.parametrize("key", ["model__showo__tuned_model_path", "model__vq_model__vq_model_name"])
def test_a_path_that_is_not_there_is_named_with_its_key(folder, tmp_path, key):
    yaml = write_yaml(tmp_path / "m.yaml", folder, **{key: str(tmp_path / "nowhere")})
    with pytest.raises(ValueError, match=key.replace("__", r"\.") + ".*nowhere"):
        UPVLAPolicy.from_config(yaml, "cpu")


@pytest.mark.parametrize("below", ["", "/checkpoint-1", "/checkpoint-1/unwrapped_model", "/model.safetensors"])
@pytest.mark.parametrize("start", ["./", ""])
def test_a_checkpoint_that_a_run_of_the_project_will_make_is_named_with_its_command(
    folder, tmp_path, monkeypatch, start, below
):
    monkeypatch.chdir(tmp_path)
    named = f"{start}outputs/tiny_mdmvla{below}"
    if (PROJECT_DIR / named).exists():
        pytest.skip(f"{named} was made here")
    yaml = write_yaml(tmp_path / "m.yaml", folder, model__showo__tuned_model_path=named)
    with pytest.raises(ConfigError) as caught:
        load_model_yaml(yaml)
    assert named in str(caught.value)
    assert "python train_mdm_vla.py config=./config/tiny_mdmvla.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_that_nothing_makes_is_named_with_a_command_that_could(folder, tmp_path):
    given = {"model__showo__tuned_model_path": str(tmp_path / "mine"), "model__framework": "bdvla"}
    with pytest.raises(ConfigError) as caught:
        load_model_yaml(write_yaml(tmp_path / "m.yaml", folder, **given))
    _, _, command = str(caught.value).partition("for example with: ")
    python, script, *arguments = shlex.split(command)
    assert (python, script) == ("python", "train_blockdiff_vla.py")
    data = f"dataset.params.train_pre_shards_path_or_url={tmp_path}"  # what only the user knows
    job = load_job([*arguments, data, "dataset.und_type=null"], "bd", paths=False)
    assert job.experiment.output_dir == f"{tmp_path}/mine"


def test_a_step_that_a_run_does_not_have_is_named_with_those_it_has(folder, tmp_path):
    yaml = write_yaml(tmp_path / "m.yaml", folder, model__showo__tuned_model_path=str(folder / "run" / "checkpoint-9"))
    with pytest.raises(ConfigError, match=r"run has checkpoint-3$"):
        load_model_yaml(yaml)


def test_a_model_yaml_that_is_not_there_is_named():
    with pytest.raises(ConfigError, match=r"nothing\.yaml: no such file"):
        UPVLAPolicy.from_config("nothing.yaml", "cpu")


@pytest.fixture(scope="module")
def in_tokens(tmp_path_factory) -> Path:
    """A model that learned block-diffusion actions of 16 bins."""
    made = tmp_path_factory.mktemp("in_tokens")
    write_model(made, act_step=T, action_bins=16)
    return made


def test_the_model_yaml_chooses_what_makes_actions(in_tokens, tmp_path):
    given = {
        "block_diffusion__action_infer_enabled": True,
        "block_diffusion__action_infer_steps": 3,
        "block_diffusion__action_conf_threshold": 0.4,
    }
    yaml = write_yaml(tmp_path / "m.yaml", in_tokens, **given)
    acting = UPVLAPolicy.from_config(yaml, "cpu")
    assert (acting.action_decoder, acting.decoding) == ("block_diffusion", ActionDecoding(0.4, 3))
    chunks = acting.act(MIXED)
    assert chunks.shape == (3, T, 7)
    assert chunks.dtype == np.float32
    steps = (chunks + 1) * 7.5
    np.testing.assert_allclose(steps, steps.round(), atol=1e-5)  # values of 16 bins, -1 and 1 the outer ones
    assert T <= acting.forwards_per_chunk <= 3 * T
    regression = UPVLAPolicy.from_config(in_tokens / "model.yaml", "cpu")
    assert regression.action_decoder == "regression"
    expected = regression.act(MIXED)
    assert regression.forwards_per_chunk == 1
    assert not np.allclose(expected, chunks, atol=1e-3)
    named = UPVLAPolicy.from_config(yaml, "cpu", action_decoder="regression")  # what is asked for beats the yaml
    np.testing.assert_array_equal(named.act(MIXED), expected)
    other = UPVLAPolicy.from_config(in_tokens / "model.yaml", "cpu", action_decoder="block_diffusion")
    assert other.decoding == ActionDecoding()


@pytest.fixture(scope="module")
def acts_in_tokens(tmp_path_factory) -> Path:
    """A model whose training run had block_diffusion.action_infer_enabled=true."""
    made = tmp_path_factory.mktemp("acts_in_tokens")
    how = {"action_decoder": "block_diffusion", "action_conf_threshold": 0.4, "action_infer_steps": 3}
    write_model(made, act_step=T, action_bins=16, **how)
    return made


def test_a_checkpoint_acts_as_its_training_run_chose_and_the_model_yaml_overrides_it(acts_in_tokens, tmp_path):
    acting = UPVLAPolicy.from_config(acts_in_tokens / "model.yaml", "cpu")
    assert (acting.action_decoder, acting.decoding) == ("block_diffusion", ActionDecoding(0.4, 3))
    yaml = write_yaml(tmp_path / "m.yaml", acts_in_tokens, block_diffusion__action_infer_steps=5)
    assert UPVLAPolicy.from_config(yaml, "cpu").decoding == ActionDecoding(0.4, 5)
    yaml = write_yaml(tmp_path / "m.yaml", acts_in_tokens, block_diffusion__action_infer_enabled=False)
    assert UPVLAPolicy.from_config(yaml, "cpu").action_decoder == "regression"
    named = UPVLAPolicy.from_config(acts_in_tokens / "model.yaml", "cpu", action_decoder="regression")
    assert named.action_decoder == "regression"


@pytest.mark.parametrize(
    ("trained", "framework", "accepted"),
    [("ar", "arvla", True), ("ar", "upvla", True), ("ar", "bdvla", False), ("bd", "bdvla", True),
     ("bd", "mdmvla", False), ("mdm", "upvla", False)],
)  # fmt: skip
def test_a_framework_that_contradicts_the_checkpoint_is_refused(tmp_path, trained, framework, accepted):
    write_model(tmp_path, act_step=T, text_objective=trained)
    yaml = write_yaml(tmp_path / "m.yaml", tmp_path, model__framework=framework)
    if accepted:
        assert UPVLAPolicy.from_config(yaml, "cpu").spec.decoding.text_objective == trained
        return
    with pytest.raises(ConfigError) as caught:
        UPVLAPolicy.from_config(yaml, "cpu")
    message = str(caught.value)
    assert message.startswith(f"model.framework={framework} (")
    assert f"training.text_objective={trained}" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("recipe", "given", "accepted"),
    [("mdmvla", "mdmvla", True), ("mdmvla", "arvla", True), ("mdmvla", "bdvla", False), ("", "bdvla", True)],
)  # fmt: skip
def test_the_framework_of_a_runs_own_config_is_compared_with_the_recipe_that_trained(tmp_path, recipe, given, accepted):
    """A ``config.yaml`` names both; stage 1 of a recipe may have another objective than its framework."""
    write_model(tmp_path, act_step=T, text_objective="ar", framework=recipe)
    yaml = write_yaml(tmp_path / "m.yaml", tmp_path, model__framework=given, training__text_objective="ar")
    if accepted:
        assert UPVLAPolicy.from_config(yaml, "cpu").spec.framework == recipe
        return
    with pytest.raises(ConfigError, match=rf"^model\.framework={given} .*training\.text_objective=ar"):
        UPVLAPolicy.from_config(yaml, "cpu")


@pytest.mark.parametrize(
    ("trained", "key", "value"),
    [("bd", "block_diffusion__block_size", 16), ("mdm", "text_mdm__canvas_multiple", 8),
     ("bd", "text_diffusion__prediction", "aligned")],
)  # fmt: skip
def test_how_answers_are_decoded_is_refused_where_it_contradicts_the_checkpoint(tmp_path, trained, key, value):
    write_model(tmp_path / "theirs", act_step=T, text_objective=trained)
    write_model(tmp_path / "without", act_step=T, text_objective="ar")
    with pytest.raises(ConfigError, match=rf"^{key.replace('__', '.')}={value} "):
        UPVLAPolicy.from_config(write_yaml(tmp_path / "m.yaml", tmp_path / "theirs", **{key: value}), "cpu")
    UPVLAPolicy.from_config(write_yaml(tmp_path / "m.yaml", tmp_path / "without", **{key: value}), "cpu")


def test_the_framework_says_how_an_original_checkpoint_speaks(folder, tmp_path):
    yaml = write_yaml(tmp_path / "m.yaml", folder, model__framework="bdvla")
    assert load_model_yaml(yaml).upstream.decoding.text_objective == "bd"
    assert load_model_yaml(folder / "model.yaml").upstream.decoding.text_objective == "ar"
    yaml = write_yaml(tmp_path / "m.yaml", folder, model__framework="upvla", training__text_objective="mdm")
    assert load_model_yaml(yaml).upstream.decoding.text_objective == "mdm"
    yaml = write_yaml(tmp_path / "m.yaml", folder, block_diffusion__block_size=4, text_diffusion__prediction="aligned")
    assert load_model_yaml(yaml).upstream.decoding.text_block_size == 4
    assert load_model_yaml(yaml).upstream.decoding.text_prediction == "aligned"


def test_a_batch_of_decoded_chunks_is_what_single_observations_give(in_tokens):
    acting = UPVLAPolicy.from_config(in_tokens / "model.yaml", "cpu", action_decoder="block_diffusion")
    together = acting.act(MIXED)
    spent = acting.forwards_per_chunk
    acting.reset()
    for chunk, observation in zip(together, MIXED, strict=True):
        np.testing.assert_array_equal(acting.act([observation])[0], chunk)
    assert acting.forwards_per_chunk == spent > 0


def test_a_checkpoint_without_action_tokens_is_refused_in_one_line(folder, tmp_path):
    yaml = write_yaml(tmp_path / "m.yaml", folder, block_diffusion__action_infer_enabled=True)
    with pytest.raises(ConfigError) as caught:
        UPVLAPolicy.from_config(yaml, "cpu")
    message = str(caught.value)
    assert message.startswith("block_diffusion.action_infer_enabled=true")
    assert "unwrapped_model was not trained with block_diffusion.action_enabled=true" in message
    assert "\n" not in message
    with pytest.raises(ConfigError, match="action decoder block_diffusion: the checkpoint"):
        UPVLAPolicy.from_config(folder / "model.yaml", "cpu", action_decoder="block_diffusion")
    with pytest.raises(ConfigError, match="'dice' is unknown; allowed: regression, block_diffusion"):
        UPVLAPolicy.from_config(folder / "model.yaml", "cpu", action_decoder="dice")


@pytest.mark.parametrize(("key", "value"), [("action_num_bins", 256), ("action_block_size", 8)])
def test_action_tokens_other_than_those_learned_are_refused(in_tokens, tmp_path, key, value):
    yaml = write_yaml(tmp_path / "m.yaml", in_tokens, **{f"block_diffusion__{key}": value})
    with pytest.raises(ConfigError, match=rf"block_diffusion\.{key}={value} .* was made"):
        UPVLAPolicy.from_config(yaml, "cpu")


def test_the_convention_comes_from_the_checkpoint(tmp_path):
    metres = {
        "kind": "absolute",
        "frame": "world",
        "position_m_per_unit": 1.0,
        "rotation_rad_per_unit": 1.0,
        "rotation": "euler_xyz",
        "gripper": "-1 closed, +1 open",
        "rate_hz": 10,
    }
    absolute = UPVLAPolicy.from_config(write_model(tmp_path, action_convention=metres), "cpu").convention
    assert absolute.kind == "absolute"
    with pytest.raises(ValueError) as caught:
        require_same_convention(absolute, ActionConvention(), "CALVIN")
    for field in ("CALVIN", "kind absolute (policy) vs relative", "position_m_per_unit", "rate_hz 10"):
        assert field in str(caught.value)
    assert "gripper" not in str(caught.value)


def test_steps_from_the_measured_hand_are_not_executed_as_steps_from_the_last_target(tmp_path):
    measured = {
        **CALVIN_RELATIVE,
        "kind": "relative_to_measured",
    }  # as process_bridge.py declares
    policy = UPVLAPolicy.from_config(write_model(tmp_path, action_convention=measured), "cpu")
    said = r"executes another kind of action than the policy returns: kind relative_to_measured \(policy\) vs relative$"

    def never():
        pytest.fail("the environment was made before the actions were compared")

    with pytest.raises(ValueError, match=said):
        run_episodes(never, policy, [Episode(0, "open_drawer", "open the drawer", None, None)], never)


def test_asking_for_cuda_without_one_falls_back_and_reports_it(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("cuda:0") == pick_device(0) == torch.device("cpu")
    assert "cuda:0 is replaced by the CPU" in capsys.readouterr().err
    assert pick_device("auto") == torch.device("cpu")
    assert capsys.readouterr().err == ""


def test_an_unknown_device_is_refused():
    with pytest.raises(ValueError, match="give auto, cpu, cuda"):
        pick_device("gpu")


def test_an_empty_batch_is_refused(policy):
    with pytest.raises(ValueError, match="at least one"):
        policy.act([])


def test_the_constant_policy_repeats_its_action():
    action = np.arange(7, dtype=np.float32)
    assert (ConstantPolicy(action, T).act([observe(0), observe(1)]) == action).all()
    with pytest.raises(ValueError, match="7 numbers"):
        ConstantPolicy(action[:6], T)


def test_the_random_policy_starts_again_at_reset_and_stays_in_range():
    random = RandomPolicy(T, seed=3)
    first = random.act([observe(0)] * 5)
    assert not np.array_equal(random.act([observe(0)] * 5), first)
    random.reset()
    np.testing.assert_array_equal(random.act([observe(0)] * 5), first)
    assert np.abs(first).max() <= 1
    assert set(np.unique(first[..., 6])) == {-1.0, 1.0}


def test_normalised_actions_are_acted_in_the_robots_units(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    plain = UPVLAPolicy.from_config(write_model(tmp_path / "a"), "cpu")
    scale = {"kind": "min_max", "low": [0.0] * 6 + [-1.0], "high": [2.0, 4.0, 1.0, 1.0, 1.0, 0.0, 1.0]}
    scaled = UPVLAPolicy.from_config(write_model(tmp_path / "b", action_scale=scale), "cpu")
    seen = [observe(0)]
    said, done = plain.act(seen), scaled.act(seen)
    width = np.array([2.0, 4.0, 1.0, 1.0, 1.0, 0.0, 2.0])
    low = np.array([0.0] * 6 + [-1.0])
    np.testing.assert_allclose(done, low + (said + 1) / 2 * width, atol=1e-5)


def test_images_of_another_shape_than_learned_are_refused(tmp_path):
    policy = UPVLAPolicy.from_config(write_model(tmp_path, cameras={"rgb_static": [200, 200]}), "cpu")
    image = np.zeros((48, 64, 3), dtype=np.uint8)
    with pytest.raises(ValueError, match=r"200 x 200 .* 48 x 64"):
        policy.act([Observation(rgb_static=image, instruction="x", rgb_gripper=image)])
    square = np.zeros((48, 48, 3), dtype=np.uint8)
    policy.act([Observation(rgb_static=square, instruction="x", rgb_gripper=square)])
