"""Any causal language model that transformers knows, behind one small class."""

from models.backbones.backbone import FLEX, Backbone, backbone_config

__all__ = ["FLEX", "Backbone", "backbone_config"]
