"""`scripts/generate_text.py`: a saved model answers questions about images."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

from common.files import PROJECT_DIR
from models.decoding import Progress
from models.processing.text import Prompter, load_tokenizer, vocabulary_of
from policy_rollout.text_generation.generate_cli import StreamingPrinter
from policy_rollout.text_generation.trace import FRESH, MASKED, SETTLED, Recorder, Step, Token, lines_of, printable
from policy_rollout.text_generation.trace_animation import Panel, draw_frames
from scripts import generate_text
from tests.scripts.saved_run import write_run
from tests.tiny import tiny_model


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    for objective in ("ar", "mdm", "bd"):
        folder = tmp_path_factory.mktemp(objective)
        made[objective] = write_run(folder, objective, text_block_size=4, text_canvas_multiple=4)
    return made


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for colour in ("red", "blue"):
        Image.new("RGB", (40, 36), colour).save(folder / f"{colour}.png")
    return folder


def ask(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    assert generate_text.main([str(a) for a in argv]) == 0
    return capsys.readouterr().out


def as_json(capsys: pytest.CaptureFixture[str], *argv: object) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(ask(capsys, *argv, "--json", "--max-new-tokens", 8))
    return found


@pytest.mark.parametrize("objective", ["ar", "mdm", "bd"])
def test_the_answer_and_its_cost_are_printed(
    objective: str, runs: dict[str, Path], images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["--checkpoint", runs[objective], "--picture", images / "red.png", "--question", "Which colour?"]
    told = as_json(capsys, *base)
    (answer,) = told["answers"]
    assert told["model"]["decoded"] == objective
    out = ask(capsys, *base, "--max-new-tokens", 8)
    question, said, cost = out.split("\n")[0], "\n".join(out.split("\n")[1:-2]), out.split("\n")[-2]
    assert question == "Which colour?  (red.png)"
    assert said == printable(answer["answer"]) != ""
    assert cost.startswith(f"{told['stats']['tokens']} tokens in {told['stats']['forwards']} forwards")
    for figure in ("tokens per forward", "tokens/s", "first token after"):
        assert figure in cost


def test_every_question_is_asked_of_every_image_and_a_batch_answers_as_one_by_one(
    runs: dict[str, Path], images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["--checkpoint", runs["bd"], "--clip", runs["bd"].parent / "clip"]
    many = as_json(capsys, *base, "--picture", images, "--question", "Which colour? *** Is it red?")["answers"]
    assert [(Path(a["picture"]).name, a["question"]) for a in many] == [
        (image, question) for image in ("blue.png", "red.png") for question in ("Which colour?", "Is it red?")
    ]
    for row in many:
        alone = as_json(capsys, *base, "--picture", row["picture"], "--question", row["question"])["answers"][0]
        assert alone == row
    assert len({row["answer"] for row in many}) > 1  # image or question matter


def test_drawn_answers_repeat_with_their_seed(runs: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    base = ["--checkpoint", runs["ar"], "--no-picture", "--temperature", 1.5, "--top-k", 50, "--top-p", 0.99]
    answers = [as_json(capsys, *base, "--seed", seed)["answers"] for seed in (1, 1, 2)]
    assert answers[0] == answers[1] != answers[2]


def test_each_rule_of_acceptance_is_taken(runs: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    base = ["--checkpoint", runs["bd"], "--no-picture", "--accept"]
    forwards = {
        rule: as_json(capsys, *base, rule)["stats"]["forwards"]
        for rule in ("threshold:2", "threshold:0", "static:2", "factor:1.0", "first-hitting")
    }
    assert forwards["threshold:0"] < forwards["static:2"] < forwards["threshold:2"]


def test_speculation_answers_as_ar_does(runs: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    base = ["--checkpoint", runs["bd"], "--no-picture"]
    drafted = as_json(capsys, *base, "--speculative")["answers"]
    assert drafted == as_json(capsys, *base, "--objective", "ar")["answers"]


def test_block_size_and_canvas_change_how_an_answer_is_made(
    runs: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    one = as_json(capsys, "--checkpoint", runs["bd"], "--no-picture", "--block-size", 1)
    assert one["answers"] == as_json(capsys, "--checkpoint", runs["bd"], "--no-picture", "--objective", "ar")["answers"]
    parts, whole = (
        as_json(capsys, "--checkpoint", runs["mdm"], "--no-picture", "--accept", "threshold:2", *more)["answers"]
        for more in (["--block-size", "2"], ["--whole-canvas"])
    )
    assert parts != whole


def test_a_piped_trace_shows_each_forward_and_ends_in_the_answer(
    runs: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["--checkpoint", runs["bd"], "--no-picture", "--max-new-tokens", 8]
    lines = ask(capsys, *base, "--trace").splitlines()
    steps = [line for line in lines if line.startswith("forward")]
    told = as_json(capsys, *base[:-2])
    assert len(steps) == told["stats"]["forwards"]
    assert all("[" in step and "\x1b" not in step for step in steps)
    assert MASKED in steps[0]
    assert lines[-2] == printable(told["answers"][0]["answer"])


def steps_of(prompter: Any, *steps: tuple[int, str, str]) -> list[Step]:
    """Steps from (forwards, one letter a slot with _ for masked, stars under fresh ones)."""
    recorder, mask = Recorder(prompter, 1), 999_999
    for forwards, shown, fresh in steps:
        ids = [mask if c == "_" else prompter.tokenizer.convert_tokens_to_ids(c) for c in shown]
        recorder(Progress(forwards, [ids], [[c == "*" for c in fresh]], mask))
    return recorder.steps


def test_a_letter_of_several_tokens_is_streamed_whole_and_nothing_is_printed_twice() -> None:
    tokenizer, words_ = load_tokenizer(PROJECT_DIR / "assets" / "tiny_phi")
    prompter = Prompter(tokenizer, vocabulary_of(tokenizer, words_), 8)
    ids, mask = tokenizer("a caf\u00e9 \u73a9\u5177")["input_ids"], 999_999
    assert any("\ufffd" in tokenizer.decode([id_]) for id_ in ids)  # none of these alone is a letter
    paper, pieces = io.StringIO(), []
    printer = StreamingPrinter(Console(file=paper), trace=False, rows=1)
    recorder = Recorder(prompter, 1, printer.watch)
    for known in range(len(ids) + 1):
        recorder(Progress(known + 1, [[*ids[:known], *[mask] * (len(ids) - known)]], [[False] * len(ids)], mask))
        pieces.append(paper.getvalue())
    printer.close([prompter.decode(ids)])
    assert paper.getvalue() == "a caf\u00e9 \u73a9\u5177\n"
    assert len(set(pieces)) > 3  # as it comes
    assert not any("\ufffd" in piece for piece in pieces)


def test_the_recorder_remembers_in_which_forward_a_word_came(tmp_path: Path) -> None:
    _, prompter = tiny_model(tmp_path)
    steps = steps_of(prompter, (1, "_b_", " * "), (2, "ab_", "*  "), (4, "abc", "  *"))
    assert [[token.forward for token in step.rows[0]] for step in steps] == [[None, 1, None], [2, 1, None], [2, 1, 4]]
    assert [str(line) for line in lines_of(steps[1], colored=False)] == ["forward   2  [a]b ▁"]
    assert [token.fresh for token in steps[2].rows[0]] == [False, False, True]


def test_in_a_terminal_new_words_stand_out_and_masked_ones_are_dim(tmp_path: Path) -> None:
    _, prompter = tiny_model(tmp_path)
    (line,) = lines_of(steps_of(prompter, (1, "b__", "*  "), (2, "ba_", " * "))[1], colored=True)
    styles = {str(line)[span.start : span.end].strip(): str(span.style) for span in line.spans}
    assert str(line).startswith("forward   2")
    assert (styles["b"], styles["a"], styles[MASKED]) == (SETTLED, FRESH, "dim")
    assert str(line.style) == ""  # nothing that every word would inherit


def test_what_a_terminal_would_obey_is_not_printed() -> None:
    assert printable("a\x1b[31mb\x08\nc\x9bd") == "a[31mb\ncd"


def test_nothing_is_shown_behind_a_settled_end(tmp_path: Path) -> None:
    _, prompter = tiny_model(tmp_path)
    end = prompter.tokenizer.eos_token
    recorder = Recorder(prompter, 1)
    ids = [prompter.tokenizer.convert_tokens_to_ids(t) for t in ("a", end)]
    recorder(Progress(1, [[*ids, 999_999]], [[True, True, False]], 999_999))
    assert [token.text for token in recorder.steps[0].rows[0]] == ["a", "⏹"]


def test_the_animation_has_an_image_for_every_forward_and_nothing_moves(
    runs: dict[str, Path], images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "new" / "answer.gif"
    base = ["--checkpoint", runs["bd"], "--picture", images / "red.png", "--question", "Which colour?"]
    told = as_json(capsys, *base, "--trace-gif", file)
    with Image.open(file) as animation:
        assert animation.n_frames >= told["stats"]["forwards"]  # type: ignore[attr-defined]
        assert animation.size[0] > 600
    assert [path.name for path in file.parent.iterdir()] == ["answer.gif"]
    step = Step(1, 0.1, [[Token(" a", 1, True), Token(MASKED, None, False)]])
    later = Step(2, 0.2, [[Token(" a", 1, False), Token(" bigger", 2, True)]])
    frames = draw_frames([Panel(images / "red.png", "Which?")], [step, later], "bd")
    assert len(frames) == 1 + 2 + 1
    assert len({frame.size for frame in frames}) == 1
    assert len({frame.tobytes() for frame in frames}) == 4


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--checkpoint", "/nowhere/run"], "checkpoint /nowhere/run: there is no such checkpoint"),
        (["--model-config", "/nowhere.yaml"], "no such file"),
        (["--checkpoint", "{bd}", "--picture", "/nowhere.png"], "/nowhere.png does not exist"),
        (["--checkpoint", "{bd}", "--picture", "{text}"], "cannot be decoded as an image"),
        (["--checkpoint", "{bd}", "--picture", "{empty}"], "holds no image"),
        (["--checkpoint", "{bd}", "--clip", "/no/clip/here"], "--clip"),
        (["--checkpoint", "{ar}", "--objective", "bd"], "--objective ar"),
        (["--checkpoint", "{ar}", "--accept", "static:2"], "--accept has no effect with --objective ar"),
        (["--checkpoint", "{bd}", "--accept", "sometimes"], "first-hitting"),
        (["--checkpoint", "{bd}", "--accept", "static:2", "--speculative"], "--accept has no effect"),
        (["--checkpoint", "{bd}", "--speculative", "--temperature", "1"], "temperature 0"),
        (["--checkpoint", "{bd}", "--whole-canvas"], "--whole-canvas has no effect with --objective bd"),
        (["--checkpoint", "{bd}", "--block-size", "0"], "--block-size is 0"),
        (["--checkpoint", "{bd}", "--top-k", "5"], "--top-k has no effect with --temperature 0"),
        (["--checkpoint", "{bd}", "--temperature", "-1"], "temperature is -1"),
        (["--checkpoint", "{bd}", "--max-new-tokens", "0"], "--max-new-tokens is 0"),
        (["--checkpoint", "{bd}", "--temperature", "nan"], "temperature is nan"),
        (["--checkpoint", "{bd}", "--accept", "threshold:nan"], "threshold of nan"),
        (["--checkpoint", "{mdm}", "--whole-canvas", "--block-size", "2"], "--block-size has no effect"),
        (["--checkpoint", "{bd}", "--json", "--trace"], "--trace has no effect"),
        (["--checkpoint", "{bd}", "--no-picture", "--clip", "x"], "--clip has no effect"),
        (["--checkpoint", "{bd}", "--question", "\udcff"], "not valid UTF-8"),
        (["--checkpoint", "{bd}", "--question", " *** "], "--question is empty"),
        (["--checkpoint", "{bd}", "--no-picture", "--picture", "x.png"], "exclude each other"),
        (["--checkpoint", "{bd}", "--trace-gif", "/proc/no/answer.gif"], "--trace-gif"),
        (["--checkpoint", "{bd}", "--trace-gif", "answer.mp4"], ".gif"),
        (["--checkpoint", "{bd}", "--device", "toaster"], "toaster"),
        (["--checkpoint", "{bd}", "--device", "mps"], "device 'mps' is unknown"),
    ],
)
def test_a_mistake_is_told_in_one_line(
    argv: list[str], said: str, runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "empty").mkdir()
    names = {**runs, "text": tmp_path / "text.png", "empty": tmp_path / "empty"}
    assert generate_text.main([word.format(**names) for word in argv]) == 2
    captured = capsys.readouterr()
    (line,) = [line for line in captured.err.splitlines() if not line.startswith("note: ")]
    assert line.startswith("generate_text: ")
    assert said in line


def test_a_model_of_next_words_can_be_made_to_fill_blocks_anyway(
    runs: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["--checkpoint", runs["ar"], "--no-picture", "--objective", "bd", "--block-size", 1]
    assert as_json(capsys, *base, "--anyway")["model"] == {
        "source": str(runs["ar"]), "trained": "ar", "decoded": "bd"
    }  # fmt: skip


def test_a_model_yaml_names_the_checkpoint_and_the_tower(
    runs: dict[str, Path], images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = f"model:\n  showo:\n    tuned_model_path: {runs['bd']}\n    clip_model_path: {runs['bd'].parent / 'clip'}\n"
    (tmp_path / "model.yaml").write_text(text)
    by_yaml = as_json(capsys, "--model-config", tmp_path / "model.yaml", "--picture", images / "red.png")
    direct = as_json(capsys, "--checkpoint", runs["bd"], "--picture", images / "red.png")
    assert by_yaml["answers"] == direct["answers"]


def test_without_a_checkpoint_the_embedded_model_is_announced(capsys: pytest.CaptureFixture[str]) -> None:
    assert generate_text.main(["--max-new-tokens", "2"]) == 0
    captured = capsys.readouterr()
    assert "random weights" in captured.err
    assert re.search(r"\d tokens in \d forwards", captured.out)
