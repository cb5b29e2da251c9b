"""Text models of the page: each answers a question about an image, and its answer is returned as it fills in."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from models.decoding import Generation, generate
from policy_rollout.policies.upvla import pick_device
from policy_rollout.text_generation.generate_cli import describe_cost
from policy_rollout.text_generation.loading import AnsweringModel, decoding_objective, load_answering_model
from policy_rollout.text_generation.trace import Recorder, Step

MAX_NEW_TOKENS = 64


class Abandoned(Exception):
    """The reader of an answer has left."""


@dataclass
class TextModel:
    """A model that answers by one objective, one question at a time.

    ``note``: remark for the user, empty if there is none.
    """

    objective: str
    model: AnsweringModel
    note: str = ""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, image: Path, question: str) -> Generator[Step | str, None, None]:
        """Yield the answer after every forward, and its cost in one line at the end.

        Closing the iterator ends the generation. Raises ``ValueError`` or ``OSError`` for an unreadable image.
        """
        steps: queue.Queue[Step | Generation | BaseException] = queue.Queue()
        abandoned = threading.Event()

        def receive(step: Step) -> None:
            if abandoned.is_set():
                raise Abandoned
            steps.put(step)

        def work() -> None:
            try:
                with self._lock:
                    steps.put(self._generate(image, question, Recorder(self.model.prompter, 1, receive)))
            except (Abandoned, ValueError, OSError) as error:
                steps.put(error)

        thread = threading.Thread(target=work, name="answer", daemon=True)
        thread.start()
        try:
            while not isinstance(item := self._next(steps, thread), Generation):
                yield item
            yield describe_cost(item, 1)
        finally:
            abandoned.set()

    @staticmethod
    def _next(steps: queue.Queue[Step | Generation | BaseException], thread: threading.Thread) -> Step | Generation:
        while True:
            try:
                item = steps.get(timeout=0.2)
            except queue.Empty:
                if not thread.is_alive() and steps.empty():
                    raise RuntimeError("the generation ended with an error; the terminal has its text") from None
                continue
            if isinstance(item, BaseException):
                raise item
            return item

    def _generate(self, image: Path, question: str, recorder: Recorder) -> Generation:
        patches = self.model.patches([image])
        return generate(
            self.model.model,
            self.model.prompter,
            [question],
            patches,
            MAX_NEW_TOKENS,
            objective=self.objective,
            on_step=recorder,
        )


def load_text_models(checkpoints: Mapping[str, str], device: str) -> dict[str, TextModel]:
    """Load the models of ``--text-models``, by objective. Raises ``ValueError`` naming the one that cannot be used."""
    found = {}
    target: torch.device = pick_device(device)
    for objective, checkpoint in checkpoints.items():
        try:
            model = load_answering_model(checkpoint, None, None, True, target, "float32")
            _, note = decoding_objective(model.model.spec.decoding.text_objective, objective, False)
        except (ValueError, OSError) as error:
            raise ValueError(f"--text-models {objective}={checkpoint}: {error}") from error
        found[objective] = TextModel(objective, model, (note or "").removeprefix("--objective "))
    return found
