"""Saying something: an image and a question in, an answer out (``generate``). Acting in tokens: ``decode_actions``."""

from models.decoding.acceptance import Acceptance, Factor, FirstHitting, Static, Threshold, acceptance
from models.decoding.action_tokens import ActionDecoding, DecodedActions, decode_actions
from models.decoding.generate import Decoding, DecodingStats, Generation, generate
from models.decoding.kv_cache import prompt_sequence
from models.decoding.sampling import Sampling
from models.decoding.state import Progress

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
