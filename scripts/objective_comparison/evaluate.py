"""Evaluate trained runs on held-out data: answers, actions, and the time of an answer.

Results are stored item by item (a question, a stretch of frames), so that two runs are compared on the same items.
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

from common.command import phase_bar
from common.files import write_text
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
from policy_rollout.desk.task_sets import DOORS
from policy_rollout.policies.upvla import Policy, UPVLAPolicy, pick_device
from preprocess_data.tiny_assets.questions import kind_of
from scripts.objective_comparison.plan import RunPlan
from training.data.caches.token_cache import probes, raw_digest
from training.data.calvin import CalvinSplit
from training.data.readers import read_image

ANSWER_BATCH = 48
TIMED_QUESTIONS = 24

MADE_WITH = "made_with"
VERSION = 2
"""Version of the stored results; 2 added which answers were cut."""

Progress = Callable[[int], object]


@dataclass(frozen=True)
class Question:
    """A held-out question about the image whose features are in row ``image``; ``answer`` is the true one."""

    text: str
    answer: str
    image: int


@dataclass(frozen=True)
class HeldOut:
    """Questions for all runs; ``patches`` [images, P, C] are CLIP's features, the same for all."""

    questions: tuple[Question, ...]
    patches: Tensor

    def patches_of(self, questions: Sequence[Question]) -> Tensor:
        return self.patches[[question.image for question in questions]]

    def blank(self, grey: Tensor) -> HeldOut:
        """Return the same questions about one blank image (``grey`` [P, C])."""
        return HeldOut(self.questions, grey.expand_as(self.patches))


@dataclass(frozen=True)
class TextResult:
    """Results by question, in the order of ``HeldOut.questions``.

    ``exact``: whether the answer matches exactly; ``right_tokens``: how many of its ``tokens`` are at the right
    position; ``nats``, ``nats_variance``: negative log-likelihood (or its bound) and the variance of that estimate;
    ``exact_shuffled``: whether the answer matches with another question's image; ``cut``: whether it was cut at
    ``max_new_tokens``. The names are keys of the stored file, where ``answers`` is `said`.
    """

    exact: list[bool]
    answers: list[str]
    right_tokens: list[int]
    tokens: list[int]
    nats: list[float]
    nats_variance: list[float]
    exact_shuffled: list[bool]
    cut: list[bool]


@dataclass(frozen=True)
class ActionResult:
    """Offline action metrics.

    ``overall``: over all start frames; ``errors``, ``steps``: mean absolute error and number of steps of each stretch
    of T start frames.
    """

    overall: dict[str, float]
    errors: list[float]
    steps: list[int]


@dataclass(frozen=True)
class RunResult:
    """Held-out results of one run. ``chains``: tasks completed in each closed-loop chain (empty if none were run)."""

    words: TextResult
    actions: ActionResult
    chains: list[int] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path, made_with: Mapping[str, Any]) -> RunResult | None:
        """Return the stored results, or None if anything that they depend on has changed."""
        data = json.loads(path.read_text(encoding="utf-8"))
        if data.get(MADE_WITH) != made_with:
            return None
        answers = data["words"].pop("said")
        text = TextResult(**data["words"], answers=answers)
        return cls(text, ActionResult(**data["actions"]), data.get("chains", []))

    def as_json(self) -> dict[str, Any]:
        """Return the results as they are stored."""
        content = asdict(self)
        content["words"]["said"] = content["words"].pop("answers")
        return content


@dataclass(frozen=True)
class Speed:
    """Times of answers that were generated one by one."""

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


# --- questions -------------------------------------------------------------------------------------------------------


def read_held_out(job: Job, folder: Path) -> HeldOut:
    """Return the first question of every conversation in ``folder``. Raises ``ValueError`` or ``FileNotFoundError``."""
    found = read_questions("conversations", [folder / MMU_INDEX])
    require_images(found, folder)
    images: dict[str, int] = {}
    questions = [Question(q.text, q.truths[0], images.setdefault(q.image, len(images))) for q in found]
    clip = load_clip(job.model.showo.clip_model_path)
    features = [
        clip.features(clip_pixels(read_image(folder / name), clip.image_spec)[None])[0]
        for name in phase_bar(images, desc="CLIP features", unit="image")
    ]
    return HeldOut(tuple(questions), torch.stack(features))


def kinds_of(held_out: HeldOut) -> list[str]:
    """Return the kind of every question; "all" for questions other than the bundled ones."""
    try:
        return [kind_of(question.text) for question in held_out.questions]
    except ValueError:
        return ["all"] * len(held_out.questions)


def blank_features(job: Job, image: Path) -> Tensor:
    """Return CLIP's features [P, C] of a blank image."""
    clip = load_clip(job.model.showo.clip_model_path)
    return clip.features(clip_pixels(read_image(image), clip.image_spec)[None])[0]


# --- words -----------------------------------------------------------------------------------------------------------


def evaluate_text(built: Built, job: Job, held_out: HeldOut, progress: Progress) -> TextResult:
    """Compute answers and likelihoods of all questions; ``progress`` counts each question three times."""
    answered = _answers(built, job, held_out.questions, held_out.patches_of(held_out.questions), progress)
    # The same questions with another question's image.
    others = held_out.patches_of([*held_out.questions[1:], *held_out.questions[:1]])
    shuffled = _answers(built, job, held_out.questions, others, progress)
    truths = [_answer_ids(built, question) for question in held_out.questions]
    nats, variances = _nats(built, job, held_out, progress)
    return TextResult(
        exact=[text == q.answer for (text, _, _), q in zip(answered, held_out.questions, strict=True)],
        answers=[text for text, _, _ in answered],
        right_tokens=[
            sum(a == b for a, b in zip(ids, truth, strict=False))
            for (_, ids, _), truth in zip(answered, truths, strict=True)
        ],
        tokens=[len(truth) for truth in truths],
        nats=nats,
        nats_variance=variances,
        exact_shuffled=[text == q.answer for (text, _, _), q in zip(shuffled, held_out.questions, strict=True)],
        cut=[cut for _, _, cut in answered],
    )


def _answers(
    built: Built, job: Job, questions: Sequence[Question], patches: Tensor, progress: Progress
) -> list[tuple[str, list[int], bool]]:
    """Return (text, ids, whether it was cut at ``max_new_tokens``) of the greedy answers."""
    found: list[tuple[str, list[int], bool]] = []
    for start in range(0, len(questions), ANSWER_BATCH):
        some = slice(start, start + ANSWER_BATCH)
        texts = [question.text for question in questions[some]]
        answer = generate(
            built.model, built.prompter, texts, patches[some].to(built.model.device), max_new_tokens=job.max_new_tokens
        )
        found += zip(answer.texts, answer.ids, answer.cut, strict=True)
        progress(len(texts))
    return found


def _conversation(built: Built, question: Question) -> tuple[list[int], list[bool]]:
    conversation = built.prompter.conversation([(HUMAN, question.text), (ASSISTANT, question.answer)])
    return conversation.ids, conversation.answer


def _answer_ids(built: Built, question: Question) -> list[int]:
    """Return the ids of the true answer with its end-of-text."""
    return [i for i, answer in zip(*_conversation(built, question), strict=True) if answer]


@torch.no_grad()
def _nats(built: Built, job: Job, held_out: HeldOut, progress: Progress) -> tuple[list[float], list[float]]:
    """Return nats of every answer (ar: exact; mdm, bd: their bound, averaged over draws) and their variances."""
    objective, prompter, model = text_objective(job).for_evaluation(1), built.prompter, built.model
    draws = 1 if objective.name == "ar" else DRAWS
    found = []  # [K, B] of every batch
    for start in range(0, len(held_out.questions), ANSWER_BATCH):
        some = held_out.questions[start : start + ANSWER_BATCH]
        pairs = [_conversation(built, question) for question in some]
        turn = TextTurn.of_rows(
            [ids for ids, _ in pairs],
            [answer for _, answer in pairs],
            prompter.vocab.pad,
            patches=held_out.patches_of(some).to(model.device),
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
    spread = table.var(dim=0) / draws if draws > 1 else torch.zeros(len(held_out.questions))
    return table.mean(dim=0).tolist(), spread.tolist()


# --- actions ---------------------------------------------------------------------------------------------------------


def evaluate_actions(policy: Policy, split: CalvinSplit) -> ActionResult:
    """Compute offline metrics over all start frames, and over stretches of T of them.

    Neighbouring frames and their actions are nearly the same, so a stretch counts as one independent item.
    """
    samples = list_samples(split.annotations, policy.act_step)
    stretches: dict[tuple[int, int], list[Sample]] = {}
    for number, window in enumerate(split.annotations):
        for sample in list_samples([window], policy.act_step):
            stretches.setdefault((number, (sample.start - window.start) // policy.act_step), []).append(sample)
    reports = [evaluate(split, policy, some).overall for some in stretches.values()]
    return ActionResult(
        overall=evaluate(split, policy, samples).overall,
        errors=[report["mae_all"] for report in reports],
        steps=[int(report["steps"]) for report in reports],
    )


# --- a run -----------------------------------------------------------------------------------------------------------


def evaluate_run(
    run: RunPlan, job: Job, held_out: HeldOut, split: CalvinSplit, progress: Progress, chains: int = 0
) -> RunResult:
    """Evaluate one trained run; results are stored in its folder and read from there the next time.

    ``chains``: number of closed-loop chains (all are run again if fewer are stored).
    """
    made_with = provenance(run, job, held_out, split)
    results = RunResult.read(run.results_file, made_with) if run.results_file.is_file() else None
    if results is not None:
        progress(3 * len(held_out.questions))
        if len(results.chains) >= chains:
            return replace(results, chains=results.chains[:chains])
    policy = UPVLAPolicy.from_config(run.folder / "config.yaml", checkpoint=run.folder)
    if results is None:
        built = _load_trained(run, job)
        results = RunResult(evaluate_text(built, job, held_out, progress), evaluate_actions(policy, split))
    results = replace(results, chains=DOORS.run_policy_chains(policy, DOORS.make_chains(chains)) if chains else [])
    write_text(run.results_file, json.dumps({**results.as_json(), MADE_WITH: made_with}) + "\n")
    return results


def provenance(run: RunPlan, job: Job, held_out: HeldOut, split: CalvinSplit) -> dict[str, Any]:
    """Return everything that the results of a run depend on, as plain JSON values."""
    texts = [{"text": q.text, "answer": q.answer, "picture": q.image} for q in held_out.questions]
    questions = hashlib.sha256(json.dumps(texts).encode())
    questions.update(held_out.patches.cpu().float().numpy().tobytes())
    frames = [split.frame_path(number) for window in split.annotations for number in (window.start, window.end)]
    found = {
        "version": VERSION,
        "weights": files_sha256(run.folder),
        "image_tokenizer": load_magvit(job.model.vq_model.vq_model_name).weights_hash,
        "questions": questions.hexdigest(),
        "max_new_tokens": job.max_new_tokens,
        "draws": [DRAWS, job.training.seed],
        "actions": [raw_digest(split), probes(frames, split.path)],
        "chains": DOORS.rules(),
    }
    plain: dict[str, Any] = json.loads(json.dumps(found))
    return plain


def _load_trained(run: RunPlan, job: Job) -> Built:
    trust = job.model.showo.trust_remote_code
    return load_folder(run.folder, pick_device(job.training.device), trust_remote_code=trust)


def time_answers(runs: Sequence[RunPlan], job: Job, held_out: HeldOut, progress: Progress) -> dict[str, Speed]:
    """Time answers to the same questions, one at a time.

    The runs alternate at each question, so that other load on the machine slows all of them alike. The first question
    is a warm-up and is not counted.
    """
    models = {run.objective: _load_trained(run, job) for run in runs}
    step = max(1, len(held_out.questions) // (TIMED_QUESTIONS + 1))
    questions = held_out.questions[::step][: TIMED_QUESTIONS + 1]
    seconds: dict[str, list[float]] = {name: [] for name in models}
    first: dict[str, list[float]] = {name: [] for name in models}
    tokens, forwards = dict.fromkeys(models, 0), dict.fromkeys(models, 0)
    for number, question in enumerate(questions):
        for name, built in models.items():
            patches = held_out.patches_of([question]).to(built.model.device)
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
    """Describe the machine in a few words."""
    cores = f"{os.cpu_count()} {platform.machine()} CPU cores"
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else cores
    return (
        f"{where}, {torch.get_num_threads()} thread(s), torch {torch.__version__}, Python {platform.python_version()}"
    )
