"""Judging trained runs on what was held out: words, actions, and the time an answer takes.

Everything is kept item by item (a question, a stretch of frames), so that two runs can be compared on the same items.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.atomic_file import replace_text
from config.schema import MMU_INDEX, Job
from models.decoding import generate
from models.objectives import text_objective
from models.pretrained.model_io import Built, load_folder
from models.pretrained.weights_io import files_sha256
from models.processing.image import clip_pixels
from models.processing.text import ASSISTANT, HUMAN
from models.rng import SampleRng
from models.sequence import TextTurn
from models.text_metrics import DRAWS
from models.vision.clip_encoder import load_clip
from models.vision.magvitv2 import load_magvit
from policy_rollout.benchmarks.offline import Sample, evaluate, list_samples
from policy_rollout.benchmarks.vqa.questions import read_questions, require_images
from policy_rollout.policies.upvla import Policy, UPVLAPolicy, pick_device
from preprocess_data.tiny_assets.questions import kind_of
from scripts.comparison.plan import Planned
from scripts.desk_trial import chains as desk_chains
from scripts.desk_trial import play_chains
from scripts.desk_trial import rules as desk_rules
from training.data.caches.token_cache import probes, raw_digest
from training.data.calvin import CalvinSplit
from training.data.readers import read_image

ANSWERED_AT_ONCE = 48
TIMED_QUESTIONS = 24

MADE_WITH = "made_with"
VERSION = 2
"""Of what is kept of a run; 2: which answers were cut."""

Progress = Callable[[int], object]


@dataclass(frozen=True)
class Question:
    """A held-out question about the image whose features are in row ``image``; ``answer`` is the true one."""

    text: str
    answer: str
    image: int


@dataclass(frozen=True)
class HeldOut:
    """What all runs are asked: ``patches`` [images, P, C] are CLIP's features, the same for all."""

    questions: tuple[Question, ...]
    patches: Tensor

    def patches_of(self, questions: Sequence[Question]) -> Tensor:
        return self.patches[[question.image for question in questions]]

    def blank(self, grey: Tensor) -> HeldOut:
        """The same questions about one blank image (``grey`` [P, C])."""
        return HeldOut(self.questions, grey.expand_as(self.patches))


@dataclass(frozen=True)
class Words:
    """By question, in the order of ``HeldOut.questions``: is the answer right to the letter; how many of its
    ``tokens`` were said at their place; what its likelihood (or bound) costs in nats, and the variance of that; is the
    answer right when another question's image is shown; was the answer ``cut`` at ``max_new_tokens``."""

    exact: list[bool]
    said: list[str]
    right_tokens: list[int]
    tokens: list[int]
    nats: list[float]
    nats_variance: list[float]
    exact_shuffled: list[bool]
    cut: list[bool]


@dataclass(frozen=True)
class Actions:
    """``overall``: offline metrics over all start frames. By stretch of T start frames: mean absolute error, steps."""

    overall: dict[str, float]
    errors: list[float]
    steps: list[int]


@dataclass(frozen=True)
class Judged:
    """One run's held-out results. ``chains``: how many tasks of each closed-loop chain were done (empty: none)."""

    words: Words
    actions: Actions
    chains: list[int] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path, made_with: Mapping[str, Any]) -> Judged | None:
        """What ``judge`` kept; None where it was made with anything else."""
        data = json.loads(path.read_text(encoding="utf-8"))
        if data.get(MADE_WITH) != made_with:
            return None
        return cls(Words(**data["words"]), Actions(**data["actions"]), data.get("chains", []))


@dataclass(frozen=True)
class Speed:
    """Answers one by one: seconds of each, and what they took together."""

    seconds: list[float]
    first_token_seconds: list[float]
    tokens: int
    forwards: int

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / max(sum(self.seconds), 1e-9)

    @property
    def tokens_per_forward(self) -> float:
        return self.tokens / max(self.forwards, 1)


# --- what is asked ---------------------------------------------------------------------------------------------------


def read_held_out(job: Job, folder: Path) -> HeldOut:
    """The first question of every conversation of ``folder``. Raises ``ValueError`` or ``FileNotFoundError``."""
    found = read_questions("conversations", [folder / MMU_INDEX])
    require_images(found, folder)
    images: dict[str, int] = {}
    questions = [Question(q.text, q.truths[0], images.setdefault(q.image, len(images))) for q in found]
    clip = load_clip(job.model.showo.clip_model_path)
    features = [clip.features(clip_pixels(read_image(folder / name), clip.image_spec)[None])[0] for name in images]
    return HeldOut(tuple(questions), torch.stack(features))


def kinds_of(asked: HeldOut) -> list[str]:
    """The kind of every question; of questions that are not the bundled ones, nothing is known."""
    try:
        return [kind_of(question.text) for question in asked.questions]
    except ValueError:
        return ["all"] * len(asked.questions)


def blank_features(job: Job, image: Path) -> Tensor:
    """[P, C] of a blank image."""
    clip = load_clip(job.model.showo.clip_model_path)
    return clip.features(clip_pixels(read_image(image), clip.image_spec)[None])[0]


# --- words -----------------------------------------------------------------------------------------------------------


def judge_words(built: Built, job: Job, asked: HeldOut, progress: Progress) -> Words:
    """Answers and likelihoods of all questions; ``progress`` hears of questions done, three times each."""
    answered = _answers(built, job, asked.questions, asked.patches_of(asked.questions), progress)
    # Another question's image: the model is asked as before, but cannot know.
    others = asked.patches_of([*asked.questions[1:], *asked.questions[:1]])
    shuffled = _answers(built, job, asked.questions, others, progress)
    truths = [_answer_ids(built, question) for question in asked.questions]
    nats, variances = _nats(built, job, asked, progress)
    return Words(
        exact=[said == q.answer for (said, _, _), q in zip(answered, asked.questions, strict=True)],
        said=[said for said, _, _ in answered],
        right_tokens=[
            sum(a == b for a, b in zip(ids, truth, strict=False))
            for (_, ids, _), truth in zip(answered, truths, strict=True)
        ],
        tokens=[len(truth) for truth in truths],
        nats=nats,
        nats_variance=variances,
        exact_shuffled=[said == q.answer for (said, _, _), q in zip(shuffled, asked.questions, strict=True)],
        cut=[cut for _, _, cut in answered],
    )


def _answers(
    built: Built, job: Job, questions: Sequence[Question], patches: Tensor, progress: Progress
) -> list[tuple[str, list[int], bool]]:
    """(text, ids, was it cut at ``max_new_tokens``) of the greedy answers."""
    said: list[tuple[str, list[int], bool]] = []
    for start in range(0, len(questions), ANSWERED_AT_ONCE):
        some = slice(start, start + ANSWERED_AT_ONCE)
        texts = [question.text for question in questions[some]]
        answer = generate(
            built.model, built.prompter, texts, patches[some].to(built.model.device), max_new_tokens=job.max_new_tokens
        )
        said += zip(answer.texts, answer.ids, answer.cut, strict=True)
        progress(len(texts))
    return said


def _conversation(built: Built, question: Question) -> tuple[list[int], list[bool]]:
    conversation = built.prompter.conversation([(HUMAN, question.text), (ASSISTANT, question.answer)])
    return conversation.ids, conversation.answer


def _answer_ids(built: Built, question: Question) -> list[int]:
    """The true answer's ids, its end-of-text included."""
    return [i for i, answer in zip(*_conversation(built, question), strict=True) if answer]


@torch.no_grad()
def _nats(built: Built, job: Job, asked: HeldOut, progress: Progress) -> tuple[list[float], list[float]]:
    """Nats of every answer (ar: exact; mdm, bd: their bound, averaged over draws), and that figure's variance."""
    objective, prompter, model = text_objective(job).for_evaluation(1), built.prompter, built.model
    draws = 1 if objective.name == "ar" else DRAWS
    found = []  # [K, B] of every batch
    for start in range(0, len(asked.questions), ANSWERED_AT_ONCE):
        some = asked.questions[start : start + ANSWERED_AT_ONCE]
        pairs = [_conversation(built, question) for question in some]
        turn = TextTurn.of_rows(
            [ids for ids, _ in pairs],
            [answer for _, answer in pairs],
            prompter.vocab.pad,
            patches=asked.patches_of(some).to(model.device),
            indices=torch.arange(start, start + len(some)),
        )
        costs = torch.zeros(draws, len(some), device=model.device)
        for number in range(draws):
            drawn = SampleRng(job.training.seed, number)
            task = objective.prepare(prompter.vocab, prompter.system_ids, turn, drawn).to(model.device)
            costs[number].index_add_(0, task.rows, model.text_scores(task)[0] * task.bound_weights)
        found.append(costs.double().cpu())
        progress(len(some))
    table = torch.cat(found, dim=1)
    spread = table.var(dim=0) / draws if draws > 1 else torch.zeros(len(asked.questions))
    return table.mean(dim=0).tolist(), spread.tolist()


# --- actions ---------------------------------------------------------------------------------------------------------


def judge_actions(policy: Policy, split: CalvinSplit) -> Actions:
    """Offline metrics of every start frame, and of stretches of T of them: neighbours see and do nearly the same, so
    a stretch is what counts as one independent item."""
    samples = list_samples(split.annotations, policy.act_step)
    stretches: dict[tuple[int, int], list[Sample]] = {}
    for number, window in enumerate(split.annotations):
        for sample in list_samples([window], policy.act_step):
            stretches.setdefault((number, (sample.start - window.start) // policy.act_step), []).append(sample)
    reports = [evaluate(split, policy, some).overall for some in stretches.values()]
    return Actions(
        overall=evaluate(split, policy, samples).overall,
        errors=[report["mae_all"] for report in reports],
        steps=[int(report["steps"]) for report in reports],
    )


# --- a run -----------------------------------------------------------------------------------------------------------


def judge(run: Planned, job: Job, asked: HeldOut, split: CalvinSplit, progress: Progress, chains: int = 0) -> Judged:
    """Everything about one trained run; kept in its folder, and read from there the next time. ``chains``: how many
    are played in closed loop (with fewer kept, all of them are played)."""
    made_with = identity(run, job, asked, split)
    judged = Judged.read(run.judged_file, made_with) if run.judged_file.is_file() else None
    if judged is not None:
        progress(3 * len(asked.questions))
        if len(judged.chains) >= chains:
            return replace(judged, chains=judged.chains[:chains])
    policy = UPVLAPolicy.from_config(run.folder / "config.yaml", checkpoint=run.folder)
    if judged is None:
        built = _trained(run, job)
        judged = Judged(judge_words(built, job, asked, progress), judge_actions(policy, split))
    judged = replace(judged, chains=play_chains(policy, desk_chains(chains)) if chains else [])
    replace_text(run.judged_file, json.dumps({**asdict(judged), MADE_WITH: made_with}) + "\n")
    return judged


def identity(run: Planned, job: Job, asked: HeldOut, split: CalvinSplit) -> dict[str, Any]:
    """What the results of a run depend on; results of anything else are made anew."""
    questions = hashlib.sha256(json.dumps([asdict(question) for question in asked.questions]).encode())
    questions.update(asked.patches.cpu().float().numpy().tobytes())
    frames = [split.frame_path(number) for window in split.annotations for number in (window.start, window.end)]
    found = {
        "version": VERSION,
        "weights": files_sha256(run.folder),
        "image_tokenizer": load_magvit(job.model.vq_model.vq_model_name).weights_hash,
        "questions": questions.hexdigest(),
        "max_new_tokens": job.max_new_tokens,
        "draws": [DRAWS, job.training.seed],
        "actions": [raw_digest(split), probes(frames, split.path)],
        "chains": desk_rules(),
    }
    plain: dict[str, Any] = json.loads(json.dumps(found))
    return plain


def _trained(run: Planned, job: Job) -> Built:
    trust = job.model.showo.trust_remote_code
    return load_folder(run.folder, pick_device(job.training.device), trust_remote_code=trust)


def time_answers(runs: Sequence[Planned], job: Job, asked: HeldOut, progress: Progress) -> dict[str, Speed]:
    """Seconds of answers to the same questions, one at a time, the runs in turn at each question: what else the
    machine does then slows all alike. The first question warms up and is not counted."""
    models = {run.objective: _trained(run, job) for run in runs}
    step = max(1, len(asked.questions) // (TIMED_QUESTIONS + 1))
    questions = asked.questions[::step][: TIMED_QUESTIONS + 1]
    seconds: dict[str, list[float]] = {name: [] for name in models}
    first: dict[str, list[float]] = {name: [] for name in models}
    tokens, forwards = dict.fromkeys(models, 0), dict.fromkeys(models, 0)
    for number, question in enumerate(questions):
        for name, built in models.items():
            patches = asked.patches_of([question]).to(built.model.device)
            started = time.perf_counter()
            answer = generate(built.model, built.prompter, [question.text], patches, max_new_tokens=job.max_new_tokens)
            took = time.perf_counter() - started
            progress(1)
            if number:
                seconds[name].append(took)
                first[name].append(answer.stats.first_token_seconds)
                tokens[name] += answer.stats.tokens
                forwards[name] += answer.stats.forwards
    return {name: Speed(seconds[name], first[name], tokens[name], forwards[name]) for name in models}


def machine(device: torch.device) -> str:
    """On what the figures were taken, in a few words."""
    cores = f"{os.cpu_count()} {platform.machine()} CPU cores"
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else cores
    return (
        f"{where}, {torch.get_num_threads()} thread(s), torch {torch.__version__}, Python {platform.python_version()}"
    )
