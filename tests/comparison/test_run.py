"""Judging a model, and the whole command at its smallest."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from config.loading import load_job
from config.schema import MMU_INDEX
from models.objectives import text_objective
from models.pretrained.model_io import build
from models.processing.text import ASSISTANT, HUMAN
from models.sequence import TextTurn
from models.text_metrics import NATS, evaluate_text_likelihood
from policy_rollout.benchmarks.offline import list_samples
from policy_rollout.policies.baselines import ConstantPolicy
from scripts import compare_objectives
from scripts.objective_comparison.evaluate import HeldOut, evaluate_actions, evaluate_text, kinds_of, read_held_out
from training.data.calvin import CalvinSplit

ROOT = Path(__file__).resolve().parents[2]
QUESTIONS = 6


@pytest.fixture
def few_questions(tmp_path: Path) -> Path:
    """A folder with the first held-out questions."""
    folder = tmp_path / "questions"
    folder.mkdir()
    source = ROOT / "dummy_data/llava_validation"
    records = json.loads((source / MMU_INDEX).read_text())[:QUESTIONS]
    (folder / MMU_INDEX).write_text(json.dumps(records))
    shutil.copytree(source / "images", folder / "images")
    return folder


def test_every_question_is_answered_measured_and_asked_with_another_image(few_questions: Path) -> None:
    job = load_job([f"config={ROOT}/config/tiny_arvla.yaml", "max_new_tokens=4"], "ar")
    torch.manual_seed(0)
    built, held_out = build(job), read_held_out(job, few_questions)
    done: list[int] = []
    with torch.no_grad():
        words = evaluate_text(built, job, held_out, done.append)
    assert sum(done) == 3 * QUESTIONS  # answers, answers with other images, likelihoods
    assert {len(getattr(words, name)) for name in vars(words)} == {QUESTIONS}
    assert not any(words.exact)  # it knows nothing
    assert all(nats > tokens for nats, tokens in zip(words.nats, words.tokens, strict=True))
    assert words.tokens == [len(truth) for truth in map(answer_ids(built), held_out.questions)]
    assert set(kinds_of(held_out)) <= {"colour", "shape", "place", "corner", "count", "list"}


def answer_ids(built: object) -> object:
    return lambda question: [*built.prompter.words(f" {question.answer}"), built.prompter.vocab.eos]  # type: ignore[attr-defined]


def test_a_perfect_memory_of_the_answers_is_judged_perfect(
    few_questions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The judge's arithmetic, with a decoder that says the truth of the image it is shown."""
    from models.decoding.generate import DecodingStats, Generation
    from scripts.objective_comparison import evaluate

    job = load_job([f"config={ROOT}/config/tiny_arvla.yaml"], "ar")
    held_out = read_held_out(job, few_questions)
    built = build(job)
    known = [(q.text, held_out.patches[q.image], q.answer) for q in held_out.questions]

    def remember(text: str, patches: torch.Tensor) -> str:
        return next((a for t, seen, a in known if t == text and torch.equal(seen, patches)), "I cannot know.")

    def say(
        model: object, prompter: object, texts: list[str], patches: torch.Tensor, max_new_tokens: int
    ) -> Generation:
        said = [remember(*pair) for pair in zip(texts, patches, strict=True)]
        ids = [[*built.prompter.words(f" {answer}"), built.prompter.vocab.eos] for answer in said]
        return Generation(
            said, ids, DecodingStats(1, 1, 0.1, 0.1), [text == held_out.questions[0].text for text in texts]
        )

    monkeypatch.setattr(evaluate, "generate", say)
    with torch.no_grad():
        words = evaluate_text(built, job, held_out, lambda _: None)
    assert all(words.exact)
    assert words.right_tokens == words.tokens
    assert not any(words.exact_shuffled)
    assert words.cut == [q.text == held_out.questions[0].text for q in held_out.questions]


def test_questions_that_are_not_bundled_have_no_kind() -> None:
    from scripts.objective_comparison.evaluate import Question

    assert kinds_of(HeldOut((Question("Why?", "Because.", 0),), torch.zeros(1, 2, 2))) == ["all"]


def test_actions_are_judged_by_stretches_that_add_up_to_all_frames() -> None:
    split = CalvinSplit(ROOT / "dummy_data/calvin/validation")
    results = evaluate_actions(ConstantPolicy([0.0] * 7, act_step=10), split)  # type: ignore[arg-type]
    assert sum(results.steps) == results.overall["steps"]
    assert len(results.errors) >= len(list_samples(split.annotations, 10)) // 10
    weighted = sum(e * s for e, s in zip(results.errors, results.steps, strict=True)) / sum(results.steps)
    assert weighted == pytest.approx(results.overall["mae_all"], rel=1e-5)


@pytest.mark.parametrize("objective", ["ar", "bd"])
def test_the_nats_of_all_questions_together_are_what_validation_measures(few_questions: Path, objective: str) -> None:
    """``training/evaluator.py`` and the comparison have one axis."""
    name = {"ar": "tiny_arvla", "bd": "tiny_bdvla"}[objective]
    job = load_job([f"config={ROOT}/config/{name}.yaml", "max_new_tokens=2"], objective)  # type: ignore[arg-type]
    torch.manual_seed(0)
    built, held_out = build(job), read_held_out(job, few_questions)
    with torch.no_grad():
        words = evaluate_text(built, job, held_out, lambda _: None)
        pairs = [built.prompter.conversation([(HUMAN, q.text), (ASSISTANT, q.answer)]) for q in held_out.questions]
        turn = TextTurn.of_rows(
            [c.ids for c in pairs],
            [c.answer for c in pairs],
            built.prompter.vocab.pad,
            held_out.patches_of(held_out.questions),
        )
        measured = evaluate_text_likelihood(built.model, built.prompter, text_objective(job), turn, draws=16)
    ours = sum(words.nats) / sum(words.tokens)
    assert ours == pytest.approx(float(measured[NATS].mean), rel=1e-4 if objective == "ar" else 0.1)
    assert any(words.nats_variance) == (objective == "bd")


@pytest.mark.slow
def test_the_command_trains_judges_and_reports_and_trains_nothing_twice(
    few_questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = ["--steps", "2", "--output-dir", str(out), "--batch-size-pre", "1", "--batch-size-mmu", "1", "--blind"]
    arguments += [f"dataset.params.validation_mmu_shards_path_or_url={few_questions}", "max_new_tokens=8"]
    assert compare_objectives.main([*arguments, "--objectives", "ar,bd"]) == 0
    said = capsys.readouterr().out
    assert said.strip().splitlines()[-1].startswith("done in ")
    assert "first step: identical" in said
    summary = json.loads((out / "summary.json").read_text())
    assert summary["questions"] == QUESTIONS
    assert all(first["identical"] for first in summary["first_step"])
    assert (out / "curves.png").stat().st_size > 10_000
    made = {path: path.stat().st_mtime_ns for path in out.rglob("model.safetensors")}
    assert compare_objectives.main([*arguments, "--objectives", "ar,mdm,bd"]) == 0  # mdm and its blind twin are new
    assert "4 of 6 runs were trained already" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in made} == made
    assert set(json.loads((out / "summary.json").read_text())["objectives"]) == {"ar", "mdm", "bd"}
