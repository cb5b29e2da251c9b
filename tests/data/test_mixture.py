"""Several sources of conversations: shares are exact, nothing repeats early, and where a run stands says all."""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from config.schema import Job
from tests.data.builders import processed_split
from tests.data.test_dataloader import PROMPTER, SPEC, changed, seen
from training.data.dataloader import CotrainLoader, Flow, cotrain_loader, describe_conversations
from training.data.llava import INDEX_NAME
from training.data.mixture import Mixture, quotas
from training.data.sampling_order import Position, StepSampler

shapes = st.lists(st.tuples(st.integers(1, 30), st.floats(0.2, 5.0)), min_size=1, max_size=4)


class Numbers:
    """A source of nothing but its length."""

    path = "numbers"

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length


def mixture(lengths: list[int], weights: list[float] | tuple[()] = ()) -> Mixture:
    sources: Any = [Numbers(length) for length in lengths]
    return Mixture(sources, weights)


def sources_of(data: Mixture, indices: list[int]) -> list[tuple[int, int]]:
    """(source, record of it)."""
    firsts = [0, *itertools.accumulate(len(source) for source in data.sources)]
    return [next((s, i - firsts[s]) for s in reversed(range(len(data.sources))) if i >= firsts[s]) for i in indices]


@given(total=st.integers(1, 1000), weights=st.lists(st.floats(0.01, 100.0), min_size=1, max_size=6))
def test_places_are_dealt_out_by_weight_to_the_last_one(total: int, weights: list[float]) -> None:
    dealt = quotas(total, weights)
    assert sum(dealt) == total
    for places, weight in zip(dealt, weights, strict=True):
        assert abs(places - total * weight / sum(weights)) < 1


@settings(deadline=None)
@given(shape=shapes, seed=st.integers(0, 50))
def test_every_epoch_has_each_sources_share_exactly_and_no_record_comes_twice_before_all_came(
    shape: list[tuple[int, float]], seed: int
) -> None:
    lengths, weights = map(list, zip(*shape, strict=True))
    if 0 in quotas(sum(lengths), weights):
        return
    data = mixture(lengths, weights)
    streams: list[list[int]] = [[] for _ in lengths]
    for epoch in range(3):
        order = data.order(seed, epoch).tolist()
        assert len(order) == len(data)
        came = sources_of(data, order)
        assert [Counter(s for s, _ in came)[s] for s in range(len(lengths))] == data.quotas
        for source, record in came:
            streams[source].append(record)
    for stream, length in zip(streams, lengths, strict=True):
        for start in range(0, len(stream), length):
            chunk = stream[start : start + length]
            assert len(set(chunk)) == len(chunk)
            assert max(chunk) < length


def test_without_weights_an_epoch_is_every_record_once_in_an_order_that_changes() -> None:
    data = mixture([7, 30, 3])
    epochs = [data.order(4, epoch).tolist() for epoch in range(3)]
    assert all(sorted(order) == list(range(40)) for order in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert data.order(4, 1).tolist() == epochs[1]
    assert data.order(5, 1).tolist() != epochs[1]
    halves = Counter(source for source, _ in sources_of(data, epochs[0][:20]))
    assert min(halves[0], halves[1]) > 0  # mixed, not end to end


@given(
    runs=st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(0, 12)), min_size=1, max_size=4),
    weights=st.tuples(st.floats(0.5, 2.0), st.floats(0.5, 2.0)),
)
def test_a_run_that_goes_on_with_other_processes_repeats_and_skips_nothing(
    runs: list[tuple[int, int, int]], weights: tuple[float, float]
) -> None:
    """Each run: samples per batch, processes, micro-steps."""
    data = mixture([5, 9], list(weights))
    position, stream = Position(), []
    for batch_size, world, micro_steps in runs:
        loaders = [
            CotrainLoader(
                None,
                Flow(range(14), list, batch_size, 3, rank=rank, world=world, order=data.order),  # type: ignore
            )
            for rank in range(world)
        ]
        batches = zip(*(loader.batches(position) for loader in loaders), strict=True)
        for of_ranks in itertools.islice(batches, micro_steps):
            stream += [index for row in zip(*(batch.text for batch in of_ranks), strict=True) for index in row]
        position = loaders[0].after(position, micro_steps)
    alone = StepSampler(14, 1, 3, order=data.order)
    assert stream == [alone.batch(place)[0] for place in range(len(stream))]


def test_no_global_random_number_is_drawn() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state(), random.getstate()
    mixture([5, 9], [1, 3]).order(0, 2)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]


@pytest.mark.parametrize(
    ("lengths", "weights", "said"),
    [
        ([5, 9], [1.0], "as many weights above 0"),
        ([5, 9], [1.0, 0.0], "as many weights above 0"),
        ([5, 9], [1e-3, 1.0], "train_mmu_weights: with 0.001 of 1.001 not one of the 14"),
    ],
)
def test_weights_that_cannot_be_meant_are_refused(lengths: list[int], weights: list[float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        mixture(lengths, weights)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """Three conversations in a folder, and a json of five, its images elsewhere, one without an image."""
    processed_split(tmp_path / "robot", [5])
    for name, count in (("small", 3), ("large", 5)):
        images = tmp_path / ("small" if name == "small" else "pictures")
        images.mkdir()
        records: list[dict[str, Any]] = []
        for number in range(count):
            Image.new("RGB", (9, 8), (40 * number, 0, 200 * (name == "small"))).save(images / f"{number}.png")
            turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": f"{name}{number}"}]
            records.append({"image": f"{number}.png", "conversations": turns})
        if name == "large":
            del records[4]["image"]
        path = tmp_path / "small" / INDEX_NAME if name == "small" else tmp_path / "large.json"
        path.write_text(json.dumps(records))
    job = Job()
    job.act_step = 3
    params = job.dataset.params
    params.train_pre_shards_path_or_url = str(tmp_path / "robot")
    params.train_mmu_sources = [str(tmp_path / "small"), str(tmp_path / "large.json")]
    params.train_mmu_image_roots = [str(tmp_path / "small"), str(tmp_path / "pictures")]
    params.num_workers = 0
    job.dataset.preprocessing.resolution = 16
    job.training.batch_size_pre = job.training.batch_size_mmu = 2
    return job


def said_in(loader: CotrainLoader, steps: int) -> list[str]:
    """The answers that come."""
    texts = [batch.text for batch in itertools.islice(loader, steps)]
    return ["".join(map(chr, ids[1:])) for text in texts if text for ids in text.ids]


def test_a_runs_mmu_flow_is_the_mixture_that_its_keys_name(job: Job) -> None:
    loader = cotrain_loader(changed(job, text_only="use"), PROMPTER, SPEC)
    assert sorted(said_in(loader, 4)) == [
        "large0",
        "large1",
        "large2",
        "large3",
        "large4",
        "small0",
        "small1",
        "small2",
    ]
    weighted = cotrain_loader(changed(job, text_only="use", train_mmu_weights=[3.0, 1.0]), PROMPTER, SPEC)
    came = Counter(text.rstrip("0123456789") for text in said_in(weighted, 4))
    assert came == {"small": 6, "large": 2}
    told = describe_conversations(weighted.text)
    assert told[0] == "2 sources, an epoch is 8 conversations"
    assert told[1].startswith("6 of an epoch (75.0 %, 2.00 passes) from ")
    assert told[2].endswith("large.json: 5 records, 5 usable [. 4, no image 1]")
    left_out = describe_conversations(cotrain_loader(job, PROMPTER, SPEC).text)
    assert left_out[-1].endswith("[no image 1]: record 4")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_mixture_gets_the_same_batches(job: Job, workers: int) -> None:
    job = changed(job, train_mmu_weights=[3.0, 1.0], text_only="use")
    whole = [seen(batch) for batch in itertools.islice(cotrain_loader(job, PROMPTER, SPEC), 11)]
    loader = cotrain_loader(changed(job, num_workers=workers), PROMPTER, SPEC)
    late = itertools.islice(loader.batches(loader.after(Position(), 6)), 5)
    assert [seen(batch) for batch in late] == whole[6:]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_told_once_and_its_source_keeps_its_share(
    job: Job, tmp_path: Path, caplog: pytest.LogCaptureFixture, workers: int
) -> None:
    loader = cotrain_loader(changed(job, num_workers=workers, train_mmu_weights=[1.0, 1.0]), PROMPTER, SPEC)
    (tmp_path / "pictures" / "2.png").write_bytes(b"no image")
    came = said_in(loader, 14)  # four epochs of 7
    assert Counter(text.rstrip("0123456789") for text in came) == {
        "small": 16,
        "large": 12,
    }  # 3.5 each, the rest to the first
    assert "large2" not in came
    assert Counter(came)["large3"] == 6  # its own turns, and those of the one before it
    assert [r.getMessage() for r in caplog.records if "2.png cannot be decoded" in r.getMessage()] == [
        caplog.records[-1].getMessage()
    ]
    assert loader.text is not None
    assert len(loader.text.left_out) == 1


def test_under_the_error_policy_an_unreadable_image_ends_the_run_by_name(job: Job, tmp_path: Path) -> None:
    loader = cotrain_loader(changed(job, num_workers=1, on_bad_record="error"), PROMPTER, SPEC)
    (tmp_path / "pictures" / "2.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"2\.png cannot be decoded"):
        said_in(loader, 7)


def test_samples_are_numbered_through_all_sources(job: Job) -> None:
    data: Any = cotrain_loader(changed(job, text_only="use"), PROMPTER, SPEC).text
    data = data.dataset
    assert [data[index].index for index in range(8)] == list(range(8))
    assert data[7].pixels is None
    with pytest.raises(IndexError):
        data[8]
