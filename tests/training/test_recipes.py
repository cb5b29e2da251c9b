"""The shipped full-size recipes, run with their own files on small networks: stage 1 (`mdm` or `ar` text) -> stage 2 of
mdm, Qwen3 with elastic blocks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

import train_upvla
from config.loading import ConfigError
from models.decoding import Decoding, generate
from models.pretrained.model_io import load_folder
from models.processing.text import load_tokenizer
from tests.tiny import write_language_model
from tests.training.runs import Outcome, forget_processes, same


def small(world: Path, output: Path) -> list[str]:
    """What brings a full-size run configuration down to the networks and data of the test's world."""
    return [
        f"experiment.output_dir={output}",
        "experiment.tracker=none",
        "experiment.log_every=1",
        "experiment.eval_every=0",
        "experiment.generate_every=0",
        "act_step=4",
        "model.gradient_checkpointing=false",
        f"model.vq_model.vq_model_name={world / 'magvit'}",
        f"model.showo.llm_model_path={world / 'phi'}",
        f"model.showo.clip_model_path={world / 'clip'}",
        "model.showo.auto_set_llm_vocab_size=true",
        "model.showo.num_vq_tokens=4",
        f"dataset.params.train_pre_shards_path_or_url={world / 'robot'}",
        f"dataset.params.train_mmu_shards_path_or_url={world / 'chat'}",
        "dataset.params.num_workers=0",
        "dataset.preprocessing.max_seq_length=128",
        "dataset.preprocessing.resolution=32",
        "training.batch_size_pre=2",
        "training.batch_size_mmu=2",
        "training.gradient_accumulation_steps=1",
        "training.mixed_precision=no",
        "training.device=cpu",
    ]


def run(recipe: str, objective: str, given: Sequence[str], output: Path) -> Outcome:
    forget_processes()
    train_upvla.main(objective, [f"config=config/{recipe}.yaml", *given])  # type: ignore[arg-type]
    return Outcome(output)


STAGE_1 = {"mdm": "mdmvla_stage1_pred_tuning", "ar": "mdmvla_stage1_ar_pred_tuning"}


@pytest.fixture(scope="module", params=STAGE_1)
def stage_1(world: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Outcome:
    """Three steps of the first stage from random weights (a Show-o checkpoint is not at hand)."""
    output = tmp_path_factory.mktemp("stage1") / request.param
    more = ["model.showo.load_from_showo=false", "training.max_train_steps=3", "lr_scheduler.params.warmup_steps=0"]
    return run(STAGE_1[request.param], request.param, [*small(world, output), *more], output)


def test_stage_1_learns_images_and_words_and_leaves_actions_alone(stage_1: Outcome) -> None:
    first = stage_1.metrics[0]
    assert {"image/loss", "text/loss"} <= first.keys()
    assert "action/loss" not in first
    assert load_folder(stage_1.folder).spec.decoding.text_objective == stage_1.folder.name


def test_stage_2_starts_from_what_stage_1_wrote(stage_1: Outcome, world: Path, tmp_path: Path) -> None:
    """The recipe warms up from a learning rate of 0: after one step the weights are still those it started from."""
    start = f"model.showo.pretrained_model_path={stage_1.folder}"
    done = run(
        "mdmvla_stage2_action_tuning",
        "mdm",
        [*small(world, tmp_path / "out"), start, "training.max_train_steps=1"],
        tmp_path / "out",
    )
    assert done.metrics[0]["lr"] == 0.0
    assert same(done.weights(), stage_1.weights())
    assert {"image/loss", "action/loss", "text/loss"} <= done.metrics[0].keys()
    assert load_folder(done.folder).spec.decoding.text_objective == "mdm"  # decodes as this stage trains


def test_stage_2_trains_on_and_speaks(stage_1: Outcome, world: Path, tmp_path: Path) -> None:
    start = f"model.showo.pretrained_model_path={stage_1.folder / 'checkpoint-3'}"
    more = [start, "training.max_train_steps=2", "lr_scheduler.params.warmup_steps=0", "text_mdm.canvas_multiple=8"]
    done = run("mdmvla_stage2_action_tuning", "mdm", [*small(world, tmp_path / "out"), *more], tmp_path / "out")
    assert not same(done.weights(), stage_1.weights())
    built = load_folder(done.folder)
    answer = generate(built.model, built.prompter, ["Which colour is it?"], None, 8)
    assert 1 <= len(answer.ids[0]) <= 8


def test_stage_2_without_stage_1_names_what_is_missing(world: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.showo\.pretrained_model_path has to be given"):
        run("mdmvla_stage2_action_tuning", "mdm", small(world, tmp_path / "out"), tmp_path / "out")


def test_qwen3_without_bos_trains_on_elastic_blocks_saves_reloads_and_speaks(world: Path, tmp_path: Path) -> None:
    qwen = write_language_model(tmp_path / "qwen3", "qwen3", bos=False)
    tokenizer, words = load_tokenizer(qwen)
    assert tokenizer.bos_token_id is None
    output = tmp_path / "out"
    given = [
        *(word for word in small(world, output) if "llm_model_path" not in word and "auto_set" not in word),
        f"model.showo.llm_model_path={qwen}",
        "block_diffusion.block_size=4",
        "block_diffusion.block_size_candidates=[1, 2, 4]",
        "lr_scheduler.params.warmup_steps=0",
        "training.max_train_steps=4",
    ]
    done = run("bdvla_action_tuning_qwen3_elastic", "bd", given, output)
    assert all(torch.isfinite(torch.tensor(done.curve(f"{name}/loss"))).all() for name in ("image", "action", "text"))
    # Drawn block sizes: the scored slots of a step differ from step to step for more than the batch's answers.
    assert len({r["text/supervised_tokens"] / r["text/answer_tokens"] for r in done.metrics}) > 1
    built = load_folder(output)
    spec = built.spec
    assert (spec.words, spec.bos, spec.eos) == (words, tokenizer.eos_token_id, tokenizer.eos_token_id)
    assert spec.llm["model_type"] == "qwen3"
    assert built.model.backbone.lm.get_input_embeddings().weight.shape[0] == words + 10 + 8192 + 1
    assert built.prompter.instruction("open the drawer")[:2] == [built.model.vocab.t2i, tokenizer.eos_token_id]
    reloaded = {name: tensor for name, tensor in done.weights().items() if "embed_tokens" in name}
    torch.testing.assert_close(
        built.model.backbone.lm.get_input_embeddings().weight, next(iter(reloaded.values())), rtol=0, atol=0
    )
    for size in (1, 4):  # one model decodes with any of the sizes
        answer = generate(
            built.model, built.prompter, ["Which colour is it?"], None, 6, decoding=Decoding(block_size=size)
        )
        assert 1 <= len(answer.ids[0]) <= 6
        assert max(answer.ids[0]) < words
