"""Alias of `training.future_view_prediction_w_action_dataset` under the spelling of the original project."""

from __future__ import annotations

from training.future_view_prediction_w_action_dataset import CAMERAS, DataProvider

__all__ = ["CAMERAS", "DataProvider"]
