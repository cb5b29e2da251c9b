"""Train a vision-language-action model with three losses: future images, actions and text.

    python train_upvla.py config=./config/tiny_arvla.yaml training.max_train_steps=100

This script trains text objective ``ar`` (UP-VLA, AR-VLA). ``train_mdm_vla.py`` and ``train_blockdiff_vla.py`` run the
same loop for the others: ``training.text_objective`` alone changes, the image and action losses stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence

from common.command import run_command
from config.loading import load_job, main_or_exit
from config.schema import Job, Objective
from config.sweep import sweep, wants_sweep
from config.validation import require_start


def main(objective: Objective = "ar", argv: Sequence[str] | None = None) -> None:
    if wants_sweep(argv):
        sweep(argv, objective)  # one process for every combination of values
    else:
        train(load_job(argv, objective))


def train(job: Job) -> None:
    require_start(job)
    # Imported here, so that mistakes on the command line are reported before torch and transformers are loaded.
    from training.distributed.launch_environment import check_environment

    check_environment(job)
    from training.batch_to_tasks import bundle, encode_image, encode_views, future_task, text_task
    from training.build import setup
    from training.run import open_run
    from training.trainer import Trainer

    with open_run(job) as run:
        parts = setup(job, run)
        trainer = Trainer(job, run, parts)
        for micro_batches in trainer.steps():  # one optimizer step after another
            tasks = []
            for batch in micro_batches:
                codes = encode_views(parts, batch.robot, trainer.step)  # frames now and act_step later -> image codes
                future = future_task(parts, codes, trainer.step)  # learn later frames, and the actions between
                turn = encode_image(parts, batch.text)  # image -> CLIP patches
                text = text_task(parts, turn, trainer.draws())  # the objective masks the answer
                tasks.append(bundle(parts, future, text))
            for task in trainer.share(tasks):  # counts over micro-batches and ranks, which the losses are divided by
                losses = trainer.model(task.future, task.text)  # one forward: image, action and text losses
                trainer.backward(losses)  # pre_coeff * image + act_coeff * action + mmu_coeff * text
            trainer.update()


if __name__ == "__main__":
    run_command(lambda: main_or_exit(main))
