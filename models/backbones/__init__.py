"""Any causal language model that transformers knows, behind one small class."""

from models.backbones.backbone import Backbone, backbone_config

__all__ = ["Backbone", "backbone_config"]
