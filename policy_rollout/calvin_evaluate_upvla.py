"""Closed-loop evaluation on chains of tasks, by one process or many.

    python -m policy_rollout.calvin_evaluate_upvla checkpoint=assets/desk_policy environment=desk \
        num_sequences=20 device=cpu

Under torchrun, as tasks of an srun step, or started by hand with the same log_dir, processes claim chains from one
queue (``closed_loop/work_queue.py``) and write one evaluation (``closed_loop/records.py``). Each process has a policy
for the environments of its worker processes (``closed_loop/runner.py``).
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from common.command import print_next, report_error, run_command
from common.files import expand_home
from common.processes import ProcessRank, process_rank
from config.parsing import ConfigError
from policy_rollout.benchmarks.base import Benchmark, find_benchmark
from policy_rollout.closed_loop import records
from policy_rollout.closed_loop.arguments import CONFIG, HELP, help_text, hydra_arguments
from policy_rollout.closed_loop.evaluation import RolloutSettings, run_distributed
from policy_rollout.closed_loop.interface import ChainJob
from policy_rollout.closed_loop.progress import Progress, require_wandb
from policy_rollout.closed_loop.stopping import EarlyStop
from policy_rollout.policies.action_chunking import ChunkPlayer
from policy_rollout.policies.interface import require_calvin_state, require_same_convention
from policy_rollout.policies.model_yaml import load_model_yaml
from policy_rollout.report import write_report

if TYPE_CHECKING:
    from policy_rollout.policies.upvla import UPVLAPolicy

TIME_FORMAT = "%Y-%m-%d_%H-%M-%S"


def evaluate(settings: Mapping[str, Any], process: ProcessRank) -> Path:
    """Evaluate the policy, together with other processes, until every chain has a record.

    Returns the folder of the results. Raises ``ValueError`` or ``OSError`` in one line.
    """
    _check(settings)
    folder = _folder(settings, process)
    benchmark = find_benchmark({**settings, "local_rank": process.local_rank})
    workers = worker_count(settings, benchmark, process)
    load_model_yaml(settings["model_config"], settings["checkpoint"]).require_checkpoint()
    # Imported here, so that errors on the command line are reported before torch and transformers are loaded.
    from policy_rollout.policies.upvla import UPVLAPolicy
    from policy_rollout.reports.rollout_video import make_recorder

    policy = UPVLAPolicy.from_config(
        settings["model_config"],
        _device(settings["device"], process),
        settings["checkpoint"],
        action_decoder=settings["action_decoder"],
    )
    # All checks come before the folder is claimed for these settings.
    require_same_convention(policy.convention, benchmark.convention, f"environment={settings['environment']}")
    require_calvin_state(policy, f"environment={settings['environment']}")
    ChunkPlayer(policy.act_step, settings["replan_every"], settings["ensemble"])
    jobs = benchmark.jobs(int(settings["num_sequences"]))
    cut = _cut_instructions(policy, jobs, process)
    recorder = make_recorder(settings, folder, policy)
    stop = _early_stop(settings, record_settings(policy, benchmark, settings), jobs, folder)
    records.claim(folder, record_settings(policy, benchmark, settings))
    unrecorded = recorder.without_video(records.read(folder)) if recorder is not None and process.rank == 0 else []
    if unrecorded:
        print(
            f"notice: num_videos={settings['num_videos']}: {len(unrecorded)} of these chains have a record already "
            "and get no video; use another log_dir to record them",
            file=sys.stderr,
        )
    rollout = RolloutSettings(
        max_steps=int(settings["ep_len"]),
        replan_every=settings["replan_every"],
        ensemble=settings["ensemble"],
        parallel=int(settings["parallel"]),
        workers=workers,
    )
    progress = Progress(folder, jobs, process.rank, settings if settings["log_wandb"] else None)
    policy_from = {**policy_origin(policy), "cut_instructions": cut}
    if policy.speaker is not None:
        policy_from["sentences"] = policy.speaker.counts
    run_distributed(
        folder, benchmark, policy, jobs, rollout, progress, recorder, process.world, stop, policy_from=policy_from
    )
    if policy.speaker is not None:
        print(f"{policy.speaker.spoken} (this process)")
    if stop is not None and process.rank == 0:
        print(f"{folder} is {stop.verdict()}")
    if process.rank == 0:
        report = write_report(folder)
        print(f"report in {report}")
        print_next("open {report} in a browser; blockdiff-vla compare {folder} OTHER", report=report, folder=folder)
    elif not _is_reported(folder):  # process 0 may have been killed
        write_report(folder)
    return folder


def record_settings(policy: UPVLAPolicy, benchmark: Benchmark, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that outcomes depend on: records with different ones are not mixed."""
    assert policy.source is not None
    return {
        "checkpoint_sha256": policy.source.weights_sha256,
        "image_tokenizer_sha256": policy.vq.weights_hash,
        "action_decoder": policy.action_decoder,
        "action_decoder_settings": _decoder_settings(policy),
        "precision": policy.precision,
        **{name: settings[name] for name in ("ep_len", "replan_every", "ensemble")},
        "benchmark": benchmark.stamp(),
    }


def _decoder_settings(policy: UPVLAPolicy) -> dict[str, Any] | None:
    """Return how action tokens or sentences are decoded; None for the regression head."""
    if policy.decoding is None:
        return None
    tower = {} if policy.speaker is None else {"clip_sha256": policy.speaker.clip_sha256}
    return {**asdict(policy.decoding), **tower}


def _early_stop(
    settings: Mapping[str, Any], of_records: Mapping[str, Any], jobs: Sequence[ChainJob], folder: Path
) -> EarlyStop | None:
    """Return the test that ends the evaluation, if ``compare_with`` names another one."""
    if settings["compare_with"] is None:
        return None
    other = expand_home(str(settings["compare_with"])).resolve()
    if other == folder:
        raise ValueError(f"compare_with={other} is this evaluation's own log_dir; name another one")
    plain = json.loads(json.dumps(of_records))
    return EarlyStop(other, plain, max(len(job.tasks) for job in jobs), settings["margin"])


def _cut_instructions(policy: UPVLAPolicy, jobs: Sequence[ChainJob], process: ProcessRank) -> list[str]:
    """Return the instructions of these chains that the policy cuts, and print their number."""
    texts = dict.fromkeys(text for job in jobs for text in job.instructions)
    from models.processing.instruction_length import cut_instructions, describe_cut  # imports torch

    cut = cut_instructions(policy.prompter, texts)
    if cut and process.rank == 0:
        print(f"notice: {describe_cut(policy.prompter, cut, len(texts))}", file=sys.stderr)
    return list(cut)


def policy_origin(policy: UPVLAPolicy) -> dict[str, Any]:
    """Return the origin of the policy, for reports."""
    assert policy.source is not None
    return {
        "model_yaml": str(policy.source.model_yaml),
        "checkpoint": str(policy.source.checkpoint),
        "act_step": policy.act_step,
        "cameras": list(policy.cameras),
    }


def worker_count(settings: Mapping[str, Any], benchmark: Benchmark, process: ProcessRank) -> int:
    """Return the number of worker processes for the environments; 0: none, they run in this process."""
    given, parallel, limit = settings["workers"], int(settings["parallel"]), benchmark.envs_per_process
    needed = 0 if limit is None or parallel <= limit else -(-parallel // limit)
    if given is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return max(needed, min(parallel, cores // process.local_world))
    if given < needed:
        raise ValueError(
            f"workers={given}: a process can have at most {limit} environments of {benchmark.name}; "
            f"parallel={parallel} needs workers={needed}"
        )
    return int(given)


def _check(settings: Mapping[str, Any]) -> None:
    for name, least in (("num_sequences", 1), ("ep_len", 1), ("parallel", 1), ("num_videos", 0)):
        if type(settings[name]) is not int or settings[name] < least:
            raise ValueError(f"{name}={settings[name]}: expected a whole number of at least {least}")
    for name, least in (("workers", 0), ("replan_every", 1)):
        if settings[name] is not None and (type(settings[name]) is not int or settings[name] < least):
            raise ValueError(f"{name}={settings[name]}: expected null or a whole number of at least {least}")
    ensemble = settings["ensemble"]
    if ensemble is not None and (type(ensemble) not in (int, float) or not 0 <= ensemble < float("inf")):
        raise ValueError(f"ensemble={ensemble}: expected null or a number of at least 0")
    margin = settings["margin"]
    if margin is not None and (type(margin) not in (int, float) or not 0 < margin < float("inf")):
        raise ValueError(f"margin={margin}: expected null or a number above 0")
    if margin is not None and settings["compare_with"] is None:
        raise ValueError(f"margin={margin} has no effect without compare_with")
    for name in ("save_rollout_as_video", "log_wandb"):
        if not isinstance(settings[name], bool):  # YAML's no is a text here, which would be true
            raise ValueError(f"{name}={settings[name]}: expected true or false")
    if settings["log_wandb"]:
        require_wandb()


def _folder(settings: Mapping[str, Any], process: ProcessRank) -> Path:
    """Return the results folder: the same one for all processes of an evaluation."""
    if settings["log_dir"] is not None:
        return expand_home(str(settings["log_dir"])).resolve()
    root = Path("rollout_outputs").resolve()
    if "SLURM_JOB_ID" in os.environ and process.world > 1:
        return root / f"job-{os.environ['SLURM_JOB_ID']}"
    return root / (time.strftime(TIME_FORMAT) if process.world == 1 else agreed_time(os.environ))


def agreed_time(env: Mapping[str, str]) -> str:
    """Return the start time of torchrun's first process, for all of its processes and restarts.

    It is kept in the store of torchrun's agent. Raises ``ValueError`` without such a store.
    """
    if env.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        raise ValueError("log_dir has to be given if several processes write to it")
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    host, port = env["MASTER_ADDR"], int(env["MASTER_PORT"])
    store = TCPStore(host, port, is_master=False, timeout=timedelta(minutes=1))
    return store.compare_set("blockdiff/log_dir", "", time.strftime(TIME_FORMAT)).decode()


def _is_reported(folder: Path) -> bool:
    report, written = folder / "report.html", [file.stat().st_mtime for file in folder.glob("records/*.jsonl")]
    return report.exists() and report.stat().st_mtime >= max(written)


def _device(device: Any, process: ProcessRank) -> str:
    """Return the device: processes of one machine are distributed over its GPUs."""
    import torch

    if process.world > 1 and str(device) != "cpu" and torch.cuda.is_available():
        return f"cuda:{process.local_rank % torch.cuda.device_count()}"
    return str(device)


@hydra.main(version_base="1.3", config_path=str(CONFIG.parent), config_name=CONFIG.stem)  # type: ignore[untyped-decorator]
def main(config: DictConfig) -> None:
    if config.get("model_config") is None and config.get("checkpoint") is None:
        report_error("calvin_evaluate_upvla: checkpoint or model_config has to be given (key=value)")
        sys.exit(2)
    settings = OmegaConf.to_container(config, resolve=True)
    assert isinstance(settings, dict)
    try:
        evaluate({str(name): value for name, value in settings.items()}, process_rank(os.environ))
    except (ValueError, OSError) as error:
        report_error(f"calvin_evaluate_upvla: {error}")
        sys.exit(2)
    except KeyboardInterrupt:
        print("calvin_evaluate_upvla: interrupted; start it again with the same log_dir to continue", file=sys.stderr)
        sys.exit(130)


def command(argv: Sequence[str]) -> None:
    """Run the evaluation of a command line. An error in it is one line on stderr and exit code 2."""
    if HELP & set(argv):
        print(help_text())
        return
    argv_before = sys.argv
    os.environ["HYDRA_FULL_ERROR"] = "1"  # raise errors instead of printing a page
    try:
        sys.argv = [sys.argv[0], *hydra_arguments(argv)]
        main()
    except (ConfigError, HydraException, OmegaConfBaseException) as error:
        text = re.sub(r" To append to your config use \S+", " Hydra has no such key.", " ".join(str(error).split()))
        report_error(f"calvin_evaluate_upvla: {text}")
        sys.exit(2)
    finally:
        sys.argv = argv_before


if __name__ == "__main__":
    run_command(lambda: command(sys.argv[1:]))
