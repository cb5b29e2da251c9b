"""Any causal language model that transformers knows can be the backbone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from config.loading import load_job
from config.schema import Job
from models.action.inference import ActionPredictor
from models.decoding.kv_cache import CachedPrefix, prompt_sequence
from models.pretrained.model_io import Built, build, load_folder, save_folder
from models.pretrained.weights_io import read_weights, write_safetensors
from models.sequence import robot_sequence
from tests.models.families import EAGER_ALONE, FAMILIES, VOCABULARY, write_family
from tests.tiny import write_tokenizer
from tests.training.world import CONFIG, write_clip


def job_of(world: Path, kind: str, *overrides: str) -> Job:
    attention = ["model.showo.attn_implementation=eager"] if kind in EAGER_ALONE else []
    return load_job([f"config={world / 'tiny.yaml'}", *attention, *overrides], paths=False)


def world_of(root: Path, kind: str, **settings: object) -> Path:
    root.mkdir(exist_ok=True)
    write_family(root / "phi", kind, **settings)
    write_clip(root / "clip")
    (root / "tiny.yaml").write_text(CONFIG.format(root=root), encoding="utf-8")
    return root


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Built]:
    world = world_of(tmp_path_factory.mktemp(request.param), request.param)
    return world, build(job_of(world, request.param))


def test_its_weights_compute_what_transformers_computes_with_them(family: tuple[Path, Built]) -> None:
    world, built = family
    model, ids = built.model.eval(), torch.tensor([[5, 6, 7, 8, 9, 10], [6, 6, 3, 4, 4, 1]])
    reference = AutoModelForCausalLM.from_pretrained(world / "phi", dtype=torch.float32, attn_implementation="eager")
    positions = torch.arange(6).expand(2, -1)
    mask = torch.ones(2, 1, 6, 6, dtype=torch.bool).tril()
    with torch.no_grad():
        found = model.backbone.logits(model.backbone(model.backbone.embed(ids), mask, positions))
        if reference.config.model_type != "phi":  # norms of queries and keys are ours alone
            expected = reference.eval()(ids, use_cache=False).logits
            torch.testing.assert_close(found[..., :VOCABULARY], expected, rtol=1e-4, atol=1e-5)
        rows = slice(20, 40)
        hidden = model.backbone(model.backbone.embed(ids), mask, positions)
        torch.testing.assert_close(model.backbone.logits(hidden, rows), found[..., rows], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(model.backbone.head(hidden), found, rtol=1e-5, atol=1e-6)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_the_mask_says_who_sees_whom_and_positions_are_read(family: tuple[Path, Built]) -> None:
    backbone = family[1].model.eval().backbone
    embeds = backbone.embed(torch.tensor([[5, 6, 7, 8, 9, 10, 3, 2, 1, 4, 5, 6]]))
    positions = torch.arange(12)[None]
    mask = torch.ones(1, 1, 12, 12, dtype=torch.bool).tril()
    mask[..., 1:, 0] = False
    mask[..., 0, 11] = True  # the first alone sees the last
    changed = embeds.clone()
    changed[:, 11] = embeds[:, 0]
    with torch.no_grad():
        hidden, other = backbone(embeds, mask, positions), backbone(changed, mask, positions)
        assert not torch.allclose(hidden[:, 0], other[:, 0])
        torch.testing.assert_close(hidden[:, 1:11], other[:, 1:11])
        far = backbone(embeds, mask, positions * 2)
    assert not torch.allclose(hidden[:, 3], far[:, 3])


def test_cached_decoding_equals_uncached(family: tuple[Path, Built]) -> None:
    model = family[1].model.eval()
    prompt = prompt_sequence(model.vocab, [], [[5, 6, 7, 8, 9, 11, 12, 13, 14, 15], [9, 6]], None)
    words = torch.tensor([[3, 4, 5], [7, 8, 9]])
    with torch.no_grad():
        stream = CachedPrefix(model, prompt)
        stream.forward()
        stream.append(words[:, :2])
        stream.forward(noisy=torch.full((2, 2), model.vocab.mask))
        stream.append(words[:, 2:])
        cached, _ = stream.forward()
        whole = CachedPrefix(model, prompt)
        whole.append(words)
        uncached, _ = whole.forward()
    torch.testing.assert_close(cached[:, -1], uncached[:, -1], rtol=1e-4, atol=1e-5)


def test_it_learns_in_every_weight_but_those_nothing_reads(family: tuple[Path, Built]) -> None:
    model = family[1].model
    model.train()
    flow = robot_sequence(model.vocab, [[5, 6, 7]], torch.zeros(1, 4, dtype=torch.long), 4)
    hidden = model.hidden_states(flow)
    again = model.hidden_states(flow)
    torch.testing.assert_close(hidden, again)  # no dropout, whatever config.json says
    (model.backbone.logits(hidden).square().mean() + model.action_head(hidden[:, -4:]).square().mean()).backward()
    still = [n for n, p in model.backbone.named_parameters() if p.grad is None or not p.grad.any()]
    model.zero_grad(set_to_none=True)
    assert not still


def test_it_is_saved_and_read_again(family: tuple[Path, Built], tmp_path: Path) -> None:
    _, built = family
    save_folder(built.model, built.prompter, tmp_path)
    again = load_folder(tmp_path)
    ours, theirs = built.model.state_dict(), again.model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    codes = torch.zeros(1, 4, dtype=torch.long)
    first, second = (ActionPredictor(b.model.eval()).predict([[5, 6, 7]], codes) for b in (built, again))
    assert torch.equal(first.actions, second.actions)


def test_files_with_the_base_models_own_names_are_read(tmp_path: Path) -> None:
    """As GPT-2 is released: no prefix, no head."""
    world = world_of(tmp_path / "world", "gpt2")
    file = world / "phi/model.safetensors"
    names = {n.removeprefix("transformer."): t for n, t in read_weights(file).items() if not n.startswith("lm_head")}
    expected = build(job_of(world, "gpt2")).model.state_dict()
    write_safetensors(file, names)
    found = build(job_of(world, "gpt2")).model.state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_settings_that_are_not_used_are_told(tmp_path: Path) -> None:
    dropping = build(job_of(world_of(tmp_path / "gpt2", "gpt2"), "gpt2")).notes
    assert any("resid_pdrop=0.1" in note for note in dropping)
    window = build(job_of(world_of(tmp_path / "mistral", "mistral"), "mistral")).notes
    assert any("sliding_window=8" in note for note in window)


@pytest.mark.parametrize("kind", ["bloom", "mamba", "qwen3_next", "gpt_neo", "bert"])
def test_a_network_that_would_not_read_mask_positions_or_whole_head_is_refused(tmp_path: Path, kind: str) -> None:
    small = {"hidden_size": 32, "n_layer": 2, "n_head": 4, "num_hidden_layers": 2}
    small |= {"vocab_size": 300, "num_attention_heads": 4, "num_experts": 2, "num_experts_per_tok": 1}
    small |= {"gpt_neo": {"attention_types": [[["global", "local"], 1]], "num_heads": 4, "num_layers": 2}}.get(kind, {})
    (tmp_path / "phi").mkdir()
    config = AutoConfig.for_model(kind, **small).to_dict()
    (tmp_path / "phi/config.json").write_text(json.dumps(config, default=str), encoding="utf-8")
    write_tokenizer(tmp_path / "phi")
    write_clip(tmp_path / "clip")
    (tmp_path / "tiny.yaml").write_text(CONFIG.format(root=tmp_path), encoding="utf-8")
    with pytest.raises(ValueError, match=r"model\.showo\.llm_model_path") as refused:
        build(job_of(tmp_path, kind, "model.showo.attn_implementation=eager"), "meta")
    assert "cannot be the backbone" in str(refused.value)
    assert "\n" not in str(refused.value)
