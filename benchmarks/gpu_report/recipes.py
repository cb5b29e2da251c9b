"""Training steps with the settings of the shipped runs and presets, on networks with random weights."""

from __future__ import annotations

import torch

from benchmarks.harness.problems import Problem, Size, problem
from benchmarks.harness.record import ROOT
from config.loading import load_job
from config.schema import Job, Objective

RUNS: dict[Objective, str] = {"ar": "arvla_action_tuning", "mdm": "mdmvla_action_tuning", "bd": "bdvla_action_tuning"}
NO_DATA = ("train_pre_shards_path_or_url", "train_mmu_shards_path_or_url")


def recipe(objective: Objective, size: Size, *overrides: str) -> Job:
    """Return the job of the action tuning of an objective, with the lengths of a size. Its data are not read."""
    settings = [
        *(f"dataset.params.{key}=unread" for key in NO_DATA),
        f"dataset.params.resolution={size.resolution}",
        f"dataset.preprocessing.resolution={size.resolution}",
        f"dataset.preprocessing.max_seq_length={size.max_seq_length}",
        f"model.showo.num_vq_tokens={size.num_vq_tokens}",
        *overrides,
    ]
    return load_job([f"config={ROOT / 'config' / RUNS[objective]}.yaml", *settings], paths=False)


def step_of(job: Job, size: Size, device: torch.device, rows: int) -> Problem:
    """Return the problem of one micro-batch of ``rows`` robot samples and as many conversations."""
    return problem(
        size,
        job.training.text_objective,
        device,
        rows,
        gradient_checkpointing=job.model.gradient_checkpointing,
        job=job,
    )
