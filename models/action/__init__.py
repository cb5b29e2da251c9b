"""Action head, normalisation of actions, and action tokens."""
