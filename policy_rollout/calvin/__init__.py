"""CALVIN: the 34 tasks, their oracle, chains, initial states and instructions, and the real simulator.

The real CALVIN and the embedded desk use the same tables, which need no simulator.
"""
