"""Questions about images with known answers: reading them, asking them, scoring what was said."""
