"""`python -m policy_rollout.desk.experts`: measure the success of the scripted experts."""

from common.command import run_command
from policy_rollout.desk.experts.evaluate import main

if __name__ == "__main__":
    run_command(main)
