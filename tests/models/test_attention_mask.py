"""Rules read as drawings, and the three prediction_states of one rule."""

from __future__ import annotations

import torch

from models.attention_mask import CAUSAL, MULTIMODAL, ROBOT, Kind, Rule, Slots, with_noisy_copies


def slots(
    kinds: str, pos: list[int] | None = None, copy_id: list[int] | None = None, block_start: list[int] | None = None
) -> Slots:
    letters = {".": Kind.PAD, "t": Kind.TEXT, "i": Kind.IMAGE, "p": Kind.PATCH, "a": Kind.ACTION, "w": Kind.ANSWER}
    kind = torch.tensor([[letters[letter] for letter in kinds]])
    plain = Slots.clean(kind, torch.tensor([pos if pos else list(range(len(kinds)))]))
    return Slots(
        kind,
        plain.pos,
        plain.copy_id if copy_id is None else torch.tensor([copy_id]),
        plain.block_start if block_start is None else torch.tensor([block_start]),
    )


def drawing(text: str) -> str:
    return "\n".join(line.strip() and line.removeprefix("        ") for line in text.strip("\n").splitlines()).rstrip()


def test_the_robot_rule_is_causal_for_text_and_actions_and_open_for_the_image_span() -> None:
    expected = """
          .ttiiiaa
        . #·······
        t ·#······
        t ·##·····
        i ·#######
        i ·#######
        i ·#######
        a ·######·
        a ·#######
"""
    assert ROBOT.draw(slots(".ttiiiaa")) == drawing(expected)


def test_the_multimodal_rule_is_causal_and_everybody_sees_the_image() -> None:
    expected = """
          ttpptww.
        t #·##····
        t ####····
        p ####····
        p ####····
        t #####···
        w ######··
        w #######·
        . ·······#
"""
    assert MULTIMODAL.draw(slots("ttpptww.")) == drawing(expected)


def test_noisy_views_see_their_clean_past_and_their_own_block_alone() -> None:
    # prefix t p, clean answer of 4 in blocks of 2 (starting at position 2), one noisy view, a second noisy view
    tags = slots(
        "tp" + "wwww" * 3,
        pos=[0, 1, *[2, 3, 4, 5] * 3],
        copy_id=[0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2],
        block_start=[-1, -1, *[2, 2, 4, 4] * 3],
    )
    expected = """
          tpwwwwwwwwwwww
        t ##············
        p ##············
        w ###···········
        w ####··········
        w #####·········
        w ######········
        w ##····##······
        w ##····##······
        w ####····##····
        w ####····##····
        w ##········##··
        w ##········##··
        w ####········##
        w ####········##
"""
    assert with_noisy_copies(MULTIMODAL).draw(tags) == drawing(expected)


def test_all_readings_of_a_rule_agree() -> None:
    torch.manual_seed(0)
    batch, length = 2, 17
    tags = Slots(
        kind=torch.randint(0, 6, (batch, length)),
        pos=torch.randint(0, 9, (batch, length)),
        copy_id=torch.randint(0, 3, (batch, length)),
        block_start=torch.randint(-1, 5, (batch, length)),
    )
    for rule in (CAUSAL, ROBOT, MULTIMODAL, with_noisy_copies(MULTIMODAL), ~CAUSAL & ROBOT):
        dense = rule.dense(tags)
        assert torch.equal(rule.additive(tags, torch.float32) == 0, dense)
        b, q, k = (
            i.flatten() for i in torch.meshgrid(*[torch.arange(n) for n in (batch, length, length)], indexing="ij")
        )
        mod = rule.mask_mod(tags)(b, torch.zeros_like(b), q, k).view(batch, length, length)
        assert torch.equal(mod, dense[:, 0])


def test_rules_combine_as_sets_do() -> None:
    tags = slots("ttiwa")
    everything = Rule(lambda q, k: (q.kind >= 0) & (k.kind >= 0), "all")
    assert torch.equal((CAUSAL | ~CAUSAL).dense(tags), everything.dense(tags))
    assert torch.equal((CAUSAL & ROBOT).dense(tags), CAUSAL.dense(tags))
    assert (CAUSAL & ROBOT).name == f"({CAUSAL.name} & {ROBOT.name})"
