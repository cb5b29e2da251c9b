"""Measure speed and memory: the commands that produce the figures of the documentation."""
