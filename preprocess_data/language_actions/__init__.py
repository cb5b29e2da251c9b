"""Conversations that teach a model to speak the next motion of a demonstration."""
