"""Evaluate a model on a task set of the desk, with its controls; ``python -m scripts.evaluate_desk`` runs it."""
