"""Client for a real robot: its interface, a control loop, and safety limits (`docs/serving.md`)."""
