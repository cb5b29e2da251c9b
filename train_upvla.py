"""Train a vision-language-action model with three losses: future images, actions and text.

    python train_upvla.py config=./config/tiny_arvla.yaml training.max_train_steps=100

This script trains text objective ``ar`` (UP-VLA, AR-VLA). ``train_mdm_vla.py`` and ``train_blockdiff_vla.py`` run the
same loop with the others. Only ``training.text_objective`` differs; the image and action losses are the same.
"""

from __future__ import annotations

from collections.abc import Sequence

from common.command import run_command
from config.loading import load_job, main_or_exit
from config.schema import Job, Objective
from config.sweep import sweep, wants_sweep
from config.validation import require_start


def main(objective: Objective | None = "ar", argv: Sequence[str] | None = None) -> None:
    if wants_sweep(argv):
        sweep(argv, objective)  # one process for every combination of values
    else:
        train(load_job(argv, objective))


def train(job: Job) -> None:
    require_start(job)
    # Imported here, so that a mistake on the command line is reported before torch and transformers are loaded.
    from training.distributed.launch_environment import check_environment

    check_environment(job)
    from training.batch_to_tasks import bundle, encode_image, encode_views, fill_patches, lay_out, robot_task
    from training.build import setup
    from training.run import open_run
    from training.trainer import Trainer

    with open_run(job) as run:
        parts = setup(run)
        trainer = Trainer(run, parts)
        for batches in trainer.steps():  # one optimizer step after another
            drawn = [lay_out(parts, batch, trainer.step) for batch in batches]  # the objective draws its masks
            for batch in trainer.normalized_microbatches(drawn):  # losses are divided by counts over all of them
                codes = encode_views(parts, batch.data.robot, trainer.step)  # images now and act_step later -> codes
                future = robot_task(parts, codes, trainer.step, tokens=batch.action_tokens)  # and actions between
                text = fill_patches(batch.text, encode_image(parts, batch.data.text))  # image -> CLIP patches
                task = bundle(parts, future, text)
                losses = trainer.model(task.future, task.text)  # one forward: image, action and text losses
                trainer.backward(losses)  # pre_coeff * image + act_coeff * action + mmu_coeff * text
            trainer.update()


if __name__ == "__main__":
    run_command(lambda: main_or_exit(main))
