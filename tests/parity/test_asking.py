"""An original checkpoint is asked through a model yaml: what a user who comes with one does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from scripts import generate_text
from tests.parity.flows import upstream_settings

pytestmark = pytest.mark.parity


def test_an_original_checkpoint_answers_through_its_model_yaml(
    parity: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = upstream_settings(parity)
    showo = {
        "tuned_model_path": str(parity / "ckpt" / "upvla_run"),
        "llm_model_path": str(parity / "ckpt" / "phi"),
        "clip_model_path": str(parity / "ckpt" / "clip"),
    }
    sizes = {"max_seq_length": settings.max_seq_length, "resolution": settings.resolution}
    yaml = tmp_path / "upvla.yaml"
    OmegaConf.save(OmegaConf.create({"model": {"showo": showo}, "dataset": {"preprocessing": sizes}}), yaml)
    assert generate_text.main(["--model-config", str(yaml), "--max-new-tokens", "3", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [len(answer["ids"]) <= 3 for answer in told["answers"]] == [True]
    assert told["stats"]["tokens"] <= 3
