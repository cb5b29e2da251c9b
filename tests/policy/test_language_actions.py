"""Actions as words: the grammar is exact, the loss is that of rounding, and a policy executes what it says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from config.schema import MMU_INDEX
from models.decoding import Generation
from models.decoding.generate import DecodingStats
from models.vision.clip_encoder import load_clip
from policy_rollout.benchmarks.processed import open_split
from policy_rollout.policies import language_decoder
from policy_rollout.policies.interface import ActionConvention, Observation
from policy_rollout.policies.language_actions import ActionLanguage, Motion, errors, parse
from policy_rollout.policies.language_decoder import LanguageDecoding
from policy_rollout.policies.upvla import UPVLAPolicy
from preprocess_data.language_actions.__main__ import main
from preprocess_data.language_actions.conversations import Settings, recorded_chunk, samples_of
from tests.policy.saved_model import write_model, write_yaml

ROOT = Path(__file__).resolve().parents[2]
PROCESSED, RAW = ROOT / "dummy_data/calvin_processed_training", ROOT / "dummy_data/calvin/validation"
CLIP = ROOT / "assets/tiny_clip"
CALVIN = ActionConvention()


def calvin(**settings: Any) -> ActionLanguage:
    return ActionLanguage(CALVIN, 10, **settings)


halves = st.integers(-60, 60).map(lambda n: n / 2)
motions = st.builds(
    Motion,
    st.tuples(halves, halves, halves),
    st.tuples(*[st.integers(-45, 45).map(float)] * 3),
    st.sampled_from(["open", "close", None]),
)


@settings(deadline=None)  # a shared machine
@given(motions)
def test_every_sentence_is_read_as_the_motion_that_it_was_written_for(motion: Motion):
    assert parse(str(motion)) == motion


def test_sentences_read_as_documented():
    assert str(Motion((-4, 0, -2), (0, 0, 0), "close")) == "left 4 cm, down 2 cm, close"
    assert str(Motion((0.5, 12, 3), (0, -4, 90), "open")) == (
        "right 0.5 cm, forward 12 cm, up 3 cm, pitch -4 degrees, yaw 90 degrees, open"
    )
    assert str(Motion(gripper="open")) == "stay, open"
    assert str(Motion()) == "stay"
    assert parse("  Close, DOWN 2 cm,left 4  cm. ") == Motion((-4, 0, -2), (0, 0, 0), "close")
    assert parse("yaw 1 degree, open") == Motion(degrees=(0, 0, 1), gripper="open")


NONSENSE = """
|close|left 4, close|left 4 cm, right 2 cm, open|left cm|open, close|stay, left 4 cm|stay, stay|sideways 4 cm, open
|left 4 cm down 2 cm|left -4 cm, open|roll 4 cm|left 99999 cm|left 4 cm,, open"""


@pytest.mark.parametrize("sentence", NONSENSE.replace("\n", "").split("|"))
def test_what_is_no_sentence_is_refused(sentence: str):
    with pytest.raises(ValueError):
        parse(sentence)


@settings(deadline=None)  # a shared machine
@given(st.lists(st.lists(st.floats(-1, 1), min_size=7, max_size=7), min_size=1, max_size=10))
def test_a_chunk_returns_within_half_a_resolution(rows: list[list[float]]):
    language, chunk = calvin(mm=5, degrees=2), np.array(rows)
    spoken = language.actions(language.describe(chunk))
    apart = np.abs(spoken.sum(axis=0) - chunk.sum(axis=0))
    assert (apart[:3] * 20 <= 2.5 + 1e-3).all()
    assert (np.degrees(apart[3:6] * 0.05) <= 1 + 1e-3).all()
    assert spoken.shape == (10, 7)
    assert set(np.abs(spoken[:, 6])) == {1}
    assert abs(chunk[-1, 6]) < 1e-6 or (np.sign(spoken[:, 6]) == np.sign(chunk[-1, 6])).all()


@settings(deadline=None)  # a shared machine
@given(motions)
def test_actions_and_sentence_are_inverse_where_no_step_is_clipped(motion: Motion):
    motion = Motion(tuple(c / 2 for c in motion.centimetres), tuple(d // 2 for d in motion.degrees), "open")
    language = calvin(mm=2.5, degrees=1)
    assert parse(language.describe(language.actions(str(motion)))) == motion


def test_a_step_beyond_the_limit_is_clipped():
    assert calvin().actions("left 300 cm, close")[0].tolist() == [-1, 0, 0, 0, 0, 0, -1]


def test_the_gripper_of_no_motion_is_kept_if_it_is_known():
    closed, opened = np.zeros(15), np.zeros(15)
    closed[14], opened[14] = -1, 1
    assert calvin().no_motion(closed)[:, 6].tolist() == [-1.0] * 10
    assert calvin().no_motion(opened)[0].tolist() == [0, 0, 0, 0, 0, 0, 1]
    assert calvin().no_motion()[0, 6] == 1


def test_the_units_and_the_gripper_are_those_of_the_contract():
    metres = ActionConvention(
        position_m_per_unit=1.0, gripper="0 open, 1 closed", dim=4, groups={"position": [1, 2, 3], "gripper": [0]}
    )
    language = ActionLanguage(metres, 5)
    assert language.describe(np.array([[1, 0.02, 0, -0.03]] * 2)) == "right 4 cm, down 6 cm, close"
    assert language.actions("right 4 cm, close")[0] == pytest.approx([1, 0.008, 0, 0])
    for sentence, word in (("left 4 cm", "no gripper"), ("yaw 4 degrees, open", "turns")):
        with pytest.raises(ValueError, match=word):
            language.actions(sentence)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"kind": "absolute"}, "absolute"),
        ({"dim": 8}, "of the 8 numbers"),
        ({"gripper": "width in metres"}, "gripper such as"),
    ],
)
def test_actions_without_a_declared_meaning_are_refused(changes: dict[str, Any], word: str):
    with pytest.raises(ValueError, match=word):
        ActionLanguage(replace(CALVIN, **changes), 10)


def test_errors_are_those_of_rounding_and_of_equal_steps():
    language = calvin(mm=10)
    straight = np.tile([0.5, 0, 0, 0, 0, 0, 1.0], (10, 1))  # 10 mm a step
    found = errors(language, [straight])
    assert (found.end_mm, found.path_mm, found.gripper) == ((0, 0), (0, 0), 0)
    late = np.zeros((10, 7))
    late[9] = [1, 0, 0, 0, 0, 0, 1]  # closed, then 20 mm in the last step
    late[:9, 6] = -1
    found = errors(language, [late])
    assert found.end_mm[0] == pytest.approx(0, abs=1e-4)
    assert found.path_mm[0] == pytest.approx(18, abs=1e-4)
    assert found.gripper == 0.9


# --- conversations ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", [PROCESSED, RAW], ids=["processed", "raw"])
def test_conversations_hold_the_frames_and_the_motions_of_the_recording(split: Path, tmp_path: Path, capsys: Any):
    arguments = ["--split", str(split), "--output-dir", str(tmp_path), "--act-step", "10", "--max-samples", "12"]
    assert main(arguments) == 0
    assert "12 conversations in" in capsys.readouterr().out
    records = json.loads((tmp_path / MMU_INDEX).read_text())
    source, chosen = open_split(split), Settings(10, 5, 5.0, 2.0, 12)
    language = calvin()
    for record, sample in zip(records, samples_of(source, chosen), strict=True):
        question, answer = (turn["value"] for turn in record["conversations"])
        assert question == f"<image>\n{language.question(sample.window.instruction)}"
        assert answer == language.describe(recorded_chunk(source, sample, 10))
        assert (tmp_path / record["image"]).is_file()
    info = json.loads((tmp_path / "language_actions.json").read_text())
    assert info["errors"]["end_mm"][1] <= 2.5 * 3**0.5 + 0.01
    before = (tmp_path / MMU_INDEX).read_bytes()
    (tmp_path / records[3]["image"]).unlink()
    assert main(arguments) == 0  # resumes
    assert (tmp_path / records[3]["image"]).is_file()
    assert (tmp_path / MMU_INDEX).read_bytes() == before


def test_conversations_of_other_settings_are_not_mixed(tmp_path: Path, capsys: Any):
    arguments = ["--split", str(PROCESSED), "--output-dir", str(tmp_path), "--max-samples", "2", "--act-step"]
    assert main([*arguments, "10"]) == 0
    assert main([*arguments, "5"]) == 2
    assert "act_step=10, now it is 5" in capsys.readouterr().err


# --- the policy ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model_yaml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_model(folder, clip_width=load_clip(CLIP).width)
    return write_yaml(folder / "model.yaml", folder, model__showo__clip_model_path=str(CLIP))


def observations(count: int) -> list[Observation]:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (count, 48, 48, 3), dtype=np.uint8)
    return [Observation(image, "open the drawer") for image in images]


@pytest.fixture
def speaking(model_yaml: Path) -> UPVLAPolicy:
    policy = UPVLAPolicy.from_config(model_yaml, "cpu", action_decoder="language")
    assert policy.action_decoder == "language"
    assert isinstance(policy.decoding, LanguageDecoding)
    return policy


def test_an_untrained_model_speaks_nonsense_which_is_counted_and_moves_nothing(speaking: UPVLAPolicy):
    chunks = speaking.act(observations(2))
    assert chunks.shape == (2, speaking.act_step, 7)
    assert chunks.dtype == np.float32
    assert (chunks[..., :6] == 0).all()
    assert speaking.speaker is not None
    assert speaking.speaker.counts["unparsable"] == 2
    assert "2 (100.0%) were outside the grammar" in str(speaking.speaker.spoken)
    assert speaking.forwards_per_chunk > 1
    speaking.reset()
    assert speaking.speaker.counts["sentences"] == 2
    speaking.warm_up()
    assert speaking.speaker.counts["sentences"] == 0


def test_a_sentence_is_executed_and_the_question_is_that_of_training(speaking: UPVLAPolicy, monkeypatch: Any):
    asked: list[str] = []

    def answers(model: Any, prompter: Any, questions: list[str], patches: Any, longest: int, **_: Any) -> Generation:
        asked.extend(questions)
        assert patches.shape[0] == len(questions) == 2
        stats = DecodingStats(forwards=7, tokens=20, seconds=1, first_token_seconds=1)
        return Generation(["left 2 cm, close", "what?"], [[], []], stats)

    monkeypatch.setattr(language_decoder, "generate", answers)
    state = np.zeros(15)
    state[14] = -1
    first, second = observations(2)
    chunks = speaking.act([first, replace(second, robot_obs=state)])
    steps = speaking.act_step
    assert chunks[0].sum(axis=0) == pytest.approx([-1, 0, 0, 0, 0, 0, -steps])
    assert chunks[1].tolist() == [[0, 0, 0, 0, 0, 0, -1]] * steps
    language = ActionLanguage(CALVIN, steps)
    assert asked == [language.question("open the drawer")] * 2
    assert speaking.speaker.counts == {"sentences": 2, "unparsable": 1, "tokens": 20, "examples": ["what?"]}
    assert speaking.forwards_per_chunk == 7


def test_what_cannot_speak_is_refused(model_yaml: Path, tmp_path: Path, speaking: UPVLAPolicy):
    blind = write_model(tmp_path, clip_width=None)
    with pytest.raises(ValueError, match="image input"):
        UPVLAPolicy.from_config(blind, "cpu", action_decoder="language")
    coded = Observation(np.zeros((0, 0, 3), np.uint8), "open", codes=np.zeros((1, 4), np.int16))
    with pytest.raises(ValueError, match="codes of a token cache"):
        speaking.act([coded])


def test_the_regression_head_acts_as_before(model_yaml: Path):
    policy = UPVLAPolicy.from_config(model_yaml, "cpu")
    assert policy.action_decoder == "regression"
    assert policy.speaker is None
