"""Every knob of the text objectives has its effect, and layouts are what their drawings say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from config.schema import Job
from models.attention_mask import MULTIMODAL, Kind, Slots
from models.objectives import TextTask, text_objective
from models.objectives.block_size import Annealed, Elastic, Fixed
from models.objectives.diffusion import Diffusion
from models.objectives.elbo_weights import Ratio, level_probability
from models.objectives.layout import append_noisy_copies, build_canvas, drop_unread_clean_tokens
from models.rng import SampleRng
from models.sequence import TextTurn, TokenSequence
from models.vocabulary import Vocabulary

VOCAB = Vocabulary(words=100, bos=1, eos=2, codebook_size=64)
SYSTEM = [9, 9]


def turn(lengths: tuple[int, ...] = (5, 3), batch: int = 6) -> TextTurn:
    """Questions of two words and answers of ``lengths`` words (end-of-text included), the same in every row."""
    ids, answer = [], []
    for length in lengths:
        ids += [10, 11, *range(20, 20 + length - 1), VOCAB.eos]
        answer += [False, False, *[True] * length]
    return TextTurn(torch.tensor([ids] * batch), torch.tensor([answer] * batch), torch.zeros(batch, 4, 3))


def job(objective: str = "bd", **knobs: Any) -> Job:
    """A job with ``block_diffusion__block_size=4`` and the like."""
    made = Job()
    made.training.text_objective = objective  # type: ignore[assignment]
    made.block_diffusion.block_size = 4
    for name, value in knobs.items():
        section, _, leaf = name.partition("__")
        setattr(getattr(made, section), leaf, value)
    return made


def task(made: Job, draws: SampleRng | None = None, what: TextTurn | None = None) -> TextTask:
    return text_objective(made).prepare(VOCAB, SYSTEM, what or turn(), draws or SampleRng())


def sizes_of(made: TextTask) -> list[int]:
    """Tokens of the first block of every row."""
    slots = made.sequence.slots
    first = [slots.block_start[row][slots.block_start[row] >= 0].min() for row in range(slots.shape[0])]
    return [int(((slots.block_start[row] == s) & (slots.copy_id[row] == 1)).sum()) for row, s in enumerate(first)]


def share_hidden(made: TextTask) -> float:
    view = (made.sequence.slots.copy_id == 1) & made.sequence.slots.valid
    return float((made.sequence.ids[view] == VOCAB.mask).float().mean())


def test_block_size_is_the_number_of_tokens_of_a_block() -> None:
    assert sizes_of(task(job(block_diffusion__block_size=4))) == [4] * 6
    assert sizes_of(task(job(block_diffusion__block_size=8))) == [8] * 6


def test_elastic_blocks_are_drawn_for_each_sample_from_the_candidates() -> None:
    elastic = job(block_diffusion__elastic_block_enabled=True, block_diffusion__block_size_candidates=[2, 5])
    found = [size for step in range(4) for size in sizes_of(task(elastic, SampleRng(0, step)))]
    assert set(found) == {2, 5}
    assert 4 < found.count(2) < 20
    assert sizes_of(text_objective(elastic).for_evaluation(1).prepare(VOCAB, SYSTEM, turn())) == [4] * 6


def test_annealed_blocks_grow_to_the_block_size_and_stay() -> None:
    annealed = job(block_diffusion__anneal_steps=20, block_diffusion__block_size_candidates=[2, 1, 8])
    assert [sizes_of(task(annealed, SampleRng(0, step)))[0] for step in (0, 9, 10, 19, 20, 500)] == [1, 1, 2, 2, 4, 4]
    assert Annealed.towards(4, [8, 16], 10).size(3, torch.Generator()) == 4


def test_mask_eps_and_mask_ratios_bound_what_is_hidden() -> None:
    assert share_hidden(task(job(block_diffusion__mask_eps=0.999))) > 0.9
    assert 0.2 < share_hidden(task(job(block_diffusion__mask_eps=0.0))) < 0.8
    low = job("mdm", text_mdm__min_mask_ratio=0.0, text_mdm__max_mask_ratio=0.05)
    high = job("mdm", text_mdm__min_mask_ratio=0.95, text_mdm__max_mask_ratio=1.0)
    assert share_hidden(task(low)) < 0.1
    assert share_hidden(task(high)) > 0.9
    # Held-out data are measured over all ratios, whatever is trained.
    assert 0.2 < share_hidden(text_objective(low).for_evaluation(1).prepare(VOCAB, SYSTEM, turn())) < 0.8


def test_the_canvas_multiple_is_how_far_a_masked_answer_is_continued() -> None:
    for multiple, canvas in ((1, 5 + 3), (4, 8 + 4), (16, 32)):
        made = task(job("mdm", text_mdm__canvas_multiple=multiple))
        assert int((made.sequence.slots.copy_id[0] == 1).sum()) == canvas


@pytest.mark.parametrize("objective", ["bd", "mdm"])
def test_the_second_view_hides_what_the_first_shows_unless_switched_off(objective: str) -> None:
    made = task(job(objective))
    sequence = made.sequence
    views = [sequence.ids[sequence.slots.copy_id == view] == VOCAB.mask for view in (1, 2)]
    assert torch.equal(views[0], ~views[1])
    single = task(job(objective, block_diffusion__complementary_mask=False)).sequence
    assert int(single.slots.copy_id.max()) == 1
    assert torch.equal(single.ids[single.slots.copy_id == 1] == VOCAB.mask, views[0])


def test_the_prediction_is_the_slot_a_token_is_read_from() -> None:
    for prediction, distance in (("shift", 1), ("aligned", 0)):
        made = task(job(text_diffusion__prediction=prediction))
        slots, ids = made.sequence.slots, made.sequence.ids
        noisy = slots.copy_id[made.rows, made.slots] > 0
        at = slots.pos[made.rows, made.slots] + distance
        offset = at - (1 + len(SYSTEM) + 6 + 2)  # of the first answer
        first_answer = (offset >= 0) & (offset < 5)
        words = torch.tensor([20, 21, 22, 23, VOCAB.eos])
        assert torch.equal(made.targets[first_answer], words[offset[first_answer]])
        hidden = ids[made.rows, (made.slots + distance).clamp_max(ids.shape[1] - 1)] == VOCAB.mask
        assert hidden[noisy].all()
        assert bool((~noisy).any()) == (prediction == "shift")


def test_uniform_weighting_counts_every_hidden_token_once() -> None:
    made = task(job(text_diffusion__weighting="uniform"))
    assert float(made.counted) == float(made.weights.sum()) == 6 * (8 + 4)  # complementary: everything, once
    assert set(made.weights.tolist()) <= {0.0, 1.0}
    nelbo = task(job())
    assert float(nelbo.counted) == float(nelbo.answer_tokens) == 6 * (5 + 3)
    assert torch.equal(made.bound_weights, nelbo.bound_weights)


def test_the_ar_auxiliary_adds_the_clean_streams_next_tokens() -> None:
    plain, more = task(job()), task(job(text_diffusion__ar_aux_weight=0.25))
    extra = more.weights.shape[0] - plain.weights.shape[0]
    assert extra == 6 * (5 + 3)
    assert more.weights[-extra:].tolist() == [0.25] * extra
    assert float(more.bound_weights.sum()) == pytest.approx(float(plain.bound_weights.sum()))
    slots = more.sequence.slots
    assert (slots.copy_id[more.rows[-extra:], more.slots[-extra:]] == 0).all()


def test_more_draws_narrow_a_measurement() -> None:
    objective = text_objective(job(block_diffusion__complementary_mask=False))
    spread = []
    for draws in (1, 8):
        measure = objective.for_evaluation(draws)
        sums = [measure.prepare(VOCAB, SYSTEM, turn(batch=1), SampleRng(s)).bound_weights.sum() for s in range(60)]
        spread.append(float(torch.stack(sums).std()))
    assert spread[1] < 0.6 * spread[0]


def test_a_name_that_is_no_objective_is_refused() -> None:
    with pytest.raises(ValueError, match="'diffuse'; allowed: ar, mdm, bd"):
        text_objective("diffuse")


# --- layouts ---------------------------------------------------------------------------------------------------------


def clean(kinds: str, eos_at: tuple[int, ...]) -> TokenSequence:
    letters = {".": Kind.PAD, "t": Kind.TEXT, "p": Kind.PATCH, "w": Kind.ANSWER}
    kind = torch.tensor([[letters[letter] for letter in kinds]])
    ids = torch.full_like(kind, 7)
    ids[0, list(eos_at)] = VOCAB.eos
    pos = torch.arange(len(kinds))[None]
    return TokenSequence(ids, Slots.clean(kind, pos), MULTIMODAL)


def test_every_answer_opens_a_fresh_grid_and_nobody_sees_a_later_turn() -> None:
    sequence = clean("tpwwwtw", eos_at=(4, 6))
    canvas = build_canvas(sequence, VOCAB, [2])
    assert canvas.pos[0].tolist() == [2, 3, 4, 5, 6, 7]
    assert canvas.block_start[0].tolist() == [2, 2, 4, 4, 6, 6]
    assert canvas.ids[0].tolist() == [7, 7, 2, 2, 2, 2]
    assert canvas.block[0].tolist() == [0, 0, 1, 1, 2, 2]
    read = drop_unread_clean_tokens(sequence, canvas)
    laid, _ = append_noisy_copies(read, canvas, torch.zeros(1, 1, 6, dtype=torch.bool), VOCAB.mask)
    # The second answer's clean word is read by nobody and left out. Position 5 is both the question's and the first
    # answer's continuation's: neither sees the other.
    expected = """
  tpwwwtwwwwww
t ##··········
p ##··········
w ###·········
w ####········
w #####·······
t ######······
w ##····##····
w ##····##····
w ####····##··
w ####····##··
w ######····##
w ######····##
"""
    assert laid.rule.draw(laid.slots).strip() == expected.strip()


def test_one_block_for_the_whole_answer_needs_no_clean_copy() -> None:
    sequence = clean("tpwww", eos_at=(4,))
    canvas = build_canvas(sequence, VOCAB, [4], whole_answer=True)
    read = drop_unread_clean_tokens(sequence, canvas)
    laid, _ = append_noisy_copies(read, canvas, torch.zeros(2, 1, 4, dtype=torch.bool), VOCAB.mask)
    expected = """
  tpwwwwwwww
t ##········
p ##········
w ######····
w ######····
w ######····
w ######····
w ##····####
w ##····####
w ##····####
w ##····####
"""
    assert laid.rule.draw(laid.slots).strip() == expected.strip()


def test_a_cut_answer_is_not_continued() -> None:
    canvas = build_canvas(clean("twwwww", eos_at=()), VOCAB, [3])
    assert canvas.pos[0].tolist() == [1, 2, 3, 4, 5]
    assert canvas.size[0].tolist() == [3, 3, 3, 2, 2]
    whole = build_canvas(clean("twwwww", eos_at=()), VOCAB, [3], whole_answer=True)
    assert whole.size[0].tolist() == [5] * 5


@pytest.mark.parametrize("size", [1, 7, 64])
@pytest.mark.parametrize("ratio", [Ratio(), Ratio(0.001), Ratio(0.15, 0.6), Ratio(0.5, 0.5001)])
def test_level_probabilities_are_those_of_drawn_masks(size: int, ratio: Ratio) -> None:
    found = level_probability(size, ratio, complementary=False)
    draw = torch.Generator().manual_seed(0)
    t = ratio.of(torch.rand(4000, 1, generator=draw))
    counts = (torch.rand(4000, size, generator=draw) < t).sum(1)
    drawn = torch.bincount(counts, minlength=size + 1) / 4000
    assert float(found.sum()) == pytest.approx(1.0, abs=1e-9)
    assert (found > 0).all()
    assert float((found.cumsum(0) - drawn.cumsum(0)).abs().max()) < 0.05
    paired = level_probability(size, ratio, complementary=True)
    assert torch.allclose(paired, (found + found.flip(0)) / 2)


def test_objectives_are_plain_values() -> None:
    """Two jobs alike make objectives alike: nothing hides in them."""
    assert text_objective(job()) == text_objective(job())
    assert text_objective(job()) != text_objective(job(block_diffusion__block_size=2))
    assert replace(text_objective(job()), sizes=Fixed(2)) == text_objective(job(block_diffusion__block_size=2))  # type: ignore[type-var]
    assert isinstance(text_objective(job("mdm")), Diffusion)
    assert Elastic((1, 2), 4).final == 4
