"""Both flows are functions of a place in them: resuming, shuffling, dealing out to processes, and what an epoch is."""

from __future__ import annotations

import itertools
import json
import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DistributedSampler

from config.schema import Job
from models.processing.image import ClipImageSpec
from models.processing.text import Conversation
from tests.data.builders import frame_arrays, processed_split
from training.data.batch import CoBatch
from training.data.dataloader import (
    CotrainLoader,
    Flow,
    conversation_budget,
    cotrain_loader,
)
from training.data.sampling_order import Position, StepSampler, Timetable, flow_seed

SPEC = ClipImageSpec(resize=8, crop=(8, 8), resample=3, scale=1 / 255, mean=(0.5,) * 3, std=(0.5,) * 3)
sizes = st.tuples(st.integers(1, 40), st.integers(1, 7), st.integers(1, 4))  # samples, batch size, processes


@given(size=sizes, seed=st.integers(0, 100), epochs=st.integers(1, 3))
def test_every_sample_comes_once_before_any_comes_again(size: tuple[int, int, int], seed: int, epochs: int) -> None:
    length, batch_size, world = size
    samplers = [StepSampler(length, batch_size, seed, rank=rank, world=world) for rank in range(world)]
    stream: list[int] = []
    number = 0
    while len(stream) < epochs * length:
        batches = [sampler.batch(number) for sampler in samplers]
        stream += [index for row in zip(*batches, strict=True) for index in row]
        number += 1
    for epoch in range(epochs):
        assert sorted(stream[epoch * length : (epoch + 1) * length]) == list(range(length))


@given(size=sizes, seed=st.integers(0, 100), start=st.integers(0, 30))
def test_a_sampler_that_starts_late_goes_on_as_one_that_ran_all_along(
    size: tuple[int, int, int], seed: int, start: int
) -> None:
    length, batch_size, world = size
    for rank in range(world):
        whole = itertools.islice(StepSampler(length, batch_size, seed, 0, rank, world), start, start + 5)
        late = itertools.islice(StepSampler(length, batch_size, seed, start * batch_size * world, rank, world), 5)
        assert list(whole) == list(late)


@given(size=sizes, other=sizes, seed=st.integers(0, 100), batches=st.integers(0, 30))
def test_other_processes_and_batch_sizes_go_on_in_the_middle_of_a_batch(
    size: tuple[int, int, int], other: tuple[int, int, int], seed: int, batches: int
) -> None:
    length, batch_size, world = size
    _, other_batch_size, other_world = other
    taken = batches * batch_size * world
    late = [StepSampler(length, other_batch_size, seed, taken, rank, other_world) for rank in range(other_world)]
    stream = [index for row in zip(*(sampler.batch(0) for sampler in late), strict=True) for index in row]
    alone = StepSampler(length, 1, seed)
    assert stream == [alone.batch(taken + place)[0] for place in range(other_batch_size * other_world)]


@given(length=st.integers(1, 60), batch_size=st.integers(1, 4), seed=st.integers(0, 100))
def test_more_processes_take_the_same_samples_together(length: int, batch_size: int, seed: int) -> None:
    alone = StepSampler(length, 2 * batch_size, seed)
    pair = [StepSampler(length, batch_size, seed, rank=rank, world=2) for rank in range(2)]
    for number in range(5):
        assert sorted(alone.batch(number)) == sorted(pair[0].batch(number) + pair[1].batch(number))


def test_the_order_is_that_of_torchs_distributed_sampler_and_changes_with_the_epoch() -> None:
    for rank, epoch in itertools.product(range(2), range(3)):
        theirs = DistributedSampler(range(24), num_replicas=2, rank=rank, seed=5)  # type: ignore[arg-type]
        theirs.set_epoch(epoch)
        sampler = StepSampler(24, 3, 5, rank=rank, world=2)
        ours = [index for number in range(4 * epoch, 4 * epoch + 4) for index in sampler.batch(number)]
        assert ours == list(theirs)
    first, second = (StepSampler(24, 24, 5).batch(epoch) for epoch in range(2))
    assert first != second


def test_impossible_batches_are_refused() -> None:
    for arguments in ((0, 1, 0), (3, 0, 0), (3, 1, 0, 0, 2, 2)):
        with pytest.raises(ValueError, match="no batches of"):
            StepSampler(*arguments)


@given(
    mode=st.sampled_from(["min_size", "max_size_cycle", "max_size", "sequential"]),
    robot=st.integers(1, 6) | st.none(),
    text=st.integers(1, 6) | st.none(),
)
def test_the_timetable_is_what_its_table_says(mode: Any, robot: int | None, text: int | None) -> None:
    if robot is None and text is None:
        return
    table = Timetable(mode, robot, text)
    drawn = [0, 0]
    for step in range(40):
        assert table.before(step) == tuple(drawn)
        numbers = table.at(step)
        place = step % table.epoch_steps
        for flow, (number, steps, other) in enumerate(((numbers[0], robot, text), (numbers[1], text, robot))):
            if steps is None:
                expected = False
            elif other is None or mode in ("min_size", "max_size_cycle"):
                expected = True
            elif mode == "max_size":
                expected = place < steps
            else:
                expected = (place < steps) if flow == 0 else (place >= other)
            assert (number is not None) == expected
            if number is not None:
                assert number == drawn[flow]
                drawn[flow] += 1
    if robot is not None and text is not None:
        lengths = {"min_size": min, "max_size_cycle": max, "max_size": max, "sequential": lambda a, b: a + b}
        assert table.epoch_steps == lengths[mode](robot, text)


class LetterPrompter:
    """One id a letter; answers are marked."""

    system_ids = [1, 2, 3]  # noqa: RUF012

    @dataclass
    class Tokenizer:
        model_max_length: int = 10_000

    tokenizer = Tokenizer()

    def conversation(self, turns: list[tuple[str, str]]) -> Conversation:
        ids = [ord(letter) for _, text in turns for letter in text]
        return Conversation(ids, [speaker == "gpt" for speaker, text in turns for _ in text])


PROMPTER: Any = LetterPrompter()


def with_seed(job: Job, seed: int) -> Job:
    return replace(job, training=replace(job.training, seed=seed))


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """13 frames in batches of 2, 5 conversations in batches of 2."""
    root = tmp_path_factory.mktemp("data")
    processed_split(root / "robot", [5, 8])
    (root / "mmu").mkdir()
    records = []
    for number in range(5):
        Image.fromarray(frame_arrays(number)["rgb_static"]).save(root / f"mmu/{number}.png")
        turns = [{"from": "human", "value": "<image>q"}, {"from": "gpt", "value": f"a{number}"}]
        records.append({"image": f"{number}.png", "conversations": turns})
    (root / "mmu" / "llava_v1_5_mix665k.json").write_text(json.dumps(records))
    job = Job()
    job.act_step = 3
    job.dataset.params.train_pre_shards_path_or_url = str(root / "robot")
    job.dataset.params.train_mmu_shards_path_or_url = str(root / "mmu")
    job.dataset.params.num_workers = 0
    job.dataset.preprocessing.resolution = 16
    job.training.batch_size_pre = job.training.batch_size_mmu = 2
    return job


def changed(job: Job, **changes: Any) -> Job:
    """A copy with other values; keys are the last parts of their names."""
    import copy

    job = copy.deepcopy(job)
    for section in (job.training, job.dataset, job.dataset.params, job.dataset.preprocessing, job.model.showo):
        for key in list(changes):
            if hasattr(section, key):
                setattr(section, key, changes.pop(key))
    assert not changes
    return job


def taken(loader: CotrainLoader, steps: int) -> list[CoBatch]:
    return list(itertools.islice(loader, steps))


def seen(batch: CoBatch) -> tuple[Any, ...]:
    """Everything in a batch, comparable."""
    robot = batch.robot and (batch.robot.indices.tolist(), batch.robot.views.sum().item(), batch.robot.actions.tolist())
    text = batch.text and (batch.text.indices.tolist(), batch.text.ids, batch.text.pixels.sum().item())
    return robot, text


@pytest.mark.parametrize("mode", ["min_size", "max_size_cycle", "max_size", "sequential"])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_resumed_at_any_micro_step_gets_the_same_batches(job: Job, mode: str, workers: int) -> None:
    job = changed(job, combined_loader_mode=mode, num_workers=workers)
    whole = [seen(batch) for batch in taken(cotrain_loader(changed(job, num_workers=0), PROMPTER, SPEC), 18)]
    for start in (0, 1, 8, 11) if workers == 0 else (9,):
        loader = cotrain_loader(job, PROMPTER, SPEC)
        late = list(itertools.islice(loader.batches(loader.after(Position(), start)), 18 - start))
        assert [seen(batch) for batch in late] == whole[start:]


@given(
    mode=st.sampled_from(["min_size", "max_size_cycle", "max_size", "sequential"]),
    lengths=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    runs=st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(0, 12)), min_size=1, max_size=4),
)
def test_a_run_that_goes_on_with_other_processes_repeats_and_skips_nothing(
    mode: Any, lengths: tuple[int, int], runs: list[tuple[int, int, int]]
) -> None:
    """Each run: samples per batch, processes, micro-steps."""
    position, streams = Position(), ([], [])
    for batch_size, world, micro_steps in runs:
        loaders = [
            CotrainLoader(
                *(Flow(range(n), list, batch_size, seed, rank=rank, world=world) for seed, n in enumerate(lengths)),
                mode=mode,
            )
            for rank in range(world)
        ]
        batches = zip(*(loader.batches(position) for loader in loaders), strict=True)
        for step, of_ranks in enumerate(itertools.islice(batches, micro_steps)):
            here = loaders[0].after(position, step)
            robot_is_through, text_is_through = here.robot.in_epoch >= lengths[0], here.text.in_epoch >= lengths[1]
            if mode == "max_size":
                assert (of_ranks[0].robot is None, of_ranks[0].text is None) == (robot_is_through, text_is_through)
            if mode == "sequential":
                assert (of_ranks[0].robot is None, of_ranks[0].text is None) == (robot_is_through, not robot_is_through)
            for flow, shares in enumerate(zip(*((batch.robot, batch.text) for batch in of_ranks), strict=True)):
                streams[flow].extend(
                    index for row in zip(*(share or [] for share in shares), strict=True) for index in row
                )
        position = loaders[0].after(position, micro_steps)
    assert (position.robot.samples, position.text.samples) == tuple(map(len, streams))
    for flow, (stream, length) in enumerate(zip(streams, lengths, strict=True)):
        alone = StepSampler(length, 1, flow)
        assert stream == [alone.batch(place)[0] for place in range(len(stream))]


def test_batches_are_stacked_samples_of_both_flows(job: Job) -> None:
    loader = cotrain_loader(job, PROMPTER, SPEC)
    batch = taken(loader, 1)[0]
    assert batch.robot is not None
    assert batch.text is not None
    assert batch.robot.views.shape == (2, 1, 3, 16, 16)
    assert batch.robot.actions.shape == (2, 3, 7)
    assert batch.robot.action_is_pad.shape == (2, 3)
    assert batch.text.pixels.shape == (2, 3, 8, 8)
    assert loader.robot is not None
    for row, index in enumerate(batch.robot.indices.tolist()):
        sample = loader.robot.dataset[index]
        assert torch.equal(batch.robot.future_views[row], sample.future_views)
        assert batch.robot.instructions[row] == sample.instruction


def test_the_robot_flow_alone_needs_no_conversations(job: Job) -> None:
    alone = changed(job, und_type=None, train_mmu_shards_path_or_url=None)
    loader = cotrain_loader(alone, PROMPTER, None)
    assert loader.epoch_steps == 7
    assert all(batch.text is None and batch.robot is not None for batch in taken(loader, 8))
    missing = changed(job, train_mmu_shards_path_or_url=None)
    with pytest.raises(ValueError, match=r"train_mmu_shards_path_or_url is not set.*dataset\.und_type=null"):
        cotrain_loader(missing, PROMPTER, SPEC)


def test_the_mmu_flow_alone_is_a_loader_too(job: Job) -> None:
    both = cotrain_loader(job, PROMPTER, SPEC)
    loader = CotrainLoader(robot=None, text=both.text, mode="sequential")
    assert loader.epoch_steps == 3
    assert all(batch.robot is None and batch.text is not None for batch in taken(loader, 4))
    with pytest.raises(ValueError, match="neither a robot nor an mmu flow"):
        CotrainLoader(robot=None, text=None)


def test_processes_together_see_everything_and_differ(job: Job) -> None:
    loaders = [cotrain_loader(job, PROMPTER, SPEC, rank=rank, world=2) for rank in range(2)]
    indices = [
        index
        for loader in loaders
        for batch in taken(loader, 4)
        if batch.robot
        for index in batch.robot.indices.tolist()
    ]
    assert set(indices) == set(range(13))
    assert len(indices) == 16
    assert loaders[0].epoch_steps == 4


def test_a_data_set_smaller_than_a_batch_repeats_and_says_so(job: Job, caplog: pytest.LogCaptureFixture) -> None:
    loader = cotrain_loader(changed(job, batch_size_mmu=7), PROMPTER, SPEC)
    assert "the mmu data has 5 samples, fewer than one batch of all processes (7)" in caplog.text
    text = taken(loader, 1)[0].text
    assert text is not None
    assert set(text.indices[:5].tolist()) == set(range(5))
    assert len(text) == 7


def test_no_global_random_number_is_drawn(job: Job) -> None:
    torch.manual_seed(3)
    before = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist())  # noqa: NPY002
    taken(cotrain_loader(changed(job, num_workers=1), PROMPTER, SPEC), 2)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.random.get_state()[1].tolist() == before[2]  # noqa: NPY002


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_file_met_by_a_worker_is_one_sentence(job: Job, tmp_path: Path, workers: int) -> None:
    root = processed_split(tmp_path / "robot", [5])
    loader = cotrain_loader(
        changed(job, train_pre_shards_path_or_url=str(root), num_workers=workers, und_type=None), PROMPTER, None
    )
    (root / "frame_2.npz").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"frame_2\.npz cannot be read") as caught:
        taken(loader, 3)
    assert "\n" not in str(caught.value)
    (root / "frame_2.npz").unlink()
    with pytest.raises(FileNotFoundError, match=r"frame_2\.npz does not exist"):
        taken(loader, 3)


def test_a_conversation_may_be_as_long_as_a_robot_sequence_leaves_it(job: Job) -> None:
    """At the original's sizes 576 + 1024 + 10 - 576 patches - 28 ids of the system prompt leave 1006."""
    prompter: Any = LetterPrompter()
    prompter.system_ids = [0] * 28
    real = changed(job, max_seq_length=576, num_vq_tokens=1024)
    real.act_step = 10
    assert conversation_budget(real, prompter, patches=576) == 1006
    prompter.tokenizer = LetterPrompter.Tokenizer(model_max_length=500)
    assert conversation_budget(real, prompter, patches=576) == 472
    prompter.tokenizer = LetterPrompter.Tokenizer()
    short = changed(job, max_seq_length=64, num_vq_tokens=16)
    with pytest.raises(ValueError, match=r"max_seq_length=64 leaves no room .* it must be at least 586"):
        conversation_budget(short, prompter, patches=576)
    short.dataset.preprocessing.max_seq_length = 586
    short.act_step = 3
    assert conversation_budget(short, prompter, patches=576) == 1


def test_flows_have_seeds_of_their_own_and_describe_themselves(job: Job) -> None:
    assert flow_seed(1, "mmu") != flow_seed(2, "mmu")
    assert flow_seed(1, "mmu") >= 0
    loader = cotrain_loader(job, PROMPTER, SPEC)
    assert loader.robot is not None
    assert loader.text is not None
    assert loader.robot.seed != loader.text.seed


def test_no_epoch_of_a_seed_is_an_epoch_of_another(job: Job) -> None:
    orders: dict[str, set[tuple[int, ...]]] = {"robot": set(), "text": set()}
    for seed in range(4):
        loader = cotrain_loader(with_seed(job, seed), PROMPTER, SPEC)
        for name in orders:
            flow = getattr(loader, name)
            walk = StepSampler(1000, 1000, flow.seed)
            orders[name] |= {tuple(walk.batch(epoch)) for epoch in range(4)}
    assert {name: len(found) for name, found in orders.items()} == {"robot": 16, "text": 16}
    assert not orders["robot"] & orders["text"]
    assert loader.describe() == (
        "robot flow 13 samples in batches of 2 x 1 (7 a pass), mmu flow 5 samples in batches of 2 x 1 (3 a pass); "
        "an epoch is 7 micro-steps (max_size_cycle)"
    )


@settings(max_examples=20)
@given(length=st.integers(1, 50), batch_size=st.integers(1, 9), world=st.integers(1, 4))
def test_a_pass_has_enough_micro_steps_to_show_everything(length: int, batch_size: int, world: int) -> None:
    flow: Flow[Any] = Flow(range(length), list, batch_size, 0, world=world)
    together = flow.steps * batch_size * world
    assert length <= together < length + batch_size * world
