"""Every task has its own sentences, and the held-out ones are really held out."""

from __future__ import annotations

import re

import pytest

from policy_rollout.calvin.instructions import HELD_OUT, TRAINING, validation_instruction
from policy_rollout.calvin.tasks import TASK_NAMES


def words(sentence):
    return re.findall(r"[a-z']+", sentence.lower())


def test_every_task_has_eight_training_and_three_held_out_sentences():
    assert tuple(TRAINING) == tuple(HELD_OUT) == TASK_NAMES
    assert min(len(set(phrases)) for phrases in TRAINING.values()) >= 8
    assert min(len(set(phrases)) for phrases in HELD_OUT.values()) >= 3


def test_no_sentence_stands_for_two_tasks_or_is_both_training_and_held_out():
    everything = [" ".join(words(s)) for table in (TRAINING, HELD_OUT) for phrases in table.values() for s in phrases]
    assert len(everything) == len(set(everything))


def test_held_out_sentences_do_not_reorder_or_extend_training_sentences():
    for task in TASK_NAMES:
        for unseen in HELD_OUT[task]:
            for seen in TRAINING[task]:
                a, b = set(words(unseen)), set(words(seen))
                assert not b <= a, (unseen, seen)
                assert len(a & b) / len(a | b) < 0.75, (unseen, seen)


@pytest.mark.parametrize("task", TASK_NAMES)
def test_sentences_name_the_colour_and_the_side_of_their_task(task):
    for sentence in TRAINING[task] + HELD_OUT[task]:
        said = set(words(sentence))
        for colour in ("red", "blue", "pink"):
            assert (colour in said) == (colour in task)
        for side, way in (("left", "counterclockwise"), ("right", "clockwise")):
            assert bool({side, f"{side}ward", way} & said) == task.endswith(side), sentence
        assert not any(mark in sentence for mark in "{}")
        assert len(said) <= 16


def test_the_validation_sentence_is_the_first_and_unknown_tasks_are_refused():
    assert validation_instruction("open_drawer") == TRAINING["open_drawer"][0] == "pull the drawer open"
    with pytest.raises(ValueError, match="unknown task 'dance'"):
        validation_instruction("dance")
