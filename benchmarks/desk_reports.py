"""Text worth decoding fast: reports of several sentences on a desk, which a small model learns in minutes.

A desk is nine things that can be one way or another: three blocks in six places each, and doors, lights and switches.
The model sees one patch for each, a noisy vector that stands for (thing, state), and is asked to report on all of it,
on the blocks or on the rest: 30 to 85 tokens. Every answer follows from the image, so a wrong word is a wrong word.
Held-out desks are in no training report.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from config.schema import Job, Objective
from models.language_model import backbone_config
from models.objectives import text_objective
from models.pretrained.model_config import DecodingDefaults, ModelConfig
from models.pretrained.model_io import Built, load_folder, save_folder
from models.processing.text import ASSISTANT, HUMAN, Prompter, load_tokenizer, vocabulary_of
from models.rng import SampleRng, generator
from models.sequence import TextTurn
from models.upvla import UPVLA
from training.optim.optimizer import Schedule, parameter_groups, set_lr

ROOT = Path(__file__).resolve().parents[1]
LANGUAGE_MODEL = ROOT / "assets/tiny_phi"
CLIP_WIDTH = 64
NOISE = 0.1
WEIGHT_DECAY = 0.01
LONGEST_GRADIENT = 1.0

PLACES = (
    "on the left of the table",
    "in the middle of the table",
    "on the right of the table",
    "in the open drawer",
    "behind the sliding door",
    "between the fingers of the gripper",
)
THINGS: tuple[tuple[str, tuple[str, ...]], ...] = (
    *((f"the {colour} block is", PLACES) for colour in ("red", "blue", "pink")),
    ("the drawer is", ("open", "closed")),
    ("the sliding door is", ("on the left", "on the right")),
    ("the switch is", ("up", "down")),
    ("the button is", ("pressed", "not pressed")),
    ("the light bulb is", ("on", "off")),
    ("the green LED is", ("on", "off")),
)
"""How a sentence on each thing begins, and how it may end."""
BLOCKS = 3
QUESTIONS: dict[str, range] = {
    "Describe the desk.": range(len(THINGS)),
    "Where are the blocks?": range(BLOCKS),
    "What do the doors and lights show?": range(BLOCKS, len(THINGS)),
}


@dataclass(frozen=True)
class Sample:
    """A desk, by the state of each thing, with a question and its answer."""

    desk: tuple[int, ...]
    question: str
    answer: str
    index: int

    @property
    def patches(self) -> Tensor:
        """[P, C]: one patch a thing."""
        draw = generator(0, "desk", self.index)
        seen = [_look(thing, state) for thing, state in enumerate(self.desk)]
        return torch.stack(seen) + NOISE * torch.randn(len(seen), CLIP_WIDTH, generator=draw)


def _look(thing: int, state: int) -> Tensor:
    """[C]: what a thing in that state looks like."""
    return torch.randn(CLIP_WIDTH, generator=generator(0, "look", thing, state))


def sample(index: int, *, held_out: bool) -> Sample:
    """The ``index``-th sample of the training or the held-out desks (whose states add up to a multiple of 4)."""
    draw = generator(0, "report", index, int(held_out))
    while True:
        desk = tuple(int(torch.randint(len(ends), (), generator=draw)) for _, ends in THINGS)
        if (sum(desk) % 4 == 0) == held_out:
            break
    question = list(QUESTIONS)[int(torch.randint(len(QUESTIONS), (), generator=draw))]
    sentences = [f"{THINGS[i][0]} {THINGS[i][1][desk[i]]}." for i in QUESTIONS[question]]
    return Sample(desk, question, " ".join(sentences), index)


@dataclass(frozen=True)
class Recipe:
    """How a model is made. ``ar_aux_weight``: of next-token prediction beside ``bd``."""

    objective: Objective
    block_size: int
    ar_aux_weight: float
    hidden: int
    layers: int
    steps: int
    batch: int
    learning_rate: float

    @property
    def job(self) -> Job:
        job = Job()
        job.training.text_objective = self.objective
        job.block_diffusion.block_size = job.text_mdm.canvas_multiple = self.block_size
        job.text_diffusion.ar_aux_weight = self.ar_aux_weight
        job.optimizer.params.learning_rate = self.learning_rate
        job.lr_scheduler.scheduler = "cosine"
        job.lr_scheduler.params.warmup_steps = min(50, self.steps // 4)
        job.training.max_train_steps = self.steps
        return job


@dataclass(frozen=True)
class Trained:
    """A model, and what learning it took: seconds of CPU time, training loss at the end."""

    built: Built
    seconds: float
    loss: float


def fresh(recipe: Recipe) -> Built:
    """The untrained model; the same for every objective."""
    tokenizer, words = load_tokenizer(LANGUAGE_MODEL)
    vocab = vocabulary_of(tokenizer, words, codebook_size=64)
    llm = backbone_config(LANGUAGE_MODEL)
    llm.hidden_size, llm.intermediate_size, llm.num_hidden_layers = recipe.hidden, 4 * recipe.hidden, recipe.layers
    llm.num_attention_heads = llm.num_key_value_heads = max(recipe.hidden // 32, 1)
    spec = ModelConfig(
        llm=llm.to_dict(),
        words=words,
        bos=vocab.bos,
        eos=vocab.eos,
        act_step=1,
        num_view=1,
        num_vq_tokens=4,
        clip_width=CLIP_WIDTH,
        codebook_size=vocab.codebook_size,
        decoding=DecodingDefaults(
            text_objective=recipe.objective,
            text_block_size=recipe.block_size,
            text_canvas_multiple=recipe.block_size,
        ),
    )
    torch.manual_seed(0)
    return Built(UPVLA(spec), Prompter(tokenizer, vocab, max_seq_length=24))


def turn_of(prompter: Prompter, samples: Sequence[Sample]) -> TextTurn:
    """Samples as a batch."""
    rows = [prompter.conversation([(HUMAN, s.question), (ASSISTANT, s.answer)]) for s in samples]
    return TextTurn.of_rows(
        [row.ids for row in rows],
        [row.answer for row in rows],
        prompter.vocab.pad,
        torch.stack([s.patches for s in samples]),
        torch.tensor([s.index for s in samples]),
    )


def train(recipe: Recipe, tick: Callable[[float], object]) -> Trained:
    """Learn; ``tick`` is told the loss of every step. All objectives read the same samples in the same order."""
    built, job = fresh(recipe), recipe.job
    model, prompter = built.model, built.prompter
    objective, schedule = text_objective(job), Schedule.of(job)
    optimizer = torch.optim.AdamW(parameter_groups(model, WEIGHT_DECAY), lr=recipe.learning_rate, fused=True)
    started, recent = time.process_time(), 0.0
    for step in range(recipe.steps):
        first = step * recipe.batch
        turn = turn_of(prompter, [sample(i, held_out=False) for i in range(first, first + recipe.batch)])
        task = objective.prepare(model.vocab, prompter.system_ids, turn, SampleRng(seed=0, step=step))
        loss = model.text_loss(task)[0].mean
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), LONGEST_GRADIENT)
        set_lr(optimizer, schedule(step))
        optimizer.step()
        recent += (float(loss.detach()) - recent) / min(step + 1, 50)
        tick(recent)
    return Trained(Built(model.eval(), prompter), time.process_time() - started, recent)


def trained(recipe: Recipe, folder: Path, tick: Callable[[float], object]) -> Trained:
    """The model of a recipe from ``folder``, where it is kept; made and kept there if it is not."""
    wanted, note = asdict(recipe), folder / "recipe.json"
    if note.is_file():
        known = json.loads(note.read_text(encoding="utf-8"))
        if known["recipe"] == wanted:
            built = load_folder(folder / "model")
            return Trained(Built(built.model.eval(), built.prompter), known["seconds"], known["loss"])
    made = train(recipe, tick)
    unfinished = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    save_folder(made.built.model, made.built.prompter, unfinished / "model")
    content = {"recipe": wanted, "seconds": made.seconds, "loss": made.loss}
    (unfinished / "recipe.json").write_text(json.dumps(content, indent=2), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(unfinished, folder)
    return made
