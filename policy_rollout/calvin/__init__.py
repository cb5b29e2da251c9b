"""What CALVIN asks of a policy: the 34 tasks, their oracle, the chains, their start states and the instructions.

Nothing here needs the simulator: the same tables serve the real CALVIN and the embedded desk.
"""
