"""Ways to decode a text model: their bounds, their answers, and the command."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from config.loading import load_job, to_yaml
from config.schema import MMU_INDEX
from models.pretrained.model_io import Built, build, save_folder
from scripts.compare_decoding.__main__ import main, read_blocks, read_models, read_thresholds
from scripts.compare_decoding.sweep import Decoded, Items, Way, answer, best_of, measure, ways_of

ROOT = Path(__file__).resolve().parents[2]
LONGEST = 9


@pytest.fixture(scope="module")
def joint() -> Built:
    torch.manual_seed(0)
    built = build(
        load_job([f"config={ROOT}/config/tiny_jointvla.yaml", "model.showo.llm_model_path=assets/nano_phi"], "bd")
    )
    return Built(built.model.eval(), built.prompter)


@pytest.fixture(scope="module")
def items() -> Items:
    patches = torch.randn(3, 16, 64, generator=torch.Generator().manual_seed(1))
    return Items(["What colour is the ball?", "Where is it?", "How many toys?"], patches, ["red.", "there.", "two."])


def test_the_bound_counts_the_forwards_of_perfect_acceptance() -> None:
    assert Way("ar").fewest_forwards(7) == 7
    assert [Way("bd", block, 0.9).fewest_forwards(7) for block in (1, 2, 8, None)] == [7, 4, 1, 1]
    assert [Way("bd", block, speculative=True).fewest_forwards(7) for block in (2, 6, None)] == [6, 2, 2]


def test_every_objective_is_decoded_in_the_ways_that_it_has_learned() -> None:
    assert ways_of("ar", [2, None], [0.9]) == [Way("ar")]
    assert ways_of("mdm", [2, None], [0.9]) == [Way("ar"), Way("mdm", 2, 0.9), Way("mdm", None, 0.9)]
    found = ways_of("bd", [1, 4], [1.0, 0.5])
    assert found == [Way("ar"), *(Way("bd", b, t) for b in (1, 4) for t in (1.0, 0.5)), Way("bd", 4, speculative=True)]
    assert len({way.name for way in found}) == len(found)


def test_a_threshold_of_zero_reaches_the_bound_and_one_decodes_a_token_at_a_time(joint: Built, items: Items) -> None:
    ways = [Way("ar"), Way("bd", 4, 0.0), Way("bd", None, 0.0), Way("bd", 4, 1.0), Way("bd", 4, speculative=True)]
    ticks: list[int] = []
    found = measure({"joint": (joint, ways)}, items, LONGEST, 2, ticks.append)["joint"]
    assert sum(ticks) == len(ways) * (len(items) + 2)
    for way in (ways[1], ways[2]):
        assert found[way].tokens_per_forward == found[way].bound
    for way in (ways[0], ways[3]):
        assert found[way].tokens_per_forward == 1
    assert all(one.tokens_per_forward <= one.bound for one in found.values())
    assert all(len(one.exact) == 3 and len(one.tokens) == 2 for one in found.values())


def test_drafts_that_are_verified_give_the_answers_of_the_next_token(joint: Built, items: Items) -> None:
    expected = answer(joint, Way("ar"), items, range(3), LONGEST).ids
    for block in (2, 5, None):
        assert answer(joint, Way("bd", block, speculative=True), items, range(3), LONGEST).ids == expected


def test_a_way_that_another_one_beats_is_on_no_curve() -> None:
    def made(right: int, seconds: float) -> Decoded:
        return Decoded([i < right for i in range(10)], [10], [10], [10], [seconds])

    ways = {Way("ar"): made(9, 2.0), Way("bd", 2, 0.9): made(9, 1.0), Way("bd", 4, 0.5): made(5, 0.5)}
    ways[Way("bd", 4, 0.9)] = made(4, 0.8)
    assert best_of(ways) == [Way("bd", 2, 0.9), Way("bd", 4, 0.5)]


def test_mistakes_on_the_command_line_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for call, says in (
        (lambda: read_models(["ar"]), "expected NAME=FOLDER"),
        (lambda: read_blocks("2,0"), "at least 1, or whole"),
        (lambda: read_thresholds("a"), "expected probabilities"),
    ):
        with pytest.raises(ValueError, match=says):
            call()
    assert read_blocks("1,whole") == [1, None]
    assert main(["--models", f"ar={tmp_path}"]) == 2
    assert "config.yaml does not exist" in capsys.readouterr().err


def test_the_command_writes_a_table_a_figure_and_records(tmp_path: Path, joint: Built) -> None:
    run, questions = tmp_path / "run", tmp_path / "questions"
    save_folder(joint.model, joint.prompter, run)
    job = load_job([f"config={ROOT}/config/tiny_jointvla.yaml", "model.showo.llm_model_path=assets/nano_phi"], "bd")
    (run / "config.yaml").write_text(to_yaml(job))
    questions.mkdir()
    source = ROOT / "dummy_data/llava_validation"
    (questions / MMU_INDEX).write_text(json.dumps(json.loads((source / MMU_INDEX).read_text())[:3]))
    shutil.copytree(source / "images", questions / "images")
    given = ["--blocks", "4,whole", "--thresholds", "0.9", "--timed", "1", "--max-new-tokens", "6", "--count", "3"]
    out = tmp_path / "out"
    assert (
        main(["--models", f"joint={run},{run}", "--questions", str(questions), *given, "--output-dir", str(out)]) == 0
    )
    text = (out / "summary.md").read_text()
    assert "| joint, speculative, whole answer" in text
    with Image.open(out / "decoding.png") as figure:
        assert figure.size[0] > 800
    with (out / "decoding.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 3 * 5
    assert {(row["run"], row["tokens"] != "") for row in rows} == {
        (run, timed) for run in "01" for timed in (True, False)
    }
    assert {row["format"] for row in rows} == {"decoding/1"}
