"""What a saved model says about itself: everything that acting needs beside the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from common.robot import CALVIN_ACTION_DIM, CAMERAS
from models.action.encoding import ActionScale
from models.processing.text import SYSTEM_PROMPT
from models.vocabulary import Vocabulary

CALVIN_RELATIVE: dict[str, Any] = {
    "kind": "relative",  # added to the target pose, not to the measured one
    "frame": "world",
    "position_m_per_unit": 0.02,
    "rotation_rad_per_unit": 0.05,
    "rotation": "euler_xyz",
    "gripper": "-1 closed, +1 open",
    "rate_hz": 30,
}
"""CALVIN's ``rel_actions``."""


@dataclass(frozen=True)
class ModelSpec:
    """Sizes and conventions of one model.

    ``llm``: the transformers config of the backbone as a plain dict. ``words``, ``bos``, ``eos``, ``codebook_size``:
    the id space. ``act_step``: T. ``action_dim``: A. ``num_view``: cameras read. ``num_vq_tokens``: image codes per
    view. ``clip_width``: channels of a CLIP feature, None without a CLIP tower. ``resolution``: pixels of a square
    frame.
    ``text_objective``, ``text_prediction`` (``shift`` | ``aligned``), ``text_block_size``, ``text_canvas_multiple``:
    how it learned to speak, and so how it decodes. ``mask_logit_banned``: the mask's logit is -inf in text heads
    (False: as the original, which leaves it in). ``action_bins``: values a number of an action may have as a token,
    None where block-diffusion actions were not trained; ``action_block_size``, ``action_prediction``: how they were.
    ``action_decoder`` (``regression`` | ``block_diffusion``): what makes actions unless the user chooses;
    ``action_conf_threshold``, ``action_infer_steps``: how action tokens are decoded then.
    ``action_convention``: what an action's numbers mean; ``action_scale``: how they were normalised
    (``models.action.encoding.ActionScale``), None if not at all; ``cameras``: view -> (height, width) of the training
    images.
    ``weights``: which ones lie beside it, those that were trained or their average over the steps.
    ``framework``: name of the recipe that trained it, empty if not known.
    ``image_tokenizer``: hash of the weights of the image tokenizer whose codes it learned, empty if not known.
    """

    llm: Mapping[str, Any]
    words: int
    bos: int
    eos: int
    act_step: int
    num_view: int
    num_vq_tokens: int
    clip_width: int | None
    action_dim: int = CALVIN_ACTION_DIM
    codebook_size: int = 8192
    max_seq_length: int = 576
    resolution: int = 512
    system_prompt: str = SYSTEM_PROMPT
    text_objective: str = "ar"
    text_prediction: str = "shift"
    text_block_size: int = 32
    text_canvas_multiple: int = 32
    action_bins: int | None = None
    action_block_size: int = 7
    action_prediction: str = "shift"
    action_decoder: str = "regression"
    action_conf_threshold: float = 0.9
    action_infer_steps: int = 8
    mask_logit_banned: bool = True
    attn_implementation: str = "sdpa"
    llm_model_path: str = ""
    weights: str = "trained"
    framework: str = ""
    image_tokenizer: str = ""
    action_convention: Mapping[str, Any] = field(default_factory=lambda: dict(CALVIN_RELATIVE))
    action_scale: Mapping[str, Any] | None = None
    cameras: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def vocab(self) -> Vocabulary:
        return Vocabulary(words=self.words, bos=self.bos, eos=self.eos, codebook_size=self.codebook_size)

    @property
    def scale(self) -> ActionScale | None:
        """How actions were normalised."""
        return None if self.action_scale is None else ActionScale.from_json(self.action_scale)

    @property
    def num_image_tokens(self) -> int:
        """Image codes of all views."""
        return self.num_view * self.num_vq_tokens

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ModelSpec:
        """Raises ``ValueError`` naming fields that are missing or unknown."""
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(data) - known)
        if unknown:
            raise ValueError(f"unknown model fields: {', '.join(unknown)} (saved by a newer version?)")
        try:
            return cls(**{**data, "cameras": _cameras(data.get("cameras", {}))})
        except TypeError as error:
            raise ValueError(f"incomplete model description: {error}") from error


def _cameras(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sizes of a saved description by view.

    Older descriptions held the data set's own names, sorted: which view such a camera was is known only where it is the
    only one. The others are left out, so that they are not compared with another camera's images.
    """
    if len(saved) == 1 and not set(saved) <= set(CAMERAS):
        return {CAMERAS[0]: next(iter(saved.values()))}
    return {view: saved[view] for view in CAMERAS if view in saved}
