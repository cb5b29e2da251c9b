"""The language model: embed, forward, head, logits.

The network is a model of transformers (Phi with per-head ``qk_layernorm``, Qwen3, ...). Its inputs are embeddings, a
4-D mask and positions, its output the hidden states after the final norm. Only scored slots are projected.

Legend: B batch, L sequence, D hidden, V vocabulary.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache
from transformers.activations import NewGELUActivation

from models.attention_mask import Rule, Slots, additive
from models.pretrained.weights_io import resolve_model_dir

FLEX = "flex_attention"
ATTENTION_IMPLEMENTATIONS = ("sdpa", "eager", FLEX)
CACHE_ARGUMENTS = ("cache", "past_key_values")
"""What transformers calls the cache in a forward: since 5.24, and before (removed in 5.40)."""
READABLE_LAYERS = frozenset({"full_attention", "sliding_attention"})
"""Kinds of layers that read a 4-D mask; others (state spaces, linear attention) would let every slot see every one."""
UNKNOWN_SCALES = ("lm_head_multiplier", "dim_model_base")
"""Settings of families whose logits are scaled in a way that ``Backbone.scaled`` does not know."""
HARMLESS_DROPOUT = ("classifier", "summary")
"""Dropout of heads that are never built."""


def backbone_config(name_or_path: str | Path, llm_backbone: str = "auto", *, trust_remote_code: bool = False) -> Any:
    """Return the transformers config of a language model directory (or hub id).

    ``llm_backbone``: ``auto`` accepts any model type; any other value must be its ``model_type``.
    ``trust_remote_code``: run the model code in the directory. Raises ``ValueError`` naming the folder.
    """
    folder = resolve_model_dir(str(name_or_path), key="model.showo.llm_model_path", weights=False)
    try:
        config = AutoConfig.from_pretrained(str(folder), trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        if not trust_remote_code and "trust_remote_code" in str(error):
            raise ValueError(
                f"{folder}: this language model brings its own code; set model.showo.trust_remote_code=true to run it"
            ) from error
        raise ValueError(f"{folder}: no usable language model config.json ({' '.join(str(error).split())})") from error
    if llm_backbone not in ("auto", config.model_type):
        raise ValueError(
            f"model.showo.llm_backbone is {llm_backbone!r}, but {folder} holds a {config.model_type!r}; "
            f"set it to {config.model_type!r} or auto"
        )
    if getattr(config, "quantization_config", None) is not None:
        raise ValueError(
            f"{folder / 'config.json'} has a quantization_config: quantized weights cannot be trained; "
            "set model.showo.llm_model_path to the model before quantization"
        )
    return config


def ignored_settings(config: Any) -> list[str]:
    """Return the settings of a config that the network does not apply, as ``name=value``."""
    asked = [f"{name}={value:g}" for name, value in _dropout(config).items() if value]
    window = getattr(config, "sliding_window", None)
    if window and getattr(config, "use_sliding_window", True):
        asked.append(f"sliding_window={window}")
    return asked


def has_own_code(config: Any) -> bool:
    """Return whether a config's class comes from a model directory (``trust_remote_code``), not from transformers."""
    return type(config).__module__.startswith("transformers_modules.")


def _dropout(config: Any) -> dict[str, float]:
    """Return every dropout probability of a config by name; ``to_dict`` omits names that a class only maps."""
    return {
        name: value
        for name, value in config.to_dict().items()
        if any(word in name for word in ("dropout", "pdrop", "layerdrop"))
        and not name.startswith(HARMLESS_DROPOUT)
        and isinstance(value, (int, float))
    }


def as_trained(config: Any, vocab_size: int) -> Any:
    """The config as Show-o and UP-VLA use it: our vocabulary, no dropout, and Phi's per-head query/key norms always on
    (they are in the released weights although config.json says otherwise)."""
    config = copy.deepcopy(config)  # transformers models share the object they are given
    config.vocab_size = vocab_size
    config.use_cache = False
    config.output_attentions = config.output_hidden_states = False
    if config.model_type == "phi":
        config.qk_layernorm = True
    for name in _dropout(config):
        setattr(config, name, 0.0)
    # Ids of the original tokenizer mean nothing to a network that is never asked to generate by itself.
    config.pad_token_id = None
    return config


def _fuse_activations(lm: nn.Module) -> None:
    """Replace Phi's ``gelu_new`` by torch's fused kernel of the same function (to 1e-6).

    transformers computes it in six passes over the widest tensor of a layer, each with a result that training keeps.
    """
    for module in list(lm.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, NewGELUActivation):
                setattr(module, name, nn.GELU(approximate="tanh"))


def _cache_argument(lm: Any) -> str:
    """Return the name of the network's cache argument. Raises ``ValueError`` if it does not take our inputs."""
    takes = inspect.signature(lm.base_model.forward).parameters
    name = next((name for name in CACHE_ARGUMENTS if name in takes), None)
    missing = [argument for argument in ("inputs_embeds", "attention_mask", "position_ids") if argument not in takes]
    kinds = {*(getattr(lm.config, "layer_types", None) or ())} - READABLE_LAYERS
    scales = [name for name in UNKNOWN_SCALES if hasattr(lm.config, name)]
    bypassed = [*_own_masks(lm), *_layers_before_head(lm)]
    if name is None or missing or kinds or scales or bypassed or lm._is_stateful:
        why = [*missing, *sorted(kinds), *scales, *bypassed] or ["a cache of keys and values"]
        raise ValueError(
            f"model.showo.llm_model_path: a {lm.config.model_type!r} network cannot be the backbone ({why[0]}); "
            "allowed: a causal language model of full attention that takes embeddings, a mask, positions and a cache"
        )
    return name


def _own_masks(lm: Any) -> list[str]:
    """Name a mask that an attention layer stores and applies in addition to the given one (GPT-Neo).

    The model's own buffers are not meant: it makes the mask of its layers from them, unless it is given one.
    """
    for layer, module in lm.base_model.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            if layer and buffer.dtype in (torch.bool, torch.uint8) and buffer.ndim > 1 and buffer.shape[-2] > 1:
                return [f"its own attention mask {layer}.{name}"]
    return []


def _layers_before_head(lm: Any) -> list[str]:
    """Name a layer between the hidden states and the head, which ``logits`` would skip (BERT)."""
    known = {id(p) for part in (lm.base_model, lm.get_output_embeddings()) for p in part.parameters()}
    return [f"a layer before its head, {name}" for name, p in lm.named_parameters() if id(p) not in known][:1]


class Head:
    """Projection to the vocabulary, [*, D] -> [*, V], with the scaling of the model's family."""

    def __init__(self, linear: nn.Linear, scaled: Callable[[Tensor], Tensor]) -> None:
        self._linear, self._scaled = linear, scaled
        self.out_features = linear.out_features

    def __call__(self, hidden: Tensor) -> Tensor:
        return self._scaled(self._linear(hidden))


class Backbone(nn.Module):
    """A causal LM over the project's vocabulary.

    ``config``: a transformers config; ``vocab_size``: rows of the embedding and of the head.
    ``attn_implementation``: ``sdpa`` (boolean masks), ``eager`` (additive masks) or ``flex_attention``, which is what
    is trained with: a mask of tiles, made of the tags alone. Measuring and acting then go by ``sdpa``.
    """

    def __init__(self, config: Any, vocab_size: int, attn_implementation: str = "sdpa") -> None:
        super().__init__()
        if attn_implementation not in ATTENTION_IMPLEMENTATIONS:
            raise ValueError(
                f"model.showo.attn_implementation is {attn_implementation!r}; "
                f"allowed: {', '.join(ATTENTION_IMPLEMENTATIONS)}"
            )
        # Its own kernel from the start: some older networks choose it when they are built.
        kernel = "sdpa" if attn_implementation == FLEX else attn_implementation
        # float32 whatever config.json names: precision is the job's business (training.mixed_precision).
        try:
            self.lm = AutoModelForCausalLM.from_config(
                as_trained(config, vocab_size),
                dtype=torch.float32,
                attn_implementation=kernel,
                trust_remote_code=has_own_code(config),
            )
        except (ValueError, ImportError) as error:
            raise ValueError(
                f"model.showo.llm_model_path: transformers builds no causal language model of type "
                f"{config.model_type!r} with model.showo.attn_implementation={attn_implementation} "
                f"({' '.join(str(error).split())[:160]}); most models have sdpa, all have eager"
            ) from error
        self._cache_argument = _cache_argument(self.lm)
        _fuse_activations(self.lm)
        self.set_attn_implementation(attn_implementation)

    def set_attn_implementation(self, attn_implementation: str) -> None:
        """Select the attention kernel; results are equal to rounding. Raises ``ValueError`` for an unknown one."""
        has = {"sdpa": self.lm._supports_sdpa, "eager": True, FLEX: self.lm._supports_flex_attn}
        if not has.get(attn_implementation):
            raise ValueError(
                f"model.showo.attn_implementation is {attn_implementation!r}; allowed with a "
                f"{self.config.model_type!r} backbone: {', '.join(name for name, yes in has.items() if yes)}"
            )
        self.attn_implementation = attn_implementation
        self.lm.config._attn_implementation = "sdpa" if attn_implementation == FLEX else attn_implementation

    @property
    def hidden_size(self) -> int:
        """Width of an embedding, and of what ``forward`` returns. (Inside, a network may be wider: OPT 350M.)"""
        return int(self.lm.get_input_embeddings().weight.shape[1])

    @property
    def config(self) -> Any:
        return self.lm.config

    @property
    def dtype(self) -> torch.dtype:
        weight: Tensor = self.lm.get_input_embeddings().weight
        return weight.dtype

    def embed(self, ids: Tensor) -> Tensor:
        """Return the embeddings [B, L, D] of ids [B, L]."""
        out: Tensor = self.lm.get_input_embeddings()(ids)
        return out

    @property
    def uses_flex_attention(self) -> bool:
        """Whether it is trained with FlexAttention."""
        return self.attn_implementation == FLEX

    def mask(self, rule: Rule, slots: Slots) -> Tensor | BlockMask:
        """Return the attention mask of a whole sequence for ``forward``, shared by all layers."""
        return rule.blocks(slots) if self.uses_flex_attention and self.training else rule.dense(slots)

    def forward(self, embeds: Tensor, mask: Tensor | BlockMask, positions: Tensor, cache: Any | None = None) -> Tensor:
        """Return hidden states after the final norm.

        ``embeds`` [B, L, D]; ``mask`` [B, 1, L, K] boolean, True attends (K > L when ``cache`` holds earlier slots), or
        a mask of tiles; ``positions`` [B, L] true positions. Returns [B, L, D].
        """
        if self.uses_flex_attention:  # transformers asks its configuration in every layer which kernel to take
            self.lm.config._attn_implementation = FLEX if isinstance(mask, BlockMask) else "sdpa"
        # Eager attention adds the mask to the scores; only SDPA reads booleans.
        attention_mask = mask
        if self.attn_implementation == "eager" and isinstance(mask, Tensor):
            attention_mask = additive(mask, embeds.dtype)
        out = self.lm.base_model(
            inputs_embeds=embeds,
            attention_mask=attention_mask,
            position_ids=positions,
            use_cache=cache is not None,
            return_dict=True,
            **({} if cache is None else {self._cache_argument: cache}),
        )
        hidden: Tensor = out.last_hidden_state
        return hidden

    def new_cache(self) -> DynamicCache:
        """Return an empty cache of keys and values. It keeps every slot, also in layers with a sliding window, because
        only the mask decides what is attended."""
        return DynamicCache()

    @property
    def head(self) -> Head:
        """The projection to the vocabulary."""
        return Head(self.lm.get_output_embeddings(), self.scaled)

    def logits(self, hidden: Tensor, rows: slice | None = None) -> Tensor:
        """Return float32 logits [..., V] of hidden states [..., D]; ``rows``: only of these ids."""
        head = self.lm.get_output_embeddings()
        if rows is None:
            return self.scaled(head(hidden)).float()
        bias = getattr(head, "bias", None)
        return self.scaled(F.linear(hidden, head.weight[rows], None if bias is None else bias[rows])).float()

    def scaled(self, logits: Tensor) -> Tensor:
        """Apply the logit scaling of some families: a factor (Cohere), a divisor (Granite), a soft cap (Gemma 2)."""
        factor = getattr(self.config, "logit_scale", None)
        divisor = getattr(self.config, "logits_scaling", None)
        cap = getattr(self.config, "final_logit_softcapping", None)
        logits = logits if factor is None else logits * factor
        logits = logits if divisor is None else logits / divisor
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def enable_gradient_checkpointing(self) -> None:
        """Recompute activations in the backward pass (about a third more time, far less memory)."""
        settings = {"use_reentrant": False}
        if hasattr(self.lm, "activation_checkpointing_enable"):  # transformers 5.2x renamed it
            self.lm.activation_checkpointing_enable(activation_checkpointing_kwargs=settings)
        else:
            self.lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs=settings)
