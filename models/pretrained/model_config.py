"""Description of a saved model: everything that acting and resuming need except the weights.

On disk it is one flat object, the field ``blockdiff_vla`` of ``config.json``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from common.constants import CALVIN_ACTION_DIM, CAMERAS
from models.action.encoding import ActionScale
from models.action.state import StateConvention
from models.vocabulary import SYSTEM_PROMPT, Vocabulary

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
IMAGE_ROTATIONS = (0, 180)
"""Degrees by which the images of a data set may be rotated against those of their camera."""
LATER_FIELDS = ("state", "workspace", "image_rotation")
"""Fields of ``DataSpec`` that older versions do not know; not written if they are off."""


@dataclass(frozen=True)
class DataSpec:
    """Facts about the training data.

    ``action_convention``: meaning of an action's numbers (``policy_rollout.policies.interface.ActionConvention``).
    ``action_scale``: their normalisation (``models.action.encoding.ActionScale``), None if not normalised. ``cameras``:
    view -> (height, width) of the training images. ``image_tokenizer``: hash of the weights of the image tokenizer,
    empty if unknown. ``state``: the robot's state that the model reads (``models.action.state.StateConvention``), None
    if it reads none (``model.vla.proprioception=none``). ``workspace``: corners ``low`` and ``high`` in metres,
    by which the ground head scales positions, None without such a head (``training.ground_coeff``).
    ``image_rotation``: degrees by which the training images are rotated against those of their camera, 0 or 180.
    """

    action_convention: Mapping[str, Any] = field(default_factory=lambda: dict(CALVIN_RELATIVE))
    action_scale: Mapping[str, Any] | None = None
    cameras: Mapping[str, Any] = field(default_factory=dict)
    image_tokenizer: str = ""
    state: Mapping[str, Any] | None = None
    workspace: Mapping[str, Any] | None = None
    image_rotation: int = 0

    @property
    def state_convention(self) -> StateConvention | None:
        """Meaning of the robot's state, None if the model reads none."""
        return None if self.state is None else StateConvention.from_json(self.state)

    @property
    def scale(self) -> ActionScale | None:
        """Normalisation of actions."""
        return None if self.action_scale is None else ActionScale.from_json(self.action_scale)


@dataclass(frozen=True)
class DecodingDefaults:
    """How answers and action tokens were trained, and so how they are decoded unless the user chooses.

    ``text_prediction``, ``action_prediction``: ``shift`` | ``aligned``. ``action_bins``: values of a number as a token,
    None without block-diffusion actions. ``action_decoder``: ``regression`` | ``block_diffusion``.
    """

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


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of a model, with the facts about its data and the defaults of its decoding.

    ``llm``: the transformers config of the backbone as a plain dict. ``words``, ``bos``, ``eos``, ``codebook_size``:
    the id space. ``act_step``: T. ``num_view``: number of cameras. ``num_vq_tokens``: image codes per view.
    ``clip_width``: channels of a CLIP feature, None without a CLIP tower. ``action_dim``: A. ``resolution``: side of a
    square frame in pixels. ``mask_logit_banned``: the mask's logit is -inf in text heads (False: it is not, as in the
    original). ``code_bits``: the embedding of an image code has one learned vector for each of its bits added.
    ``weights``: which weights are saved, the trained ones or their average over steps. ``framework``: name
    of the recipe, empty if unknown. ``versions``: of libraries.
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
    mask_logit_banned: bool = True
    code_bits: bool = False
    attn_implementation: str = "sdpa"
    llm_model_path: str = ""
    weights: str = "trained"
    framework: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    data: DataSpec = field(default_factory=DataSpec)
    decoding: DecodingDefaults = field(default_factory=DecodingDefaults)

    @property
    def vocab(self) -> Vocabulary:
        return Vocabulary(words=self.words, bos=self.bos, eos=self.eos, codebook_size=self.codebook_size)

    @property
    def proprioception(self) -> str:
        """``model.vla.proprioception`` of the model."""
        return "none" if self.data.state is None else "pose"

    @property
    def num_image_tokens(self) -> int:
        """Number of image codes of all views."""
        return self.num_view * self.num_vq_tokens

    def to_json(self) -> dict[str, Any]:
        """Return all fields as one flat object; without later options that are off (``state``, ``workspace``,
        ``image_rotation``, ``code_bits``), as older versions wrote it."""
        flat = asdict(self)
        data, decoding = flat.pop("data"), flat.pop("decoding")
        data = {name: value for name, value in data.items() if value or name not in LATER_FIELDS}
        if not self.code_bits:
            del flat["code_bits"]
        return {**flat, **data, **decoding}

    @classmethod
    def from_json(cls, flat: Mapping[str, Any]) -> ModelConfig:
        """Build the description from one flat object; absent fields have their defaults.

        Raises ``ValueError`` naming fields that are missing or unknown, or a wrong ``state``.
        """
        parts: dict[str, Any] = {}
        left = {**flat, "cameras": _cameras(flat.get("cameras", {}))}
        for name, kind in (("data", DataSpec), ("decoding", DecodingDefaults)):
            parts[name] = kind(**{f.name: left.pop(f.name) for f in fields(kind) if f.name in left})
        _ = parts["data"].state_convention  # raises for a wrong one
        unknown = sorted(set(left) - ({f.name for f in fields(cls)} - set(parts)))
        if unknown:
            raise ValueError(f"unknown model fields: {', '.join(unknown)} (saved by a newer version?)")
        try:
            return cls(**left, **parts)
        except TypeError as error:
            raise ValueError(f"incomplete model description: {error}") from error

    def updated(self, **changes: Any) -> ModelConfig:
        """Return the description with some fields of the flat object changed."""
        return self.from_json({**self.to_json(), **changes})


def _cameras(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sizes of a saved description by view.

    Older descriptions have the data set's own names, sorted. The view of such a camera is known only if it is the only
    one; others are omitted, so that they are not compared with another camera's images.
    """
    if len(saved) == 1 and not set(saved) <= set(CAMERAS):
        return {CAMERAS[0]: next(iter(saved.values()))}
    return {view: saved[view] for view in CAMERAS if view in saved}
