"""Saying something: a picture and a question in, an answer out (``generate``). Acting in tokens: ``decode_actions``."""

from models.decoding.accept import Acceptance, Factor, FirstHitting, Static, Threshold, acceptance
from models.decoding.actions import ActionDecoding, DecodedActions, decode_actions
from models.decoding.generate import Decoding, DecodingStats, Generation, generate
from models.decoding.sampling import Sampling
from models.decoding.stream import prompt_sequence
from models.decoding.turn import Progress

__all__ = [
    "Acceptance",
    "ActionDecoding",
    "DecodedActions",
    "Decoding",
    "DecodingStats",
    "Factor",
    "FirstHitting",
    "Generation",
    "Progress",
    "Sampling",
    "Static",
    "Threshold",
    "acceptance",
    "decode_actions",
    "generate",
    "prompt_sequence",
]
