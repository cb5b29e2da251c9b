"""Files that are written tensor by tensor have the bytes of safetensors' own writer, and need no second copy."""

from __future__ import annotations

import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.pretrained.safetensors_file import DTYPES, Deferred, stream_safetensors

ABOUT = {"format": "pt"}


def some_tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    found = {}
    for number, dtype in enumerate(DTYPES):
        found[f"layer.{number}"] = torch.randint(0, 2, (number % 3 + 1, 5)).to(dtype)
    found |= {"b": torch.randn(3, 2), "a": torch.randn(4), "scalar": torch.tensor(1.5), "none": torch.empty(0, 3)}
    return found | {"umlaut ä": torch.randn(2), "turned": torch.randn(3, 5).T}


def test_the_bytes_are_those_of_save_file(tmp_path: Path) -> None:
    tensors = some_tensors()
    stream_safetensors(tmp_path / "ours", tensors, ABOUT)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "theirs", ABOUT)
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_every_tensor_is_read_again(tmp_path: Path) -> None:
    tensors = some_tensors()
    stream_safetensors(tmp_path / "file", tensors, ABOUT)
    found = load_file(tmp_path / "file")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].tolist() == tensor.tolist()


def test_deferred_tensors_are_computed_one_at_a_time(tmp_path: Path) -> None:
    alive = 0

    class Counted:
        def __init__(self, value: float) -> None:
            self.value = value

        def __call__(self) -> torch.Tensor:
            nonlocal alive
            alive += 1
            assert alive == 1, "the one before is freed first"
            tensor = torch.full((4,), self.value)
            weakref.finalize(tensor, self.freed)
            return tensor

        def freed(self) -> None:
            nonlocal alive
            alive -= 1

    tensors = {str(i): Deferred(torch.Size([4]), torch.float32, Counted(float(i))) for i in range(8)}
    stream_safetensors(tmp_path / "file", tensors, ABOUT)
    assert {name: tensor[0].item() for name, tensor in load_file(tmp_path / "file").items()} == {
        str(i): float(i) for i in range(8)
    }


def test_mistakes_are_refused(tmp_path: Path) -> None:
    weight = torch.randn(4)
    with pytest.raises(ValueError, match="embed and head share their memory"):
        stream_safetensors(tmp_path / "file", {"embed": weight, "head": weight.view(2, 2)}, ABOUT)
    with pytest.raises(ValueError, match=r"z has the type torch\.complex128"):
        stream_safetensors(tmp_path / "file", {"z": weight.to(torch.complex128)}, ABOUT)
    wrong = Deferred(torch.Size([3]), torch.float32, lambda: weight)
    with pytest.raises(ValueError, match=r"w is torch\.float32 \(4,\), declared as torch\.float32 \(3,\)"):
        stream_safetensors(tmp_path / "file", {"w": wrong}, ABOUT)


def test_parts_of_one_buffer_are_separate_tensors(tmp_path: Path) -> None:
    """As DeepSpeed's gathered weights are."""
    buffer = torch.arange(6.0)
    stream_safetensors(tmp_path / "file", {"first": buffer[:2], "second": buffer[2:]}, ABOUT)
    assert torch.equal(load_file(tmp_path / "file")["second"], buffer[2:])
