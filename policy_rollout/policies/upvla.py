"""UP-VLA as a policy: the one path from observations to actions, for evaluation, serving and the robot client.

    images --image.fit--> [3,R,R] --MagVIT--> codes --robot_sequence--> ActionPredictor.predict --> chunk of T actions
                                                                         or decode_actions

Shape letters: B observations, T actions per chunk, A action size, V views, R resolution.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.action.inference import ActionPredictor, compiled_forward
from models.decoding import ActionDecoding, decode_actions
from models.device import keep_freed_memory
from models.pretrained.model_io import Built, load_folder, model_folder
from models.pretrained.weights_io import files_sha256, resolve_model_dir
from models.processing.image import fit, normalise, to_uint8
from models.processing.instruction_length import cut_instructions, describe_cut
from models.sequence import robot_sequence
from models.vision.magvitv2 import MagVITv2, load_magvit
from policy_rollout.policies.interface import ACTION_DECODERS
from policy_rollout.policies.interface import CAMERAS as CAMERAS
from policy_rollout.policies.interface import ActionConvention as ActionConvention
from policy_rollout.policies.interface import Observation as Observation
from policy_rollout.policies.interface import Policy as Policy
from policy_rollout.policies.interface import StateLayout as StateLayout
from policy_rollout.policies.interface import require_same_convention as require_same_convention
from policy_rollout.policies.language_decoder import LanguageActor, LanguageDecoding, load_language_actor
from policy_rollout.policies.model_yaml import CHECKPOINT_KEY, load_model_yaml, located

logger = logging.getLogger(__name__)

ASPECT_TOLERANCE = 0.02
"""Largest relative difference of the aspect ratio of images from that of the training images."""
INSTRUCTION_CACHE_SIZE = 4096
"""Instructions whose token ids are cached."""
WARM_UP_SIZE = (200, 200)
"""Height and width of warm-up images of models that declare none."""


@dataclass(frozen=True)
class PolicySource:
    """The files that a policy was loaded from, for records and comparisons of results."""

    model_yaml: Path
    checkpoint: Path
    """The folder with the weights, or the bare weights file."""

    @cached_property
    def weights_sha256(self) -> str:
        """The SHA-256 of the checkpoint's weights."""
        return files_sha256(self.checkpoint)


def pick_device(name: str | int = "auto") -> torch.device:
    """Return the device for `auto`, `cpu`, `cuda`, `cuda:1`, or a GPU's number.

    Without CUDA, a CUDA device is replaced by the CPU with a notice on stderr. Raises `ValueError` for other names.
    """
    text = str(name)
    text = f"cuda:{text}" if text.isdecimal() else text
    if text == "auto":
        text = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(text)
    except RuntimeError:
        device = torch.device("meta")  # refused below
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device {text!r} is unknown; give auto, cpu, cuda or cuda:<number>")
    if device.type == "cuda" and not torch.cuda.is_available():
        print(f"notice: CUDA is not available; {text} is replaced by the CPU", file=sys.stderr)
        return torch.device("cpu")
    if device.type == "cuda" and device.index is not None and device.index >= torch.cuda.device_count():
        raise ValueError(f"device {text} does not exist; this machine has {torch.cuda.device_count()} GPUs")
    return device


class UPVLAPolicy:
    """UP-VLA as a policy: a saved model, its prompter, and the frozen image tokenizer.

    Has no episode state: a chunk depends on the observation alone. ``action_decoder`` is ``regression`` (the regression
    head), ``block_diffusion`` (decoded action tokens) or ``language`` (spoken sentences).
    """

    def __init__(
        self,
        built: Built,
        vq: MagVITv2,
        *,
        device: torch.device | str = "cpu",
        precision: str = "no",
        source: PolicySource | None = None,
        decoding: ActionDecoding | LanguageDecoding | None = None,
        clip_model: str = "",
        compiled: bool = False,
    ) -> None:
        """Move the networks to `device` and set them to evaluation mode.

        Args:
            precision: "bf16" or "fp16" runs the network in autocast, but not the image tokenizer, whose codes would
                change. Frozen linear layers are then stored in that type.
            decoding: how action tokens or sentences are decoded; None: use the regression head.
            clip_model: folder or hub id of the CLIP tower, for sentences.
            compiled: compile the regression head's forward at the first call of each shape.
        """
        self.device = torch.device(device)
        self.model = built.model.to(self.device).eval()
        self.vq = vq.to(self.device).eval()
        self.prompter = built.prompter
        self.spec = built.spec
        self.notes = built.notes
        self.source = source
        self.convention = ActionConvention(**built.spec.data.action_convention)
        self._state = built.spec.data.state_convention
        self.decoding = decoding
        self.precision = precision
        self._precision = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
        if self._precision is not None and not any(p.requires_grad for p in self.model.parameters()):
            _cast_linear_layers(self.model.backbone.lm.base_model, self._precision)
        if self.device.type == "cpu":
            keep_freed_memory()
        self.speaker: LanguageActor | None = None
        if isinstance(decoding, LanguageDecoding):
            self.speaker = load_language_actor(built, clip_model, decoding)
        self.predictor = ActionPredictor(self.model, compiled_forward(self.model) if compiled else None)
        self._ids = lru_cache(INSTRUCTION_CACHE_SIZE)(self._instruction)
        self._cut_is_logged = False
        self.reset()

    @classmethod
    def from_config(
        cls,
        model_yaml: str | Path | None,
        device: str = "auto",
        checkpoint: str | Path | None = None,
        action_decoder: str | None = None,
        precision: str | None = None,
    ) -> UPVLAPolicy:
        """Load the policy of a model yaml, or, if it is None, of a checkpoint with its own yaml.

        `checkpoint` overrides its `model.showo.tuned_model_path`, `action_decoder` (one of `ACTION_DECODERS`) its
        `block_diffusion.action_infer_enabled`, `precision` its `training.mixed_precision`. Raises `ValueError` or
        `FileNotFoundError` in one line naming the key or the file.
        """
        config = load_model_yaml(model_yaml, checkpoint)
        path = resolve_model_dir(config.checkpoint, key=CHECKPOINT_KEY)
        folder = model_folder(path)  # resolved once: a training run may write a newer one meanwhile
        path = path if path.is_file() else folder
        built = load_folder(path, upstream=config.upstream, trust_remote_code=config.job.model.showo.trust_remote_code)
        config.require_agreement(built.spec, folder)
        vq = config.job.model.vq_model
        bare = vq.pretrained_model_path
        tokenizer = load_magvit(located(vq.vq_model_name), None if bare is None else located(bare))
        trained_with = built.spec.data.image_tokenizer
        if trained_with and trained_with != (now := tokenizer.weights_hash):
            raise ValueError(
                f"{config.path}: model.vq_model.vq_model_name={vq.vq_model_name} has the weights {now[:12]}, but "
                f"{folder} was trained with {trained_with[:12]}; name that image tokenizer"
            )
        training, target = config.job.training, pick_device(device)
        if precision is None:
            precision = training.mixed_precision if "training.mixed_precision" in config.given else "no"
        return cls(
            built,
            tokenizer,
            device=target,
            compiled=training.compile and target.type == "cuda",
            precision=precision,
            source=PolicySource(config.path, path),
            decoding=config.decoding(built.spec, folder, action_decoder),
            clip_model=located(config.job.model.showo.clip_model_path),
        )

    @classmethod
    def from_pretrained(cls, name: str | Path, revision: str | None = None, device: str = "auto") -> UPVLAPolicy:
        """Load the policy of a local folder, or of a hub id at a revision (branch, tag or commit).

        Raises ``ValueError`` for a revision of a local folder, and for two revisions.
        """
        if revision is not None and ("@" in str(name) or Path(name).exists()):
            raise ValueError(f"revision={revision}: {name} is a local folder or names a revision already; omit one")
        return cls.from_config(None, device, name if revision is None else f"{name}@{revision}")

    @property
    def act_step(self) -> int:
        return self.spec.act_step

    @property
    def cameras(self) -> tuple[str, ...]:
        return CAMERAS[: self.spec.num_view]

    @property
    def state(self) -> StateLayout | None:
        """Meaning of the ``robot_obs`` that observations must have; None if the model reads none."""
        return None if self._state is None else StateLayout.from_json(self._state.to_json())

    @property
    def image_rotation(self) -> int:
        """Degrees by which the images must be rotated against those of their camera."""
        return self.spec.data.image_rotation

    @property
    def action_decoder(self) -> str:
        """The one of `ACTION_DECODERS` in use."""
        return ACTION_DECODERS[0 if self.decoding is None else 1 if self.speaker is None else 2]

    @property
    def predicts_with_actions(self) -> bool:
        return self.decoding is None

    @property
    def forwards_per_chunk(self) -> float:
        """Mean number of backbone forwards per chunk since `reset`; 0 before the first chunk."""
        return self._forwards / max(self._chunks, 1)

    def reset(self) -> None:
        """Reset the counters of `forwards_per_chunk`; there is no episode state."""
        self._chunks = self._forwards = 0

    def warm_up(self) -> None:
        """Run one forward on black images, so that the first observation is fast and an unusable model fails early."""
        sizes = self.spec.data.cameras
        black = {name: np.zeros((*sizes.get(name, WARM_UP_SIZE)[:2], 3), np.uint8) for name in self.cameras}
        state = None if self._state is None else np.zeros(self._state.dim)
        self.act([Observation(black["rgb_static"], "warm up", black.get("rgb_gripper"), state)])
        self.reset()
        if self.speaker is not None:
            self.speaker.reset()

    def act(self, observations: Sequence[Observation]) -> NDArray[np.float32]:
        return self._act(observations, want_codes=False)[0]

    def act_with_codes(self, observations: Sequence[Observation]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return (the chunks of ``act``, the codes of ``predict_codes``); one pass if ``predicts_with_actions``."""
        chunks, codes = self._act(observations, want_codes=True)
        return chunks, self.predict_codes(observations) if codes is None else codes.cpu().numpy()

    def act_and_predict(self, observations: Sequence[Observation]) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Return (the chunks of ``act``, the frames of ``predict_future``), computed as in ``act_with_codes``."""
        chunks, codes = self.act_with_codes(observations)
        return chunks, self.decode(codes)

    @torch.inference_mode()
    def _act(self, observations: Sequence[Observation], want_codes: bool) -> tuple[NDArray[np.float32], Tensor | None]:
        """Return chunks, and predicted codes if they are wanted and the regression head acts."""
        if self.speaker is not None:
            with self._autocast():
                spoken, forwards = self.speaker.act(observations)
            self._chunks, self._forwards = self._chunks + len(observations), self._forwards + forwards
            return spoken, None
        codes, instructions, state = self._inputs(observations)
        with self._autocast():
            if not isinstance(self.decoding, ActionDecoding):
                predicted = self.predictor.predict(instructions, codes, want_codes, state)
                actions, future, forwards = predicted.actions, predicted.codes, len(observations)
            else:
                flow = robot_sequence(self.model.vocab, instructions, codes, self.act_step, state=state)
                decoded = decode_actions(self.model, flow, self.decoding)
                actions, future, forwards = decoded.actions, None, int(decoded.forwards.sum())
        self._chunks, self._forwards = self._chunks + len(observations), self._forwards + forwards
        scale = self.spec.data.scale
        return (actions if scale is None else scale.undo(actions)).cpu().numpy(), future

    @torch.inference_mode()
    def predict_codes(self, observations: Sequence[Observation]) -> NDArray[np.int64]:
        """Return the predicted image codes [B, N] of the frames T steps ahead, camera views in sequence."""
        codes, instructions, state = self._inputs(observations)
        with self._autocast():
            expected = self.predictor.predict(instructions, codes, want_codes=True, state=state).codes
        assert expected is not None
        found: NDArray[np.int64] = expected.cpu().numpy()
        return found

    def predict_future(self, observations: Sequence[Observation]) -> NDArray[np.uint8]:
        """Return the predicted frames T steps ahead, uint8 [B, V, R, R, 3]."""
        return self.decode(self.predict_codes(observations))

    @torch.inference_mode()
    def encode(self, observations: Sequence[Observation]) -> NDArray[np.int64]:
        """Return the image codes [B, N] of the observations, camera views in sequence."""
        codes: NDArray[np.int64] = self._codes(observations).cpu().numpy()
        return codes

    @torch.inference_mode()
    def decode(self, codes: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the images of codes [B, N], uint8 [B, V, R, R, 3]."""
        pixels = self.vq.decode(torch.from_numpy(codes).to(self.device).reshape(-1, self.spec.num_vq_tokens))
        size = self.spec.resolution
        frames = to_uint8(pixels).permute(0, 2, 3, 1).reshape(len(codes), self.spec.num_view, size, size, 3)
        return np.asarray(frames.cpu())

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self._precision, enabled=self._precision is not None)

    def _inputs(self, observations: Sequence[Observation]) -> tuple[Tensor, list[list[int]], Tensor | None]:
        """Return the network's inputs: image codes [B, N], the token ids of the instructions, and the features [B, F]
        of the robot's states (None if the model reads none)."""
        if not observations:
            raise ValueError("a policy needs at least one observation")
        state = self._state_features(observations)
        return self._codes(observations), [self._ids(observation.instruction) for observation in observations], state

    def _state_features(self, observations: Sequence[Observation]) -> Tensor | None:
        if self._state is None:
            return None
        return self._state.read([observation.robot_obs for observation in observations]).to(self.device)

    def _instruction(self, text: str) -> list[int]:
        """Return the token ids of an instruction; log a warning for the first one that is cut."""
        if not self._cut_is_logged and (cut := cut_instructions(self.prompter, [text])):
            self._cut_is_logged = True
            logger.warning("an instruction is cut, and others may be: %s", describe_cut(self.prompter, cut, 1))
        return self.prompter.instruction(text)

    def _codes(self, observations: Sequence[Observation]) -> Tensor:
        """Return image codes [B, N], camera views in sequence.

        Given codes are used as they are. An image array that several observations share is encoded once.
        """
        if observations[0].codes is not None:
            return self._given_codes(observations)
        views = [self._views(observation) for observation in observations]
        images = {id(image): image for pair in views for image in pair}
        frames = np.stack([fit(image, self.spec.resolution) for image in images.values()])  # uint8 [P, 3, R, R]
        codes = self.vq.encode(normalise(torch.from_numpy(frames).to(self.device)))  # [P, N / V]
        if len(images) < len(views) * len(views[0]):
            index = {image: number for number, image in enumerate(images)}
            codes = codes[[index[id(image)] for pair in views for image in pair]]
        return codes.reshape(len(observations), -1)

    def _given_codes(self, observations: Sequence[Observation]) -> Tensor:
        given = [o.codes[: self.spec.num_view] for o in observations if o.codes is not None]  # each [V, n]
        shapes = {codes.shape for codes in given}
        if len(given) < len(observations) or shapes != {(self.spec.num_view, self.spec.num_vq_tokens)}:
            raise ValueError(
                f"this model reads {self.spec.num_view} x {self.spec.num_vq_tokens} codes of every observation of a "
                f"batch, found {' and '.join(map(str, sorted(shapes)))} in {len(given)} of {len(observations)}"
            )
        return torch.from_numpy(np.stack(given)).to(self.device).long().flatten(1)

    def _views(self, observation: Observation) -> list[NDArray[np.uint8]]:
        views = [getattr(observation, camera) for camera in self.cameras]
        missing = [camera for camera, view in zip(self.cameras, views, strict=True) if view is None]
        if missing:
            raise ValueError(f"this model reads {self.spec.num_view} cameras, but the observation has no {missing[0]}")
        for camera, view in zip(self.cameras, views, strict=True):
            height, width = view.shape[:2]
            trained = self.spec.data.cameras.get(camera, (height, width))  # not declared: nothing to compare with
            if abs(height * trained[1] - width * trained[0]) > ASPECT_TOLERANCE * height * trained[1]:
                raise ValueError(
                    f"this model was trained on {camera} images of {trained[0]} x {trained[1]} (height x width), "
                    f"this one is {height} x {width}: the centre crop would show another part of the scene"
                )
        return views


def _cast_linear_layers(network: nn.Module, dtype: torch.dtype) -> None:
    """Cast linear layers to the type of autocast once, not in every forward: the same numbers, half the memory.
    Norms and embeddings keep their type."""
    for module in network.modules():
        if isinstance(module, nn.Linear):
            module.to(dtype)
