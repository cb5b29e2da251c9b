"""Tiny language models of many families: a config, a tokenizer, and weights as transformers writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.tiny import write_tokenizer

WIDTH, VOCABULARY = 32, 300
_LLAMA = {
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "phi": {k: v for k, v in _LLAMA.items() if k not in ("num_key_value_heads", "head_dim")},
    "qwen3": _LLAMA | {"tie_word_embeddings": True},
    "llama": _LLAMA,
    "gpt2": {"n_embd": WIDTH, "n_layer": 2, "n_head": 4},
    "opt": {
        "hidden_size": WIDTH,
        "ffn_dim": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "word_embed_proj_dim": 16,
        "do_layer_norm_before": False,
    },
    "gpt_neox": {"hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
    "gemma": _LLAMA,
    "mistral": _LLAMA | {"sliding_window": 8},
    "gemma2": _LLAMA | {"sliding_window": 8, "final_logit_softcapping": 0.05, "query_pre_attn_scalar": 8},
    "cohere": {k: v for k, v in _LLAMA.items() if k != "head_dim"},
    "granite": _LLAMA | {"logits_scaling": 4.0},
    "stablelm": {k: v for k, v in _LLAMA.items() if k != "head_dim"},
    "gptj": {"n_embd": WIDTH, "n_layer": 2, "n_head": 4, "rotary_dim": 4},
    "falcon": {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4, "alibi": False},
    "gpt_bigcode": {"n_embd": WIDTH, "n_layer": 2, "n_head": 4},
}
EAGER_ALONE = ("gemma2", "gptj")  # GPT-J has SDPA since transformers 5.2x


def write_family(folder: Path, kind: str, seed: int = 0, **settings: Any) -> Path:
    """A language model directory: config.json, weights, tokenizer."""
    special = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    config = AutoConfig.for_model(kind, **FAMILIES[kind], **special, **settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        lm = AutoModelForCausalLM.from_config(config)
        for parameter in lm.parameters():  # all of them count: initial biases and gains are zeros and ones
            torch.nn.init.normal_(parameter, 0.1, 0.3)
    lm.save_pretrained(str(folder))
    write_tokenizer(folder)
    return folder
