"""From an observation to actions: the one path that evaluation, serving and one's own robot use.

    images --images.fit--> [3,R,R] --MagVIT--> codes --robot_sequence--> ActionPredictor.predict --> chunk of T actions
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

from models.action.inference import ActionPredictor
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
from policy_rollout.policies.interface import require_same_convention as require_same_convention
from policy_rollout.policies.model_yaml import CHECKPOINT_KEY, load_model_yaml, located

logger = logging.getLogger(__name__)

ASPECT_TOLERANCE = 0.02
"""By which the shape of images may differ from the training data's."""
KEPT_SENTENCES = 4096
"""Instructions whose ids are kept."""


@dataclass(frozen=True)
class PolicySource:
    """Where a policy came from, for records: two results are comparable only if this says so."""

    model_yaml: Path
    checkpoint: Path
    """The folder with the weights, or the bare weights file."""

    @cached_property
    def weights_sha256(self) -> str:
        """The identity of the checkpoint."""
        return files_sha256(self.checkpoint)


def pick_device(wish: str | int = "auto") -> torch.device:
    """The device for `auto`, `cpu`, `cuda`, `cuda:1`, or a GPU's number.

    Where CUDA is asked for and there is none, the CPU is taken and stderr is told. Raises `ValueError` for other words.
    """
    text = str(wish)
    text = f"cuda:{text}" if text.isdecimal() else text
    if text == "auto":
        text = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(text)
    except RuntimeError:
        device = torch.device("meta")  # nobody computes there
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device {text!r} is unknown; give auto, cpu, cuda or cuda:<number>")
    if device.type == "cuda" and not torch.cuda.is_available():
        print(f"notice: {text} was asked for, but CUDA is not available here; running on the CPU", file=sys.stderr)
        return torch.device("cpu")
    if device.type == "cuda" and device.index is not None and device.index >= torch.cuda.device_count():
        raise ValueError(f"device {text} does not exist; this machine has {torch.cuda.device_count()} GPUs")
    return device


class UPVLAPolicy:
    """UP-VLA acting: a saved model, its prompter, and the frozen image tokenizer.

    Holds no episode state: a chunk depends on the observation alone. ``action_decoder`` says what makes actions: the
    ``regression`` head, or ``block_diffusion``.
    """

    def __init__(
        self,
        built: Built,
        vq: MagVITv2,
        *,
        device: torch.device | str = "cpu",
        precision: str = "no",
        source: PolicySource | None = None,
        decoding: ActionDecoding | None = None,
        compiled: bool = False,
    ) -> None:
        """`precision` "bf16"/"fp16" runs the network (not the tokenizer, whose codes would change) in autocast; its
        matrices are then held in that type, unless they can still learn: a learner's weights are its own.

        `decoding`: act by decoding action tokens, like this; None: the regression head acts. `compiled`: its forward
        is compiled at the first call of each shape.
        """
        self.device = torch.device(device)
        self.model = built.model.to(self.device).eval()
        self.vq = vq.to(self.device).eval()
        self.prompter = built.prompter
        self.spec = built.spec
        self.notes = built.notes
        self.source = source
        self.convention = ActionConvention(**built.spec.data.action_convention)
        self.decoding = decoding
        self.precision = precision
        self._precision = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
        if self._precision is not None and not any(p.requires_grad for p in self.model.parameters()):
            _hold_matrices(self.model.backbone.lm.base_model, self._precision)
        if self.device.type == "cpu":
            keep_freed_memory()
        self._reader = ActionPredictor(self.model, compiled=compiled)
        self._ids = lru_cache(KEPT_SENTENCES)(self._instruction)
        self._cut_is_logged = False
        self.reset()

    @classmethod
    def from_config(
        cls,
        model_yaml: str | Path,
        device: str = "auto",
        checkpoint: str | Path | None = None,
        action_decoder: str | None = None,
        precision: str | None = None,
    ) -> UPVLAPolicy:
        """The policy that a model yaml describes. `checkpoint` stands in for its `model.showo.tuned_model_path`,
        `action_decoder` (one of `ACTION_DECODERS`) for its `block_diffusion.action_infer_enabled`, `precision` for its
        `training.mixed_precision`.

        Raises `ValueError` or `FileNotFoundError` in one line naming the key or the file.
        """
        config = load_model_yaml(model_yaml, checkpoint)
        path = resolve_model_dir(config.checkpoint, key=CHECKPOINT_KEY)
        folder = model_folder(path)  # once: a run that is training may write a newer one in between
        path = path if path.is_file() else folder
        built = load_folder(path, upstream=config.upstream, trust_remote_code=config.job.model.showo.trust_remote_code)
        config.require_agreement(built.spec, folder)
        vq = config.job.model.vq_model
        bare = vq.pretrained_model_path
        tokenizer = load_magvit(located(vq.vq_model_name), None if bare is None else located(bare))
        learned = built.spec.data.image_tokenizer
        if learned and learned != (now := tokenizer.weights_hash):
            raise ValueError(
                f"{config.path}: model.vq_model.vq_model_name={vq.vq_model_name} has the weights {now[:12]}, but "
                f"{folder} learned the codes of {learned[:12]}; name the image tokenizer that it was trained with"
            )
        training, where = config.job.training, pick_device(device)
        if precision is None:
            precision = training.mixed_precision if "training.mixed_precision" in config.given else "no"
        return cls(
            built,
            tokenizer,
            device=where,
            compiled=training.compile and where.type == "cuda",
            precision=precision,
            source=PolicySource(config.path, path),
            decoding=config.decoding(built.spec, folder, action_decoder),
        )

    @property
    def act_step(self) -> int:
        return self.spec.act_step

    @property
    def cameras(self) -> tuple[str, ...]:
        return CAMERAS[: self.spec.num_view]

    @property
    def action_decoder(self) -> str:
        """Which of `ACTION_DECODERS` acts."""
        return ACTION_DECODERS[0 if self.decoding is None else 1]

    @property
    def forwards_per_chunk(self) -> float:
        """Forwards of the backbone that a chunk took on average since `reset`; 0 before the first."""
        return self._forwards / max(self._chunks, 1)

    def reset(self) -> None:
        """Nothing to forget (see the class) but what it cost."""
        self._chunks = self._forwards = 0

    @torch.inference_mode()
    def act(self, observations: Sequence[Observation]) -> NDArray[np.float32]:
        codes, instructions = self._read(observations)
        with self._arithmetic():
            if self.decoding is None:
                actions, forwards = self._reader.predict(instructions, codes).actions, len(observations)
            else:
                flow = robot_sequence(self.model.vocab, instructions, codes, self.act_step)
                decoded = decode_actions(self.model, flow, self.decoding)
                actions, forwards = decoded.actions, int(decoded.forwards.sum())
        self._chunks, self._forwards = self._chunks + len(observations), self._forwards + forwards
        scale = self.spec.data.scale
        chunks: NDArray[np.float32] = (actions if scale is None else scale.undo(actions)).cpu().numpy()
        return chunks

    @torch.inference_mode()
    def predict_codes(self, observations: Sequence[Observation]) -> NDArray[np.int64]:
        """Image codes [B, N] of the frames T steps ahead, views one after the other."""
        codes, instructions = self._read(observations)
        with self._arithmetic():
            expected = self._reader.predict(instructions, codes, want_codes=True).codes
        assert expected is not None
        found: NDArray[np.int64] = expected.cpu().numpy()
        return found

    @torch.inference_mode()
    def predict_future(self, observations: Sequence[Observation]) -> NDArray[np.uint8]:
        """The frames T steps ahead as the model expects them, uint8 [B, V, R, R, 3]."""
        codes = torch.from_numpy(self.predict_codes(observations)).to(self.device)
        pixels = self.vq.decode(codes.reshape(-1, self.spec.num_vq_tokens))  # [B * V, 3, R, R]
        size = self.spec.resolution
        frames = to_uint8(pixels).permute(0, 2, 3, 1).reshape(len(observations), self.spec.num_view, size, size, 3)
        images: NDArray[np.uint8] = frames.cpu().numpy()
        return images

    def _arithmetic(self) -> torch.autocast:
        return torch.autocast(self.device.type, self._precision, enabled=self._precision is not None)

    def _read(self, observations: Sequence[Observation]) -> tuple[Tensor, list[list[int]]]:
        """The one path from what is seen to what the network reads: codes [B, N] and ids of the instructions."""
        if not observations:
            raise ValueError("a policy is asked about at least one observation")
        return self._codes(observations), [self._ids(observation.instruction) for observation in observations]

    def _instruction(self, text: str) -> list[int]:
        """Encode an instruction, and log the first that is cut."""
        if not self._cut_is_logged and (cut := cut_instructions(self.prompter, [text])):
            self._cut_is_logged = True
            logger.warning("an instruction is cut, and others may be: %s", describe_cut(self.prompter, cut, 1))
        return self.prompter.instruction(text)

    def _codes(self, observations: Sequence[Observation]) -> Tensor:
        """Images -> image codes [B, N], views one after the other. An image that several observations share (the
        same array) is read once; where codes were made before, no image is."""
        if observations[0].codes is not None:
            return self._held_codes(observations)
        views = [self._views(observation) for observation in observations]
        images = {id(image): image for pair in views for image in pair}
        frames = np.stack([fit(image, self.spec.resolution) for image in images.values()])  # uint8 [P, 3, R, R]
        codes = self.vq.encode(normalise(torch.from_numpy(frames).to(self.device)))  # [P, N / V]
        if len(images) < len(views) * len(views[0]):
            place = {image: number for number, image in enumerate(images)}
            codes = codes[[place[id(image)] for pair in views for image in pair]]
        return codes.reshape(len(observations), -1)

    def _held_codes(self, observations: Sequence[Observation]) -> Tensor:
        held = [o.codes[: self.spec.num_view] for o in observations if o.codes is not None]  # each [V, n]
        shapes = {codes.shape for codes in held}
        if len(held) < len(observations) or shapes != {(self.spec.num_view, self.spec.num_vq_tokens)}:
            raise ValueError(
                f"this model reads {self.spec.num_view} x {self.spec.num_vq_tokens} codes of every observation of a "
                f"batch, found {' and '.join(map(str, sorted(shapes)))} in {len(held)} of {len(observations)}"
            )
        return torch.from_numpy(np.stack(held)).to(self.device).long().flatten(1)

    def _views(self, observation: Observation) -> list[NDArray[np.uint8]]:
        views = [getattr(observation, camera) for camera in self.cameras]
        missing = [camera for camera, view in zip(self.cameras, views, strict=True) if view is None]
        if missing:
            raise ValueError(
                f"this model looks through {self.spec.num_view} cameras, but the observation has no {missing[0]}"
            )
        for camera, view in zip(self.cameras, views, strict=True):
            height, width = view.shape[:2]
            trained = self.spec.data.cameras.get(camera, (height, width))  # not declared: nothing to compare with
            if abs(height * trained[1] - width * trained[0]) > ASPECT_TOLERANCE * height * trained[1]:
                raise ValueError(
                    f"this model was trained on {camera} images of {trained[0]} x {trained[1]} (height x width), "
                    f"this one is {height} x {width}: the centre crop would show it another part of the scene"
                )
        return views


def _hold_matrices(network: nn.Module, dtype: torch.dtype) -> None:
    """Linear layers in the type that autocast computes them in, cast once and not in every forward: the same numbers,
    half the memory. Norms and embeddings stay as they are."""
    for module in network.modules():
        if isinstance(module, nn.Linear):
            module.to(dtype)


class ConstantPolicy:
    """Always the same action. With the mean of the training actions it is the baseline that any learner must beat."""

    cameras = CAMERAS[:1]

    def __init__(self, action: NDArray[np.float32], act_step: int, convention: ActionConvention | None = None) -> None:
        self.convention = convention or ActionConvention()
        if np.shape(action) != (self.convention.dim,):
            raise ValueError(f"a constant action has {self.convention.dim} numbers, got shape {np.shape(action)}")
        self.action = np.asarray(action, dtype=np.float32)
        self.act_step = act_step

    def reset(self) -> None:
        """Nothing to forget."""

    def act(self, observations: Sequence[Observation]) -> NDArray[np.float32]:
        return np.tile(self.action, (len(observations), self.act_step, 1))


class RandomPolicy:
    """Uniform actions in [-1, 1] with a gripper that opens or closes at random: what chance alone achieves."""

    cameras = CAMERAS[:1]

    def __init__(self, act_step: int, seed: int = 0, convention: ActionConvention | None = None) -> None:
        self.act_step = act_step
        self.convention = convention or ActionConvention()
        self._seed = seed
        self.reset()

    def reset(self) -> None:
        """Starts the random numbers again, so that a run can be repeated."""
        self._rng = np.random.default_rng(self._seed)

    def act(self, observations: Sequence[Observation]) -> NDArray[np.float32]:
        shape = (len(observations), self.act_step, self.convention.dim)
        chunks = self._rng.uniform(-1, 1, size=shape).astype(np.float32)
        gripper = list(self.convention.layout.gripper)
        chunks[..., gripper] = np.where(chunks[..., gripper] >= 0, 1.0, -1.0)
        return chunks
