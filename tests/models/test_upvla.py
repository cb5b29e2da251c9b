"""The network: what changes its losses, what must not, and what it costs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from models.attention_mask import Rule
from models.objectives import text_objective
from models.processing.text import Prompter
from models.sequence import TextTurn, future_targets, robot_sequence
from models.upvla import UPVLA, RobotTask
from tests.tiny import tiny_model

Built = tuple[UPVLA, Prompter]
KINDS = ["phi", "qwen3"]


@pytest.fixture(scope="module", params=KINDS)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Built:
    return tiny_model(tmp_path_factory.mktemp(request.param), request.param, num_view=2)


def future(model: UPVLA, prompter: Prompter, texts: list[str], pad_to: int | None = None, seed: int = 0) -> RobotTask:
    draw = torch.Generator().manual_seed(seed)
    batch, codes = len(texts), model.spec.num_image_tokens
    now, later = (torch.randint(0, model.spec.codebook_size, (batch, codes), generator=draw) for _ in range(2))
    sequence = robot_sequence(model.vocab, [prompter.instruction(t) for t in texts], now, model.spec.act_step, pad_to)
    actions = torch.randn(batch, model.spec.act_step, 7, generator=draw)
    return RobotTask(sequence, future_targets(model.vocab, later), actions)


def turn(
    model: UPVLA,
    prompter: Prompter,
    answers: list[str],
    seed: int = 0,
    question: str = "which block?",
    patches: torch.Tensor | None = None,
) -> TextTurn:
    rows = [prompter.conversation([("human", question), ("gpt", answer)]) for answer in answers]
    draw = torch.Generator().manual_seed(seed)
    return TextTurn.of_rows(
        [row.ids for row in rows],
        [row.answer for row in rows],
        model.vocab.pad,
        torch.randn(len(rows), 5, model.spec.clip_width or 1, generator=draw) if patches is None else patches,
    )


def text(model: UPVLA, prompter: Prompter, turn: TextTurn) -> torch.Tensor:
    task = text_objective("ar").prepare(model.vocab, prompter.system_ids, turn)
    loss, _ = model.text_loss(task)
    return loss.mean


TEXTS = ["open the drawer", "push the blue block to the left, then turn on the light"]


@torch.no_grad()
def test_fixed_padding_changes_no_number(built: Built) -> None:
    model, prompter = built
    short, padded = (model(future(model, prompter, TEXTS, width)) for width in (None, 40))
    torch.testing.assert_close(short.image.mean, padded.image.mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(short.action.mean, padded.action.mean, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_rows_of_a_batch_do_not_see_each_other(built: Built) -> None:
    model, prompter = built
    both = future(model, prompter, TEXTS)
    together = model.predict(both.sequence, want_codes=True)
    codes = model.vocab.codes(both.sequence.ids[:, both.sequence.image.columns][:, 1:-1])  # type: ignore[union-attr]
    for row, words in enumerate(TEXTS):
        alone = robot_sequence(model.vocab, [prompter.instruction(words)], codes[row : row + 1], model.spec.act_step)
        single = model.predict(alone, want_codes=True)
        torch.testing.assert_close(single.actions[0], together.actions[row], rtol=1e-4, atol=1e-5)
        assert torch.equal(single.codes[0], together.codes[row])  # type: ignore[index]


@torch.no_grad()
def test_mixed_answer_lengths_in_a_batch_equal_single_runs(built: Built) -> None:
    model, prompter = built
    answers = ["red", "the pink block is inside the drawer"]
    mixed = turn(model, prompter, answers)
    objective = text_objective("ar")
    task = objective.prepare(model.vocab, prompter.system_ids, mixed)
    together = model.text_loss(task)[0]
    alone = [
        model.text_loss(
            objective.prepare(
                model.vocab,
                prompter.system_ids,
                turn(model, prompter, answers[row : row + 1], patches=mixed.patches[row : row + 1]),  # type: ignore[index]
            )
        )[0]
        for row in range(2)
    ]
    torch.testing.assert_close(together.sum, alone[0].sum + alone[1].sum, rtol=1e-5, atol=1e-5)
    assert together.count == alone[0].count + alone[1].count


def test_the_image_and_the_question_change_the_text_loss_and_teach_the_projector(built: Built) -> None:
    model, prompter = built
    model.zero_grad()
    loss = text(model, prompter, turn(model, prompter, ["red"], seed=0))
    loss.backward()
    assert model.projector is not None
    assert float(model.projector[0].weight.grad.abs().max()) > 0  # type: ignore[union-attr]
    with torch.no_grad():
        other_image = text(model, prompter, turn(model, prompter, ["red"], seed=1))
        other_question = text(model, prompter, turn(model, prompter, ["red"], seed=0, question="where?"))
    assert abs(float(other_image - loss.detach())) > 1e-6
    assert abs(float(other_question - loss.detach())) > 1e-6


@torch.no_grad()
def test_the_instruction_and_the_frame_change_the_actions(built: Built) -> None:
    model, prompter = built
    base = future(model, prompter, ["open the drawer"])
    actions = model.predict(base.sequence).actions
    other_words = model.predict(future(model, prompter, ["open the slider"]).sequence).actions
    other_frame = model.predict(future(model, prompter, ["open the drawer"], seed=1).sequence).actions
    assert float((actions - other_words).abs().max()) > 1e-6
    assert float((actions - other_frame).abs().max()) > 1e-6


@torch.no_grad()
def test_the_codes_predicted_for_acting_are_the_best_of_the_full_head(built: Built) -> None:
    model, prompter = built
    task = future(model, prompter, TEXTS)
    codes = model.predict(task.sequence, want_codes=True).codes
    hidden = model.hidden_states(task.sequence)[:, task.sequence.image.columns][:, 1:-1]  # type: ignore[union-attr]
    logits = model.backbone.logits(hidden)[..., model.vocab.first_code : model.vocab.mask]
    assert torch.equal(codes, logits.argmax(-1))  # type: ignore[arg-type]


@torch.no_grad()
def test_a_weight_of_zero_leaves_a_padded_action_out(built: Built) -> None:
    model, prompter = built
    task = future(model, prompter, TEXTS)
    weight = torch.ones(2, model.spec.act_step)
    weight[0, 2:] = 0
    spoiled = task.actions.clone()  # type: ignore[union-attr]
    spoiled[0, 2:] = 1e3
    from dataclasses import replace

    clean = model(replace(task, action_weight=weight)).action
    dirty = model(replace(task, action_weight=weight, actions=spoiled)).action
    assert torch.equal(clean.sum, dirty.sum)
    assert int(clean.count) == (model.spec.act_step + 2) * 7


def test_the_mask_is_never_predicted_unless_asked_for(tmp_path: Path) -> None:
    for banned in (True, False):
        model, prompter = tiny_model(tmp_path / str(banned), mask_logit_banned=banned)
        task = text_objective("ar").prepare(model.vocab, prompter.system_ids, turn(model, prompter, ["red"]))
        with torch.no_grad():
            logits = model.backbone.logits(model.hidden_states(task.sequence)[task.rows, task.slots])
            everything = torch.nn.functional.cross_entropy(logits, task.targets)
            without = torch.nn.functional.cross_entropy(logits[:, : model.vocab.mask], task.targets)
            loss = model.text_loss(task)[0].mean
        torch.testing.assert_close(loss, without if banned else everything)
        assert float(everything - without) > 1e-4


def test_eager_and_sdpa_attention_agree(tmp_path: Path) -> None:
    losses = []
    for attention in ("sdpa", "eager"):
        model, prompter = tiny_model(tmp_path / attention, attn_implementation=attention)
        task = text_objective("ar").prepare(
            model.vocab, prompter.system_ids, turn(model, prompter, ["red", "the blue"])
        )
        with torch.no_grad():
            losses.append((model(future(model, prompter, TEXTS)).image.mean, model.text_loss(task)[0].mean))
    torch.testing.assert_close(losses[0], losses[1])


def test_an_unknown_attention_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"attn_implementation is 'flash'"):
        tiny_model(tmp_path, attn_implementation="flash")


def test_chunked_scoring_equals_one_projection(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    import models.losses

    model, prompter = built
    task = future(model, prompter, TEXTS)
    results = []
    for limit in (1 << 26, 3 * model.vocab.size):
        monkeypatch.setattr(models.losses, "MAX_LOGITS", limit)
        model.zero_grad()
        loss = model(task).image.mean
        loss.backward()
        weight = model.backbone.lm.get_input_embeddings().weight
        results.append((loss.detach(), weight.grad.clone()))
    torch.testing.assert_close(results[0], results[1])


def test_phi_normalises_queries_and_keys_per_head_whatever_its_config_says(tmp_path: Path) -> None:
    model, _ = tiny_model(tmp_path)
    norm = model.backbone.lm.model.layers[0].self_attn.q_layernorm
    assert norm.normalized_shape == (8,)  # hidden 32 in 4 heads


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_checkpointing_recomputes_the_forward(tmp_path: Path, kind: str) -> None:
    model, prompter = tiny_model(tmp_path, kind)
    counts = []
    for on in (False, True):
        if on:
            model.backbone.enable_gradient_checkpointing()
            model.train()
        calls = 0

        def count(*_: object) -> None:
            nonlocal calls
            calls += 1

        handle = model.backbone.lm.model.layers[0].mlp.register_forward_pre_hook(count)
        model(future(model, prompter, TEXTS)).image.mean.backward()
        handle.remove()
        counts.append(calls)
    assert counts == [1, 2]


def test_a_rule_is_what_the_network_obeys(built: Built) -> None:
    """A causal-only rule changes the image loss: the mask really reaches attention."""
    from dataclasses import replace

    from models.attention_mask import CAUSAL

    model, prompter = built
    task = future(model, prompter, TEXTS)
    causal = replace(task, sequence=replace(task.sequence, rule=Rule(CAUSAL.allowed)))
    with torch.no_grad():
        assert abs(float(model(task).image.mean - model(causal).image.mean)) > 1e-6
