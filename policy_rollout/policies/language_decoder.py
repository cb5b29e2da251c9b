"""Act by speaking: the model answers which motion comes next, and the sentence is executed.

    static camera --> CLIP patches --generate--> "left 4 cm, down 2 cm, close" --parse--> chunk of T actions

A sentence outside the grammar (``policies/language_actions.py``) is counted and replaced by no motion.

Shape letters: B observations, T actions per chunk, A action size.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.decoding import Decoding, Threshold, generate
from models.pretrained.model_io import Built
from models.processing.image import clip_pixels
from models.vision.clip_encoder import ClipTower, load_clip
from policy_rollout.policies.interface import ActionConvention, Observation
from policy_rollout.policies.language_actions import ActionLanguage

logger = logging.getLogger(__name__)

CLIP_KEY = "model.showo.clip_model_path"
EXAMPLES = 5
"""Sentences outside the grammar that are kept as examples."""


@dataclass(frozen=True)
class LanguageDecoding:
    """How sentences are decoded: ``max_new_tokens`` of one; ``threshold``: masked tokens above this probability are
    accepted (no effect on ``ar``)."""

    max_new_tokens: int = 96
    threshold: float = 0.9


@dataclass
class Spoken:
    """Counts: ``sentences``; those outside the grammar (``unparsable``), with ``examples``; ``tokens`` of all."""

    sentences: int = 0
    unparsable: int = 0
    tokens: int = 0
    examples: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        share = self.unparsable / max(self.sentences, 1)
        text = f"{self.sentences} sentences of {self.tokens / max(self.sentences, 1):.1f} tokens; {self.unparsable} "
        return text + f"({share:.1%}) were outside the grammar and replaced by no motion"


class LanguageActor:
    """Returns the actions that a model speaks. ``spoken`` counts its sentences.

    ``built``: the model, already on its device; ``clip``: the tower of its image questions.

    Raises:
        ValueError: the tower has another width than the model needs, or the actions have no sentences.
    """

    def __init__(self, built: Built, clip: ClipTower, decoding: LanguageDecoding, key: str = CLIP_KEY) -> None:
        spec = built.spec
        if clip.width != spec.clip_width:
            raise ValueError(f"{key}: its features have {clip.width} channels, the model needs {spec.clip_width}")
        self.language = ActionLanguage(ActionConvention(**spec.data.action_convention), spec.act_step)
        self.decoding = decoding
        self._model, self._prompter = built.model, built.prompter
        self._clip = clip.to(built.model.device)
        self.reset()

    def reset(self) -> None:
        """Reset the counts."""
        self.spoken = Spoken()

    def act(self, observations: Sequence[Observation]) -> tuple[NDArray[np.float32], int]:
        """Return chunks [B, T, A] and the number of forwards of the backbone for all of them."""
        if any(observation.rgb_static.size == 0 for observation in observations):
            raise ValueError("language actions read the static camera's image; codes of a token cache are not enough")
        images = [clip_pixels(observation.rgb_static, self._clip.image_spec) for observation in observations]
        patches = self._clip.features(torch.stack(images).to(self._model.device))  # [B, P, C]
        answer = generate(
            self._model,
            self._prompter,
            [self.language.question(observation.instruction) for observation in observations],
            patches,
            self.decoding.max_new_tokens,
            decoding=Decoding(Threshold(self.decoding.threshold)),
        )
        self.spoken.tokens += answer.stats.tokens
        chunks = [self._execute(text, seen) for text, seen in zip(answer.texts, observations, strict=True)]
        return np.stack(chunks), answer.stats.forwards * len(observations)

    def _execute(self, sentence: str, observation: Observation) -> NDArray[np.float32]:
        self.spoken.sentences += 1
        try:
            return self.language.actions(sentence)
        except ValueError as error:
            if self.spoken.unparsable == 0:
                logger.warning("a sentence is outside the grammar and replaced by no motion: %s", error)
            if len(self.spoken.examples) < EXAMPLES:
                self.spoken.examples.append(sentence[:200])
            self.spoken.unparsable += 1
            return self.language.no_motion(observation.robot_obs)

    @property
    def counts(self) -> dict[str, Any]:
        """The counts for records, which follow further sentences."""
        return vars(self.spoken)

    @property
    def clip_sha256(self) -> str:
        """The SHA-256 of the CLIP tower's weights."""
        return self._clip.weights_hash


def load_language_actor(built: Built, clip_model: str | Path, decoding: LanguageDecoding) -> LanguageActor:
    """Load the CLIP tower of a local folder or hub id, and return the actor.

    Raises ``ValueError`` for a model without image input, or as ``LanguageActor``.
    """
    if built.spec.clip_width is None:
        raise ValueError("language actions need a model with image input (model.showo.w_clip_vit=true)")
    return LanguageActor(built, load_clip(clip_model), decoding, f"{CLIP_KEY}={clip_model}")
