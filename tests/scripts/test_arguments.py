"""Numbers of the command line have bounds, and `~` in a path means the home folder."""

from __future__ import annotations

import argparse
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from common.arguments import path_argument, real, whole


def test_a_path_means_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert path_argument("~/a b") == tmp_path / "a b"
    assert path_argument("a/~/b") == Path("a/~/b")
    with pytest.raises(argparse.ArgumentTypeError, match="~nobody-of-this-name has no home folder"):
        path_argument("~nobody-of-this-name/x")


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (whole(1), ("1", "7"), ("0", "-1", "1.5", "x", "nan", "")),
        (whole(0, 3), ("0", "3"), ("-1", "4")),
        (real(0, 1, above=0), ("0.5", "1"), ("0", "1.1", "nan", "inf", "x")),
        (real(), ("-1e3",), ("nan", "-inf")),
    ],
)
def test_a_number_is_within_its_bounds(kind: Any, good: tuple[str, ...], bad: tuple[str, ...]) -> None:
    assert [kind(text) for text in good] == [float(text) for text in good]
    for text in bad:
        with pytest.raises(argparse.ArgumentTypeError, match=f"^{text}: expected a"):
            kind(text)


PARSERS = {
    "preprocess_data.process_calvin": "~/split",
    "preprocess_data.repack": "~/split",
    "preprocess_data.make_desk_demos": "~/demos",
    "preprocess_data.tokenize_images": "~/split",
    "scripts.inspect_data": "~/split",
    "policy_rollout.report": "~/log",
    "policy_rollout.desk.cli": "~/a.png",
    "policy_rollout.robot.cli": "~/a.jsonl",
    "scripts.eval_vqa": "~/log",
    "scripts.eval_upvla_offline_actions": "~/out.json",
    "scripts.generate_text": "~/a.png",
}


@pytest.mark.parametrize("module", PARSERS)
def test_every_path_of_a_command_expands_the_home_folder(module: str) -> None:
    made: argparse.ArgumentParser = import_module(module).parser()
    assert all(action.type is not Path for action in made._actions)
    assert any(action.type is path_argument for action in made._actions)
