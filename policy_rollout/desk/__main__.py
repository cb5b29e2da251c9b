"""`python -m policy_rollout.desk`: draw the desk, run the experts, measure its speed."""

from __future__ import annotations

from common.command import run_command
from policy_rollout.desk.cli import main

if __name__ == "__main__":
    run_command(main)
