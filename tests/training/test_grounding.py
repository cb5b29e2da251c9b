"""Positions of named objects: targets, the loss beside the others, resume, checkpoints, and the standing measures."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from config.loading import ConfigError
from models.grounding import PositionTargets, position_losses
from models.pretrained.model_io import build, load_folder, save_folder
from tests.training.runs import Outcome
from tests.training.test_batch_to_tasks import changed
from tests.training.test_batch_to_tasks import parts as parts
from tests.training.test_resume_exactly import goes_on_exactly
from tests.training.world import load, write_robot_data
from training.batch_to_tasks import COUNTED, _position_targets, bundle, encode_views, lay_out, robot_task
from training.build import Components
from training.data.dataloader import cotrain_loader
from training.data.episode_index import read_index
from training.data.object_positions import FILE, Workspace, read_positions, write_positions
from training.data.sampling_order import START
from training.grounding.measures import COLOUR_CHANGE, colour_samples, colour_squares, with_other_colour
from training.grounding.targets import (
    Sentence,
    declared_workspace,
    draw_sentences,
    named_positions,
    offset_targets,
    scaled_targets,
    sentences_of,
)

Start = Callable[..., Outcome]
NAMES = ("drawer", "red block", "blue block")
WORKSPACE = Workspace((-1.0, -1.0, 0.0), (1.0, 1.0, 1.0))


def locate(root: Path, objects: tuple[int, ...] = (0, 1)) -> np.ndarray:
    """Write random positions next to a processed split; return them."""
    index = read_index(root)
    positions = np.random.default_rng(5).uniform(-1, 1, (len(index), len(NAMES), 3)).astype(np.float32)
    write_positions(index, NAMES, WORKSPACE, positions, objects)
    return positions


@pytest.fixture
def data(world: Path, tmp_path: Path) -> dict[str, Path]:
    """Demonstrations and scenes with positions."""
    folders = {"robot": tmp_path / "robot", "scenes": tmp_path / "scenes"}
    shutil.copytree(world / "robot", folders["robot"])
    write_robot_data(folders["scenes"], seed=3)
    for folder in folders.values():
        locate(folder)
    return folders


def settings(data: dict[str, Path], **more: Any) -> dict[str, Any]:
    return {
        "dataset__params__train_pre_shards_path_or_url": data["robot"],
        "dataset__params__ground_shards_path": data["scenes"],
        "training__ground_coeff": 0.5,
        "training__batch_size_ground": 3,
        **more,
    }


@pytest.fixture
def grounded(parts: Components, world: Path, data: dict[str, Path], tmp_path: Path) -> Components:
    job = load(world, tmp_path / "out", **settings(data))
    built = build(job, workspace=WORKSPACE.to_json())
    assert parts.clip is not None
    loader = cotrain_loader(job, built.prompter, parts.clip.image_spec, patches=parts.clip.num_patches)
    return replace(parts, job=job, model=built.model, data=loader, sentences=sentences_of(loader.scenes))


def test_errors_are_in_millimetres_and_unknown_positions_do_not_count() -> None:
    metres = torch.tensor([[0.5, 0.0, 0.5], [float("nan")] * 3, [-1.0, 1.0, 0.0]])
    targets = scaled_targets(metres, WORKSPACE.to_json())
    torch.testing.assert_close(targets.scaled[0], torch.tensor([0.5, 0.0, 0.0]))
    torch.testing.assert_close(targets.scaled[2], torch.tensor([-1.0, 1.0, -1.0]))
    predicted = targets.scaled.nan_to_num() + torch.tensor([0.3, 0.4, 0.0])
    loss, error = position_losses(predicted, targets)
    assert targets.count == float(loss.count) == 6
    assert float(error.count) == 2
    torch.testing.assert_close(float(loss.sum), 2 * 0.25)
    torch.testing.assert_close(float(error.mean), 500.0)


def test_an_error_in_height_is_in_metres_of_its_own_axis() -> None:
    targets = PositionTargets(torch.zeros(1, 3), torch.tensor([1.0, 1.0, 0.5]))
    _, error = position_losses(torch.tensor([[0.0, 0.0, 0.2]]), targets)
    torch.testing.assert_close(float(error.mean), 100.0)


def test_without_the_loss_there_is_no_head_and_no_target(parts: Components) -> None:
    batch = next(iter(parts.data))
    assert batch.robot is not None
    assert (batch.robot.positions, batch.robot.scenes, parts.model.ground_head) == (None, None, None)
    task = robot_task(parts, encode_views(parts, batch.robot))
    assert task is not None
    assert (task.positions, task.scenes) == (None, None)
    assert "workspace" not in parts.model.spec.to_json()


def test_counts_known_beforehand_are_what_the_loss_sums_over(grounded: Components) -> None:
    batch = next(iter(grounded.data))
    assert batch.robot is not None
    assert batch.robot.scenes is not None
    assert len(batch.robot.scenes) == 3
    laid_out = lay_out(grounded, batch, step=2)
    codes = encode_views(grounded, batch.robot, 2)
    tasks = bundle(grounded, robot_task(grounded, codes, 2), None)
    losses = grounded.model(tasks.future)
    assert float(laid_out.counts[COUNTED.index("ground")]) == float(losses.ground.count) == 3 * (2 + 3)
    assert float(losses.details["ground/error_mm"].count) == 2
    assert float(losses.details["ground/scenes_error_mm"].count) == 3
    losses.ground.sum.backward()
    assert grounded.model.ground_head is not None
    assert float(grounded.model.ground_head.out.weight.grad.abs().sum()) > 0


def test_the_other_losses_do_not_depend_on_it(grounded: Components) -> None:
    batch = next(iter(grounded.data))
    off = changed(grounded, ground_coeff=0.0)
    assert batch.robot is not None
    plain = replace(batch.robot, scenes=None)
    both = [
        parts.model(bundle(parts, robot_task(parts, encode_views(parts, robot, 1), 1), None).future)
        for parts, robot in ((grounded, batch.robot), (off, plain))
    ]
    for name in ("image", "action"):
        assert torch.equal(getattr(both[0], name).sum, getattr(both[1], name).sum)
    assert float(both[1].ground.count) == 0


def test_a_demonstration_has_the_position_of_the_object_that_it_names(
    grounded: Components, data: dict[str, Path]
) -> None:
    batch = next(iter(grounded.data)).robot
    assert batch is not None
    index = read_index(data["robot"])
    positions = read_positions(data["robot"], index)
    assert positions is not None
    found = named_positions(batch)
    assert found is not None
    for row, frame in enumerate(batch.indices.tolist()):
        wanted = positions.positions[frame][positions.object_of[int(index.episode_of[frame])]]
        np.testing.assert_array_equal(found[row].numpy(), wanted)


def test_a_scene_gets_other_sentences_in_other_steps_and_on_any_rank_the_same() -> None:
    pool = [Sentence(f"sentence {n}", n % 3) for n in range(40)]
    texts, targets = draw_sentences(pool, [4, 9, 1], seed=7, step=3)
    assert [int(text.split()[1]) % 3 for text in texts] == targets.tolist()
    alone, _ = draw_sentences(pool, [9], seed=7, step=3)
    assert alone == texts[1:2]
    assert draw_sentences(pool, [4, 9, 1], seed=7, step=4)[0] != texts


def test_scenes_continue_where_they_stopped(grounded: Components) -> None:
    whole = [batch.robot.scenes.indices.tolist() for batch in islice(grounded.data.batches(START), 9)]
    later = grounded.data.batches(grounded.data.after(START, 5))
    assert [batch.robot.scenes.indices.tolist() for batch in islice(later, 4)] == whole[5:]
    assert sorted({index for batch in whole for index in batch}) == list(range(16))


def test_a_run_learns_positions_resumes_exactly_and_its_model_acts(run: Start, data: dict[str, Path]) -> None:
    given = settings(
        data,
        training__max_train_steps=3,
        training__gradient_accumulation_steps=2,
        experiment__save_every=2,
        training__ema_decay=0.9,
    )
    goes_on_exactly(run, 2, given)
    outcome = run("again", **given, experiment__resume_from_checkpoint="latest")
    assert len(outcome.curve("ground/loss")) == 3
    assert {name for name in outcome.weights() if name.startswith("ground_head.")} == {
        f"ground_head.{layer}.{kind}" for layer in ("hidden", "out") for kind in ("weight", "bias")
    }
    model = load_folder(outcome.folder).model
    assert model.ground_head is not None
    assert model.spec.data.workspace == WORKSPACE.to_json()


def test_grounding_alone_is_a_run_and_acting_starts_from_its_weights(run: Start, data: dict[str, Path]) -> None:
    alone = {"training__pre_coeff": 0, "training__act_coeff": 0, "dataset__und_type": "null"}
    first = run("first", **settings(data, **alone, training__max_train_steps=12))
    curve = first.curve("ground/loss")
    assert sum(curve[-3:]) < sum(curve[:3])
    start = {"model__showo__pretrained_model_path": first.folder, "training__max_train_steps": 1}
    with_head = run("second", **settings(data, **start, training__act_coeff=0.001, training__pre_coeff=0))
    assert with_head.curve("ground/loss")[0] < curve[0]
    without = run("third", **start)
    assert not [name for name in without.weights() if name.startswith("ground_head.")]


def test_adapters_train_the_head_in_full(run: Start, data: dict[str, Path]) -> None:
    pytest.importorskip("peft")
    before, after = (
        run(f"run{steps}", **settings(data, lora__rank=2, training__max_train_steps=steps)).weights()
        for steps in (1, 2)
    )
    assert not torch.equal(before["ground_head.out.bias"], after["ground_head.out.bias"])


def test_missing_and_stale_positions_are_named_with_the_command(
    run: Start, data: dict[str, Path], tmp_path: Path
) -> None:
    content = json.loads((data["scenes"] / "dataset_info.json").read_text())
    (data["scenes"] / "dataset_info.json").write_text(json.dumps(content[:1]))
    with pytest.raises(
        ConfigError, match=r"object_positions.index was made from another dataset_info.json; run python"
    ):
        run("stale", **settings(data))
    for folder in data.values():
        (folder / FILE).unlink()
    with pytest.raises(ConfigError, match=r"ground_shards_path=.* has no object_positions.index; run python"):
        run("none", **settings(data))
    plain = {"dataset__params__train_pre_shards_path_or_url": data["robot"], "training__ground_coeff": 0.5}
    with pytest.raises(ConfigError, match=r"learns positions of objects, and .*robot has no object_positions.index"):
        run("robot", **plain)


def test_evaluation_reports_errors_and_how_far_actions_follow_the_colour(run: Start, data: dict[str, Path]) -> None:
    validation = {
        "dataset__params__validation_pre_shards_path_or_url": data["robot"],
        "dataset__params__validation_ground_shards_path": data["scenes"],
    }
    outcome = run("run", **settings(data, **validation, experiment__eval_every=2))
    record = next(record for record in outcome.metrics if "validation/ground/loss" in record)
    assert record["validation/ground/error_mm"] > 0
    assert record["validation/ground/scenes_error_mm"] > 0
    assert record[f"validation/{COLOUR_CHANGE}"] >= 0


def test_a_colour_that_the_network_does_not_read_changes_nothing(grounded: Components) -> None:
    samples = colour_samples(grounded.data.robot, 4)
    assert samples
    assert all(grounded.data.robot.dataset[i].instruction == "push the red block to the left" for i in samples)
    batch = grounded.data.robot.collate([grounded.data.robot.dataset[i] for i in samples])
    codes = encode_views(grounded, batch, with_later=False)
    assert codes is not None
    squares = colour_squares(grounded.model, grounded, codes)
    assert float(squares["colour/change_square"].sum) > 0
    with torch.no_grad():
        grounded.model.action_head.out.weight.zero_()
    squares = colour_squares(grounded.model, grounded, codes)
    assert float(squares["colour/change_square"].sum) == 0
    torch.testing.assert_close(squares["colour/action_square"].mean, batch.actions.square().mean())


def test_colours_are_exchanged_as_whole_words() -> None:
    text = "lift the red block, not the pink one; colored reddish"
    assert with_other_colour(text) == "lift the blue block, not the red one; colored reddish"
    assert with_other_colour("open the drawer") == "open the drawer"


def test_offsets_are_from_the_hand_and_their_error_is_absolute_above_a_centimetre() -> None:
    metres, hand = torch.tensor([[0.3, 0.1, 0.5], [float("nan")] * 3]), torch.tensor([[0.1, 0.1, 0.6]] * 2)
    targets = offset_targets(metres, hand)
    torch.testing.assert_close(targets.scaled[0], torch.tensor([2.0, 0.0, -1.0]))
    assert targets.count == 3
    for millimetres, loss in ((5.0, 0.5 * 0.05**2 / 0.1), (30.0, 0.3 - 0.05), (300.0, 3.0 - 0.05)):
        off = targets.scaled.nan_to_num() + torch.tensor([millimetres / 100, 0.0, 0.0])
        found, error = position_losses(off, targets)
        assert float(found.sum) == pytest.approx(loss, rel=1e-5)
        assert float(error.mean) == pytest.approx(millimetres, rel=1e-5)


def test_a_run_learns_offsets_from_the_hand_and_records_it(
    grounded: Components, world: Path, data: dict[str, Path], tmp_path: Path
) -> None:
    more = {"training__ground_target": "offset", "dataset__params__ground_shards_path": None}
    job = load(world, tmp_path / "out", **settings(data, model__vla__proprioception="pose", **more))
    workspace = declared_workspace(job)
    assert workspace == {**WORKSPACE.to_json(), "target": "offset"}
    ours = replace(grounded, job=job, model=build(job, workspace=workspace).model)
    assert ours.model.spec.data.workspace == workspace
    batch = next(iter(grounded.data)).robot
    assert batch is not None
    metres, states = named_positions(batch), torch.randn(len(batch.instructions), 15)
    targets = _position_targets(ours, replace(batch, states=states), metres)
    assert metres is not None
    assert targets is not None
    torch.testing.assert_close(targets.scaled, (metres - states[:, :3]) / 0.1, equal_nan=True)
    assert targets.smooth == 0.1


def test_offsets_without_a_state_are_refused_in_one_line(world: Path, data: dict[str, Path], tmp_path: Path) -> None:
    job = load(world, tmp_path / "out", **settings(data, training__ground_target="offset"))
    with pytest.raises(
        ValueError, match=r"ground_target=offset learns offsets from the hand; set .*proprioception=pose"
    ):
        declared_workspace(job)


def test_a_ground_head_of_another_target_starts_from_random_weights(
    world: Path, data: dict[str, Path], tmp_path: Path
) -> None:
    more = {"training__ground_target": "offset", "dataset__params__ground_shards_path": None}
    job = load(world, tmp_path / "out", **settings(data, model__vla__proprioception="pose", **more))
    built = build(job, workspace=declared_workspace(job))
    save_folder(built.model, built.prompter, tmp_path / "saved")
    for target, is_kept in (("offset", True), ("position", False)):
        start = {"training__ground_target": target, "model__showo__pretrained_model_path": tmp_path / "saved"}
        now = load(
            world, tmp_path / "next", **settings(data, **{**more, "model__vla__proprioception": "pose", **start})
        )
        later = build(replace(now, training=replace(now.training, seed=7)), workspace=declared_workspace(now))
        assert torch.equal(later.model.ground_head.out.weight, built.model.ground_head.out.weight) == is_kept
        assert any("no ground head of this target" in note for note in later.notes) != is_kept
