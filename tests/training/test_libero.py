"""From a LIBERO-like LeRobot set to vla-eval's LIBERO: convert, train, serve, evaluate. The simulator is a stand-in."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pyarrow", reason="LeRobot data needs pyarrow: pip install -r requirements-lerobot.txt")
pytest.importorskip("av", reason="LeRobot data needs PyAV: pip install -r requirements-lerobot.txt")
import pyarrow as pa
import pyarrow.parquet as parquet
from PIL import Image

from config.loading import ConfigError
from policy_rollout.policies.interface import StateLayout, require_calvin_state
from policy_rollout.policies.upvla import UPVLAPolicy
from preprocess_data import process_lerobot
from tests.serving.served import serving
from tests.serving.simulators import INSTRUCTION, LIBERO, STEPS, evaluate, stub_libero
from tests.training.runs import Outcome
from training.data.dataset_spec import read_contract
from training.data.episode_index import read_index

Start = Callable[..., Outcome]
LENGTH = 8


def libero_set(root: Path, version: str = "v2.0", prefix: str = "") -> Path:
    """Two episodes as openpi lays out physical-intelligence/libero: images in the tables, names of columns as there."""
    names = {"image": "image", "wrist": "wrist_image", "state": "state", "action": "actions"}
    if prefix:  # as lerobot names them
        names = {"image": f"{prefix}.images.image", "wrist": f"{prefix}.images.image2", "state": f"{prefix}.state"}
        names["action"] = "action"
    rng = np.random.default_rng(0)
    picture = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    kinds: dict[str, Any] = {
        names["image"]: picture,
        names["wrist"]: picture,
        names["state"]: pa.list_(pa.float32(), 8),
        names["action"]: pa.list_(pa.float32(), 7),
        "timestamp": pa.float32(),
        **dict.fromkeys(("episode_index", "frame_index", "index", "task_index"), pa.int64()),
    }
    for number in range(2):
        rows = []
        for moment in range(LENGTH):
            content = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(content, "png")
            rows.append(
                {
                    names["image"]: {"bytes": content.getvalue(), "path": ""},
                    names["wrist"]: {"bytes": content.getvalue(), "path": ""},
                    names["state"]: [*rng.uniform(-0.2, 0.2, 3), 2.2, 2.2, 0.1, 0.04, -0.04],
                    names["action"]: [*rng.uniform(-0.9, 0.9, 6), 1.0 if moment > 3 else -1.0],
                    "timestamp": moment / 10,
                    "episode_index": number,
                    "frame_index": moment,
                    "index": number * LENGTH + moment,
                    "task_index": 0,
                }
            )
        path = root / "data" / "chunk-000" / f"episode_{number:06d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(pa.Table.from_pylist(rows, pa.schema(list(kinds.items()))), path)
    features: dict[str, Any] = {
        name: {"dtype": "image", "shape": [64, 64, 3], "names": ["height", "width", "channel"]}
        for name in (names["image"], names["wrist"])
    }
    # lerobot's names of the rotation are those of Euler angles, although the numbers are an axis angle
    motors = ["x", "y", "z", "roll", "pitch", "yaw", "gripper"]
    features[names["state"]] = {"dtype": "float32", "shape": [8], "names": {"motors": [*motors, "gripper"]}}
    features[names["action"]] = {"dtype": "float32", "shape": [7], "names": {"motors": motors}}
    (root / "meta").mkdir()
    episodes = [{"episode_index": number, "tasks": [INSTRUCTION], "length": LENGTH} for number in range(2)]
    (root / "meta" / "episodes.jsonl").write_text("\n".join(map(json.dumps, episodes)))
    (root / "meta" / "tasks.jsonl").write_text(json.dumps({"task_index": 0, "task": INSTRUCTION}))
    pattern = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
    info = {"codebase_version": version, "fps": 10, "total_episodes": 2, "data_path": pattern, "features": features}
    (root / "meta" / "info.json").write_text(json.dumps(info))
    return root


def process(source: Path, output: Path, *options: str) -> int:
    arguments = ["--source", str(source), "--output-dir", str(output), "--preset", "libero", "--workers", "1"]
    return process_lerobot.main([*arguments, *options])


@pytest.mark.parametrize(("version", "prefix"), [("v2.0", ""), ("v2.1", "observation")])
def test_the_preset_declares_the_conventions_of_libero(tmp_path: Path, version: str, prefix: str) -> None:
    assert process(libero_set(tmp_path / "libero", version, prefix), tmp_path / "data") == 0
    contract, index = read_contract(tmp_path / "data"), read_index(tmp_path / "data")
    assert contract.action == {
        "kind": "relative_to_measured",
        "frame": "world",
        "position_m_per_unit": 0.05,
        "rotation_rad_per_unit": 0.5,
        "rotation": "axis_angle",
        "gripper": "-1 closed, +1 open",
        "rate_hz": 10,
    }
    assert contract.image_rotation == 180
    assert contract.cameras == {"rgb_static": (64, 64), "rgb_gripper": (64, 64)}
    groups = {"position": [0, 1, 2, 6, 7], "rotation": [3, 4, 5]}
    assert contract.state == {"dim": 8, "groups": groups, "rotation": "axis_angle"}
    assert index.actions[:LENGTH][:, 6].tolist() == [1.0] * 4 + [-1.0] * 4, "recorded: -1 open, +1 closed"
    assert index.instruction(0) == INSTRUCTION


def test_options_override_the_preset_and_missing_columns_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = libero_set(tmp_path / "libero")
    options = ("--image-rotation", "0", "--rotation-unit", "0.25", "--state-key", "none")
    assert process(source, tmp_path / "data", *options) == 0
    contract = read_contract(tmp_path / "data")
    assert (contract.image_rotation, contract.action["rotation_rad_per_unit"]) == (0, 0.25)
    assert contract.state is None
    info = source / "meta" / "info.json"
    info.write_text(info.read_text().replace('"actions"', '"commands"'))
    assert process(source, tmp_path / "other") == 2
    assert "--preset libero: " in (said := capsys.readouterr().err)
    assert "has none of actions, action" in said


def settings(data: Path) -> dict[str, Any]:
    return {
        "dataset__params__train_pre_shards_path_or_url": data,
        "dataset__und_type": "null",
        "dataset__action_normalisation": "quantile",
        "model__vla__num_view": 2,
        "model__vla__proprioception": "pose",
    }


def test_it_is_trained_served_and_run_by_vla_evals_libero(
    run: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("vla_eval", reason="make venv-dev brings vla-eval")
    assert process(libero_set(tmp_path / "libero"), tmp_path / "data") == 0
    trained = run(**settings(tmp_path / "data"))
    policy = UPVLAPolicy.from_config(None, "cpu", trained.folder)
    assert policy.image_rotation == 180
    assert policy.state == StateLayout(8, (0, 1, 2, 6, 7), (3, 4, 5), (), "axis_angle")
    with pytest.raises(ValueError, match="rotated by 180 degrees"):
        require_calvin_state(policy, "the desk")
    noted = stub_libero(monkeypatch, wait=2)
    caplog.set_level("INFO")
    with serving(policy, replan_every=2) as served:
        params = {"suite": "libero_spatial", "seed": 7, "num_steps_wait": 2}
        result = evaluate(served.url("/vla-eval"), LIBERO, tmp_path / "results", **params)
    assert result["mean_success"] == 1.0
    assert "Spec validation passed" in caplog.text
    assert len(noted.actions) == STEPS
    for action in noted.actions:
        assert action.shape == (7,)
        assert np.isfinite(action).all()
        assert abs(action[6]) == 1


def test_validation_data_with_images_of_another_rotation_are_refused(run: Start, tmp_path: Path) -> None:
    source = libero_set(tmp_path / "libero")
    assert process(source, tmp_path / "data") == 0
    assert process(source, tmp_path / "unrotated", "--image-rotation", "0") == 0
    validation = {"dataset__params__validation_pre_shards_path_or_url": tmp_path / "unrotated"}
    with pytest.raises(ConfigError, match=r"declares image_rotation as 180, but .* as 0; convert one of them"):
        run(**settings(tmp_path / "data"), **validation, experiment__eval_every=1)
