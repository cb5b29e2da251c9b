"""One's own robot: what has to be written for it, and what keeps it safe (`docs/serving.md`)."""
