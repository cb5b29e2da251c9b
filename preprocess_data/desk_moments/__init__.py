"""Moments of play on the desk: frames with the next actions of experts of several tasks, as a processed split."""
