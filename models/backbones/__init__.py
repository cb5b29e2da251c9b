"""Any causal language model that transformers knows, behind four methods."""

from models.backbones.backbone import Backbone, backbone_config

__all__ = ["Backbone", "backbone_config"]
