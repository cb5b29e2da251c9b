"""Saying something: a picture and a question in, an answer out. ``generate`` is the one call."""

from models.decoding.accept import Acceptance, Factor, FirstHitting, Static, Threshold, acceptance
from models.decoding.generate import Decoding, DecodingStats, Generation, generate
from models.decoding.sampling import Sampling
from models.decoding.stream import prompt_sequence
from models.decoding.turn import Progress

__all__ = [
    "Acceptance",
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
    "generate",
    "prompt_sequence",
]
