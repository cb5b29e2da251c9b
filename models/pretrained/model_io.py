"""Build a model from a configuration, load it from a folder, save it to one.

Weights keep the original's key names on disk (``showo.*``, ``mm_projector.*``, ``token_learner.*``, ``to_logits.0.*``),
so that checkpoints are exchangeable: base Show-o checkpoints, UP-VLA training folders, bare files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from common.files import read_object, write_text
from config.schema import Job
from models.action.state import StateConvention, calvin_state
from models.language_model import backbone_config, ignored_settings, load_pretrained, save_code
from models.language_model.weight_init import init_code_embeddings
from models.pretrained.adapters import Base, InitialWeights, apply_adapters, read_base
from models.pretrained.folders import CODE_FOLDER, CONFIG_FILE, SPEC_FIELD, STEP_FIELD, TOKENIZER_FOLDER
from models.pretrained.folders import model_folder as model_folder  # part of this module's interface
from models.pretrained.initial_weights import from_disk_names as from_disk_names  # part of this module's interface
from models.pretrained.initial_weights import load_weights, tied_names
from models.pretrained.initial_weights import to_disk_names as to_disk_names
from models.pretrained.model_config import DecodingDefaults, ModelConfig
from models.pretrained.safetensors_file import Writable
from models.pretrained.weights_io import (
    ADAPTERS_FILE,
    find_weights,
    read_weights,
    require_whole,
    resolve_model_dir,
    write_safetensors,
)
from models.processing.text import Prompter, load_tokenizer, vocabulary_of
from models.upvla import UPVLA, llm_config

WEIGHTS_FILE = "model.safetensors"
RELEASED_CLIP_WIDTH = 1024
"""CLIP ViT-L/14's width, which the original hard-codes and does not write down."""


@dataclass(frozen=True)
class Built:
    """A model with its prompter. ``notes``: information for the user, such as random weights."""

    model: UPVLA
    prompter: Prompter
    notes: tuple[str, ...] = ()

    @property
    def spec(self) -> ModelConfig:
        return self.model.spec


@dataclass(frozen=True)
class UpstreamSettings:
    """Settings that an original checkpoint folder does not contain. ``llm_model_path`` None: as in its config.json."""

    llm_model_path: str | None = None
    num_view: int = 1
    max_seq_length: int = 576
    resolution: int = 512
    mask_logit_banned: bool = True
    decoding: DecodingDefaults = field(default_factory=DecodingDefaults)


# --- build ----------------------------------------------------------------------------------------------------------


def build(
    job: Job,
    device: torch.device | str = "cpu",
    state: StateConvention | None = None,
    workspace: Mapping[str, Any] | None = None,
) -> Built:
    """Build the network of a run configuration, with its initial weights.

    ``device="meta"`` builds shapes only and reads no weights. ``state``: the state that the data declare, read if
    ``model.vla.proprioception`` is ``pose`` (None: CALVIN's). ``workspace``: that of the positions, which are learned
    if ``training.ground_coeff`` is above 0 (None: a cube of 2 m). Raises ``ValueError`` naming the config key or the
    file.
    """
    showo = job.model.showo
    config = backbone_config(showo.llm_model_path, showo.llm_backbone, trust_remote_code=showo.trust_remote_code)
    tokenizer, words = load_tokenizer(showo.llm_model_path, trust_remote_code=showo.trust_remote_code)
    spec = _spec_of(job, tokenizer, words, config)
    if job.model.vla.proprioception != "none":
        spec = spec.updated(state=(state or calvin_state()).to_json())
    if job.training.ground_coeff > 0:
        spec = spec.updated(workspace=workspace or {"low": [-1.0] * 3, "high": [1.0] * 3})
    model = _random(spec, config, job.training.seed, device)
    notes: tuple[str, ...] = ()
    if torch.device(device).type != "meta":
        notes = _load_start(InitialWeights.of(job), model, config)
        if ignored := ignored_settings(config):
            notes += (f"{showo.llm_model_path}/{CONFIG_FILE} asks for {', '.join(ignored)}: not used here",)
    prompter = Prompter(tokenizer, spec.vocab, spec.max_seq_length, spec.system_prompt)
    if torch.device(device).type != "meta" and showo.load_from_showo:
        _require_words_of_start(job, tokenizer)
    return Built(model, prompter, notes)


def _random(spec: ModelConfig, config: Any, seed: int, device: torch.device | str = "cpu") -> UPVLA:
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(seed)
        return UPVLA(spec, config)


def _spec_of(job: Job, tokenizer: Any, words: int, config: Any) -> ModelConfig:
    showo = job.model.showo
    vocab = vocabulary_of(tokenizer, words, showo.codebook_size)
    if not showo.auto_set_llm_vocab_size:
        for key, given, found in (
            ("llm_vocab_size", showo.llm_vocab_size, words),
            ("vocab_size", showo.vocab_size, vocab.size),
        ):
            if given != found:
                raise ValueError(
                    f"model.showo.{key} is {given}, but the tokenizer of {showo.llm_model_path} makes it {found}; "
                    f"set it so, or model.showo.auto_set_llm_vocab_size=true"
                )
    return ModelConfig(
        llm=_plain(config),
        llm_model_path=showo.llm_model_path,
        words=words,
        bos=vocab.bos,
        eos=vocab.eos,
        codebook_size=showo.codebook_size,
        act_step=job.act_step,
        num_view=job.model.vla.num_view,
        action_dim=job.model.vla.action_dim,
        num_vq_tokens=showo.num_vq_tokens,
        clip_width=clip_width(showo.clip_model_path) if showo.w_clip_vit else None,
        max_seq_length=job.dataset.preprocessing.max_seq_length,
        resolution=job.dataset.preprocessing.resolution,
        mask_logit_banned=showo.mask_logit_banned,
        code_bits=showo.code_bits,
        framework=job.model.framework,
        decoding=decoding_defaults(job),
        attn_implementation=showo.attn_implementation,
        versions={name: version(name) for name in ("torch", "transformers")},
    )


def decoding_defaults(job: Job) -> DecodingDefaults:
    """Return how the job's model decodes answers and action tokens."""
    blocks = job.block_diffusion
    return DecodingDefaults(
        text_objective=job.training.text_objective,
        text_prediction=job.text_diffusion.prediction,
        text_block_size=blocks.block_size,
        text_canvas_multiple=job.text_mdm.canvas_multiple,
        action_bins=blocks.action_num_bins if blocks.action_enabled else None,
        action_block_size=blocks.action_block_size,
        action_prediction=job.text_diffusion.prediction,
        action_decoder="block_diffusion" if blocks.action_infer_enabled else "regression",
        action_conf_threshold=blocks.action_conf_threshold,
        action_infer_steps=blocks.action_infer_steps,
    )


def _plain(config: Any) -> dict[str, Any]:
    """Return a transformers config as parsed JSON, so that a saved description equals the one in memory."""
    plain: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    return plain


def clip_width(name_or_path: str) -> int:
    """Return the number of feature channels of a CLIP directory (a whole CLIP model or its vision tower)."""
    folder = resolve_model_dir(name_or_path, key="model.showo.clip_model_path", weights=False)
    settings = read_object(folder / CONFIG_FILE)
    width = settings.get("vision_config", settings).get("hidden_size")
    if not isinstance(width, int):
        raise ValueError(f"{folder / CONFIG_FILE}: no hidden_size of a CLIP vision tower in it")
    return width


def require_same_words(saved: Any, wanted: Any, source: str) -> None:
    """Raise ``ValueError`` if two tokenizers give a word different ids."""
    ours, theirs = saved.get_vocab(), wanted.get_vocab()
    word = next((word for word in sorted({*ours, *theirs}) if ours.get(word) != theirs.get(word)), None)
    if word is not None:
        raise ValueError(
            f"model.showo.llm_model_path: its tokenizer gives {word!r} the id {theirs.get(word)}, that of {source} "
            f"gives it {ours.get(word)}; give the language model whose tokenizer the weights learned"
        )


def _require_words_of_start(job: Job, tokenizer: Any) -> None:
    """Raise ``ValueError`` if the initial weights were saved with another tokenizer than the run's."""
    source = resolve_model_dir(str(job.model.showo.pretrained_model_path), key="model.showo.pretrained_model_path")
    folder = _weights_file(source).parent / TOKENIZER_FOLDER
    if (folder / "tokenizer.json").is_file():
        require_same_words(load_tokenizer(folder)[0], tokenizer, str(folder))


def _load_start(start: InitialWeights, model: UPVLA, config: Any) -> tuple[str, ...]:
    if start.load_from_showo:
        if start.pretrained_model_path is None:
            raise ValueError(
                "model.showo.load_from_showo is true, but model.showo.pretrained_model_path is not set; "
                "give a Show-o or UP-VLA checkpoint, or set load_from_showo=false"
            )
        source = resolve_model_dir(start.pretrained_model_path, key="model.showo.pretrained_model_path")
        return load_weights(model, _weights_file(source), initial=True)
    folder = resolve_model_dir(start.llm_model_path, key="model.showo.llm_model_path")
    init_code_embeddings(model, start.seed)
    rest = "projector and action head start from random weights"
    if folder.is_dir() and find_weights(folder) is None:
        return (f"{folder} holds no weights: the backbone starts from random weights", rest)
    had_norms = load_pretrained(model.backbone, config, read_weights(folder), folder, model.vocab.words)
    norms = () if had_norms else (f"{folder} has no query/key norms: they start as the identity scale",)
    return ("the rows of the special tokens, image codes and mask start from random weights", *norms, rest)


# --- folders --------------------------------------------------------------------------------------------------------


def save_folder(
    model: UPVLA,
    prompter: Prompter,
    path: str | Path,
    state: Mapping[str, Writable] | None = None,
    global_step: int | None = None,
    base: Base | None = None,
) -> None:
    """Write everything that acting needs: ``config.json``, ``model.safetensors``, ``tokenizer/``.

    ``state``: the full state dict where the live module holds only a shard of it (DeepSpeed ZeRO-3, FSDP).
    ``global_step``: the optimizer step of the weights, recorded in ``config.json``. ``base``: ``state`` has adapters
    and trained parameters only, and is written as ``adapters.safetensors`` (``models.pretrained.adapters``).
    """
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Writable] = dict(model.state_dict() if state is None else state)
    tied_head, _ = tied_names(model)
    if tied_head:
        tensors.pop(tied_head, None)
    file, about = (WEIGHTS_FILE, {}) if base is None else (ADAPTERS_FILE, base.to_metadata())
    write_safetensors(folder / file, to_disk_names(tensors), metadata={"format": "pt", **about})
    spec, vocab = model.spec, model.vocab
    description = {
        "_class_name": "Upvla",
        "act_step": spec.act_step,
        "clip_dim": spec.clip_width,
        "codebook_size": spec.codebook_size,
        "llm_model_path": spec.llm_model_path,
        "llm_vocab_size": spec.words,
        "load_from_showo": True,
        "mask_token_id": vocab.mask,
        "num_vq_tokens": spec.num_vq_tokens,
        "vocab_size": vocab.size,
        "w_clip_vit": spec.clip_width is not None,
        SPEC_FIELD: spec.to_json(),
        **({} if global_step is None else {STEP_FIELD: global_step}),
    }
    save_code(model.backbone, folder)
    write_text(folder / CONFIG_FILE, json.dumps(description, indent=2, sort_keys=True, default=str) + "\n")
    prompter.tokenizer.save_pretrained(str(folder / TOKENIZER_FOLDER))


def load_folder(
    path: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    upstream: UpstreamSettings | None = None,
    trust_remote_code: bool = False,
) -> Built:
    """Load a model that was saved by this project or by the original's training.

    ``path``: a run's output folder, ``checkpoint-<step>``, its ``unwrapped_model``, or a weight file next to
    its ``config.json``. ``device="meta"`` reads no weights. ``upstream``: settings that the original's folders lack;
    ``trust_remote_code``: run the saved code of its language model. Raises ``ValueError`` or ``FileNotFoundError``
    naming the file.
    """
    folder = model_folder(path)
    weights = Path(path) if Path(path).is_file() else find_weights(folder)
    assert weights is not None  # checked by model_folder
    description = read_object(folder / CONFIG_FILE)
    if SPEC_FIELD in description:
        try:
            spec = ModelConfig.from_json(description[SPEC_FIELD])
        except ValueError as error:
            raise ValueError(f"{folder / CONFIG_FILE}: {error}") from error
        code = folder / CODE_FOLDER
        config = backbone_config(code, trust_remote_code=trust_remote_code) if code.is_dir() else None
        tokenizer, words = load_tokenizer(folder / TOKENIZER_FOLDER, trust_remote_code=trust_remote_code)
        if words != spec.words:
            raise ValueError(f"{folder / TOKENIZER_FOLDER} has {words} words, but {CONFIG_FILE} says {spec.words}")
    else:
        settings = upstream or UpstreamSettings()
        spec, tokenizer, config = _upstream_spec(folder, description, settings, trust_remote_code)
    try:
        model, notes = _load_model(spec, config, weights, device)
    except ValueError as error:
        raise ValueError(f"{error} (the model is what {folder / CONFIG_FILE} describes)") from error
    model.to(device=device, dtype=dtype).eval().requires_grad_(False)
    return Built(model, Prompter(tokenizer, spec.vocab, spec.max_seq_length, spec.system_prompt), notes)


def _load_model(
    spec: ModelConfig, config: Any, weights: Path, device: torch.device | str
) -> tuple[UPVLA, tuple[str, ...]]:
    if torch.device(device).type == "meta":
        return _random(spec, config, 0, device), ()
    base = read_base(weights)
    if base is None:
        model = UPVLA(spec, config)
        return model, load_weights(model, weights)
    model = _random(spec, config, base.initial.seed)
    try:
        _load_start(base.initial, model, llm_config(spec) if config is None else config)
    except (ValueError, FileNotFoundError) as error:
        raise ValueError(f"{weights} holds adapters alone, and their base cannot be loaded: {error}") from error
    apply_adapters(model, weights, base)
    return model, ()


def _weights_file(source: Path) -> Path:
    if source.is_file():
        return source
    folder = model_folder(source)
    file = find_weights(folder)
    assert file is not None  # checked by model_folder
    require_whole(file)
    return file


def _upstream_spec(
    folder: Path, description: Mapping[str, Any], upstream: UpstreamSettings, trust_remote_code: bool
) -> tuple[ModelConfig, Any, Any]:
    """Return (description of an original checkpoint, tokenizer, language model's config)."""
    name = upstream.llm_model_path or str(description.get("llm_model_path", ""))
    if not name:
        raise ValueError(
            f"{folder / CONFIG_FILE} names no llm_model_path; set model.showo.llm_model_path in a "
            "copy of policy_rollout/upvla_model.yaml (what acts and answers takes it as --model-config)"
        )
    tokenizer, words = load_tokenizer(name, trust_remote_code=trust_remote_code)
    config = backbone_config(name, trust_remote_code=trust_remote_code)
    vocab = vocabulary_of(tokenizer, words, int(description.get("codebook_size", 8192)))
    for key, found in (("llm_vocab_size", words), ("vocab_size", vocab.size)):
        described = description.get(key)
        if described != found:
            raise ValueError(
                f"{folder / CONFIG_FILE} has {key}={described}, but the tokenizer of {name} makes it {found}; "
                f"point model.showo.llm_model_path at the language model it was trained from"
            )
    spec = ModelConfig(
        llm=_plain(config),
        llm_model_path=name,
        words=words,
        bos=vocab.bos,
        eos=vocab.eos,
        codebook_size=vocab.codebook_size,
        act_step=int(description.get("act_step", 10)),
        num_view=upstream.num_view,
        num_vq_tokens=int(description["num_vq_tokens"]),
        clip_width=int(description.get("clip_dim", RELEASED_CLIP_WIDTH)) if description.get("w_clip_vit") else None,
        max_seq_length=upstream.max_seq_length,
        resolution=upstream.resolution,
        mask_logit_banned=upstream.mask_logit_banned,
        decoding=upstream.decoding,
    )
    return spec, tokenizer, config
