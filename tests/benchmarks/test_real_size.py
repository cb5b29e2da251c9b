"""The rehearsal at the released sizes: what it reads of processes and runs, and one layer of it as a whole."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks.real_size import __main__ as real_size
from benchmarks.real_size.folders import random_like
from benchmarks.real_size.watch import Watched, watch
from common.files import PROJECT_DIR

MB = 1 << 20
ALLOCATE = (
    "import time; time.sleep(1.0); print('held', flush=True); kept = bytearray(b'x') * (200 << 20); time.sleep(1.5)"
)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_is_read_by_phase(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "child.log"
    started = time.monotonic()

    def phase() -> str:
        return "held" if "held" in log.read_text() else "before"

    found = watch([sys.executable, "-c", ALLOCATE], log, phase)
    assert found.code == 0
    assert 2.0 < found.seconds <= time.monotonic() - started
    assert found.anonymous["before"] < 100 * MB
    assert 200 * MB < found.anonymous["held"] < 300 * MB
    assert found.peak == found.anonymous["held"] <= found.resident["held"]


def test_a_command_that_fails_has_its_exit_code(tmp_path: Path) -> None:
    assert watch([sys.executable, "-c", "raise SystemExit(3)"], tmp_path / "log").code == 3


def test_phases_of_a_run_are_read_from_its_log_and_metrics(tmp_path: Path) -> None:
    log, phase = tmp_path / "logs" / "bd 1.log", real_size.phase_of_training(tmp_path, "bd", 1)
    log.parent.mkdir()
    log.write_text("  model    1.0 M parameters")
    assert phase() == "loading"
    log.write_text("speed/mfu is a share of 0.09 TFLOP/s")
    assert phase() == "step"
    (tmp_path / "bd").mkdir()
    (tmp_path / "bd" / "metrics.jsonl").write_text(json.dumps({"step": 1}) + "\n")
    assert phase() == "saving"


def test_every_command_names_the_made_folders_and_no_hub_id(tmp_path: Path) -> None:
    steps = real_size.steps_of(["bd", "qwen3"], tmp_path)
    assert [step.name for step in steps[:5]] == ["train bd", "resume bd", "act bd", "answer bd", "serve bd"]
    for step in steps:
        assert not [
            word for word in step.command if word.endswith(("phi-1_5", "magvitv2", "clip-vit-large-patch14-336"))
        ]
        if step.name.startswith("train"):
            assert f"model.vq_model.vq_model_name={tmp_path}/models/magvit" in step.command


def test_the_page_has_every_step_with_its_exit_code() -> None:
    good = Watched(10.0, 9.0, 0, {"loading": 2 << 30, "step": 5 << 30})
    results = {"train bd": {**vars(good), "estimate": 4.5}, "act bd": vars(Watched(1.0, 1.0, 1, {"run": 1 << 30}))}
    text = real_size.page(results, "python -m benchmarks.real_size --work x")
    assert "| train bd | 10 | 9 | loading 2.0, step 5.0 | 4.5 | ended well |" in text
    assert "**exit code 1**" in text


def test_random_weights_have_the_wanted_types() -> None:
    found = random_like({"a.norm.weight": torch.Size([3]), "b": torch.Size([2, 2])}, torch.bfloat16)
    assert found["a.norm.weight"].tolist() == [1.0] * 3
    assert found["b"].dtype == torch.bfloat16
    assert 0 < found["b"].float().abs().max() < 0.2


@pytest.mark.slow
def test_one_layer_is_trained_resumed_and_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Needs 10 GB of memory and of disk, and some minutes."""
    monkeypatch.chdir(PROJECT_DIR)
    given = ["--work", str(tmp_path), "--layers", "1", "--models", "bd", "--out", str(tmp_path / "out.json")]
    assert real_size.main(given) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert [result["code"] for result in results.values()] == [0] * 5
    assert results["train bd"]["anonymous"]["step"] < 1.15 * results["train bd"]["estimate"] * 2**30 + 400 * MB
