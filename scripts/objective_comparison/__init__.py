"""Train and evaluate the three text objectives alike; ``python -m scripts.compare_objectives`` runs it."""
