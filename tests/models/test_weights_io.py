from __future__ import annotations

import json
import os
import pickle
import socket
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from models.pretrained import weights_io
from models.pretrained.weights_io import load_strict, read_weights, resolve_model_dir, write_safetensors

STATE = {"layer.weight": torch.arange(6.0).reshape(2, 3), "layer.bias": torch.tensor([1.0, 2.0])}


def same(state: dict[str, torch.Tensor]) -> bool:
    return set(state) == set(STATE) and all(torch.equal(state[name], STATE[name]) for name in STATE)


def write_sharded(folder: Path, suffix: str) -> Path:
    shards = {}
    for i, (name, tensor) in enumerate(STATE.items()):
        shards[name] = f"part-{i}.{suffix}"
        if suffix == "safetensors":
            save_file({name: tensor}, folder / shards[name])
        else:
            torch.save({name: tensor}, folder / shards[name])
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    index = folder / f"{stem}.{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": shards}))
    return index


class Calls:
    """Pickles into a call of os.system: what a malicious weight file looks like."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch HACKED",)


# -------------------------------------------------------------------------------------------------------------- reading
def test_every_way_to_store_weights_is_read_alike(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "a.safetensors")
    torch.save(STATE, tmp_path / "b.bin")
    torch.save({"model": STATE, "step": 3}, tmp_path / "c.pt")
    torch.save(STATE, tmp_path / "d.bin", _use_new_zipfile_serialization=False)
    for name in ("a.safetensors", "b.bin", "c.pt", "d.bin"):
        assert same(read_weights(tmp_path / name)), name


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_sharded_weights_are_put_together(tmp_path: Path, suffix: str) -> None:
    index = write_sharded(tmp_path, suffix)
    assert same(read_weights(index))
    assert same(read_weights(tmp_path))


def test_a_directory_prefers_safetensors(tmp_path: Path) -> None:
    torch.save({"old": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    save_file(STATE, tmp_path / "pytorch_model.safetensors")
    assert same(read_weights(tmp_path))


def test_missing_files_are_named_with_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"pytorch_model\.bin"):
        read_weights(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.bin"):
        read_weights(tmp_path / "nowhere.bin")
    write_sharded(tmp_path, "bin")
    (tmp_path / "part-1.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"part-1\.bin"):
        read_weights(tmp_path)


def test_a_file_that_would_run_code_is_refused_and_runs_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": {"w": torch.zeros(1)}, "extra": Calls()}, tmp_path / "zip.bin")
    (tmp_path / "plain.bin").write_bytes(pickle.dumps(Calls()))
    for name in ("zip.bin", "plain.bin"):
        with pytest.raises(ValueError, match=name.replace(".", r"\.")):
            read_weights(tmp_path / name)
    assert not (tmp_path / "HACKED").exists()


@pytest.mark.parametrize("keep", [0, 5, 60, 300])
def test_cut_off_files_are_one_clear_error(tmp_path: Path, keep: int) -> None:
    save_file(STATE, tmp_path / "a.safetensors")
    torch.save(STATE, tmp_path / "b.bin")
    torch.save(STATE, tmp_path / "c.bin", _use_new_zipfile_serialization=False)
    for file in sorted(tmp_path.iterdir()):
        file.write_bytes(file.read_bytes()[: min(keep, file.stat().st_size - 1)])
        with pytest.raises(ValueError, match=file.name) as caught:
            read_weights(file)
        assert "\n" not in str(caught.value)


def test_rubbish_and_wrong_contents_are_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "text.bin").write_text("this is a git-lfs pointer")
    (tmp_path / "x.safetensors.index.json").write_text("{}")
    torch.save([torch.zeros(1)], tmp_path / "list.bin")
    torch.save({"weights": STATE, "step": 3}, tmp_path / "nested.bin")
    for name in ("text.bin", "x.safetensors.index.json", "list.bin", "nested.bin"):
        with pytest.raises(ValueError, match=name.replace(".", r"\.")):
            read_weights(tmp_path / name)


# ------------------------------------------------------------------------------------------------------------- checking
class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)


def test_load_strict_loads_on_the_cpu_and_from_the_meta_device() -> None:
    with torch.device("meta"):
        on_meta = Small()
    for module in (Small(), on_meta):
        assert load_strict(module, STATE, "file") == []
        assert same(module.state_dict())
        assert module.layer.weight.requires_grad
        assert module.layer.weight.data_ptr() != STATE["layer.weight"].data_ptr()


def test_load_strict_names_missing_unexpected_and_resized_keys_and_changes_nothing() -> None:
    module = Small()
    before = module.layer.weight.detach().clone()
    wrong = {"layer.weight": torch.zeros(2, 4), **{f"other.{i}": torch.zeros(1) for i in range(9)}}
    with pytest.raises(ValueError, match=r"some/file\.bin") as caught:
        load_strict(module, wrong, "some/file.bin")
    message = str(caught.value)
    assert "1 missing: layer.bias" in message
    assert "9 unexpected: other.0" in message
    assert "and 3 more" in message
    assert "layer.weight is [2, 4], not [2, 3]" in message
    assert torch.equal(module.layer.weight, before)


def test_allowed_keys_may_be_absent_only_all_together() -> None:
    module = Small()
    assert load_strict(module, {}, "f", allow_missing=("layer.",)) == ["layer.weight", "layer.bias"]
    with pytest.raises(ValueError, match=r"1 missing: layer\.bias"):
        load_strict(module, {"layer.weight": STATE["layer.weight"]}, "f", allow_missing=("layer.",))


# -------------------------------------------------------------------------------------------------------------- writing
def test_written_weights_read_back_and_the_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.safetensors", "b.safetensors"):
        write_safetensors(tmp_path / "new" / name, STATE, {"note": "ä"})
    assert same(load_file(tmp_path / "new" / "a.safetensors"))
    assert (tmp_path / "new" / "a.safetensors").read_bytes() == (tmp_path / "new" / "b.safetensors").read_bytes()


def test_a_failed_write_leaves_the_old_file_and_no_scratch(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "a.safetensors", STATE)
    shared = torch.zeros(4)
    with pytest.raises(ValueError, match="share"):
        write_safetensors(tmp_path / "a.safetensors", {"x": shared, "y": shared})
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]
    assert same(read_weights(tmp_path / "a.safetensors"))


# -------------------------------------------------------------------------------------------------------------- finding
@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache; returns where the snapshot of `org/model` would lie."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    repo = tmp_path / "hub" / "models--org--model"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("a" * 40)
    return repo / "snapshots" / ("a" * 40)


def test_an_existing_path_is_taken_as_it_is(tmp_path: Path) -> None:
    assert resolve_model_dir(str(tmp_path), "model.x") == tmp_path


@pytest.mark.parametrize("name", ["/no/such/dir", "./a/b", "~/nowhere/at all", "one", "a/b/c", "ckpt/weights.bin"])
def test_a_path_that_cannot_be_a_hub_id_fails_at_once_naming_the_key(name: str) -> None:
    with pytest.raises(ValueError, match=r"model\.x: .* does not exist"):
        resolve_model_dir(name, "model.x")


def test_offline_a_cached_snapshot_is_found_only_when_complete(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.mkdir(parents=True)
    (hub / "config.json").write_text("{}")
    assert resolve_model_dir("org/model", "model.x", weights=False) == hub
    with pytest.raises(ValueError, match=r"model\.x: org/model .*set model\.x to the local directory") as caught:
        resolve_model_dir("org/model", "model.x")
    assert "\n" not in str(caught.value)
    index = write_sharded(hub, "bin")
    assert resolve_model_dir("org/model", "model.x") == hub
    (hub / "part-1.bin").unlink()
    with pytest.raises(ValueError, match="cannot be reached"):
        resolve_model_dir("org/model", "model.x")
    assert index.is_file()


def test_a_hub_that_never_answers_does_not_hang_the_start(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(weights_io, "HUB_TIMEOUT_S", 0.5)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        began = time.monotonic()
        with pytest.raises(ValueError, match=r"model\.x: org/model .*cannot be reached"):
            resolve_model_dir("org/model", "model.x")
        assert time.monotonic() - began < 8
