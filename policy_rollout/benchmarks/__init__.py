"""Where a policy is judged: on recorded frames (``offline``), or in closed loop, where each module is one benchmark."""
