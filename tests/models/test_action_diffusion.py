"""Block-diffusion actions: exact as the text objectives are, and no trouble to anybody else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from config.schema import Job
from models.action.encoding import ActionBins
from models.attention_mask import ROBOT, Kind, Slots
from models.objectives import TextTask, action_diffusion, text_objective
from models.objectives.block_size import Fixed
from models.objectives.diffusion import Diffusion
from models.objectives.elbo_weights import Ratio
from models.objectives.layout import append_noisy_copies, build_canvas, drop_unread_clean_tokens
from models.rng import SampleRng
from models.sequence import TokenSequence, with_action_tokens
from models.vocabulary import Vocabulary
from tests.models.action_problems import (
    INSTRUCTIONS,
    Built,
    acting_model,
    alone,
    chunks,
    diffusion,
    future,
)
from tests.models.objective_problems import assert_same_gradients, gradients
from tests.models.text_problems import talk

VOCAB = Vocabulary(words=20, bos=1, eos=2)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return acting_model(tmp_path_factory.mktemp("phi"))


@pytest.fixture(scope="module", params=["phi", "qwen3"])
def either(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Built:
    return acting_model(tmp_path_factory.mktemp(request.param), request.param)


def tokens(task: object) -> TextTask:
    found = task.action_tokens  # type: ignore[attr-defined]
    assert found is not None
    return found


# --- numbers and bins ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 11, 256, 8192])
def test_a_number_is_at_most_half_a_bin_away_from_its_token(count: int) -> None:
    bins = ActionBins(VOCAB, count)
    actions = torch.linspace(-1, 1, 4001)
    ids = bins.ids(actions)
    error = (bins.values(ids) - actions).abs().max()
    half_a_bin = 1 / (count - 1)
    assert float(error) <= half_a_bin + 1e-6
    assert float(error) > 0.9 * half_a_bin or count > 2000
    every = VOCAB.first_code + torch.arange(count)
    assert torch.equal(bins.ids(bins.values(every)), every)
    assert bins.values(every)[[0, -1]].tolist() == [-1.0, 1.0]  # an open or closed gripper is exact


def test_actions_are_cut_to_their_range_and_halves_go_to_the_even_bin() -> None:
    bins = ActionBins(VOCAB, 3)  # -1, 0, 1
    ids = bins.ids(torch.tensor([-7.0, -0.5, 0.5, 7.0]))
    assert VOCAB.codes(ids).tolist() == [0, 0, 2, 2]
    assert (ActionBins(VOCAB, 256).ids(torch.empty(50, 7).uniform_(-9, 9)) < VOCAB.mask).all()


@pytest.mark.parametrize("count", [1, 8193])
def test_bins_that_have_no_ids_are_refused(count: int) -> None:
    with pytest.raises(ValueError, match=rf"action_num_bins is {count}; it must be at least 2 .* 8192 image codes"):
        ActionBins(VOCAB, count)


# --- the knobs -------------------------------------------------------------------------------------------------------


def test_the_configuration_makes_the_objective() -> None:
    job = Job()
    assert action_diffusion(job.block_diffusion, job.text_diffusion) is None
    job.block_diffusion.action_enabled = True
    assert action_diffusion(job.block_diffusion, job.text_diffusion) == Diffusion(
        "action_bd", Fixed(7), ratio=Ratio(low=0.001)
    )
    job.block_diffusion.action_block_size, job.block_diffusion.complementary_mask = 5, False
    job.text_diffusion.prediction, job.text_diffusion.weighting, job.block_diffusion.mask_eps = (
        "aligned",
        "uniform",
        0.2,
    )
    expected = Diffusion("action_bd", Fixed(5), False, Ratio(low=0.2), False, "aligned", "uniform")
    assert action_diffusion(job.block_diffusion, job.text_diffusion) == expected


# --- layout ----------------------------------------------------------------------------------------------------------


def test_a_time_step_is_a_block_behind_the_robot_flow(built: Built) -> None:
    model = built[0]
    task = future(built, diffusion())
    slots, length = tokens(task).sequence.slots, task.sequence.ids.shape[1]
    assert torch.equal(slots.pos[:, :length], task.sequence.slots.pos)
    end = task.sequence.slots.pos[:, -1:] + 1
    for view in (1, 2):
        pos, start = (tag[slots.copy_id == view].view(2, -1) for tag in (slots.pos, slots.block_start))
        assert torch.equal(pos - end, torch.arange(21).expand(2, -1))
        assert torch.equal(start - end, torch.arange(21).expand(2, -1) // 7 * 7)
    # The last step's clean tokens are read by nobody and left out.
    assert (slots.copy_id == 0).sum(1).tolist() == [length + 14] * 2
    assert slots.shape[1] == length + 14 + 2 * 21
    assert tokens(task).answer_tokens == tokens(task).counted == 2 * 3 * 7
    assert (
        (tokens(task).targets >= model.vocab.first_code) & (tokens(task).targets < model.vocab.first_code + 16)
    ).all()
    assert task.full_sequence.image == task.sequence.image
    assert task.full_sequence.actions == task.sequence.actions
    assert torch.equal(task.full_sequence.ids[:, :length], task.sequence.ids)


def test_the_documented_drawing() -> None:
    kind = torch.tensor([[Kind.TEXT, *[Kind.IMAGE] * 3, *[Kind.ACTION] * 2]])
    flow = TokenSequence(torch.full((1, 6), 7), Slots.clean(kind, torch.arange(6)[None]), ROBOT)
    clean = with_action_tokens(flow, torch.full((1, 4), VOCAB.first_code), torch.ones(1, 4, dtype=torch.bool))
    canvas = build_canvas(clean, VOCAB, [2])
    read = drop_unread_clean_tokens(clean, canvas)
    sequence, _ = append_noisy_copies(read, canvas, torch.zeros(2, 1, 4, dtype=torch.bool), VOCAB.mask)
    page = (Path(__file__).resolve().parents[2] / "docs" / "algorithm.md").read_text(encoding="utf-8")
    drawn = page[page.index("      tiiiaawwww") :].split("\n\n")[0]
    lines = [line.removeprefix("    ").split("    ")[0].rstrip() for line in drawn.splitlines()]
    assert lines == sequence.rule.draw(sequence.slots).splitlines()


def test_nothing_in_the_robot_flow_sees_an_action_token(built: Built) -> None:
    task = future(built, diffusion(ar_aux_weight=1.0))
    sequence, length = task.full_sequence, task.sequence.ids.shape[1]
    mask = sequence.rule.dense(sequence.slots)
    assert not mask[:, 0, :length, length:].any()
    assert torch.equal(mask[:, :, :length, :length], task.sequence.rule.dense(task.sequence.slots))
    assert (sequence.slots.kind[:, length:] == Kind.ANSWER).all()


def test_a_sample_hides_the_same_tokens_in_any_batch(built: Built) -> None:
    def shown(task: object, row: int) -> list[list[int]]:
        sequence = tokens(task).sequence
        slots = sequence.slots
        return [sequence.ids[row][slots.valid[row] & (slots.copy_id[row] == view)].tolist() for view in (1, 2)]

    both = future(built, diffusion())
    torch.rand(3)
    second = future(built, diffusion(), [1], pad_to=25)
    assert shown(second, 0) == shown(both, 1)
    assert shown(both, 0) != shown(both, 1)
    assert shown(future(built, diffusion(), seed=1), 0) != shown(both, 0)
    one, other = (
        SampleRng(0, 3).of(7),
        SampleRng(0, 3, "action").of(7),
    )  # sample 7 of the conversations, of the demonstrations
    assert not torch.equal(torch.rand(4, generator=one), torch.rand(4, generator=other))


# --- exactness -------------------------------------------------------------------------------------------------------


def one_by_one(built: Built, objective: Diffusion, size: int) -> Tensor:
    """The mean loss by a forward for each row, block and view."""
    model = built[0]
    task = future(built, objective)
    sequence = tokens(task).sequence
    slots, bins = sequence.slots, ActionBins(model.vocab, model.spec.decoding.action_bins or 0)
    total = torch.zeros(())
    for row in range(2):
        ids = bins.ids(chunks(built)[row]).flatten().tolist()
        first = int(task.sequence.slots.pos[row, -1]) + 1
        for start in range(0, len(ids), size):
            block = ids[start : start + size]
            n = len(block)
            everything = alone(built, task.sequence, row, ids[:start], [model.vocab.mask] * n)
            if objective.prediction == "shift":  # once, whatever is hidden
                total = total - everything[0, block[0]]
            for view in range(1, objective.num_copies + 1):
                here = (slots.copy_id[row] == view) & (slots.block_start[row] == first + start) & slots.valid[row]
                shown = sequence.ids[row][here].tolist()
                hidden = [token == model.vocab.mask for token in shown]
                assert [s for s, h in zip(shown, hidden, strict=True) if not h] == [
                    b for b, h in zip(block, hidden, strict=True) if not h
                ]
                scores = alone(built, task.sequence, row, ids[:start], shown)
                for offset in range(n):
                    if hidden[offset] and (offset or objective.prediction == "aligned"):
                        at = offset if objective.prediction == "shift" else offset + 1
                        total = total - (n + 1) / sum(hidden) / objective.num_copies * scores[at, block[offset]]
    return total / 42


@pytest.mark.parametrize("knobs", [{}, {"prediction": "aligned"}, {"complementary": False}])
def test_1_one_forward_equals_a_forward_for_each_block_and_view(either: Built, knobs: dict[str, object]) -> None:
    objective = diffusion(**knobs)
    together = either[0](future(either, objective)).action_bd.mean
    apart = one_by_one(either, objective, 7)
    torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-6)
    assert_same_gradients(gradients(either, together), gradients(either, apart))


def test_1_so_it_does_with_blocks_that_do_not_fit_the_chunk(built: Built) -> None:
    together = built[0](future(built, diffusion(5))).action_bd.mean
    torch.testing.assert_close(together, one_by_one(built, diffusion(5), 5), rtol=1e-5, atol=1e-6)


def test_3_shifted_blocks_of_one_token_are_next_token_prediction(built: Built) -> None:
    model = built[0]
    task = future(built, diffusion(1))
    bins = ActionBins(model.vocab, model.spec.decoding.action_bins or 0)
    nll = torch.zeros(())
    for row in range(2):
        ids = bins.ids(chunks(built)[row]).flatten().tolist()
        for at, token in enumerate(ids):
            nll = nll - alone(built, task.sequence, row, ids[:at], [])[0, token]
    loss = model(task).action_bd.mean.detach()
    torch.testing.assert_close(loss, nll.detach() / 42, rtol=1e-5, atol=1e-6)
    assert abs(float(model(future(built, diffusion(7))).action_bd.mean.detach() - loss)) > 1e-4


def test_6_a_hidden_number_depends_on_its_past_and_its_own_block_alone(built: Built) -> None:
    model = built[0]
    task = future(built, diffusion())
    sequence, slots = task.full_sequence, task.full_sequence.slots
    mask = sequence.rule.dense(slots)
    for view, row in ((1, 0), (2, 1)):
        for start in slots.block_start[row][slots.copy_id[row] == view].unique().tolist():
            own = (slots.copy_id[row] == view) & (slots.block_start[row] == start)
            embeds = model.embed(sequence).detach().requires_grad_()
            hidden = model.backbone(embeds, mask, slots.pos)
            hidden[row][own].square().sum().backward()
            assert embeds.grad is not None
            touched = embeds.grad.abs().sum(-1) > 0
            expected = torch.zeros_like(touched)
            expected[row] = own | ((slots.copy_id[row] == 0) & (slots.pos[row] < start) & slots.valid[row])
            assert torch.equal(touched, expected)
            kinds = slots.kind[row][touched[row]]
            assert {int(Kind.TEXT), int(Kind.IMAGE), int(Kind.ACTION)} <= set(kinds.tolist())


@torch.no_grad()
def test_7_a_mixed_batch_equals_its_rows_and_fixed_padding(built: Built) -> None:
    model = built[0]
    together, padded = (model(future(built, diffusion(), pad_to=width)).action_bd for width in (None, 25))
    one, other = (model(future(built, diffusion(), [row])).action_bd for row in range(2))
    for ours in (together, padded):
        torch.testing.assert_close(ours.sum, one.sum + other.sum, rtol=1e-5, atol=1e-4)
        assert float(ours.count) == float((one + other).count) == 42


# --- no trouble to anybody else --------------------------------------------------------------------------------------


def test_12_image_action_and_text_losses_are_what_they_are_without(either: Built) -> None:
    model, prompter = either
    text = text_objective("ar").prepare(model.vocab, prompter.system_ids, talk(either))
    without, beside = (model(future(either, objective), text) for objective in (None, diffusion()))
    assert float(without.action_bd.count) == 0
    assert float(beside.action_bd.mean.detach()) > 1
    assert torch.equal(beside.text.sum, without.text.sum)
    for name in ("image", "action"):
        ours, theirs = getattr(beside, name), getattr(without, name)
        assert torch.equal(ours.count, theirs.count)
        torch.testing.assert_close(ours.sum, theirs.sum, rtol=1e-6, atol=0)  # another length, other sums in a kernel

    def robot(losses: object) -> Tensor:
        return losses.image.mean + losses.action.mean  # type: ignore[attr-defined]

    assert_same_gradients(gradients(either, robot(beside)), gradients(either, robot(without)))


def test_the_frame_and_the_instruction_change_the_loss_and_it_teaches_the_backbone_alone(built: Built) -> None:
    model = built[0]
    base = future(built, diffusion())
    loss = model(base).action_bd.mean
    learned = gradients(built, loss)
    assert not [name for name in learned if name.startswith("action_head")]
    assert float(learned["backbone.lm.lm_head.weight"].abs().max()) > 1e-4
    with torch.no_grad():
        words = model(future(built, diffusion(), texts=["close the drawer", INSTRUCTIONS[1]])).action_bd.mean
        image = base.sequence.slots.kind == Kind.IMAGE
        swapped = replace(base.sequence, ids=torch.where(image, base.sequence.ids.flip(0), base.sequence.ids))
        frame = model(replace(base, sequence=swapped)).action_bd.mean
    assert abs(float(words - loss.detach())) > 1e-4
    assert abs(float(frame - loss.detach())) > 1e-4


@pytest.mark.parametrize("size", [7, 5])
@torch.no_grad()
def test_steps_that_do_not_count_have_no_effect(built: Built, size: int) -> None:
    """``dataset.params.mask_action_padding``: the chunk of the second row ends after one step."""
    model = built[0]
    counted = torch.tensor([[True] * 3, [True, False, False]])
    spoiled = chunks(built).clone()
    spoiled[1, 1:] = 0.77
    tasks = [future(built, diffusion(size), actions=a, counted=counted) for a in (chunks(built), spoiled)]
    clean, dirty = (model(task) for task in tasks)
    assert torch.equal(clean.action_bd.sum, dirty.action_bd.sum)
    assert torch.equal(clean.action.sum, dirty.action.sum)
    assert float(clean.action_bd.count) == float(clean.action.count) == 4 * 7
    assert not torch.equal(model(future(built, diffusion(size), actions=spoiled)).action_bd.sum, clean.action_bd.sum)
    none = model(future(built, diffusion(size), counted=torch.zeros(2, 3, dtype=torch.bool)))
    assert (float(none.action_bd.sum), float(none.action_bd.count)) == (0, 0)


@torch.no_grad()
def test_what_is_told_of_action_tokens_adds_up(built: Built) -> None:
    task = future(built, diffusion())
    told = built[0](task).details
    shares = tokens(task).mask_ratio
    binned = [told[f"action_bd/nats_hidden_{name}"] for name in ("00_25", "25_50", "50_75", "75_100")]
    assert sum(float(tally.count) for tally in binned) == float((shares > 0).sum())
    torch.testing.assert_close(
        told["action_bd/nats_per_token"].mean, built[0](task).action_bd.mean
    )  # nelbo, all ratios
    assert 0 <= float(told["action_bd/accuracy"].mean) <= 1
    assert all(float(t.count) == 0 for n, t in built[0](future(built, None)).details.items() if "action_bd" in n)
