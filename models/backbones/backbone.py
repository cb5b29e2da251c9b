"""The language model as the rest of the project sees it: embed, forward, head, logits.

The network itself is transformers' own (Phi with per-head ``qk_layernorm``, Qwen3, ...). We hand it embeddings, a
4-D mask and positions, take the hidden states after its final norm, and project only the slots somebody scores.

Legend: B batch, L sequence, D hidden, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.activations import NewGELUActivation

from models.masks import Rule, Slots, additive
from models.weights import resolve_model_dir

FLEX = "flex_attention"
ATTENTION_IMPLEMENTATIONS = ("sdpa", "eager", FLEX)


def backbone_config(name_or_path: str | Path, llm_backbone: str = "auto", *, trust_remote_code: bool = False) -> Any:
    """The transformers config of a language model directory (or hub id).

    ``llm_backbone``: ``auto`` takes what the directory holds; any other value must be its ``model_type``.
    """
    folder = resolve_model_dir(str(name_or_path), key="model.showo.llm_model_path", weights=False)
    try:
        config = AutoConfig.from_pretrained(str(folder), trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{folder}: no usable language model config.json ({error})") from error
    if llm_backbone not in ("auto", config.model_type):
        raise ValueError(
            f"model.showo.llm_backbone is {llm_backbone!r}, but {folder} holds a {config.model_type!r}; "
            f"set it to {config.model_type!r} or auto"
        )
    return config


def _as_trained(config: Any, vocab_size: int) -> Any:
    """The config as Show-o and UP-VLA use it: our vocabulary, and Phi's per-head query/key norms always on (they are
    in the released weights although config.json says otherwise)."""
    config = copy.deepcopy(config)  # transformers models share the object they are given
    config.vocab_size = vocab_size
    config.use_cache = False
    if config.model_type == "phi":
        config.qk_layernorm = True
    # Ids of the original tokenizer mean nothing to a network that is never asked to generate by itself.
    config.pad_token_id = None
    return config


def _fuse_activations(lm: nn.Module) -> None:
    """Phi's ``gelu_new`` in one pass over the widest tensor of a layer. transformers writes it out as six, each with a
    result of its own that training keeps; torch's kernel computes the same function (to 1e-6)."""
    for module in list(lm.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, NewGELUActivation):
                setattr(module, name, nn.GELU(approximate="tanh"))


class Backbone(nn.Module):
    """A causal LM over the project's vocabulary.

    ``config``: a transformers config; ``vocab_size``: rows of the embedding and of the head.
    ``attn_implementation``: ``sdpa`` (boolean masks), ``eager`` (additive masks) or ``flex_attention``, which is what
    is trained with: a mask of tiles, made of the tags alone. Measuring and acting then go by ``sdpa``.
    """

    def __init__(self, config: Any, vocab_size: int, attn_implementation: str = "sdpa") -> None:
        super().__init__()
        self.lm = AutoModelForCausalLM.from_config(_as_trained(config, vocab_size), attn_implementation="sdpa")
        _fuse_activations(self.lm)
        self.attend_by(attn_implementation)

    def attend_by(self, attn_implementation: str) -> None:
        """Take another kernel from now on; numbers stay, to rounding. ``ValueError`` for one that does not exist."""
        if attn_implementation not in ATTENTION_IMPLEMENTATIONS:
            raise ValueError(
                f"model.showo.attn_implementation is {attn_implementation!r}; "
                f"allowed: {', '.join(ATTENTION_IMPLEMENTATIONS)}"
            )
        self.attn_implementation = attn_implementation
        self.lm.config._attn_implementation = "sdpa" if attn_implementation == FLEX else attn_implementation

    @property
    def hidden_size(self) -> int:
        return int(self.lm.config.hidden_size)

    @property
    def config(self) -> Any:
        return self.lm.config

    @property
    def dtype(self) -> torch.dtype:
        weight: Tensor = self.lm.get_input_embeddings().weight
        return weight.dtype

    def embed(self, ids: Tensor) -> Tensor:
        """[B, L] ids -> [B, L, D]."""
        out: Tensor = self.lm.get_input_embeddings()(ids)
        return out

    @property
    def tiled(self) -> bool:
        """Is it trained with FlexAttention?"""
        return self.attn_implementation == FLEX

    def mask(self, rule: Rule, slots: Slots) -> Tensor | BlockMask:
        """Who attends whom, as ``forward`` likes it for a whole sequence: made once, for all layers."""
        return rule.blocks(slots) if self.tiled and self.training else rule.dense(slots)

    def forward(self, embeds: Tensor, mask: Tensor | BlockMask, positions: Tensor, cache: Any | None = None) -> Tensor:
        """Hidden states after the final norm.

        ``embeds`` [B, L, D]; ``mask`` [B, 1, L, K] boolean, True attends (K > L when ``cache`` holds earlier slots), or
        a mask of tiles; ``positions`` [B, L] true positions. Returns [B, L, D].
        """
        if self.tiled:  # transformers asks its configuration in every layer which kernel to take
            self.lm.config._attn_implementation = FLEX if isinstance(mask, BlockMask) else "sdpa"
        # Eager attention adds the mask to the scores; only SDPA reads booleans.
        attention_mask = mask
        if self.attn_implementation == "eager" and isinstance(mask, Tensor):
            attention_mask = additive(mask, embeds.dtype)
        out = self.lm.base_model(
            inputs_embeds=embeds,
            attention_mask=attention_mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=cache is not None,
        )
        hidden: Tensor = out.last_hidden_state
        return hidden

    @property
    def head(self) -> Callable[[Tensor], Tensor]:
        """The projection to the vocabulary."""
        head: Callable[[Tensor], Tensor] = self.lm.get_output_embeddings()
        return head

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., D] -> [..., V] in float32."""
        return self.head(hidden).float()

    def enable_gradient_checkpointing(self) -> None:
        """Recompute activations in the backward pass (about a third more time, far less memory)."""
        settings = {"use_reentrant": False}
        if hasattr(self.lm, "activation_checkpointing_enable"):  # transformers 5.2x renamed it
            self.lm.activation_checkpointing_enable(activation_checkpointing_kwargs=settings)
        else:
            self.lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs=settings)
