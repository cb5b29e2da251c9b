"""FlexAttention computes what SDPA computes, from the tags alone, and is compiled once for all batches of a length."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.functional import scaled_dot_product_attention

from config.schema import Job
from models.attention_mask import TILE, Rule, Slots
from models.objectives import text_objective
from models.rng import SampleRng
from models.sequence import TokenSequence, robot_sequence
from models.upvla import UPVLA
from tests.models.text_problems import Built, talk
from tests.tiny import tiny_model

DIALOGUES = [[("which block?", "the pink block is inside")], [("lit?", "no"), ("and the drawer?", "it is open")]]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return tiny_model(tmp_path_factory.mktemp("model"))


def sequences(built: Built, seed: int = 0) -> list[TokenSequence]:
    """The robot flow, and a conversation with two noisy copies."""
    model, prompter = built
    instructions = [prompter.instruction(text) for text in ("open the drawer", "push the red block to the left")]
    codes = torch.randint(0, 64, (2, model.spec.num_image_tokens), generator=torch.Generator().manual_seed(seed))
    job = Job()
    job.training.text_objective, job.block_diffusion.block_size = "bd", 4
    turn = talk(built, DIALOGUES)
    task = text_objective(job).prepare(model.vocab, prompter.system_ids, turn, SampleRng(seed))
    return [robot_sequence(model.vocab, instructions, codes, model.spec.act_step), task.sequence]


def attended(rule: Rule, slots: Slots, kernel: Callable[..., Any]) -> tuple[Tensor, Tensor]:
    """Attention over random values, by FlexAttention and by SDPA."""
    q, k, v = torch.randn(3, slots.shape[0], 2, slots.shape[1], 16).unbind()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that without the compiler nothing is gained
        return kernel(q, k, v, block_mask=rule.blocks(slots)), scaled_dot_product_attention(q, k, v, rule.dense(slots))


def test_tiles_attend_what_the_dense_mask_attends(built: Built) -> None:
    for sequence in sequences(built):
        for one in (sequence, sequence.padded(TILE, built[0].vocab.pad)):
            ours, theirs = attended(one.rule, one.slots, flex_attention)
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.slow  # each layer is traced anew
def test_the_network_trained_by_flex_attention_is_the_same_network(
    built: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The kernel as it is without the compiler, which takes a minute here and has a test of its own.
    monkeypatch.setattr(
        "transformers.integrations.flex_attention.compile_friendly_flex_attention",
        lambda q, k, v, training=False, **settings: flex_attention(q, k, v, **settings),
    )
    model: UPVLA = built[0]
    found: dict[str, list[Tensor]] = {}
    for kernel in ("sdpa", "flex_attention"):
        model.backbone.set_attn_implementation(kernel)
        model.train()
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found[kernel] = [model.hidden_states(sequence) for sequence in sequences(built)]
        assert model.backbone.lm.config._attn_implementation == kernel
        model.eval()
        assert isinstance(model.backbone.mask(*_tags(built)), Tensor)  # measuring and acting go by SDPA
    model.backbone.set_attn_implementation("sdpa")
    for ours, theirs in zip(found["flex_attention"], found["sdpa"], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def _tags(built: Built) -> tuple[Rule, Slots]:
    sequence = sequences(built)[0]
    return sequence.rule, sequence.slots


@pytest.mark.slow
def test_batches_of_one_length_are_compiled_once(built: Built) -> None:
    compiled: list[int] = []

    def count(graph: Any, inputs: Any) -> Any:
        compiled.append(1)
        return graph.forward

    kernel = torch.compile(flex_attention, backend=count)  # type: ignore[arg-type]
    for seed in range(4):
        for sequence in sequences(built, seed):
            longer = sequence.padded(TILE, built[0].vocab.pad)
            ours, theirs = attended(longer.rule, longer.slots, kernel)
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert len(compiled) == 2, "one for each rule"


def test_padding_to_a_multiple_changes_no_number(built: Built) -> None:
    model: UPVLA = built[0]
    model.train()
    plain = [model.hidden_states(sequence) for sequence in sequences(built)]
    model.length_multiple = 32
    longer = [model.hidden_states(sequence) for sequence in sequences(built)]
    model.length_multiple = 1
    model.eval()
    for sequence, ours, theirs in zip(sequences(built), longer, plain, strict=True):
        valid = sequence.slots.valid
        assert ours.shape == theirs.shape
        torch.testing.assert_close(ours[valid], theirs[valid], rtol=1e-5, atol=1e-6)


@pytest.mark.slow  # the compiler takes a minute
def test_the_compiled_kernel_of_transformers_takes_our_tiles(tmp_path: Path) -> None:
    made = tiny_model(tmp_path, attn_implementation="flex_attention", hidden=64)
    model: UPVLA = made[0]
    model.train()
    with torch.no_grad():
        tiled = [model.hidden_states(sequence) for sequence in sequences(made)]
        model.backbone.set_attn_implementation("sdpa")
        dense = [model.hidden_states(sequence) for sequence in sequences(made)]
    for sequence, ours, theirs in zip(sequences(made), tiled, dense, strict=True):
        torch.testing.assert_close(ours[sequence.slots.valid], theirs[sequence.slots.valid], rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="FlexAttention has no backward on a CPU")
def test_gradients_are_the_same_on_a_gpu(tmp_path: Path) -> None:
    made = tiny_model(tmp_path, attn_implementation="flex_attention", hidden=128)
    model: UPVLA = made[0].to("cuda")
    model.train()
    found = []
    for kernel in ("flex_attention", "sdpa"):
        model.backbone.set_attn_implementation(kernel)
        model.zero_grad(set_to_none=True)
        for sequence in sequences(made):
            torch.autograd.backward(
                model.hidden_states(sequence.to("cuda"))[sequence.slots.valid.cuda()].square().sum()
            )
        found.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-3 * float(theirs.abs().max()))
