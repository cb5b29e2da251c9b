"""A model travels: its card describes it, and what is pushed to the hub loads by id and revision."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch

from common.files import PROJECT_DIR
from config.loading import load_job
from models.pretrained import hub
from models.pretrained.model_card import FIGURES, card, is_card, last_figures, with_hub_id, write_card
from models.pretrained.model_io import load_folder
from models.pretrained.weights_io import resolve_model_dir
from policy_rollout.policies.upvla import UPVLAPolicy
from scripts.cli import push

MODEL = PROJECT_DIR / "assets" / "desk_policy"


class FakeHub:
    """A hub in a folder, with the methods of HfApi and the function snapshot_download that are used."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.private = folder, None

    def create_repo(self, repo: str, private: bool, exist_ok: bool) -> None:
        assert exist_ok
        self.private = private

    def create_branch(self, repo: str, branch: str, exist_ok: bool) -> None:
        assert exist_ok

    def create_commit(self, repo: str, operations: list[Any], commit_message: str, revision: str | None) -> Any:
        for operation in operations:
            file = self.path(repo, revision) / operation.path_in_repo
            file.parent.mkdir(parents=True, exist_ok=True)
            with operation.as_file() as content:
                file.write_bytes(content.read())
        return SimpleNamespace(commit_url=f"https://hub/{repo}/commit/1")

    def path(self, repo: str, revision: str | None) -> Path:
        return self.folder / repo / (revision or "main")

    def model_info(self, repo: str, revision: str | None, timeout: float) -> Any:
        folder = self.path(repo, revision)
        if not folder.is_dir():
            kind = "RevisionNotFoundError" if folder.parent.is_dir() else "RepositoryNotFoundError"
            response = SimpleNamespace(headers={}, request=None, status_code=404)
            raise getattr(huggingface_hub.errors, kind)("none", response=response)
        files = [file for file in folder.rglob("*") if file.is_file()]
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=str(f.relative_to(folder))) for f in files])

    def snapshot_download(
        self, repo: str, revision: str | None = None, local_files_only: bool = False, **_: Any
    ) -> str:
        if local_files_only:
            raise huggingface_hub.errors.LocalEntryNotFoundError("not cached")
        return str(self.path(repo, revision))


@pytest.fixture
def fake_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    made = FakeHub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: made)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", made.snapshot_download)
    return made


def test_a_pushed_model_loads_by_id_and_revision_and_acts_alike(
    fake_hub: FakeHub, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--checkpoint", str(MODEL), "--repo", "org/model", "--revision", "v1", "--private"]
    assert push.main(arguments) == 0
    assert "next: use it anywhere as --checkpoint org/model@v1\n" in capsys.readouterr().err
    assert fake_hub.private is True
    names = {path.name for path in fake_hub.path("org/model", "v1").iterdir()}
    assert names == {"model.safetensors", "config.json", "config.yaml", "tokenizer", "README.md"}
    ours = UPVLAPolicy.from_pretrained(MODEL, device="cpu")
    theirs = UPVLAPolicy.from_pretrained("org/model", revision="v1", device="cpu")
    assert ours.spec == theirs.spec
    for name, tensor in ours.model.state_dict().items():
        assert torch.equal(tensor, theirs.model.state_dict()[name]), name


def test_a_revision_that_does_not_exist_is_named(fake_hub: FakeHub) -> None:
    fake_hub.path("org/model", None).mkdir(parents=True)
    with pytest.raises(ValueError, match="checkpoint: the model org/model on the hub has no branch, tag or commit v9"):
        resolve_model_dir("org/model@v9", key="checkpoint")
    with pytest.raises(ValueError, match="org/other is neither an existing path nor a model"):
        resolve_model_dir("org/other@v9", key="checkpoint")


def test_a_dry_run_uploads_nothing_and_names_local_paths(
    fake_hub: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(MODEL, run)
    text = (run / "config.yaml").read_text().replace("./assets/tiny_clip", "/data/private/clip")
    assert "/data/private" in text
    (run / "config.yaml").write_text(text)
    assert push.main(["--checkpoint", str(run), "--repo", "org/model", "--dry-run"]) == 0
    captured = capsys.readouterr()
    assert "publishes paths of this machine: /data/private/clip" in captured.err
    assert "nothing was uploaded" in captured.out
    assert not fake_hub.folder.exists()


@pytest.mark.parametrize("repo", ["model", "org/model@v1", "./model"])
def test_a_name_that_is_no_hub_id_is_refused(repo: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert push.main(["--checkpoint", str(MODEL), "--repo", repo]) == 2
    assert "expected a hub id" in capsys.readouterr().err


def test_an_upload_that_the_hub_refuses_is_one_line(
    fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr(fake_hub, "create_repo", refuse)
    assert push.main(["--checkpoint", str(MODEL), "--repo", "org/model"]) == 2
    error = capsys.readouterr().err
    assert "--repo org/model: not uploaded (no network); hf auth login" in error


def test_a_card_has_the_last_figures_up_to_its_step(tmp_path: Path) -> None:
    lines = [
        {"step": 2, "text/loss": 3.0, "validation/action/mae": 0.5},
        {"step": 4, "text/loss": 2.0},
        {"step": 6, "text/loss": 1.0},
    ]
    file = tmp_path / "metrics.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 7, "te')
    figures = last_figures(file, 4)
    assert figures == {"text/loss": (2.0, 4), "validation/action/mae": (0.5, 2)}
    job = load_job(["config=./config/tiny_bdvla.yaml", "experiment.output_dir=/somewhere/run"], None)
    spec = load_folder(MODEL).spec
    text = card(job, spec, 5_978_000, 4, figures)
    assert f"| {FIGURES['text/loss']} | `text/loss` | 2 | 4 |" in text
    assert "Text objective `bd` (block diffusion)" in text
    assert "/somewhere" not in text
    assert str(PROJECT_DIR) not in text
    example = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0]
    compile(example, "card", "exec")
    assert 'from_pretrained("org/model")' in with_hub_id(text, "org/model")
    assert last_figures(tmp_path / "nothing", 4) == {}


def test_a_readme_of_the_user_stays(tmp_path: Path) -> None:
    job = load_job(["config=./config/tiny_arvla.yaml"], None)
    text = card(job, load_folder(MODEL).spec, 1, 1, {})
    write_card(tmp_path, text)
    assert is_card(tmp_path / "README.md")
    (tmp_path / "README.md").write_text("mine")
    write_card(tmp_path, text)
    assert (tmp_path / "README.md").read_text() == "mine"


def test_a_folder_without_weights_cannot_be_published(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="has no weights"):
        hub.prepare(tmp_path, None, "org/model")
