"""The shipped model: small, 16 bits, loaded by the ordinary path, and it does what its card claims."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from models.pretrained.model_io import load_folder, save_folder
from models.pretrained.weights_io import read_weights
from policy_rollout.desk.task_sets import DOORS
from policy_rollout.policies.upvla import Observation, UPVLAPolicy
from scripts.dev import package_policy
from tests.tiny import tiny_model

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "assets/desk_policy"
MODEL_YAML = ROOT / "policy_rollout/desk_model.yaml"
EPISODES = 80
LEAST_SUCCESS = 0.95
"""Success on doors and lights that the model card states."""


def test_the_shipped_model_is_under_ten_megabytes_in_sixteen_bits_and_names_no_private_path() -> None:
    assert sum(file.stat().st_size for file in FOLDER.rglob("*") if file.is_file()) < package_policy.MAX_BYTES
    assert {tensor.dtype for tensor in read_weights(FOLDER).values()} == {torch.float16}
    texts = [file.read_text(encoding="utf-8") for file in FOLDER.glob("*.*") if file.suffix != ".safetensors"]
    assert len(texts) >= 3  # config.json, config.yaml, README.md
    assert not any(word in text for text in texts for word in ("/home/", "/root/", "/tmp/", "/work/"))


def test_the_shipped_model_acts_by_images_instruction_and_pose() -> None:
    policy = UPVLAPolicy.from_config(MODEL_YAML, "cpu")
    assert policy.state is not None
    (task, frame), *_ = DOORS.with_cameras(policy.spec.data.cameras).expert_frames(1)
    assert task == DOORS.tasks[0]
    assert policy.act([frame]).shape == (1, policy.act_step, 7)
    with pytest.raises(ValueError, match="robot_obs"):
        policy.act([Observation(frame.rgb_static, frame.instruction)])


@pytest.mark.slow
def test_the_shipped_model_does_doors_and_lights_as_its_card_states() -> None:
    policy = UPVLAPolicy.from_config(MODEL_YAML, "cpu")
    tasks = DOORS.with_cameras(policy.spec.data.cameras)
    rollout = tasks.run_policy_episodes(policy, tasks.make_episodes(EPISODES))
    assert rollout.success().point >= LEAST_SUCCESS


def test_a_packaged_run_has_half_the_bytes_and_nearly_the_same_weights(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_run(run)
    size = package_policy.package(run, tmp_path / "out")
    assert size * 2 == sum(tensor.numel() * 4 for tensor in read_weights(run).values())
    assert 0 < package_policy.largest_change(run, tmp_path / "out") < 1e-3
    assert "./assets/x" in (tmp_path / "out/config.yaml").read_text()
    assert load_folder(tmp_path / "out").spec == load_folder(run).spec


def test_what_cannot_be_packaged_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert package_policy.main(["--run", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "config.json" in capsys.readouterr().err
    run = tmp_path / "run"
    write_run(run, largest=1e6)
    assert package_policy.main(["--run", str(run), "--out", str(tmp_path / "out")]) == 2
    assert "not finite" in capsys.readouterr().err


def write_run(folder: Path, largest: float = 1.0) -> None:
    """Write the output folder of a run: a tiny model and its configuration."""
    model, prompter = tiny_model(folder.parent / "llm")
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    next(iter(state.values())).view(-1)[0] = largest
    save_folder(model, prompter, folder, state=state)
    settings = {"model": {"vq_model": {"vq_model_name": f"{package_policy.ROOT}/assets/x"}}}
    (folder / "config.yaml").write_text(json.dumps(settings))
