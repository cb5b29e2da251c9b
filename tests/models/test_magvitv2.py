from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from common.constants import CODEBOOK_SIZE
from models.pretrained.weights_io import write_safetensors
from models.vision.magvitv2 import (
    RELEASED_DECODER,
    RELEASED_ENCODER,
    MagVITv2,
    SignTable,
    Tower,
    load_magvit,
    without_tf32,
)
from preprocess_data.tiny_assets.lfq_loss import codebook_losses, straight_through

SMALL_ENCODER = {"ch": 32, "ch_mult": [1, 1, 2], "num_res_blocks": [1, 2, 1]}
SMALL_DECODER = {"ch": 32, "ch_mult": [1, 2, 2], "num_res_blocks": [1, 1, 2]}


def small() -> MagVITv2:
    torch.manual_seed(0)
    return MagVITv2(Tower.from_fields(SMALL_ENCODER), Tower.from_fields(SMALL_DECODER)).eval()


def images(count: int = 2, height: int = 16, width: int = 16) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A directory in the released layout, with sizes of its own."""
    vq = tmp_path / "vq"
    vq.mkdir()
    (vq / "config.json").write_text(json.dumps({"_class_name": "MAGVITv2", "enc": SMALL_ENCODER, "dec": SMALL_DECODER}))
    write_safetensors(vq / "pytorch_model.safetensors", small().state_dict())
    return vq


def test_the_released_sizes_are_the_default_and_give_the_released_parameter_count() -> None:
    with torch.device("meta"):
        model = MagVITv2()
    assert sum(p.numel() for p in model.parameters()) == 95_387_004
    assert len(model.state_dict()) == 382
    assert RELEASED_ENCODER.stride == RELEASED_DECODER.stride == 16


def test_a_code_is_the_signs_of_the_latent_with_channel_0_first_and_zero_as_a_0_bit() -> None:
    latent = torch.full((1, 13, 1, 2), -1.0)
    latent[0, 0, 0, 0] = 0.3
    latent[0, 12, 0, 0] = 2.0
    latent[0, :, 0, 1] = 0.0
    table = SignTable()
    assert table.codes(latent).tolist() == [[[4096 + 1, 0]]]
    every = torch.arange(CODEBOOK_SIZE).reshape(2, 64, 64)
    assert torch.equal(table.codes(table.bits(every)), every)


def test_encoding_reads_cells_row_by_row_and_decoding_takes_other_grids() -> None:
    vq = small()
    wide = images(1, 8, 24)
    codes = vq.encode(wide)
    assert codes.shape == (1, 12)
    assert codes.dtype == torch.long
    assert torch.equal(codes.reshape(1, 2, 6), vq.quantize.codes(vq.latent(wide)))
    assert vq.decode(codes, shape=(2, 6)).shape == (1, 3, 8, 24)
    assert vq.decode(torch.zeros(2, 9, dtype=torch.long)).shape == (2, 3, 12, 12)


def test_the_layout_of_the_weights_on_a_cpu_changes_no_latent_no_hash_and_no_file(tmp_path: Path) -> None:
    vq, layout = small(), torch.channels_last
    pixels = images(1).contiguous(memory_format=layout)
    with torch.no_grad():
        latent, digest = vq.latent(pixels), vq.weights_hash
        write_safetensors(tmp_path / "before.safetensors", vq.state_dict())
        with torch.inference_mode():
            vq.encode(pixels)
        assert vq.encoder.conv_in.weight.is_contiguous(memory_format=layout)
        assert not vq.encoder.conv_in.weight.is_inference(), "it could not be trained further"
        assert torch.equal(vq.latent(pixels), latent)
    assert vq.weights_hash == digest
    write_safetensors(tmp_path / "after.safetensors", vq.state_dict())
    assert (tmp_path / "after.safetensors").read_bytes() == (tmp_path / "before.safetensors").read_bytes()


def test_decoding_depends_on_every_code_and_encoding_on_the_image() -> None:
    vq = small()
    codes = torch.arange(4)[None]
    assert not torch.equal(vq.decode(codes), vq.decode(codes.flip(1)))
    assert not torch.equal(vq.latent(images()), vq.latent(-images()))


def test_impossible_grids_codes_and_sizes_are_refused() -> None:
    vq = small()
    with pytest.raises(ValueError, match="6 codes do not fill"):
        vq.decode(torch.zeros(1, 6, dtype=torch.long))
    with pytest.raises(ValueError, match=r"0\.\.8191"):
        vq.decode(torch.full((1, 4), 8192))
    with pytest.raises(ValueError, match="multiples of 4"):
        vq.encode(images(1, 18, 16))
    with pytest.raises(ValueError, match="multiple of 32"):
        Tower(48, (1,), (1,))
    with pytest.raises(ValueError, match="divides the side by 4"):
        MagVITv2(Tower.from_fields(SMALL_ENCODER), Tower(32, (1,), (1,)))


def test_autocast_does_not_change_the_codes() -> None:
    vq = small()
    codes = vq.encode(images())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(vq.encode(images()), codes)
        assert vq.decode(codes).dtype == torch.float32


def test_codes_are_made_without_tf32_whatever_the_run_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    vq, seen = small(), []
    latent = vq.latent
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn

    def watch(pixels: torch.Tensor) -> torch.Tensor:
        seen.append((matmul.allow_tf32, cudnn.allow_tf32))
        return latent(pixels)

    monkeypatch.setattr(vq, "latent", watch)
    with without_tf32():  # restores the settings of the process
        matmul.allow_tf32, cudnn.allow_tf32 = True, True
        vq.encode(images())
        assert set(seen) == {(False, False)}
        assert (matmul.allow_tf32, cudnn.allow_tf32) == (True, True)
        with pytest.raises(ValueError, match="multiples of"):
            vq.encode(torch.zeros(1, 3, 5, 5))
        assert (matmul.allow_tf32, cudnn.allow_tf32) == (True, True)


def test_every_layout_on_disk_gives_the_same_frozen_tokenizer(folder: Path, tmp_path: Path) -> None:
    expected = small()
    bare = tmp_path / "elsewhere.pt"
    torch.save({"model": expected.state_dict()}, bare)
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    (bin_folder / "config.json").write_text((folder / "config.json").read_text())
    torch.save(expected.state_dict(), bin_folder / "pytorch_model.bin")
    for vq in (
        load_magvit(folder),
        load_magvit(folder / "pytorch_model.safetensors"),
        load_magvit(bin_folder),
        load_magvit(folder, pretrained_model_path=bare),  # sizes of the directory, weights of the file
        load_magvit("no/hub", pretrained_model_path=bin_folder / "pytorch_model.bin"),  # sizes beside the file
    ):
        assert torch.equal(vq.encode(images()), expected.encode(images()))
        assert not vq.training
        assert not any(p.requires_grad for p in vq.parameters())
        assert vq.weights_hash == expected.weights_hash


def test_the_weights_hash_changes_with_one_weight() -> None:
    vq = small()
    before = vq.weights_hash
    with torch.no_grad():
        vq.decoder.conv_out.bias[0] += 1e-3
    assert vq.weights_hash != before


def test_sources_that_do_not_fit_are_errors_naming_them(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model\.vq_model\.vq_model_name: /no/where does not exist"):
        load_magvit("/no/where")
    with pytest.raises(FileNotFoundError, match="pretrained_model_path: /no/where"):
        load_magvit(folder, pretrained_model_path="/no/where")
    other = tmp_path / "other.pt"
    torch.save({"model": {**small().state_dict(), "quantize.embedding": torch.zeros(8192, 13)}}, other)
    with pytest.raises(ValueError, match=r"other\.pt: quantize\.embedding"):
        load_magvit(folder, pretrained_model_path=other)
    (folder / "config.json").write_text("{}")  # the released sizes, then
    with pytest.raises(
        ValueError,
        match=r"240 missing: .*134 of another shape: encoder\.conv_in\.weight is \[32, 3, 3, 3\], not \[128, 3, 3, 3\]",
    ):
        load_magvit(folder)
    (folder / "config.json").write_text('{"enc": {"ch": 32}}')
    with pytest.raises(ValueError, match="enc and dec"):
        load_magvit(folder)


# ------------------------------------------------------------------------------------------------------------- training
def test_the_sign_lets_the_gradient_through() -> None:
    latent = torch.tensor([-2.0, 0.0, 0.5], requires_grad=True)
    signs = straight_through(latent)
    assert signs.tolist() == [-1, -1, 1]
    (signs * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert latent.grad is not None
    assert latent.grad.tolist() == [1, 2, 3]


def test_codebook_losses_equal_the_softmax_over_all_codes() -> None:
    latent = torch.randn(2, 13, 3, 2, generator=torch.Generator().manual_seed(0)).double()
    cells = latent.movedim(1, -1).flatten(0, -2)
    distances = torch.cdist(cells, SignTable().embedding.double()).square()
    q = (-distances).softmax(-1)  # [12,8192]
    losses = codebook_losses(latent)
    assert torch.allclose(losses.cell_entropy.double(), -torch.xlogy(q, q).sum(-1).mean(), rtol=1e-5)
    mean = q.mean(0)
    assert torch.allclose(losses.codebook_entropy.double(), -torch.xlogy(mean, mean).sum(), rtol=1e-5)
    assert torch.allclose(losses.commitment.double(), (cells.abs() - 1).square().mean())


def test_codebook_losses_reward_decided_and_varied_codes() -> None:
    generator = torch.Generator().manual_seed(0)
    varied = torch.randint(0, 2, (4, 13, 4, 4), generator=generator) * 2.0 - 1
    constant = torch.ones(4, 13, 4, 4)
    undecided = torch.zeros(4, 13, 4, 4)
    assert codebook_losses(varied).total() < codebook_losses(constant).total()
    assert codebook_losses(varied).total() < codebook_losses(undecided).total()


def test_a_few_steps_of_training_lower_the_error_and_reach_every_weight() -> None:
    vq = small().train()
    optimizer = torch.optim.AdamW(vq.parameters(), lr=2e-3)
    errors = []
    for _ in range(8):
        latent = vq.latent(images())
        reconstruction = vq.decoder(straight_through(latent))
        error = (reconstruction - images()).square().mean()
        optimizer.zero_grad()
        (error + codebook_losses(latent).total()).backward()
        assert all(p.grad is not None for p in vq.parameters())
        optimizer.step()
        errors.append(error.item())
    assert errors[-1] < 0.8 * errors[0]
