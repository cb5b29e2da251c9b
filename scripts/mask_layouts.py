"""A small made-up batch of one for every layout there is, built by the builders that training uses.

Words have no text here, only names: s1 s2 of the system prompt, q1 q2 of a question, a1 a2 of its answer, b1 of the
second one.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from config.schema import Job
from models.action.encoding import ActionBins
from models.attention_mask import Kind
from models.objectives import TextTask, action_diffusion, action_task, text_objective
from models.rng import SampleRng
from models.sequence import Span, TextTurn, TokenSequence, robot_sequence
from models.vocabulary import SPECIAL_TOKENS, Vocabulary

LAYOUTS = ("robot", "ar", "mdm", "bd", "actions")
AXES = "xyzαβγg"
"""One action: translation, rotation, gripper."""
MASK = "▁"
ANSWERS = "abcdefgh"
"""By which letter the words of each answer are named."""


@dataclass(frozen=True)
class Sizes:
    """How many of what the made-up batch has; ``answers``: words of each answer, without their end-of-text."""

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
            raise ValueError("--answer needs a whole number of words, 1 or more, for each answer: --answer 6 or 6,3")
        if len(self.answers) > len(ANSWERS):
            raise ValueError(f"--answer names {len(self.answers)} answers; at most {len(ANSWERS)} can be drawn")


@dataclass(frozen=True)
class Reading:
    """What is predicted from one slot: the token's name and what it weighs in the training loss."""

    target: str
    weight: float


@dataclass(frozen=True)
class Layout:
    """``names``: of each slot's token; ``spans``: (name, columns) from left to right; ``readings``: by slot."""

    sequence: TokenSequence
    names: list[str]
    spans: list[tuple[str, Span]]
    readings: dict[int, list[Reading]] = field(default_factory=dict)


class _Words:
    """Ids that are handed out one after the other, each with a name."""

    def __init__(self, vocab: Vocabulary) -> None:
        self.names = {vocab.eos: "eos", vocab.bos: "bos", vocab.mask: MASK}
        self.names |= {vocab.words + i: name for i, name in enumerate(SPECIAL_TOKENS)}
        self._next = max(vocab.eos, vocab.bos)

    def of(self, letter: str, count: int) -> list[int]:
        ids = list(range(self._next + 1, self._next + 1 + count))
        self._next += count
        self.names |= {id_: f"{letter}{i}" for i, id_ in enumerate(ids, start=1)}
        return ids


VOCAB = Vocabulary(words=100_000, bos=1, eos=0)


def lay_out(layout: str, job: Job, sizes: Sizes, draws: SampleRng) -> Layout:
    """The named layout with the knobs of ``job``; ``draws`` decides what is hidden and how large elastic blocks are."""
    return (
        _robot(job, sizes, draws, layout == "actions")
        if layout in ("robot", "actions")
        else _text(layout, job, sizes, draws)
    )


def _text(layout: str, job: Job, sizes: Sizes, draws: SampleRng) -> Layout:
    words = _Words(VOCAB)
    system, ids, answer = words.of("s", sizes.system), [], []
    for letter, count in zip(ANSWERS, sizes.answers, strict=False):
        asked = words.of("q", sizes.question)
        said = [*words.of(letter, count), VOCAB.eos]
        ids += [*asked, *said]
        answer += [False] * len(asked) + [True] * len(said)
    ids += [VOCAB.pad] * sizes.padding
    answer += [False] * sizes.padding
    patches = torch.zeros(1, sizes.patches, 1) if sizes.patches else None
    length = torch.tensor([len(ids) - sizes.padding])
    turn = TextTurn(torch.tensor([ids]), torch.tensor([answer]), patches, lengths=length)
    job.training.text_objective = layout  # type: ignore[assignment]
    task = text_objective(job).prepare(VOCAB, system, turn, draws)
    return _described(task.sequence, words.names, task)


def _robot(job: Job, sizes: Sizes, draws: SampleRng, with_actions: bool) -> Layout:
    words = _Words(VOCAB)
    instruction = [VOCAB.t2i, VOCAB.bos, *words.of("t", sizes.instruction), VOCAB.eos]
    count = sizes.codes * job.model.vla.num_view
    names = words.names | {VOCAB.first_code + i: f"c{i + 1}" for i in range(count)}
    width = len(instruction) + sizes.padding
    robot = robot_sequence(VOCAB, [instruction], torch.arange(count)[None], job.act_step, pad_to=width)
    if not with_actions:
        return _described(robot, names, None)
    job.block_diffusion.action_enabled = True
    objective, numbers = action_diffusion(job.block_diffusion, job.text_diffusion), job.act_step * len(AXES)
    assert objective is not None
    bins = ActionBins(VOCAB, max(numbers, 2))  # as many as there are numbers, so that each has a name of its own
    chunk = torch.linspace(-1, 1, numbers).view(1, job.act_step, len(AXES))
    named = {VOCAB.first_code + i: f"{AXES[i % len(AXES)]}{i // len(AXES) + 1}" for i in range(numbers)}
    task = action_task(objective, bins, robot, chunk, rng=draws)
    told = _described(task.sequence, {**names, **named}, task)
    image = robot.image
    assert image is not None
    codes = [names[id_] for id_ in robot.ids[0, image.columns].tolist()]  # bins share the ids of image codes
    return Layout(
        told.sequence, [*told.names[: image.start], *codes, *told.names[image.stop :]], told.spans, told.readings
    )


def _described(sequence: TokenSequence, names: dict[int, str], task: TextTask | None) -> Layout:
    """Names of slots and spans, read off ids and tags."""
    slots = sequence.slots
    tags = list(zip(*(tag[0].tolist() for tag in (slots.kind, slots.copy_id)), strict=True))
    said: list[str] = []
    patches = 0
    for id_, (kind, _) in zip(sequence.ids[0].tolist(), tags, strict=True):
        patches += kind == Kind.PATCH
        said.append(f"p{patches}" if kind == Kind.PATCH else "" if kind == Kind.PAD else names[id_])
    spans: list[tuple[str, Span]] = []
    for column, (kind, view) in enumerate(tags):
        before = {name for name, _ in spans}
        name = _span_name(Kind(kind), view, before, said[column], actions=sequence.actions)
        if spans and spans[-1][0] == name:
            spans[-1] = (name, Span(spans[-1][1].start, column + 1))
        else:
            spans.append((name, Span(column, column + 1)))
    readings: dict[int, list[Reading]] = {}
    if task is not None:
        rows = (task.slots.tolist(), task.targets.tolist(), task.weights.tolist())
        for slot, target, weight in sorted(zip(*rows, strict=True)):
            readings.setdefault(slot, []).append(Reading(names[target], weight))
    return Layout(sequence, said, spans, readings)


def _span_name(kind: Kind, view: int, before: set[str], slot: str, actions: Span | None) -> str:
    what = "actions" if actions is not None else "answer"
    if view:
        return "padding" if kind == Kind.PAD else f"view {view}"
    if kind == Kind.TEXT:
        if actions is not None:
            return "instruction"
        asked = slot.startswith("q") or before & {"picture", "clean answer"}
        return "question" if asked else "system"
    return {
        Kind.PAD: "padding",
        Kind.IMAGE: "image",
        Kind.PATCH: "picture",
        Kind.ACTION: "<|lvg|>",
        Kind.ANSWER: f"clean {what}",
    }[kind]
