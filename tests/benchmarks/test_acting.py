"""The original's ways to act, to evaluate and to answer compute what the package computes; the package is faster."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PhiConfig

from benchmarks import offline, policy, text_generation
from benchmarks.harness.problems import SIZES
from models.vision.magvitv2 import Tower
from tests.benchmarks.naive_acting import Naive

TOWER = Tower(32, (1, 1, 1, 1, 1), (1, 1, 1, 1, 1))
SMALL = replace(
    SIZES["cpu"],
    llm=PhiConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        partial_rotary_factor=0.5,
        attention_dropout=0.0,
    ),
    resolution=32,
    max_seq_length=40,
    encoder=TOWER,
    decoder=TOWER,
)
BENCHMARKS = {
    "policy": (policy, ["--calls", "2", "--rounds", "1", "--batches", "1,2"]),
    "offline": (offline, ["--samples", "4", "--few", "2", "--rounds", "1"]),
    "text_generation": (text_generation, ["--words", "4", "--block-size", "2", "--rounds", "1", "--batches", "1"]),
}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SIZES, "cpu", SMALL)


def run(name: str, out: Path) -> dict:
    module, options = BENCHMARKS[name]
    module.main([*options, "--out", str(out)])
    return json.loads(out.read_text(encoding="utf-8"))


def test_a_policy_call_is_compared_counted_and_recorded(small, tmp_path):
    record = run("policy", tmp_path / "policy.json")
    assert record["same"]["actions"] < 1e-5
    assert record["same"]["share_of_codes"] == 0
    assert record["operations"]["original"] > 2 * record["operations"]["ours"]
    assert set(record["throughput"]) == {"1", "2"}
    assert record["latency"]["times_faster"]["median"] > 0


@pytest.mark.slow  # makes a token cache
def test_offline_evaluation_is_compared_and_recorded(small, tmp_path):
    record = run("offline", tmp_path / "offline.json")
    assert record["same"]["original"]["samples"] == record["same"]["token cache"]["samples"] == 2
    assert record["same"]["original"]["mae_all"] == pytest.approx(record["same"]["pictures"]["mae_all"], rel=1e-4)
    assert record["gflop_a_sample"]["pictures"] > record["gflop_a_sample"]["token cache"] > 0


def test_answers_are_compared_and_recorded(small, tmp_path):
    record = run("text_generation", tmp_path / "text.json")
    found = record["results"]
    assert {name: one["words"] for name, one in found.items()} == {"ar": 4, "bd": 4, "mdm": 4}
    assert (found["ar"]["forwards"], found["bd"]["forwards"], found["mdm"]["forwards"]) == (4, 2, 1)


def test_ways_with_other_results_are_not_timed(small, tmp_path, monkeypatch):
    act, answer = Naive.rollout_step, Naive.answer
    monkeypatch.setattr(Naive, "rollout_step", lambda self, *seen: (act(self, *seen)[0] + 0.01, *act(self, *seen)[1:]))
    with pytest.raises(SystemExit, match=r"do not compute the same: actions differ by 0\.01"):
        run("policy", tmp_path / "never.json")
    monkeypatch.setattr(Naive, "answer", lambda self, *asked: [*answer(self, *asked)[:-1], 7])
    with pytest.raises(SystemExit, match="ar: the two answers differ"):
        run("text_generation", tmp_path / "never.json")
    assert not (tmp_path / "never.json").exists()


def test_a_real_size_on_a_cpu_is_refused_in_one_line(tmp_path):
    for name, (module, _) in BENCHMARKS.items():
        with pytest.raises(SystemExit, match=r"--size phi is meant for a GPU.*--anyway"):
            module.main(["--size", "phi", "--out", str(tmp_path / f"{name}.json")])


@pytest.mark.slow
def test_the_real_size_is_counted_without_computing(tmp_path):
    out = tmp_path / "count.json"
    policy.main(["--size", "phi", "--count", "--out", str(out)])
    amount = json.loads(out.read_text())["operations"]
    # docs/from_upstream.md's counts of the original: an encoding 1.42, a decoding 1.21, a row 4.41 and 0.39 TFLOP.
    parts = amount["original_parts"]
    assert parts["encode"] / 1e12 == pytest.approx(1.42, abs=0.01)
    assert parts["decode twice"] / 2e12 == pytest.approx(1.21, abs=0.01)
    assert parts["padded network"] / 1e12 == pytest.approx(4.41, rel=0.02)
    assert parts["logits"] / 1e12 == pytest.approx(0.39, abs=0.01)


@pytest.mark.slow
def test_at_the_originals_size_a_call_takes_less_than_half_as_long(tmp_path):
    found = policy.main(["--calls", "7", "--rounds", "1", "--batches", "1", "--out", str(tmp_path / "policy.json")])
    assert found["latency"]["times_faster"].median >= 2


@pytest.mark.slow
def test_at_the_originals_size_evaluation_is_twice_as_fast_and_three_times_from_a_token_cache(tmp_path):
    found = offline.main(["--samples", "32", "--few", "4", "--rounds", "3", "--out", str(tmp_path / "offline.json")])
    assert found["times_faster"]["pictures"].median >= 2
    assert found["times_faster"]["token cache"].median >= 3


@pytest.mark.slow
def test_at_the_originals_size_answers_come_five_times_as_fast(tmp_path):
    out = str(tmp_path / "text.json")
    found = text_generation.main(["--rounds", "3", "--batches", "1", "--out", out])["results"]
    assert all(one["at_batch_1"].median >= 5 for one in found.values())


def test_the_reference_pads_and_projects_everything(small):
    from benchmarks.harness.problems import image_tokenizer, language_model
    from tests.benchmarks.naive_step import slow_model

    built = language_model(SMALL)
    seen: list[torch.Size] = []
    slow = slow_model(built.model)
    slow.backbone.lm.get_output_embeddings().register_forward_pre_hook(lambda _, args: seen.append(args[0].shape))
    naive = Naive(slow, image_tokenizer(SMALL), built.prompter)
    naive.rollout_step(np.zeros((20, 20, 3), np.uint8), "go")
    assert seen == [(1, SMALL.padded, 32)]
