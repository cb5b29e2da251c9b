"""Draw random scenes of the desk, and locate the objects in them."""
