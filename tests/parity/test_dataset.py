"""The robot data set, its shuffling, and the collation of conversations against the original's numbers."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

from models.processing.image import ClipImageSpec, normalise
from models.processing.text import Prompter, load_tokenizer, vocabulary_of
from tests.parity.flows import quotes_a_role
from training.data.batch import RobotSample, collate_text
from training.data.llava import LlavaDataset
from training.data.sampling_order import StepSampler, permutation
from training.future_view_prediction_w_action_dataset import DataProvider

pytestmark = pytest.mark.parity


def provider(parity: Path) -> tuple[DataProvider, Any, Any]:
    """(two-view provider, dataset.npz, dataset_text.json)."""
    texts = json.loads((parity / "dataset_text.json").read_text(encoding="utf-8"))
    root = parity / "calvin_processed_tiny"
    data = DataProvider(root, act_step=texts["future_step"], resolution=texts["resolution"], num_view=2)
    return data, np.load(parity / "dataset.npz"), texts


def test_every_index_has_the_same_episode_future_instruction_and_actions(parity: Path) -> None:
    """Episode, place in it, future frame, instruction and padded actions of every index."""
    data, arrays, texts = provider(parity)
    assert len(data) == len(arrays["future_index"])
    assert_array_equal(data.data.episode_of, arrays["episode_index"])
    for index in range(len(data)):
        future, actions, is_pad = data.chunk(index)
        assert future == arrays["future_index"][index]
        assert index - data.bounds(index)[0] == arrays["index_in_episode"][index]
        assert_array_equal(actions, arrays["actions"][index])
        assert is_pad.sum() == data.act_step - max(future - index, 1)
        assert data.data.instruction(int(data.data.episode_of[index])) == texts["instructions"][index]


def test_samples_have_the_same_pixels(parity: Path) -> None:
    """Images, bit by bit, after the same normalisation; one view gives the static camera of the two."""
    data, arrays, texts = provider(parity)
    one_view = DataProvider(data.data.path.parent, data.act_step, data.resolution, num_view=1)
    for row, index in enumerate(arrays["selected"].tolist()):
        sample: RobotSample = data[index]
        assert sample.instruction == texts["instructions"][index]
        assert_array_equal(sample.actions.numpy(), arrays["actions"][index])
        for camera, name in enumerate(("static", "gripper")):
            assert_array_equal(normalise(sample.views)[camera].numpy(), arrays[f"images_{name}"][row])
            assert_array_equal(normalise(sample.future_views)[camera].numpy(), arrays[f"images_{name}_future"][row])
        assert (one_view[index].views == sample.views[:1]).all()
        assert (one_view[index].future_views == sample.future_views[:1]).all()


def test_samples_come_in_the_same_shuffled_order(parity: Path) -> None:
    """The original's sampler had seed 0; every recorded (processes, rank, epoch) is dealt out alike.

    Where its processes' shares were uneven it repeated the first samples; ours goes on with the next pass.
    """
    data, arrays, _ = provider(parity)
    checked = 0
    for name in arrays.files:
        match = re.fullmatch(r"sampler_w(\d+)_r(\d+)_epoch(\d+)", name)
        if match is None:
            continue
        world, rank, epoch = map(int, match.groups())
        whole = len(data) // world
        expected = arrays[name][:whole].tolist()
        assert permutation(len(data), seed=0, epoch=epoch)[rank::world][:whole].tolist() == expected
        if epoch == 0:
            sampler = StepSampler(len(data), batch_size=1, seed=0, rank=rank, world=world)
            assert [sampler.batch(number)[0] for number in range(whole)] == expected
        checked += 1
    assert checked


def test_conversations_have_the_same_ids_labels_and_pixels(parity: Path, tmp_path: Path) -> None:
    """LLaVA records on disk -> the original's collated ids and labels at two lengths, and CLIP pixels."""
    arrays = np.load(parity / "mmu.npz")
    texts = json.loads((parity / "mmu_text.json").read_text(encoding="utf-8"))
    records = []
    for number, turns in enumerate(texts["conversations"]):
        Image.fromarray(arrays[f"raw{number}"]).save(tmp_path / f"{number}.png")
        records.append({"image": f"{number}.png", "conversations": turns})
    (tmp_path / "records.json").write_text(json.dumps(records), encoding="utf-8")
    tokenizer, words = load_tokenizer(parity / "ckpt" / "phi")
    prompter = Prompter(tokenizer, vocabulary_of(tokenizer, words), max_seq_length=texts["max_text_len"])
    spec = ClipImageSpec.from_dir(parity / "ckpt" / "clip")
    for name in ("collated", "collated4", "short"):
        ids, labels = arrays[f"{name}_input_ids"], arrays[f"{name}_labels"]
        data = LlavaDataset(tmp_path / "records.json", prompter, spec, max_ids=ids.shape[1])
        for row in range(len(ids)):
            sample = data[row]
            if sample.index != row:  # its answer begins after the cut: the original has no label there either
                assert (labels[row] == -100).all()
                continue
            padding = [prompter.vocab.pad] * (ids.shape[1] - len(sample.ids))
            assert_array_equal(sample.ids + padding, ids[row])
            ours = [i if learned else -100 for i, learned in zip(sample.ids, sample.answer, strict=True)]
            if quotes_a_role(texts["conversations"][row]) and (labels[row] == -100).all():
                continue  # the original learns nothing from a turn that quotes the role; we learn its answer
            assert_array_equal(ours + [-100] * len(padding), labels[row])
    longest = max(len(arrays[f"item{row}_input_ids"]) for row in range(len(records)))
    data = LlavaDataset(tmp_path / "records.json", prompter, spec, max_ids=longest)
    batch = collate_text([data[row] for row in range(len(records))])
    assert batch.indices.tolist() == list(range(len(records)))
    assert_allclose(batch.pixels.numpy(), arrays["pixel_values"], rtol=0, atol=2e-6)
