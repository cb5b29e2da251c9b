"""The demo in the browser: `python -m policy_rollout.demo --web`."""
