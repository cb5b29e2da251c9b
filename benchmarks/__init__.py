"""How fast and how large: every figure of the documentation comes from a command in here."""
