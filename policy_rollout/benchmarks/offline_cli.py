"""Implementation of ``eval_upvla_offline_actions.py``: a policy's action errors on recorded frames."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Container, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.command import progress_bar
from common.files import reason_of, write_text
from common.folder_lock import hold_file
from models.processing.instruction_length import cut_instructions
from policy_rollout.benchmarks.coded import CodedFrames, coded_frames
from policy_rollout.benchmarks.offline import (
    CPU_BATCH,
    CUDA_BATCH,
    Report,
    Sample,
    evaluate,
    list_samples,
    mean_action,
)
from policy_rollout.benchmarks.processed import ProcessedSplit, open_split
from policy_rollout.policies.baselines import ConstantPolicy
from policy_rollout.policies.interface import ROBOT_OBS, StateLayout, image_rotation_of, state_read_by
from policy_rollout.policies.upvla import (
    ActionConvention,
    Policy,
    UPVLAPolicy,
    require_same_convention,
)
from training.data.calvin import CalvinSplit
from training.data.checks.dataset import require
from training.data.checks.split import check_processed, check_raw
from training.data.dataset_spec import DataContract, read_contract, state_convention
from training.data.episode_index import INDEX_NAME, read_index


@dataclass(frozen=True)
class Evaluation:
    """A policy and the samples that it is evaluated on."""

    policy: Policy
    split: CalvinSplit | ProcessedSplit
    samples: list[Sample]
    coded: CodedFrames | None = None
    skipped: int = 0  # annotations that span two recordings


def prepare(options: argparse.Namespace) -> Evaluation:
    """Check all arguments before the first frame is read. Raises ``ValueError`` or ``OSError``."""
    for name, least in (("stride", 1), ("max_samples", 0), ("batch_size", 0), ("act_step", 1)):
        if getattr(options, name) < least:
            raise ValueError(f"--{name.replace('_', '-')} must be at least {least}, got {getattr(options, name)}")
    split = open_split(options.dataset_root / options.split)
    contract = split.contract if isinstance(split, ProcessedSplit) else read_contract(split.path)
    convention = ActionConvention(**contract.action)
    policy = make_policy(options, convention)
    if isinstance(split, ProcessedSplit) and options.action_key not in split.action_keys:
        allowed = " or ".join(split.action_keys)
        raise ValueError(f"--action-key {options.action_key}: {split.path} is a processed split; allowed: {allowed}")
    if options.action_key != "actions":
        require_same_convention(policy.convention, convention, str(contract.path))
    _require_same_inputs(policy, split, contract)
    crossing = set(split.crossing(split.annotations))
    windows = [window for window in split.annotations if window not in crossing]
    samples = list_samples(windows, policy.act_step, options.start_only, options.stride, options.max_samples)
    if not samples:
        raise ValueError(f"{split.annotation_path} has no annotation of two frames or more: nothing to evaluate")
    if crossing:
        first = min(crossing, key=lambda window: window.start)
        print(
            f"warning: {len(crossing)} of {len(split.annotations)} annotations are skipped, because they span two "
            f"recordings (such as frames {first.start} to {first.end}, {first.instruction!r})",
            file=sys.stderr,
        )
    coded = _codes(options, split, policy)
    if isinstance(split, ProcessedSplit):
        for line in require(check_processed(split.index, contract, states=False).findings):
            print(f"warning: {line}", file=sys.stderr)
    elif coded is None and options.action_key == "rel_actions":
        for line in require(check_raw(split, contract, [sample.start for sample in samples]).findings):
            print(f"warning: {line}", file=sys.stderr)
    return Evaluation(policy, split, samples, coded, len(crossing))


def _require_same_inputs(policy: Policy, split: CalvinSplit | ProcessedSplit, contract: DataContract) -> None:
    """Raise ``ValueError`` if a policy reads the robot's state, and the split has none or another one, or if its images
    are rotated otherwise."""
    wanted, given = state_read_by(policy), ROBOT_OBS
    if wanted is not None and isinstance(split, ProcessedSplit):
        given = StateLayout.from_json(state_convention(contract, split.path).to_json())
    if wanted not in (None, given):
        raise ValueError(f"{contract.path} declares another state, {given}, than the policy reads, {wanted}")
    if image_rotation_of(policy) not in (None, contract.image_rotation):
        raise ValueError(
            f"{contract.path} declares images rotated by {contract.image_rotation} degrees, the policy reads images "
            f"rotated by {image_rotation_of(policy)}"
        )


def _codes(options: argparse.Namespace, split: CalvinSplit | ProcessedSplit, policy: Policy) -> CodedFrames | None:
    if options.token_cache is None:
        return None
    if isinstance(split, ProcessedSplit):
        raise ValueError(f"--token-cache {options.token_cache}: {split.path} is a processed split; leave it out")
    if options.action_key == "expert_actions":
        raise ValueError(f"--token-cache {options.token_cache}: it has no expert_actions; leave it out")
    if not isinstance(policy, UPVLAPolicy):
        raise ValueError(f"--token-cache {options.token_cache}: a baseline reads no images; use it with --checkpoint")
    return coded_frames(options.token_cache, split, policy)


def make_policy(options: argparse.Namespace, declared: ActionConvention) -> Policy:
    """Return the policy of the options.

    ``declared``: action convention of the evaluated recordings, which the zero baseline follows; a mean action follows
    that of its own split.
    """
    if options.baseline is None:
        return UPVLAPolicy.from_config(
            options.model_config, options.device, options.checkpoint, action_decoder=options.action_decoder
        )
    if options.action_decoder is not None:
        raise ValueError(f"--action-decoder {options.action_decoder}: a baseline has none; use it with --checkpoint")
    if options.baseline == "zero":
        return ConstantPolicy(np.zeros(declared.dim, dtype=np.float32), options.act_step, declared)
    mean = mean_training_action(options)
    learned = ActionConvention(**read_contract(_train_split(options)).for_actions(len(mean)).action)
    return ConstantPolicy(mean, options.act_step, learned)


def mean_training_action(options: argparse.Namespace) -> NDArray[np.float32]:
    """Return the mean action [A] of a processed split, or of the annotated frames of a raw one."""
    folder = _train_split(options)
    if (folder / INDEX_NAME).is_file() and options.action_key != "actions":
        actions = read_index(folder, action_key=options.action_key).actions[:]
        return np.asarray(np.mean(actions, axis=0, dtype=np.float64), dtype=np.float32)
    training = CalvinSplit(folder)
    return mean_action(training, list_samples(training.annotations, options.act_step), options.action_key)


def _train_split(options: argparse.Namespace) -> Path:
    folder: Path = options.train_split or options.dataset_root / "training"
    return folder


def default_batch(policy: Policy) -> int:
    """Return the number of samples of one forward to start with."""
    on_gpu = isinstance(policy, UPVLAPolicy) and policy.device.type == "cuda"
    return CUDA_BATCH if on_gpu else CPU_BATCH


def record(options: argparse.Namespace, job: Evaluation, report: Report, seconds: float) -> dict[str, Any]:
    """Return the results with everything that is needed to interpret and reproduce them."""
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
    counts: dict[str, Any] = {
        "annotations": len(job.split.annotations),
        "annotations_left_out": job.skipped,
        "samples": len(job.samples),
    }
    every = list_samples(job.split.annotations, job.policy.act_step, options.start_only, options.stride)
    counts |= {"samples_without_max_samples": len(every), "clipped_actions": report.clipped}
    if isinstance(job.policy, UPVLAPolicy):
        cut = cut_instructions(job.policy.prompter, (sample.instruction for sample in job.samples))
        counts |= {"cut_instructions": len(cut), "samples_with_cut_instruction": _count_of(cut, job.samples)}
    policy: dict[str, Any] = {"act_step": job.policy.act_step, "cameras": list(job.policy.cameras)}
    if isinstance(job.policy, UPVLAPolicy) and job.policy.source is not None:
        source = job.policy.source
        policy |= {
            "model_yaml": str(source.model_yaml),
            "checkpoint": str(source.checkpoint),
            "weights_sha256": source.weights_sha256,
            "image_tokenizer_sha256": job.policy.vq.weights_hash,
            "device": str(job.policy.device),
            "precision": job.policy.precision,
            "action_decoder": job.policy.action_decoder,
            "forwards_per_chunk": round(job.policy.forwards_per_chunk, 4),
        }
        if job.policy.decoding is not None:
            policy |= {"action_decoding": asdict(job.policy.decoding)}
        if job.policy.speaker is not None:
            policy |= {"sentences": job.policy.speaker.counts}
    if isinstance(job.policy, ConstantPolicy):
        policy["action"] = [float(number) for number in job.policy.action]
    return {
        "overall": report.overall,
        "per_task": report.per_task,
        "counts": counts,
        "settings": settings | {"batch_size": report.batch_size},
        "policy": policy,
        "seconds": round(seconds, 3),
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("torch", "transformers", "numpy", "pillow")},
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _count_of(instructions: Container[str], samples: Sequence[Sample]) -> int:
    return sum(sample.instruction in instructions for sample in samples)


def require_writable(path: Path) -> None:
    """Raise ``ValueError`` if the results cannot be written there, before hours of evaluation."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--output-json {path}: the folder cannot be made ({reason_of(error)})") from error
    if path.is_dir() or not os.access(path.parent, os.W_OK | os.X_OK):
        raise ValueError(f"--output-json {path}: " + ("is a folder" if path.is_dir() else "the folder is read-only"))


def table(report: Report) -> str:
    """Return overall and per-task results as text."""
    columns = ("mae_all", "rmse_all", "mae_pos", "mae_rot", "mae_gripper", "gripper_sign_acc")
    names = [name for name in columns if name in report.overall]
    rows = [("overall", report.overall), *report.per_task.items()]
    width = max(len(task) for task, _ in rows)
    lines = [" ".join([f"{'task':{width}}", f"{'samples':>8}", *(f"{name:>16}" for name in names)])]
    for task, summary in rows:
        figures = [f"{summary[name]:>16.4f}" for name in names]
        lines.append(" ".join([f"{task:{width}}", f"{summary['samples']:>8}", *figures]))
    return "\n".join(lines)


def run(options: argparse.Namespace) -> None:
    """Evaluate, print the table, write the record. Raises ``ValueError`` or ``OSError``."""
    with ExitStack() as locks:
        if options.output_json is not None:
            require_writable(options.output_json)
            locks.enter_context(hold_file(options.output_json, "eval_upvla_offline_actions", "--output-json "))
        _run(options)


def _run(options: argparse.Namespace) -> None:
    job = prepare(options)
    started = time.perf_counter()
    with progress_bar(total=len(job.samples), unit="sample", desc="offline evaluation") as bar:
        report = evaluate(
            job.split,
            job.policy,
            job.samples,
            action_key=options.action_key,
            clip=options.clip_action,
            batch_size=options.batch_size or default_batch(job.policy),
            may_shrink=options.batch_size == 0,
            progress=bar.update,
            coded=job.coded,
        )
    print(table(report))
    if report.clipped:
        print(f"{report.clipped} predicted numbers were outside [-1, 1] and were clipped (--clip-action)")
    if isinstance(job.policy, UPVLAPolicy):
        print(f"actions by {job.policy.action_decoder}, {job.policy.forwards_per_chunk:.2f} forwards per chunk")
        if job.policy.speaker is not None:
            print(job.policy.speaker.spoken)
    if options.output_json is not None:
        content = record(options, job, report, time.perf_counter() - started)
        write_text(options.output_json, json.dumps(content, indent=2) + "\n")
        print(f"written to {options.output_json}")
