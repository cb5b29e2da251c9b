"""Causal language models of transformers, behind one class."""

from models.language_model.backbone import FLEX, Backbone, backbone_config, ignored_settings
from models.language_model.pretrained import load_pretrained, save_code

__all__ = [
    "FLEX",
    "Backbone",
    "backbone_config",
    "ignored_settings",
    "load_pretrained",
    "save_code",
]
