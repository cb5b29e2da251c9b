"""Draw the attention mask of a small made-up sequence in any layout, built by the functions that training uses.

Tokens have names, not text: s1 s2 of the system prompt, q1 q2 of a question, a1 a2 of its answer, b1 of the second
answer.

Legend: L slots.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from config.schema import Job
from models.action.encoding import ActionBins
from models.attention_mask import Kind
from models.objectives import TextTask, action_diffusion, action_task, text_objective
from models.rng import SampleRng
from models.sequence import Span, TextTurn, TokenSequence, robot_sequence
from models.vocabulary import SPECIAL_TOKENS, Vocabulary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LAYOUTS = ("robot", "ar", "mdm", "bd", "actions")
AXES = "xyzαβγg"
"""One action: translation, rotation, gripper."""
MASK = "▁"
ANSWERS = "abcdefgh"
"""First letters of the names of tokens, one letter for each answer."""


@dataclass(frozen=True)
class Sizes:
    """Numbers of tokens in the made-up sequence. ``answers``: tokens of each answer without its end-of-text."""

    instruction: int = 2
    codes: int = 4
    system: int = 1
    patches: int = 4
    question: int = 2
    answers: tuple[int, ...] = (5,)
    padding: int = 0

    def __post_init__(self) -> None:
        least = {"codes": 1, "instruction": 0, "system": 0, "patches": 0, "question": 1, "padding": 0}
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                raise ValueError(f"--{name} is {getattr(self, name)}; it must be {smallest} or more")
        if not self.answers or min(self.answers) < 1:
            raise ValueError("--answer needs a whole number of tokens, 1 or more, for each answer: --answer 6 or 6,3")
        if len(self.answers) > len(ANSWERS):
            raise ValueError(f"--answer names {len(self.answers)} answers; at most {len(ANSWERS)} can be drawn")


@dataclass(frozen=True)
class Target:
    """A token that one slot has to predict, and its weight in the training loss."""

    token: str
    weight: float


@dataclass(frozen=True)
class Layout:
    """``names``: the token's name of each slot; ``spans``: (name, columns) from left to right; ``targets``: slot ->
    what it has to predict."""

    sequence: TokenSequence
    names: list[str]
    spans: list[tuple[str, Span]]
    targets: dict[int, list[Target]] = field(default_factory=dict)


class _TokenNames:
    """Allocate token ids one after the other and name them."""

    def __init__(self, vocab: Vocabulary) -> None:
        self.names = {vocab.eos: "eos", vocab.bos: "bos", vocab.mask: MASK}
        self.names |= {vocab.words + i: name for i, name in enumerate(SPECIAL_TOKENS)}
        self._next = max(vocab.eos, vocab.bos)

    def allocate(self, letter: str, count: int) -> list[int]:
        ids = list(range(self._next + 1, self._next + 1 + count))
        self._next += count
        self.names |= {id_: f"{letter}{i}" for i, id_ in enumerate(ids, start=1)}
        return ids


VOCAB = Vocabulary(words=100_000, bos=1, eos=0)


def build_layout(layout: str, job: Job, sizes: Sizes, draws: SampleRng) -> Layout:
    """Build the named layout with the settings of ``job``.

    ``draws`` decides which tokens are masked and how large elastic blocks are.
    """
    if layout in ("robot", "actions"):
        return _robot(job, sizes, draws, layout == "actions")
    return _text(layout, job, sizes, draws)


def _text(layout: str, job: Job, sizes: Sizes, draws: SampleRng) -> Layout:
    tokens = _TokenNames(VOCAB)
    system, ids, answer = tokens.allocate("s", sizes.system), [], []
    for letter, count in zip(ANSWERS, sizes.answers, strict=False):
        question = tokens.allocate("q", sizes.question)
        reply = [*tokens.allocate(letter, count), VOCAB.eos]
        ids += [*question, *reply]
        answer += [False] * len(question) + [True] * len(reply)
    ids += [VOCAB.pad] * sizes.padding
    answer += [False] * sizes.padding
    patches = torch.zeros(1, sizes.patches, 1) if sizes.patches else None
    length = torch.tensor([len(ids) - sizes.padding])
    turn = TextTurn(torch.tensor([ids]), torch.tensor([answer]), patches, lengths=length)
    job.training.text_objective = layout  # type: ignore[assignment]
    task = text_objective(job).prepare(VOCAB, system, turn, draws)
    return _describe(task.sequence, tokens.names, task)


def _robot(job: Job, sizes: Sizes, draws: SampleRng, with_actions: bool) -> Layout:
    tokens = _TokenNames(VOCAB)
    instruction = [VOCAB.t2i, VOCAB.bos, *tokens.allocate("t", sizes.instruction), VOCAB.eos]
    count = sizes.codes * job.model.vla.num_view
    names = tokens.names | {VOCAB.first_code + i: f"c{i + 1}" for i in range(count)}
    width = len(instruction) + sizes.padding
    robot = robot_sequence(VOCAB, [instruction], torch.arange(count)[None], job.act_step, pad_to=width)
    if not with_actions:
        return _describe(robot, names, None)
    job.block_diffusion.action_enabled = True
    objective, numbers = action_diffusion(job.block_diffusion, job.text_diffusion), job.act_step * len(AXES)
    assert objective is not None
    bins = ActionBins(VOCAB, max(numbers, 2))  # one bin for each number, so that each has its own name
    chunk = torch.linspace(-1, 1, numbers).view(1, job.act_step, len(AXES))
    named = {VOCAB.first_code + i: f"{AXES[i % len(AXES)]}{i // len(AXES) + 1}" for i in range(numbers)}
    task = action_task(objective, bins, robot, chunk, rng=draws)
    layout = _describe(task.sequence, {**names, **named}, task)
    image = robot.image
    assert image is not None
    codes = [names[id_] for id_ in robot.ids[0, image.columns].tolist()]  # bins share the ids of image codes
    slot_names = [*layout.names[: image.start], *codes, *layout.names[image.stop :]]
    return Layout(layout.sequence, slot_names, layout.spans, layout.targets)


def _describe(sequence: TokenSequence, names: dict[int, str], task: TextTask | None) -> Layout:
    """Name slots and spans from ids and tags."""
    slots = sequence.slots
    tags = list(zip(*(tag[0].tolist() for tag in (slots.kind, slots.copy_id)), strict=True))
    slot_names: list[str] = []
    patches = 0
    for id_, (kind, _) in zip(sequence.ids[0].tolist(), tags, strict=True):
        patches += kind == Kind.PATCH
        slot_names.append(f"p{patches}" if kind == Kind.PATCH else "" if kind == Kind.PAD else names[id_])
    spans: list[tuple[str, Span]] = []
    for column, (kind, copy) in enumerate(tags):
        before = {name for name, _ in spans}
        name = _span_name(Kind(kind), copy, before, slot_names[column], actions=sequence.actions)
        if spans and spans[-1][0] == name:
            spans[-1] = (name, Span(spans[-1][1].start, column + 1))
        else:
            spans.append((name, Span(column, column + 1)))
    targets: dict[int, list[Target]] = {}
    if task is not None:
        rows = (task.slots.tolist(), task.targets.tolist(), task.weights.tolist())
        for slot, target, weight in sorted(zip(*rows, strict=True)):
            targets.setdefault(slot, []).append(Target(names[target], weight))
    return Layout(sequence, slot_names, spans, targets)


def _span_name(kind: Kind, copy: int, before: set[str], slot: str, actions: Span | None) -> str:
    if copy:
        return "padding" if kind == Kind.PAD else f"noisy copy {copy}"
    if kind == Kind.TEXT:
        if actions is not None:
            return "instruction"
        return "question" if slot.startswith("q") or before & {"patches", "clean answer"} else "system"
    return {
        Kind.PAD: "padding",
        Kind.IMAGE: "image",
        Kind.PATCH: "patches",
        Kind.ACTION: "<|lvg|>",
        Kind.ANSWER: "clean actions" if actions is not None else "clean answer",
    }[kind]


EMPTY, INK, FAINT = "#f2f0eb", "#22242a", "#80828a"
SPAN_COLORS = {
    "instruction": "#5c6b82",
    "system": "#5c6b82",
    "question": "#3e7c96",
    "patches": "#d6942c",
    "image": "#d6942c",
    "<|lvg|>": "#b24a4a",
    "clean answer": "#2f6eba",
    "clean actions": "#2f6eba",
    "noisy copy 1": "#7e57b2",
    "noisy copy 2": "#1e9176",
    "padding": "#bebcb6",
}
OTHER_COPIES = "#966e46"
RULES = {
    "mmu": "Clean slots attend backwards, and every slot attends to the patches.",
    "robot": "Text, <|lvg|> and clean actions attend backwards; the image span attends to the whole robot flow.",
    "copy": "A slot of a noisy copy attends to the clean slots before its block, and to its own block in its copy.",
}
LARGEST_NAMED = 100
"""Slots above which their names and predictions are not written."""
LARGEST_GRID = 100
"""Slots above which no lines are drawn around blocks: they would hide the squares."""


def mask_colors(layout: Layout) -> NDArray[np.uint8]:
    """Return uint8 [L, L, 3]: the color of the key's span where the query attends to the key, EMPTY elsewhere."""
    from matplotlib.colors import to_rgb

    allowed = layout.sequence.rule.dense(layout.sequence.slots)[0, 0].numpy()  # [L, L], the mask that training uses
    colors = np.array([to_rgb(color) for color in _slot_colors(layout)])
    painted: NDArray[Any] = np.where(allowed[:, :, None], colors[None], np.array(to_rgb(EMPTY)))
    return (255 * painted).round().astype(np.uint8)


def draw_mask(layout: Layout, title: str, note: str) -> Figure:
    """Return a figure of the mask with ``title`` above it and ``note`` (how to read it) below."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    count = layout.sequence.ids.shape[1]
    named = count <= LARGEST_NAMED
    side = max(5.0, min(11.0, 0.24 * count))
    figure = Figure(figsize=(side + (3.5 if named else 1.5), side + 2.5), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(mask_colors(layout), interpolation="nearest")
    figure.suptitle(title, fontsize=13, fontweight="bold", color=INK)
    axes.tick_params(length=0, labelsize=8, labelfontfamily="monospace", top=True, labeltop=True, bottom=False)
    axes.tick_params(labelbottom=False)
    for at, between_spans, width in _lines(layout):
        for draw_line in (axes.axhline, axes.axvline):
            draw_line(at, color=INK if between_spans else FAINT, linewidth=width)
    if named:
        _write_names(axes, layout)
    else:
        axes.set_xticks([])
        axes.set_yticks([(at.start + at.stop - 1) / 2 for _, at in layout.spans], [name for name, _ in layout.spans])
    lengths: dict[str, int] = {}
    for name, span in layout.spans:
        lengths[name] = lengths.get(name, 0) + len(span)
    handles = [Patch(color=_color(name), label=f"{name}, {length} slots") for name, length in lengths.items()]
    notes = "\n".join(_notes(layout, note))
    below = figure.legend(handles=handles, loc="outside lower left", ncols=4, frameon=False, fontsize=9, title=notes)
    below.set_alignment("left")
    below.get_title().set(fontsize=9, color=FAINT)
    return figure


def draw_masks(layouts: Mapping[str, Layout]) -> Figure:
    """Return a figure of several masks side by side under their names, with one legend for all."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    sizes = [layout.sequence.ids.shape[1] for layout in layouts.values()]
    figure = Figure(figsize=(13, 5.6), dpi=100, layout="constrained")
    all_axes = figure.subplots(1, len(layouts), squeeze=False, width_ratios=[max(size, 10) for size in sizes])[0]
    for axes, (name, layout) in zip(all_axes, layouts.items(), strict=True):
        axes.imshow(mask_colors(layout), interpolation="nearest")
        axes.set_anchor("N")
        axes.set_title(name, fontsize=14, fontweight="bold", color=INK)
        axes.tick_params(length=0, labelsize=8, labelfontfamily="monospace", labelbottom=False)
        for at, between_spans, width in _lines(layout):
            for draw_line in (axes.axhline, axes.axvline):
                draw_line(at, color=INK if between_spans else FAINT, linewidth=width)
        axes.set_xticks([])
        axes.set_yticks(range(len(layout.names)), layout.names)
        for label, color in zip(axes.get_yticklabels(), _slot_colors(layout), strict=True):
            label.set_color(color)
    names = dict.fromkeys(name for layout in layouts.values() for name, _ in layout.spans)
    handles = [Patch(color=_color(name), label=name) for name in names]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=11)
    return figure


def _color(name: str) -> str:
    return SPAN_COLORS.get(name, OTHER_COPIES)


def _slot_colors(layout: Layout) -> list[str]:
    return [_color(name) for name, span in layout.spans for _ in range(len(span))]


def _lines(layout: Layout) -> Iterator[tuple[float, bool, float]]:
    """Yield (position, whether spans meet there, width) of the lines between spans and between blocks."""
    starts = layout.sequence.slots.block_start[0].tolist()
    edges = {span.start for _, span in layout.spans if span.start}
    for column in range(1, len(starts)):
        if column in edges:
            yield column - 0.5, True, 1.2
        elif len(starts) <= LARGEST_GRID and starts[column] != starts[column - 1]:
            yield column - 0.5, False, 0.6


def _write_names(axes: Any, layout: Layout) -> None:
    """Write the token of each slot on both axes, and on the right what the slot predicts."""
    slots, colors = range(len(layout.names)), _slot_colors(layout)
    axes.set_xticks(slots, [name.strip("<|>") for name in layout.names], rotation=90)
    axes.set_yticks(slots, layout.names)
    for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
        for label, color in zip(labels, colors, strict=True):
            label.set_color(color)
    for slot, targets in layout.targets.items():
        text = ", ".join(f"→ {target.token} ×{target.weight:.3g}" for target in targets)
        axes.annotate(
            text, (1, slot), (6, 0), xycoords=("axes fraction", "data"), textcoords="offset points", va="center",
            fontsize=8, color=INK, family="monospace",
        )  # fmt: skip


def _notes(layout: Layout, note: str) -> list[str]:
    lines = [RULES["robot" if layout.sequence.actions else "mmu"]]
    if any(name.startswith("noisy copy") for name, _ in layout.spans):
        lines.append(RULES["copy"])
    lines.append(f"A row is a query; a colored square is a key that it attends to. {note}".rstrip())
    if layout.targets:
        lines.append(f"{MASK} is a masked token; → token ×w: what a slot predicts, and its weight in the loss.")
    return lines
