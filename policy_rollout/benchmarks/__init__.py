"""Evaluation of policies: on recorded frames (``offline``), or in closed loop, with one module per benchmark."""
