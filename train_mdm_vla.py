"""Train with masked diffusion as the text objective; the loop is ``train_upvla.py``'s.

    python train_mdm_vla.py config=./config/debug_mdmvla_1step.yaml

Only the text loss differs from the other objectives; image and action losses are the same.
"""

from __future__ import annotations

from common.command import run_command
from config.loading import main_or_exit
from train_upvla import main

if __name__ == "__main__":
    run_command(lambda: main_or_exit(lambda: main(objective="mdm")))
