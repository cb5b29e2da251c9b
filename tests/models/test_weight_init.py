"""A random start knows that image codes are made of bits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from models.language_model.weight_init import init_code_embeddings
from models.vision.magvitv2 import SignTable
from models.vocabulary import Vocabulary
from tests.models.test_model_io import job
from tests.tiny import tiny_model


def test_the_bits_of_a_code_are_the_signs_that_the_tokenizer_reads_it_from() -> None:
    vocab = Vocabulary(words=10, bos=0, eos=1)
    assert torch.equal(vocab.code_bits(torch.arange(vocab.first_code, vocab.mask)), SignTable().embedding)


@pytest.mark.parametrize("kind", ["phi", "qwen3"])
def test_codes_that_share_bits_begin_alike_and_words_stay_as_they_were(tmp_path: Path, kind: str) -> None:
    model, _ = tiny_model(tmp_path / "llm", kind)
    before = model.backbone.lm.get_input_embeddings().weight.detach().clone()
    assert init_code_embeddings(model, seed=3)
    vocab = model.vocab
    for layer in (model.backbone.lm.get_input_embeddings(), model.backbone.lm.get_output_embeddings()):
        rows = layer.weight[vocab.first_code : vocab.mask].detach()
        near, far = (rows[0b000001] - rows[0]).norm(), (rows[0b111111] - rows[0]).norm()
        assert near < far
        torch.testing.assert_close(rows[0b011] - rows[0b001], rows[0b110] - rows[0b100])  # a bit says the same in all
        assert 0.5 < float(rows.std()) / model.backbone.config.initializer_range < 2
    after = model.backbone.lm.get_input_embeddings().weight.detach()
    outside = torch.ones(len(after), dtype=torch.bool)
    outside[vocab.first_code : vocab.mask] = False
    assert torch.equal(before[outside], after[outside])


def test_a_codebook_that_is_no_power_of_two_stays_as_it_is(tmp_path: Path) -> None:
    model, _ = tiny_model(tmp_path / "llm", codebook_size=60)
    assert not init_code_embeddings(model, seed=3)


def test_a_model_built_from_random_weights_starts_so(tmp_path: Path) -> None:
    from models.pretrained.model_io import build

    model = build(job(tmp_path)).model
    rows = model.backbone.lm.get_input_embeddings().weight[model.vocab.first_code : model.vocab.mask].detach()
    torch.testing.assert_close(rows[0b011] - rows[0b001], rows[0b110] - rows[0b100])


def test_the_padding_rows_of_a_language_model_are_not_taken_for_codes(tmp_path: Path) -> None:
    from models.pretrained.model_io import build

    start = job(tmp_path)
    vocab = build(start).model.vocab
    llm = Path(start.model.showo.llm_model_path)
    wide, _ = tiny_model(tmp_path / "wide")
    state = {name: tensor.detach().clone() for name, tensor in wide.backbone.lm.state_dict().items()}
    assert len(state["model.embed_tokens.weight"]) > vocab.first_code
    save_file(state, str(llm / "model.safetensors"))
    table = build(start).model.backbone.lm.get_input_embeddings().weight.detach()
    assert torch.equal(table[: vocab.words], state["model.embed_tokens.weight"][: vocab.words])
    rows = table[vocab.first_code : vocab.mask]
    torch.testing.assert_close(rows[0b011] - rows[0b001], rows[0b110] - rows[0b100])
