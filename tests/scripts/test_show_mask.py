"""`scripts/show_mask.py`: the drawn mask is the one that training reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba
from PIL import Image

from config.schema import Job
from models.mask_drawing import EMPTY, LAYOUTS, Layout, Sizes, build_layout, draw_mask
from models.rng import SampleRng
from scripts.show_mask import job_of, main


def drawn(*words: str, sizes: Sizes | None = None, seed: int = 0) -> Layout:
    layout, job, _ = job_of(words)
    return build_layout(layout, job, sizes or Sizes(), SampleRng(seed))


def span(layout: Layout, name: str) -> list[str]:
    """What the slots of a span hold."""
    return [held for of, at in layout.spans if of == name for held in layout.names[at.columns]]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_text_is_the_rules_own_drawing_with_names_beside_it(layout: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([layout]) == 0
    _, _, *lines = capsys.readouterr().out.splitlines()
    made = drawn(layout)
    expected = made.sequence.rule.draw(made.sequence.slots).splitlines()
    assert lines[0] == expected[0]
    for line, own, name in zip(lines[1:], expected[1:], made.names, strict=True):
        assert line.startswith(own)
        assert name in line


@pytest.mark.parametrize("words", [("bd",), ("robot",), ("actions", "act_step=1"), ("mdm",)])
def test_in_the_image_a_square_is_colored_exactly_where_attention_is_allowed(words: tuple[str, ...]) -> None:
    made = drawn(*words, sizes=Sizes(padding=1))
    canvas = FigureCanvasAgg(draw_mask(made, "title", ""))
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())
    empty = (255 * np.array(to_rgba(EMPTY))).round()
    mask = made.sequence.rule.dense(made.sequence.slots)[0, 0]
    for row, line in enumerate(mask.tolist()):
        for column, allowed in enumerate(line):
            x, y = canvas.figure.axes[0].transData.transform((column, row))
            assert (pixels[len(pixels) - 1 - round(y), round(x)] != empty).any() == allowed


def test_robot_flow_has_both_cameras_and_its_padding_on_the_left() -> None:
    made = drawn("robot", "model.vla.num_view=2", "act_step=3", sizes=Sizes(codes=3, padding=2))
    assert [name for name, _ in made.spans] == ["padding", "instruction", "image", "<|lvg|>"]
    assert span(made, "image") == ["<|soi|>", "c1", "c2", "c3", "c4", "c5", "c6", "<|eoi|>"]
    assert span(made, "instruction") == ["<|t2i|>", "bos", "t1", "t2", "eos"]
    assert len(span(made, "<|lvg|>")) == 3


def test_noisy_copies_mask_complementary_tokens_and_every_token_is_predicted() -> None:
    made = drawn("bd", "block_diffusion.block_size=3", sizes=Sizes(answers=(5, 2)))
    words = ["a1", "a2", "a3", "a4", "a5", "eos", "b1", "b2", "eos"]
    for one, other, word in zip(span(made, "noisy copy 1"), span(made, "noisy copy 2"), words, strict=True):
        assert {one, other} == {"▁", word}
    predicted = [target.token for targets in made.targets.values() for target in targets]
    assert sorted(set(predicted)) == sorted(set(words))


def test_shift_reads_a_token_from_the_slot_before_it_and_aligned_from_its_own() -> None:
    shift, aligned = drawn("ar"), drawn("mdm", "text_diffusion.prediction=aligned")
    at = {name: slot for slot, name in enumerate(shift.names)}
    assert all(at[targets[0].token] == slot + 1 for slot, targets in shift.targets.items())
    assert all(aligned.names[slot] == "▁" for slot in aligned.targets)


def test_elastic_blocks_are_drawn_by_the_seed() -> None:
    sizes = set()
    for seed in range(8):
        made = drawn("bd", "block_diffusion.elastic_block_enabled=true", sizes=Sizes(answers=(7,)), seed=seed)
        slots = made.sequence.slots
        starts = slots.block_start[0][slots.copy_id[0] == 1].tolist()
        sizes.add(starts.count(starts[0]))
    assert sizes == {1, 2, 4}


def test_the_title_tells_the_block_size_that_an_annealed_run_has_in_that_step(
    capsys: pytest.CaptureFixture[str],
) -> None:
    annealed = ["bd", "block_diffusion.anneal_steps=10", "block_diffusion.block_size=4"]
    for step, size in ((0, 1), (9, 2), (10, 4)):
        assert main([*annealed, "--step", str(step)]) == 0
        assert capsys.readouterr().out.startswith(f"bd: blocks of {size} (step {step}; growing to 4 in 10 steps)")
        layout, job, _ = job_of(annealed)
        starts = build_layout(layout, job, Sizes(), SampleRng(0, step)).sequence.slots.block_start[0].tolist()
        assert starts.count(max(starts)) == 2 * size  # in both views


def test_a_question_is_named_so_without_an_image_too() -> None:
    made = drawn("ar", sizes=Sizes(patches=0))
    assert span(made, "question") == ["q1", "q2"]
    assert span(made, "system") == ["<|mmu|>", "s1"]


def test_without_a_layout_the_configuration_decides(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config=config/bdvla_action_tuning.yaml", "--answer", "3", "--patches", "0"]) == 0
    assert capsys.readouterr().out.startswith("bd: blocks of 32, complementary copies, shift")


def test_a_real_size_is_drawn_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "deep" / "mask.png"
    assert main(["bd", "--answer", "40", "--patches", "144", "--png", str(file)]) == 0
    assert str(file) in capsys.readouterr().out
    with Image.open(file) as image:
        assert min(image.size) > 400
    assert [path.name for path in file.parent.iterdir()] == ["mask.png"]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["bdd"], "allowed: robot, ar, mdm, bd, actions"),
        (["bd", "mdm"], "one layout at a time"),
        (["bd", "block_diffusion.block_sizes=3"], "block_diffusion.block_size"),
        (["bd", "block_diffusion.block_size=0"], "expected"),
        (["bd", "--answer", "6;3"], "--answer"),
        (["robot", "--codes", "0"], "--codes is 0"),
        (["bd", "--answer", "200"], "--png"),
        (["config=nowhere.yaml"], "no such file"),
        (["bd", "--png", "/proc/mask.png"], "--png /proc/mask.png"),
        (["bd", "--png", "mask.jpg"], "expected the name of a .png file"),
        (["bd", "--answer", "1,1,1,1,1,1,1,1,1"], "names 9 answers; at most 8"),
        (["robot", "--codes", "4100", "--png", "mask.png"], "too many for an image"),
    ],
)
def test_a_mistake_is_told_in_one_line(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("show_mask: ")
    assert said in line


def test_a_layout_leaves_the_defaults_of_jobs_alone() -> None:
    build_layout("actions", Job(), Sizes(), SampleRng())
    assert Job().block_diffusion.action_enabled is False
