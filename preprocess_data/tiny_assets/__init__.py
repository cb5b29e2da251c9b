"""Makers of the small models and data that the project brings along; `scripts/make_assets.py` runs them."""
