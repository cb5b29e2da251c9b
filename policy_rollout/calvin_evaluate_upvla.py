"""Closed-loop evaluation on chains of tasks, by one process or many.

    python -m policy_rollout.calvin_evaluate_upvla model_config=policy_rollout/debug_arvla_model.yaml \
        environment=desk num_sequences=20 device=cpu

Under torchrun, or as the tasks of an srun step, chain i is played by process i modulo their number; see ``records``.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from policy_rollout import records
from policy_rollout.calvin.initial_states import initial_state
from policy_rollout.calvin.instructions import validation_instruction
from policy_rollout.calvin.oracle import TaskOracle
from policy_rollout.calvin.sequences import official_sequences
from policy_rollout.chains import ChainJob, ChainRecord, run_chains
from policy_rollout.pictures import write_gif
from policy_rollout.policy import UPVLAPolicy

ENVIRONMENTS = ("calvin", "desk")
WITHOUT_CALVIN = (
    "environment=calvin: the package calvin_env is not installed (https://github.com/mees/calvin_env). "
    "environment=desk plays the same chains on the embedded desk"
)


@dataclass(frozen=True)
class Place:
    """Which of the processes this is."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0


def place_in(env: Mapping[str, str]) -> Place:
    """As torchrun says it, else as the step of Slurm does."""
    if "WORLD_SIZE" in env:
        return Place(int(env.get("RANK", 0)), int(env["WORLD_SIZE"]), int(env.get("LOCAL_RANK", 0)))
    if "SLURM_STEP_ID" in env and int(env.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        return Place(int(env["SLURM_PROCID"]), int(env["SLURM_STEP_NUM_TASKS"]), int(env["SLURM_LOCALID"]))
    return Place()


def evaluate(settings: Mapping[str, Any], place: Place) -> Path:
    """Play this process's share. Returns the folder. Raises ``ValueError`` or ``FileNotFoundError`` in one line."""
    _check(settings)
    folder = _folder(settings, place)
    policy = UPVLAPolicy.from_config(settings["model_config"], device=_device(settings["device"], place))
    assert policy.source is not None
    fixed = {
        "checkpoint_sha256": policy.source.weights_sha256,
        "image_tokenizer_sha256": policy.vq.weights_hash,
        "environment": f"{settings['environment']} {settings['scene']}, renderer raycast",
        **{name: settings[name] for name in ("num_sequences", "ep_len", "replan_every")},
    }
    records.claim(folder, fixed)
    jobs = chain_jobs(int(settings["num_sequences"]))
    done = records.read(folder)
    mine = [job for job in jobs[place.rank :: place.world] if job.index not in done]
    _play(policy, mine, settings, place, folder)
    done = records.read(folder)
    if all(job.index in done for job in jobs):
        results = records.write_results(folder, [done[job.index] for job in jobs], fixed)
        mean = results["average_length"]
        told = f"{mean['value']:.3f} [{mean['low']:.3f}, {mean['high']:.3f}] over {len(jobs)} chains"
        print(f"average length {told}; results in {folder / 'results.json'}")
    return folder


def chain_jobs(count: int) -> list[ChainJob]:
    """The first of the official chains, with their initial states and held-out sentences."""
    jobs = []
    for index, chain in enumerate(official_sequences(count)):
        robot, scene = initial_state(chain.state)
        jobs.append(ChainJob(index, chain.tasks, tuple(map(validation_instruction, chain.tasks)), robot, scene))
    return jobs


def _play(policy: UPVLAPolicy, jobs: list[ChainJob], settings: Mapping[str, Any], place: Place, folder: Path) -> None:
    if not jobs:
        return
    from policy_rollout.desk import DeskEnv  # MuJoCo is needed here only

    # Filmed are the first chains of all, whoever plays them.
    film = frozenset(range(int(settings["num_videos"])))
    with tqdm(total=len(jobs), desc=f"chains of process {place.rank}", unit="chain", disable=place.rank != 0) as bar:

        def finished(record: ChainRecord, frames: list[NDArray[np.uint8]] | None) -> None:
            if frames:
                (folder / "videos").mkdir(exist_ok=True)
                write_gif(folder / "videos" / f"chain_{record.index:04d}_{record.completed}_done.gif", frames)
            records.append(folder, place.rank, record)
            bar.update()

        run_chains(
            lambda: DeskEnv(scene=str(settings["scene"])),
            policy,
            jobs,
            TaskOracle(),
            finished,
            max_steps=int(settings["ep_len"]),
            replan_every=settings["replan_every"],
            parallel=int(settings["parallel"]),
            film=film,
        )


def _check(settings: Mapping[str, Any]) -> None:
    if settings["environment"] not in ENVIRONMENTS:
        raise ValueError(f"environment={settings['environment']}: allowed are {', '.join(ENVIRONMENTS)}")
    if settings["environment"] == "calvin":
        if importlib.util.find_spec("calvin_env") is None:
            raise ValueError(WITHOUT_CALVIN)
        raise ValueError(
            "environment=calvin: the adapter to the real simulator is not built yet; take environment=desk"
        )
    for name in ("save_rollout_as_video", "log_wandb"):
        if settings[name]:
            raise ValueError(f"{name}=true is not built yet: give false")
    for name, least in (("num_sequences", 1), ("ep_len", 1), ("parallel", 1), ("num_videos", 0)):
        if not isinstance(settings[name], int) or settings[name] < least:
            raise ValueError(f"{name}={settings[name]}: expected a whole number of at least {least}")


def _folder(settings: Mapping[str, Any], place: Place) -> Path:
    """The same one for all processes of an evaluation."""
    if settings["log_dir"] is not None:
        return Path(str(settings["log_dir"])).expanduser().resolve()
    root = Path("rollout_outputs").resolve()
    if "SLURM_JOB_ID" in os.environ and place.world > 1:
        return root / f"job-{os.environ['SLURM_JOB_ID']}"
    if place.world > 1:
        raise ValueError("log_dir has to be given where several processes write to it")
    return root / time.strftime("%Y-%m-%d_%H-%M-%S")


def _device(wish: Any, place: Place) -> str:
    """Processes of one machine take turns on its GPUs."""
    if place.world > 1 and str(wish) != "cpu" and torch.cuda.is_available():
        return f"cuda:{place.local_rank % torch.cuda.device_count()}"
    return str(wish)


@hydra.main(version_base="1.3", config_path="../policy_conf", config_name="calvin_evaluate_upvla")  # type: ignore[untyped-decorator]
def main(config: DictConfig) -> None:
    missing = OmegaConf.missing_keys(config)
    if missing:
        print(f"calvin_evaluate_upvla: {', '.join(sorted(missing))} has to be given (key=value)", file=sys.stderr)
        sys.exit(2)
    settings = OmegaConf.to_container(config, resolve=True)
    assert isinstance(settings, dict)
    try:
        evaluate({str(name): value for name, value in settings.items()}, place_in(os.environ))
    except (ValueError, FileNotFoundError) as error:
        print(f"calvin_evaluate_upvla: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
