"""A text task for decoding benchmarks: reports of several sentences on a desk, which a small model learns in minutes.

A desk has nine things with a state each: three blocks in six places, and doors, lights and switches. The model gets one
patch for each, a noisy vector for (thing, state), and reports on all of them, on the blocks or on the rest in 30 to 85
tokens. Every answer follows from the patches. Held-out desks are in no training report.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.harness.record import ROOT
from common.files import write_text
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

LANGUAGE_MODEL = ROOT / "assets/tiny_phi"
CLIP_WIDTH = 64
NOISE = 0.1
WEIGHT_DECAY = 0.01
MAX_GRADIENT_NORM = 1.0

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
"""How a sentence on each thing begins, and its possible ends."""
BLOCKS = 3
QUESTIONS: dict[str, range] = {
    "Describe the desk.": range(len(THINGS)),
    "Where are the blocks?": range(BLOCKS),
    "What do the doors and lights show?": range(BLOCKS, len(THINGS)),
}


@dataclass(frozen=True)
class Sample:
    """The states of a desk's things, with a question and its answer."""

    desk: tuple[int, ...]
    question: str
    answer: str
    index: int

    @property
    def patches(self) -> Tensor:
        """Return one patch [C] for each thing, [P, C]."""
        draw = generator(0, "desk", self.index)
        features = [_feature(thing, state) for thing, state in enumerate(self.desk)]
        return torch.stack(features) + NOISE * torch.randn(len(features), CLIP_WIDTH, generator=draw)


def _feature(thing: int, state: int) -> Tensor:
    """Return the vector [C] of a thing in a state."""
    return torch.randn(CLIP_WIDTH, generator=generator(0, "look", thing, state))


def sample(index: int, *, held_out: bool) -> Sample:
    """Return a sample of the training or the held-out desks (whose states add up to a multiple of 4)."""
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
    """Training settings. ``ar_aux_weight``: weight of next-token prediction in addition to ``bd``."""

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
    """A model, the CPU seconds of its training, and the training loss at the end."""

    built: Built
    seconds: float
    loss: float


def untrained(recipe: Recipe) -> Built:
    """Return the untrained model, the same for every objective."""
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
    """Return samples as a batch."""
    rows = [prompter.conversation([(HUMAN, s.question), (ASSISTANT, s.answer)]) for s in samples]
    return TextTurn.of_rows(
        [row.ids for row in rows],
        [row.answer for row in rows],
        prompter.vocab.pad,
        torch.stack([s.patches for s in samples]),
        torch.tensor([s.index for s in samples]),
    )


def train(recipe: Recipe, tick: Callable[[float], object]) -> Trained:
    """Train on the same samples in the same order for all objectives; ``tick`` receives the loss of every step."""
    built, job = untrained(recipe), recipe.job
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
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRADIENT_NORM)
        set_lr(optimizer, schedule(step))
        optimizer.step()
        recent += (float(loss.detach()) - recent) / min(step + 1, 50)
        tick(recent)
    return Trained(Built(model.eval(), prompter), time.process_time() - started, recent)


def load_or_train(recipe: Recipe, folder: Path, tick: Callable[[float], object]) -> Trained:
    """Return the model of a recipe from ``folder`` if it is stored there; otherwise train and store it."""
    wanted, note = asdict(recipe), folder / "recipe.json"
    if note.is_file():
        stored = json.loads(note.read_text(encoding="utf-8"))
        if stored["recipe"] == wanted:
            built = load_folder(folder / "model")
            return Trained(Built(built.model.eval(), built.prompter), stored["seconds"], stored["loss"])
    shutil.rmtree(folder, ignore_errors=True)
    trained = train(recipe, tick)
    save_folder(trained.built.model, trained.built.prompter, folder / "model")
    content = {"recipe": wanted, "seconds": trained.seconds, "loss": trained.loss}
    write_text(note, json.dumps(content, indent=2))  # last: the folder is complete
    return trained
