"""A trained model on the desk, for the eye: `python -m policy_rollout.demo`."""
