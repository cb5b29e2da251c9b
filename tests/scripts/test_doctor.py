"""The doctor finds what is wrong with an installation, a machine, a run or a checkpoint, and names the remedy."""

from __future__ import annotations

import getpass
import json
import os
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from common import shared_memory
from common.files import PROJECT_DIR
from scripts.doctor import __main__ as doctor
from scripts.doctor import devices, machine, renderer, run, software
from scripts.doctor.findings import Finding, report, summary
from tests.policy.saved_model import write_model

CONFIG = "config=./config/tiny_bdvla.yaml"
DATA = "dataset.params.train_pre_shards_path_or_url"


def texts(findings: Iterable[Finding], level: str) -> list[str]:
    return [f"{finding.text} -> {finding.remedy}" for finding in findings if finding.level == level]


# ------------------------------------------------------------------------------------------------------------- software
def test_packages_outside_of_the_supported_ranges_are_named_with_the_install_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lines = ("numpy>=99", "pillow<1", "no-such-package>=1", "PyYAML>=1", "# a comment", "-r other.txt")
    for file in (software.REQUIRED, *software.OPTIONAL):
        (tmp_path / file).write_text("\n".join(lines), encoding="utf-8")
    monkeypatch.setattr(software, "PROJECT_DIR", tmp_path)
    found = list(software.check_packages())
    assert any("no-such-package is not installed" in text for text in texts(found, "error"))
    assert any("numpy" in text and 'pip install "numpy>=99"' in text for text in texts(found, "error"))
    assert any("pillow" in text and "newer than the tested" in text for text in texts(found, "warning"))
    assert any("not installed: no-such-package" in text for text in texts(found, "note"))


@pytest.mark.parametrize(
    ("version", "level"), [((3, 9, 1), "error"), ((3, 10, 0), "ok"), ((3, 13, 9), "ok"), ((3, 99, 0), "warning")]
)
def test_python_is_compared_with_the_classifiers_of_the_project(
    version: tuple[int, ...], level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(software, "sys", SimpleNamespace(version_info=version))
    assert software.check_python().level == level


def test_the_current_folder_in_another_checkout_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "common").mkdir()
    (tmp_path / "common" / "__init__.py").touch()
    (tmp_path / "train_upvla.py").touch()
    assert not texts(software.check_checkout(), "warning")
    monkeypatch.chdir(tmp_path / "common")
    (text,) = texts(software.check_checkout(), "warning")
    assert f"PYTHONPATH={tmp_path}" in text


@pytest.mark.parametrize(("pin", "level"), [("torch==1.0", "error"), ("torch==2.13.0", "note")])
def test_a_torchvision_of_another_torch_is_an_error(pin: str, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(software, "version", {"torchvision": "0.28.0+cpu", "torch": "2.13.0+cpu"}.__getitem__)
    monkeypatch.setattr(software, "requires", lambda name: ["numpy", pin])
    found = software._torchvision()
    assert found is not None
    assert found.level == level


# -------------------------------------------------------------------------------------------------------------- devices
def test_a_torch_that_cannot_be_imported_is_an_error_with_its_reason() -> None:
    (found,) = devices.TorchProbe("raise ImportError('libcudart.so.12: cannot open')").findings()
    assert found.level == "error"
    assert "libcudart.so.12" in found.text
    (found,) = devices.TorchProbe("import os; os.abort()").findings()
    assert found.level == "error"


def test_a_gpu_that_torch_cannot_use_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = {"name": "H200", "total": 150e9, "error": "CUDA error: no kernel image is available"}
    probe = {"torch": "2.13.0", "cuda": "13.0", "threads": 1, "devices": [gpu]}
    assert "no kernel image" in texts(devices.torch_findings(probe), "error")[0]
    without = {**probe, "devices": [], "cuda": None}
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    assert "CPU build" in texts(devices.torch_findings(without), "warning")[0]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "unset CUDA_VISIBLE_DEVICES" in texts(devices.torch_findings(without), "note")[0]


# -------------------------------------------------------------------------------------------------------------- machine
def test_little_memory_shared_memory_and_disk_are_warnings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    usage = type(shutil.disk_usage("/"))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(64_000_000, 0, 64_000_000))
    monkeypatch.setattr(shared_memory, "SHARED_MEMORY", tmp_path)
    found = machine.check_shared_memory()
    assert found.level == "warning"
    assert "64 of 64 MB free" in found.text
    assert "--shm-size" in found.remedy
    assert "0.1 GB free" in texts(machine.check_disks({}), "warning")[0]
    (tmp_path / "meminfo").write_text("MemTotal: 9000000 kB\nMemAvailable: 8000000 kB\n", encoding="ascii")
    (tmp_path / "memory.max").write_text("2000000000\n", encoding="ascii")
    monkeypatch.setattr(machine, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(machine, "CGROUP", tmp_path / "absent")
    assert machine.check_memory().level == "ok"
    monkeypatch.setattr(machine, "CGROUP", tmp_path / "memory.max")  # the limit of a container
    assert machine.check_memory().level == "warning"


@pytest.mark.parametrize(
    ("variables", "level", "part"),
    [
        ({}, "ok", "one process"),
        ({"RANK": "0"}, "error", "RANK=0"),
        ({"WORLD_SIZE": "2"}, "error", "WORLD_SIZE=2"),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, "error", "unset OMPI_COMM_WORLD_SIZE"),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "error", "unset ACCELERATE_USE_DEEPSPEED"),
        ({"SLURM_JOB_ID": "7"}, "note", "srun"),
        ({"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"}, "ok", "process 1 of 2"),
    ],
)
def test_variables_that_disturb_a_launch_are_errors(variables: dict[str, str], level: str, part: str) -> None:
    found = machine.check_launch(variables)
    assert (found.level, part in f"{found.text} {found.remedy}") == (level, True)


def test_a_lock_that_a_killed_compiler_left_is_an_error_and_a_fresh_one_a_note(tmp_path: Path) -> None:
    env = {"XDG_CACHE_HOME": str(tmp_path)}
    (found,) = machine.check_locks(env)
    assert found.level == "ok"
    lock = tmp_path / "torch_extensions" / "py311_cpu" / "deepspeed_shm_comm" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    now = lock.stat().st_mtime
    (found,) = machine.check_locks(env, now + 5)
    assert found.level == "note"
    (found,) = machine.check_locks({"TORCH_EXTENSIONS_DIR": str(lock.parents[1])}, now + 7200)
    assert (found.level, f"rm {lock}" in found.remedy) == ("error", True)


def test_the_hub_is_asked_once_and_an_answer_of_any_kind_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(code: int) -> Any:
        def opened(request: urllib.request.Request, timeout: float) -> Any:
            assert request.full_url.startswith("https://hub.example/api")
            raise urllib.error.HTTPError(request.full_url, code, "no", None, None)  # type: ignore[arg-type]

        return opened

    env = {"HF_ENDPOINT": "https://hub.example/", "HF_TOKEN": "secret"}
    monkeypatch.setattr(urllib.request, "urlopen", answer(401))
    found = machine.check_hub(env)
    assert (found.level, "with an access token" in found.text, "secret" in found.text) == ("ok", True, False)
    monkeypatch.setattr(urllib.request, "urlopen", answer(503))
    assert machine.check_hub(env).level == "note"
    assert "HF_HUB_OFFLINE" in machine.check_hub({**env, "HF_HUB_OFFLINE": "1"}).text


# ------------------------------------------------------------------------------------------------------------- renderer
def test_the_desk_is_drawn_as_in_the_reference() -> None:
    assert renderer.check_renderer().level in ("ok", "note")


def test_other_images_of_the_desk_are_described_by_what_differs() -> None:
    expected = np.asarray(Image.open(renderer.REFERENCE).convert("RGB"))
    assert renderer.compare(expected, expected).level == "ok"
    rounded = expected.copy()
    rounded[0, 0] ^= 1
    assert renderer.compare(rounded, expected).level == "note"
    found = renderer.compare(255 - expected, expected)
    assert found.level == "warning"
    assert "of the pixels differ by more than 8 of 255" in found.text


# ------------------------------------------------------------------------------------------------------------------ run
@pytest.fixture
def output(tmp_path: Path) -> str:
    return f"experiment.output_dir={tmp_path / 'run'}"


def test_a_run_that_can_start_has_no_error(output: str) -> None:
    found = list(run.check_run([CONFIG, output], {}))
    assert texts(found, "error") == []
    assert {finding.check for finding in found} == {"config", "robot data", "conversations", "models", "checkpoints"}


def test_every_wrong_path_is_an_error_of_its_own(output: str) -> None:
    wrong = [f"{DATA}=/nowhere", "model.vq_model.vq_model_name=/nor/here", "training.device=cpu"]
    errors = texts(run.check_run([CONFIG, output, *wrong], {}), "error")
    assert sum("/nowhere" in text for text in errors) >= 1
    assert sum("/nor/here" in text for text in errors) >= 1
    (error,) = texts(run.check_run([CONFIG, "training.sead=1"], {}), "error")
    assert "training.seed" in error


def test_variables_that_contradict_the_run_are_an_error(output: str) -> None:
    env = {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "7"}
    assert any(
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS=7" in t for t in texts(run.check_run([CONFIG, output], env), "error")
    )


def test_conversations_without_their_images_are_an_error(output: str, tmp_path: Path) -> None:
    shutil.copy(PROJECT_DIR / "dummy_data" / "llava" / "llava_v1_5_mix665k.json", tmp_path)
    mmu = f"dataset.params.train_mmu_shards_path_or_url={tmp_path}"
    (error,) = texts(run.check_run([CONFIG, output, mmu], {}), "error")
    assert "images of 0 of the first" in error


def test_truncated_weights_are_an_error_without_being_loaded(output: str, tmp_path: Path) -> None:
    tokenizer = tmp_path / "magvit"
    shutil.copytree(PROJECT_DIR / "assets" / "tiny_magvit", tokenizer)
    (weights,) = tokenizer.glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-100])
    errors = texts(run.check_run([CONFIG, output, f"model.vq_model.vq_model_name={tokenizer}"], {}), "error")
    assert any("is damaged" in text for text in errors)


def test_a_model_of_the_hub_that_is_not_cached_is_named(
    output: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    found = list(run.check_run([CONFIG, output, "model.vq_model.vq_model_name=someone/magvit"], {}))
    assert any("hf download someone/magvit" in text for text in texts(found, "warning"))


def test_a_checkpoint_of_other_settings_or_with_damage_is_found(tmp_path: Path) -> None:
    write_model(tmp_path)
    checkpoint = tmp_path / "run" / "checkpoint-3"
    (checkpoint / "training_state").mkdir()
    arguments = [CONFIG, f"experiment.output_dir={tmp_path / 'run'}"]
    (error,) = texts(run.check_run(arguments, {}), "error")
    assert "checkpoint-3 was made with" in error
    assert "act_step=4 (the run has 10)" in error
    (checkpoint / "metadata.json").write_text('{"global_step": 3, "files": {"gone": 12}}', encoding="utf-8")
    (warning,) = texts(run.check_run(arguments, {}), "warning")
    assert "12 bytes expected, none found" in warning


def test_a_trained_model_is_checked_with_its_own_configuration(tmp_path: Path) -> None:
    assert texts(run.check_checkpoint(str(PROJECT_DIR / "assets" / "desk_policy")), "error") == []
    folder = tmp_path / "model"
    shutil.copytree(PROJECT_DIR / "assets" / "desk_policy", folder)
    text = (folder / "config.yaml").read_text(encoding="utf-8")
    (folder / "config.yaml").write_text(text.replace("act_step: ", "act_step: 1"), encoding="utf-8")
    assert any("act_step" in text for text in texts(run.check_checkpoint(str(folder)), "error"))
    assert "there is no such checkpoint" in texts(run.check_checkpoint(str(tmp_path / "gone")), "error")[0]


# -------------------------------------------------------------------------------------------------------------- command
def test_the_json_has_no_private_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "alice"))
    monkeypatch.setattr(getpass, "getuser", lambda: "alice")
    monkeypatch.setattr(socket, "gethostname", lambda: "node17.cluster.example")
    found = Finding(
        "disk",
        "error",
        f"{tmp_path}/alice/data, /scratch/alice/x, /home/bob/y, {PROJECT_DIR}/assets, on node17 and alice-2",
        facts={"paths": [f"{tmp_path}/alice/data"]},
    )
    clean = report([found])
    assert (
        clean["findings"][0]["text"]
        == "~/data, /scratch/<user>/x, /home/<user>/y, <project>/assets, on <host> and alice-2"
    )
    assert clean["findings"][0]["facts"] == {"paths": ["~/data"]}
    assert clean["summary"] == "1 checks: 1 error, 0 warnings, 0 notes"


@pytest.mark.parametrize(("level", "code"), [("warning", 0), ("error", 1)])
def test_the_exit_code_is_1_with_an_error(
    level: Any, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = [Finding("a", "ok", "fine"), Finding("long name", level, "not fine", "repair it")]
    monkeypatch.setattr(doctor, "examine", lambda *_: iter(found))
    assert doctor.main([]) == code
    printed = capsys.readouterr().out.splitlines()
    assert printed[-2].endswith("-> repair it")
    assert printed[-1] == summary(found)
    assert doctor.main(["--json"]) == code
    assert json.loads(capsys.readouterr().out)["findings"][1]["remedy"] == "repair it"


def test_the_command_checks_this_machine_without_importing_torch(tmp_path: Path) -> None:
    program = """
import json, sys
from scripts.doctor.__main__ import examine
found = list(examine([], None))
print(json.dumps([sorted({one.check for one in found}), sorted({"torch", "transformers"} & set(sys.modules))]))
"""
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(PROJECT_DIR)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=env, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    checks, imported = json.loads(done.stdout)
    assert {"python", "packages", "memory", "disk", "launch", "extensions", "hub", "renderer", "torch"} <= set(checks)
    assert imported == []


if __name__ == "__main__":
    Image.fromarray(renderer.draw_desk()).save(renderer.REFERENCE, optimize=True)
