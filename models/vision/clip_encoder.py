"""The CLIP vision tower, frozen: one feature per patch, taken before the tower's last layer.

The features are `hidden_states[-2]` without the class token, so the last layer and the final norm are never built.

Shape letters: B batch, S side of the input, P patches (576 = 24 x 24), C width.
"""

from __future__ import annotations

from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel
from transformers.activations import ACT2FN

from common.files import read_object
from models.pretrained.weights_io import check_state, load_strict, read_weights, resolve_model_dir, state_sha256
from models.processing.image import ClipImageSpec

KEY = "model.showo.clip_model_path"
PREFIX = "vision_model."
# What a whole CLIPModel holds beside its vision tower.
NOT_THE_TOWER = ("text_model.", "text_projection.", "visual_projection.", "logit_scale")
# An index table that files of older transformers carry; it says nothing.
INDEX_TABLE = "vision_model.embeddings.position_ids"
OF_ANOTHER_MACHINE = ("attn_implementation", "_attn_implementation", "dtype", "torch_dtype")


class ClipTower(nn.Module):
    """Patch features of a CLIP vision model: all its layers but the last, frozen, always in eval mode.

    Attributes:
        width: C.
        num_patches: P.
        image_spec: how to make its input, for `models.processing.image.clip_pixels`.
    """

    def __init__(self, config: CLIPVisionConfig, image_spec: ClipImageSpec) -> None:
        super().__init__()
        side = int(config.image_size)
        if image_spec.crop != (side, side):
            raise ValueError(
                f"the CLIP tower sees {side} x {side} pixels, but its preprocessor crops {image_spec.crop}"
            )
        if config.num_hidden_layers < 2:
            raise ValueError("a CLIP tower needs at least 2 layers: the features are those before the last one")
        self.width = int(config.hidden_size)
        self.num_patches = (side // int(config.patch_size)) ** 2
        self.image_spec = image_spec
        self.vision_model = CLIPVisionModel(with_layers(config, config.num_hidden_layers - 1))
        self.vision_model.post_layernorm = nn.Identity()
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def features(self, pixels: Tensor) -> Tensor:
        """Return features [B,P,C] of pixels [B,3,S,S] from `clip_pixels`, in the tower's dtype, also under autocast.

        Cached features [B,P,C] are only cast.
        """
        weight = self.vision_model.embeddings.patch_embedding.weight
        if pixels.ndim == 3:
            return pixels.to(weight.dtype)
        with torch.autocast(pixels.device.type, enabled=False):
            hidden = self.vision_model(pixel_values=pixels.to(weight.dtype)).last_hidden_state  # [B,1+P,C]
        return hidden[:, 1:]

    @property
    def weights_hash(self) -> str:
        """SHA-256 over names, types, shapes and bytes of all tensors, computed anew on every access."""
        return state_sha256(self)

    def train(self, mode: bool = True) -> ClipTower:
        """Stay in eval mode: the tower is never trained."""
        return super().train(False)

    @classmethod
    def from_dir(cls, path: str | Path) -> ClipTower:
        """From a directory with config.json, preprocessor_config.json and weights, of a whole CLIPModel or of its
        vision tower alone.

        Raises:
            FileNotFoundError, ValueError: a file is missing or unreadable, or the keys are not those of the config.
        """
        path = Path(path)
        config, image_spec = read_config(path), ClipImageSpec.from_dir(path)
        weights = read_weights(path)
        if not any(name.startswith(PREFIX) for name in weights):  # transformers 5 saves a tower alone without it
            weights = {PREFIX + name: tensor for name, tensor in weights.items()}
        state = {n: t for n, t in weights.items() if not n.startswith(NOT_THE_TOWER) and n != INDEX_TABLE}
        # The whole file is checked, though its last layer and norm are then left out.
        check_state(tower_shapes(config), state, path)
        with torch.device("meta"):
            tower = cls(config, image_spec).float()
        load_strict(tower, {name: state[name] for name in tower.state_dict()}, path)
        # Not in any file, so still on the meta device.
        tower.vision_model.embeddings.position_ids = torch.arange(tower.num_patches + 1)[None]
        return tower


def load_clip(name_or_path: str | Path, key: str = KEY) -> ClipTower:
    """Load the tower of a local directory or hub id, on the CPU, in float32; `key`: the config key for errors."""
    needs = ("config.json", "preprocessor_config.json")
    return ClipTower.from_dir(resolve_model_dir(name_or_path, key, needs=needs))


def read_config(path: Path) -> CLIPVisionConfig:
    """Return the vision part of a CLIP directory's config.json."""
    file = path / "config.json"
    fields = read_object(file, "a CLIP directory has one")
    if fields.get("model_type") not in ("clip", "clip_vision_model"):
        raise ValueError(f"{file} describes a model of type {fields.get('model_type')!r}, not a CLIP vision tower")
    described = fields.get("vision_config", fields)
    try:
        # Which kernel runs is a matter of this machine, not of the one that the file was written on.
        config = CLIPVisionConfig.from_dict({n: v for n, v in dict(described).items() if n not in OF_ANOTHER_MACHINE})
    except (StrictDataclassError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{file} does not describe a CLIP vision tower: {' '.join(str(error).split())}") from error
    if config.hidden_act not in ACT2FN:
        raise ValueError(f"{file}: hidden_act is {config.hidden_act!r}, which transformers does not know")
    return config


def with_layers(config: CLIPVisionConfig, layers: int) -> CLIPVisionConfig:
    return CLIPVisionConfig.from_dict({**config.to_dict(), "num_hidden_layers": layers})


def tower_shapes(config: CLIPVisionConfig) -> dict[str, torch.Size]:
    """Return the shapes of all weights by name in files, including last layer and final norm."""
    with torch.device("meta"):
        state = CLIPVisionModel(config).state_dict()
    return {PREFIX + name.removeprefix(PREFIX): tensor.shape for name, tensor in state.items()}
