"""A module that calvin_env has under this name; the stand-in needs nothing of it."""
