"""What a run writes about its words: the same names for the three objectives, in training and on held-out data."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from models.text_metrics import BINS
from tests.training.runs import Outcome, train

SMALL = {"block_diffusion__block_size": 4, "text_mdm__canvas_multiple": 8}
HELD_OUT = {"experiment__eval_every": 2}
COMMON = {
    "text/nats_per_token", "text/perplexity_bound", "text/clean_nats_per_token", "text/accuracy",
}  # fmt: skip
TRAINING = COMMON | {"text/supervised_tokens", "text/answer_tokens", "text/loss"}
VALIDATION = COMMON | {
    "text/loss", "text/nats_error", "text/answer_tokens", "text/scored_per_answer_token", "text/picture_gap",
}  # fmt: skip


@pytest.fixture(scope="module")
def runs(world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """Two steps of each objective, all of the clean stream learned along, all conversations held out."""
    folder, robot = tmp_path_factory.mktemp("runs"), {"training__pre_coeff": 0.0, "training__act_coeff": 0.0}
    chat = {"dataset__params__validation_mmu_shards_path_or_url": world / "chat"}
    made = {}
    for name in ("ar", "mdm", "bd"):
        aux = {} if name == "ar" else {"text_diffusion__ar_aux_weight": 0.5}
        switch = {"training__text_objective": name}
        made[name] = train(world, folder / name, name, **switch, **SMALL, **aux, **robot, **chat, **HELD_OUT)
    return made


@pytest.mark.parametrize("name", ["ar", "mdm", "bd"])
def test_the_three_log_the_same_names(runs: dict[str, Outcome], name: str) -> None:
    first, last = runs[name].metrics[0], runs[name].metrics[-1]
    assert first.keys() >= TRAINING
    assert last.keys() >= {f"validation/{tag}" for tag in VALIDATION}
    for prefix, record in (("", first), ("validation/", last)):
        binned = {tag for tag in record if tag.startswith(f"{prefix}text/") and "_hidden_" in tag}
        assert bool(binned) == (name != "ar")
        assert binned <= {f"{prefix}text/{what}_hidden_{b}" for what in ("nats", "accuracy") for b in BINS}
        assert record[f"{prefix}text/perplexity_bound"] == pytest.approx(
            math.exp(record[f"{prefix}text/nats_per_token"]), rel=1e-6
        )
        assert 0 <= record[f"{prefix}text/accuracy"] <= 1


def test_held_out_figures_of_the_diffusion_objectives_come_with_their_uncertainty(runs: dict[str, Outcome]) -> None:
    assert runs["ar"].metrics[-1]["validation/text/nats_error"] == 0
    for name in ("mdm", "bd"):
        last = runs[name].metrics[-1]
        assert 0 < last["validation/text/nats_error"] < last["validation/text/nats_per_token"]
        assert 0 < last["validation/text/estimate_spread"] < 1
        assert "validation/text/nats_variance" not in last


def test_all_three_count_the_same_answer_tokens(runs: dict[str, Outcome]) -> None:
    for tag, at in (("text/answer_tokens", 0), ("validation/text/answer_tokens", -1)):
        assert len({runs[name].metrics[at][tag] for name in runs}) == 1
    first = runs["ar"].metrics[0]
    assert first["text/supervised_tokens"] == first["text/answer_tokens"] > 0
    assert runs["bd"].metrics[0]["text/supervised_tokens"] > first["text/answer_tokens"]


def test_at_the_start_the_clean_stream_costs_the_same_under_all_three(runs: dict[str, Outcome]) -> None:
    """The first step's weights are the same, and what follows the clean words does not touch them."""
    clean = [runs[name].metrics[0]["text/clean_nats_per_token"] for name in ("ar", "mdm", "bd")]
    assert clean[1:] == pytest.approx([clean[0]] * 2, rel=1e-5)


def test_figures_of_a_step_do_not_depend_on_how_its_batch_is_split(world: Path, tmp_path: Path) -> None:
    knobs = {"training__text_objective": "bd", "training__max_train_steps": 1, **SMALL}
    one = train(world, tmp_path / "one", "bd", training__batch_size_pre=4, training__batch_size_mmu=4, **knobs)
    two = train(world, tmp_path / "two", "bd", training__gradient_accumulation_steps=2, **knobs)
    tags = [tag for tag in one.metrics[0] if tag.startswith("text/")]
    assert len(tags) > 10
    for tag in tags:
        assert two.metrics[0][tag] == pytest.approx(one.metrics[0][tag], rel=1e-5), tag
