"""Load the adapters and trained parameters of a LoRA run, and the frozen weights that they belong to.

``adapters.safetensors`` takes the place of ``model.safetensors``. It holds the matrices A and B of every adapter and
the parameters that are trained in full, and its header names the source of the frozen weights (``Base``).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from config.schema import Job
from models.pretrained.initial_weights import from_disk_names
from models.pretrained.weights_io import ADAPTERS_FILE, describe_mismatch, read_weights, require_finite

BASE_LAYER, A, B = ".base_layer.", ".lora_A.default.weight", ".lora_B.default.weight"
"""Parts of the names that peft gives to the weights of an adapted layer."""
ABOUT = "base"


@dataclass(frozen=True)
class InitialWeights:
    """Where a run's initial weights come from: the keys ``model.showo.*`` and ``training.seed`` that they depend on."""

    load_from_showo: bool
    pretrained_model_path: str | None
    llm_model_path: str
    seed: int

    @classmethod
    def of(cls, job: Job) -> InitialWeights:
        showo = job.model.showo
        return cls(showo.load_from_showo, showo.pretrained_model_path, showo.llm_model_path, job.training.seed)


@dataclass(frozen=True)
class Base:
    """The frozen weights that adapters were trained with.

    ``sha256``: digest of them (``weights_sha256``). ``scale``: factor of the product of A and B.
    """

    initial: InitialWeights
    sha256: str
    scale: float

    def to_metadata(self) -> dict[str, str]:
        """Return the entry for the header of the file."""
        return {ABOUT: json.dumps(asdict(self))}


def read_base(file: Path) -> Base | None:
    """Return the base that an ``adapters.safetensors`` names, None for another weight file. Raises ``ValueError``."""
    if file.name != ADAPTERS_FILE:
        return None
    try:
        with safe_open(str(file), framework="pt") as stream:
            about = json.loads(stream.metadata()[ABOUT])
        return Base(**{**about, "initial": InitialWeights(**about["initial"])})
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"{file} is damaged: its header names no base of adapters ({error})") from error


@torch.no_grad()
def apply_adapters(model: nn.Module, file: Path, base: Base) -> None:
    """Add the adapters of a file to a network with the initial weights of its run, and set what was trained in full.

    The result equals the merged weights that the run would have written. Raises ``ValueError`` if the network's frozen
    weights are not those that the adapters were trained with, or if the file does not fit the network.
    """
    state = from_disk_names(read_weights(file))
    require_finite(state, file)
    adapters = {name: tensor for name, tensor in state.items() if name.endswith((A, B))}
    parts = {name.replace(BASE_LAYER, "."): tensor for name, tensor in state.items() if name not in adapters}
    layers = sorted({name.removesuffix(A).removesuffix(B) for name in adapters})
    parameters = dict(model.named_parameters())
    shapes = {name: tensor.shape for name, tensor in parts.items()}
    for layer in layers:
        b, a = adapters.get(layer + B), adapters.get(layer + A)
        shapes[f"{layer}.weight"] = torch.Size() if a is None or b is None else torch.Size((b.shape[0], a.shape[1]))
    unexpected = [name for name in shapes if name not in parameters]
    resized = [
        f"{name} is {list(shape)}, not {list(parameters[name].shape)}"
        for name, shape in shapes.items()
        if name in parameters and parameters[name].shape != shape
    ]
    if problem := describe_mismatch([], unexpected, resized):
        raise ValueError(f"{file} does not fit the model that its config.json describes; keys {problem}")
    if weights_sha256(p for name, p in parameters.items() if name not in parts) != base.sha256:
        raise ValueError(
            f"{file} holds adapters to other weights than those that it was trained with "
            f"({_source(base.initial)}); restore the files there"
        )
    for name, tensor in parts.items():
        parameters[name].copy_(tensor)
    for layer in layers:
        weight = parameters[f"{layer}.weight"]
        weight.copy_(merge(weight, adapters[layer + A], adapters[layer + B], base.scale))


def merge(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """Return ``weight`` [out, in] with an adapter added: ``scale`` times ``b`` [out, r] ``a`` [r, in]."""
    return (weight.float() + scale * (b.float() @ a.float())).to(weight.dtype)


def only_trained(state: Mapping[str, Tensor], names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
    """Yield adapters, trained or not, and the tensors called ``names``."""
    kept = {*names}
    return ((name, tensor) for name, tensor in state.items() if name in kept or name.endswith((A, B)))


def weights_sha256(parameters: Iterable[Tensor]) -> str:
    """Return a digest of types, shapes and bytes, independent of names. The tensors are on the host."""
    digest = hashlib.sha256()
    for parameter in parameters:
        digest.update(f"{parameter.dtype} {tuple(parameter.shape)};".encode())
        digest.update(parameter.detach().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _source(initial: InitialWeights) -> str:
    if initial.load_from_showo:
        return f"model.showo.pretrained_model_path={initial.pretrained_model_path}"
    return f"model.showo.llm_model_path={initial.llm_model_path}"
