"""`blockdiff-vla` starts the commands of the project, and lists them at once."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import train_upvla
from common.files import PROJECT_DIR
from config.loading import ConfigError
from scripts.cli import train
from scripts.cli.__main__ import COMMANDS, PROGRAM, dispatch, resolve, usage

LIST = """
import sys
sys.argv = ["blockdiff-vla", "--help"]
before = set(sys.modules)
from scripts.cli.__main__ import main
try:
    main()
except SystemExit as stop:
    assert not stop.code
heavy = {"yaml", "numpy", "hydra", "torch", "transformers", "difflib", "argparse"}
print("imported:", *sorted(heavy & (set(sys.modules) - before)))
"""


def test_the_list_of_commands_imports_nothing_that_takes_time() -> None:
    done = subprocess.run([sys.executable, "-c", LIST], capture_output=True, text=True, cwd=PROJECT_DIR)
    assert done.returncode == 0, done.stderr
    *listed, imported = done.stdout.splitlines()
    assert imported == "imported:"
    for name, command in COMMANDS.items():
        assert any(line.split(command.help)[0].strip() == name for line in listed if command.help in line), name
    assert max(map(len, listed)) <= 120


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_a_function_of_its_module(name: str) -> None:
    command = COMMANDS[name]
    assert find_spec(command.module) is not None
    assert callable(getattr(import_module(command.module), command.main))


def test_a_command_gets_the_arguments_after_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr("policy_rollout.compare.main", lambda argv: seen.append((sys.argv[0], argv)) or 3)
    monkeypatch.setattr(sys, "argv", ["x"])
    assert dispatch(["compare", "a", "b", "--json"]) == 3
    assert seen == [(f"{PROGRAM} compare", ["a", "b", "--json"])]
    assert resolve(["compare", "objectives", "--steps", "1"]) == ("compare objectives", ["--steps", "1"])
    assert resolve(["process", "bridge"]) == ("process bridge", [])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rolout", "x"], "did you mean blockdiff-vla rollout?"),
        (["process"], "there are process calvin, process bridge, process lerobot"),
        (["process", "bridges"], "there are process calvin, process bridge, process lerobot"),
        (["zzzz"], "--help lists the commands"),
        (["--checkpoint"], "--help lists the commands"),
    ],
)
def test_an_unknown_command_is_one_line_with_the_nearest_name(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dispatch(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def test_without_a_command_the_list_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatch([]) == 2
    assert dispatch(["--help"]) == 0
    assert capsys.readouterr().out.count(usage()) == 2


# ---------------------------------------------------------------------------------------------------------------- train
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["config=a.yaml"], (None, ["config=a.yaml"])),
        (["--objective", "bd", "config=a.yaml"], ("bd", ["config=a.yaml"])),
        (["config=a.yaml", "--objective=mdm", "training.seed=1"], ("mdm", ["config=a.yaml", "training.seed=1"])),
    ],
)
def test_training_gets_the_objective_and_the_other_arguments(
    arguments: list[str], expected: tuple[Any, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(train_upvla, "main", lambda objective, argv: seen.append((objective, argv)))
    train.main(arguments)
    assert seen == [expected]


@pytest.mark.parametrize("arguments", [["--objective", "gpt"], ["--objective"]])
def test_an_unknown_objective_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="expected one of ar, mdm, bd"):
        train.objective_of(arguments)
    with pytest.raises(SystemExit) as end:
        train.main(arguments)
    assert end.value.code == 2
    assert "config error: --objective" in capsys.readouterr().err


def test_without_an_objective_that_of_the_configuration_is_trained(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    trained: list[str] = []
    monkeypatch.setattr(train_upvla, "train", lambda job: trained.append(job.training.text_objective))
    for name in ("tiny_arvla", "tiny_mdmvla", "tiny_bdvla"):
        train.main([f"config=./config/{name}.yaml", f"experiment.output_dir={tmp_path}"])
    assert trained == ["ar", "mdm", "bd"]
    with pytest.raises(SystemExit):
        train.main(["--objective", "ar", "config=./config/tiny_bdvla.yaml", f"experiment.output_dir={tmp_path}"])


# ------------------------------------------------------------------------------------------------------ common options
def help_of(name: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "scripts.cli", *name.split(), "--help"], capture_output=True, text=True, cwd=PROJECT_DIR
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str) -> None:
    assert len(help_of(name).splitlines()) > 10


@pytest.mark.slow
@pytest.mark.parametrize(
    ("option", "commands"),
    [
        ("--checkpoint", ["eval", "ask", "vqa", "demo", "serve", "robot", "doctor"]),
        ("--device", ["eval", "ask", "vqa", "demo", "serve", "robot", "tokenize"]),
        ("--output-dir", ["compare objectives", "demo", "record", "process calvin", "process bridge", "tokenize"]),
        ("--seed", ["ask", "demo", "record", "process calvin"]),
    ],
)
def test_options_have_the_same_name_in_all_commands(option: str, commands: list[str]) -> None:
    assert [name for name in commands if f"{option} " not in help_of(name)] == []
