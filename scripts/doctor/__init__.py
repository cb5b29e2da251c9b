"""Checks of an installation, a machine and a run, each with its remedy (`python -m scripts.doctor`)."""
