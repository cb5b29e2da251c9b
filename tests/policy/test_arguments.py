"""The evaluation command takes what training takes: text values, `~`, no prefixes, and known keys only."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize
from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from common.files import PROJECT_DIR
from config.parsing import ConfigError
from policy_rollout import calvin_evaluate_upvla as app
from policy_rollout.closed_loop.arguments import NUMBERS, help_text, hydra_arguments, keys


def composed(*argv: str) -> dict[str, Any]:
    """Return the settings that Hydra makes of a command line."""
    with initialize(version_base="1.3", config_path="../../policy_conf"):
        config = compose("calvin_evaluate_upvla", hydra_arguments(argv))
    found = OmegaConf.to_container(config, resolve=True)
    assert isinstance(found, dict)
    return {str(name): value for name, value in found.items()}


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.text(st.characters(blacklist_categories=("Cs", "Cc")), min_size=1))
@example("/data (copy)/a=b/x, y")
@example("/Daten/größe/模型")
@example("/it's/\\'x\\")
@example("[a, {b: c}]")
@example("1e3")
@example("/50%/#1")
@example("a\\\\")
def test_any_path_arrives_as_it_was_typed(text: str) -> None:
    stripped = text.strip()
    quoted = stripped[:1] == stripped[-1:] and stripped[:1] in ("'", '"')
    if "${" in text or quoted or stripped in ("", "null", "Null", "NULL", "~", "None"):
        return
    found = composed(f"model_config={text}", f"log_dir={text}")
    assert (found["model_config"], found["log_dir"]) == (stripped, stripped)


def test_numbers_words_and_null_keep_their_types() -> None:
    found = composed("model_config='a b'", "num_sequences=3", "ensemble=1e-1", "log_wandb=False", "workers=null")
    assert (found["model_config"], found["num_sequences"], found["ensemble"]) == ("a b", 3, 0.1)
    assert (found["log_wandb"], found["workers"], found["log_dir"]) == (False, None, None)
    assert composed("dataset_path=null", "scene=A")["root_data_dir"] is None
    assert composed("dataset_path=/data")["root_data_dir"] == "/data"


def test_references_are_resolved_as_in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRATCH_FOLDER", "/scratch/a b")
    assert composed("log_dir=${oc.env:SCRATCH_FOLDER}/x")["log_dir"] == "/scratch/a b/x"
    assert composed("log_dir=/a/\\${b}")["log_dir"] == "/a/${b}"
    with pytest.raises(ConfigError, match=r"write \${section\.key} for another key's value"):
        hydra_arguments(["log_dir=${x"])


def test_a_swept_evaluation_keeps_its_list() -> None:
    assert hydra_arguments(["-m", "scene=A,B", "log_dir=/a b"]) == ["-m", "log_dir='/a b'", "scene=A,B"]
    assert hydra_arguments(["scene=A,B"]) == ["scene='A,B'"]


def test_flags_of_hydra_are_passed_on() -> None:
    argv = ["--cfg", "job", "--resolve", "hydra.run.dir=x", "+hydra.verbose=true"]
    assert hydra_arguments(argv) == argv


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("num_sequence=1", r"num_sequence=1 .*no such key \(did you mean num_sequences\?\)"),
        ("+num_sequence=1", r"without a leading \+ \(did you mean num_sequences\?\)"),
        ("++num_sequences=1", r"expected num_sequences=1, without a leading \+\+"),
        ("~log_dir", "expected log_dir=<value>, without a leading ~"),
        ("--num_sequences=1", "expected num_sequences=1, without a leading --"),
        ("num_sequences", "expected key=value"),
        ("weather=red", "no such key; the keys are model_config, checkpoint, action_decoder, device"),
        ("training.seed=1", "no such key"),
    ],
)
def test_a_mistyped_key_is_refused_in_one_line_before_anything_is_run(
    typed: str, said: str, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.setattr(app, "main", lambda: pytest.fail("the evaluation was started"))
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(ConfigError, match=said):
        hydra_arguments(["model_config=x", typed])
    with pytest.raises(SystemExit, match="2"):
        app.command(["model_config=x", typed])
    assert capsys.readouterr().err.count("\n") == 1


def test_a_mistyped_key_of_hydra_gets_no_advice_to_append_it(monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(SystemExit, match="2"):
        app.command(["model_config=x", "hydra.num_sequences=1"])
    error = capsys.readouterr().err
    assert "hydra.num_sequences" in error
    assert "+" not in error
    assert error.count("\n") == 1


def test_every_key_is_a_number_or_text_by_its_default() -> None:
    found = composed("model_config=x")
    assert set(keys()) == found.keys() - {"hydra", "defaults"}
    assert set(keys()) >= NUMBERS
    assert {name for name, value in found.items() if isinstance(value, int | float)} <= NUMBERS
    assert not {name for name, value in found.items() if isinstance(value, str)} & NUMBERS


WITHOUT_TORCH = """
import sys
from policy_rollout import calvin_evaluate_upvla as app
try:
    app.command(sys.argv[1:])
finally:
    print("torch" in sys.modules)
"""


@pytest.mark.parametrize("given", ["nowhere.yaml", "no_model.yaml", "no_folder.yaml", "."])
def test_a_wrong_model_is_refused_before_torch_is_imported(given: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name, folder in (("no_model", tmp_path / "empty"), ("no_folder", tmp_path / "gone")):
        text = f"defaults: [embedded]\nmodel: {{showo: {{tuned_model_path: '{folder}'}}}}\n"
        (tmp_path / f"{name}.yaml").write_text(text, encoding="utf-8")
    argv = ["environment=desk", "device=cpu", f"model_config={tmp_path / given}", f"log_dir={tmp_path / 'log'}"]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *argv], cwd=PROJECT_DIR, capture_output=True, encoding="utf-8"
    )
    assert (done.returncode, done.stdout.strip()) == (2, "False"), done.stderr
    assert done.stderr.count("\n") == 1
    assert str(tmp_path) in done.stderr
    assert not (tmp_path / "log").exists()


def test_the_help_explains_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    app.command(["--help"])
    text = capsys.readouterr().out
    assert text == help_text() + "\n"
    for name in keys():
        key, doc = text.partition(f"  {name}  [")[2].splitlines()[:2]
        assert key.endswith("]"), name
        assert len(doc.strip()) > 10, name
    assert max(map(len, text.splitlines())) <= 120
