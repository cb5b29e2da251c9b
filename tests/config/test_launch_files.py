"""accelerate_configs/: accelerate can launch every file, and none overrides what the run's configuration says."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file

from common.files import PROJECT_DIR

FILES = sorted((PROJECT_DIR / "accelerate_configs").glob("*.yaml"))
BY_NAME = {path.stem: path for path in FILES}


def test_the_launch_files_of_the_contract_are_there() -> None:
    promised = {"1_gpu", "1_gpu_deepspeed_zero2", "4_gpus_deepspeed_zero2", "8_gpus_deepspeed_zero2", "1_cpu"}
    assert promised <= set(BY_NAME)
    assert any("fsdp" in name for name in BY_NAME)
    assert any("nodes" in name for name in BY_NAME)


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_accelerate_reads_the_file_and_starts_the_processes_its_name_says(path: Path) -> None:
    config = load_config_from_file(str(path))
    words = path.stem.split("_")
    processes = int(words[words.index("nodes") + 1] if "nodes" in words else words[0])
    assert config.num_processes == processes
    assert config.num_machines == (int(words[0]) if "nodes" in words else 1)
    assert config.use_cpu == ("cpu" in words)


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_no_launch_file_overrides_accumulation_or_clipping(path: Path) -> None:
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert "gradient_accumulation_steps" not in path.read_text(encoding="utf-8").split("compute_environment", 1)[1]
    assert config.get("deepspeed_config", {}).get("gradient_clipping", 0.0) == 0.0


def test_the_zero2_files_differ_only_in_the_number_of_processes() -> None:
    one, four, eight = (
        yaml.safe_load(BY_NAME[name].read_text())
        for name in ("1_gpu_deepspeed_zero2", "4_gpus_deepspeed_zero2", "8_gpus_deepspeed_zero2")
    )
    assert {**one, "num_processes": 4} == four
    assert {**one, "num_processes": 8} == eight
