"""The three text objectives, trained and judged side by side; ``python -m scripts.compare_objectives`` runs it."""
