"""One training run: its processes, its folder, its voice.

``open_run`` makes the accelerator, finds the checkpoint to continue from, and closes everything however the run ends;
``Run.begin`` takes the output folder and opens the writers. All ranks do the same; only writing is rank 0's.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor
from tqdm import tqdm

from common.files import reason_of, write_text
from common.folder_lock import hold
from common.processes import environment
from config.loading import ConfigError, to_yaml
from config.schema import Job
from models.objectives import text_objective
from training.checkpointing.checkpoint import find_checkpoint, set_aside
from training.checkpointing.manifest import Checkpoint
from training.data.worker_processes import LostWorker
from training.distributed.host_sync import HostComm, is_lost_process
from training.distributed.launch import start_processes
from training.failure.preemption import StopRequest, listening
from training.failure.status import write_status
from training.metrics_logger import METRICS_FILE, Board, JsonLinesWriter, TensorBoardWriter, WandbWriter, Writer


@dataclass(frozen=True)
class Run:
    """What the parts of a training run share. ``resumed`` is the checkpoint it continues from, if any; ``ranks``: the
    processes, talking on the host; ``asked``: whether this one was asked to stop."""

    job: Job
    accelerator: Accelerator
    output_dir: Path
    board: Board
    resumed: Checkpoint | None
    ranks: HostComm
    asked: StopRequest

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    @property
    def rank(self) -> int:
        return self.accelerator.process_index

    @property
    def world(self) -> int:
        return self.accelerator.num_processes

    @property
    def writes(self) -> bool:
        """Is this the rank that writes?"""
        return self.accelerator.is_main_process

    @property
    def start_step(self) -> int:
        """Optimizer steps already done when the run begins."""
        return self.resumed.step if self.resumed else 0

    def say(self, text: str) -> None:
        """Print a line once, above the progress bar."""
        if self.writes:
            tqdm.write(text)

    def begin(self) -> None:
        """Take possession of the output folder: called once everything that can be wrong at start was found right.

        What an earlier run left there is moved aside, unless it is continued.
        """
        try:
            self.ranks.from_main(self._open_folder)
        except OSError as error:  # a full or a read-only disk
            if not self.writes:
                raise SystemExit(2) from None
            raise _unwritable(self.output_dir, error) from error

    def _open_folder(self) -> None:
        for note in set_aside(self.output_dir, self.resumed):
            self.say(note)
        self.output_dir.mkdir(parents=True, exist_ok=True)
        write_text(self.output_dir / "config.yaml", to_yaml(self.job))
        for writer in _writers(self.job, self.output_dir, self.start_step):
            self.board.add(writer)
        write_status(self.output_dir, "running", self.start_step, self.resumed.path if self.resumed else None)

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over all ranks (a collective call)."""
        return self.accelerator.reduce(tensor, reduction="sum")


@contextmanager
def open_run(job: Job) -> Iterator[Run]:
    """The run that ``job`` describes. What the user got wrong comes out as ``ConfigError``; nothing is written yet."""
    try:
        text_objective(job.training.text_objective)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if job.experiment.tracker == "wandb" and importlib.util.find_spec("wandb") is None:
        raise ConfigError(
            "experiment.tracker=wandb needs the package wandb (pip install wandb); allowed: tensorboard, wandb, none"
        )
    with _process_settings(job):
        yield from _open(job)


@contextmanager
def _process_settings(job: Job) -> Iterator[None]:
    """Set what a run changes for its whole process, and restore it at the end."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = (matmul.allow_tf32, cudnn.allow_tf32)
    # Data workers are forked after the tokenizer was used, which it would otherwise complain of in each of them.
    quiet = {"TOKENIZERS_PARALLELISM": os.environ.get("TOKENIZERS_PARALLELISM", "false")}
    matmul.allow_tf32 = cudnn.allow_tf32 = job.training.enable_tf32
    try:
        with environment(quiet):
            yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def _open(job: Job) -> Iterator[Run]:
    accelerator = start_processes(job)
    set_seed(job.training.seed)
    output_dir = Path(job.experiment.output_dir)
    ranks = HostComm(accelerator)
    with ExitStack() as held, listening() as asked:
        resumed, notes = _take_folder(job, output_dir, ranks, held)
        run = Run(job, accelerator, output_dir, Board(), resumed, ranks, asked)
        for note in notes:
            run.say(note)
        try:
            yield run
            # Ranks that leave at different times have been seen to abort the process group of the others.
            accelerator.wait_for_everyone()
        except KeyboardInterrupt:
            run.say("stopped by hand; experiment.resume_from_checkpoint=latest goes on from the last checkpoint")
            raise SystemExit(130) from None
        except RuntimeError as error:
            raise _in_one_line(error) from error
        finally:
            for warning in run.board.close():
                run.say(warning)
    accelerator.end_training()


def _take_folder(job: Job, output_dir: Path, ranks: HostComm, held: ExitStack) -> tuple[Checkpoint | None, list[str]]:
    """Hold the output folder on the main rank, for all ranks and as long as ``held`` is open; find the checkpoint to
    resume from, and the notes on it."""
    purpose = f"a training run, {job.experiment.name}"
    try:
        ranks.from_main(lambda: held.enter_context(hold(output_dir, purpose, "experiment.output_dir=")))
    except (ValueError, OSError) as error:
        if not ranks.is_main:
            raise SystemExit(2) from None
        raise (_unwritable(output_dir, error) if isinstance(error, OSError) else ConfigError(str(error))) from error
    try:
        return ranks.from_main(lambda: find_checkpoint(output_dir, job.experiment.resume_from_checkpoint))
    except (ValueError, OSError) as error:
        if not ranks.is_main:
            raise SystemExit(2) from None
        raise ConfigError(str(error)) from error


def _unwritable(output_dir: Path, error: OSError) -> ConfigError:
    where = "" if error.filename is None else f": {error.filename}"
    return ConfigError(f"experiment.output_dir={output_dir}: cannot be written to ({reason_of(error)}{where})")


def _in_one_line(error: RuntimeError) -> BaseException:
    """What ends a run from outside, in the user's words; any other error as it is."""
    again = "the same command goes on from the last checkpoint"
    if is_lost_process(error):
        return SystemExit(
            f"stopped: another process of this run has ended (its own message is in the same output); {again}"
        )
    if isinstance(error, LostWorker):
        return SystemExit(f"stopped: {error}; {again}")
    return error


def _writers(job: Job, output_dir: Path, step: int) -> list[Writer]:
    writers: list[Writer] = [JsonLinesWriter(output_dir / METRICS_FILE, step)]
    if job.experiment.tracker == "tensorboard":
        writers.append(TensorBoardWriter(output_dir / "logs", step))
    elif job.experiment.tracker == "wandb":
        writers.append(WandbWriter(job.experiment.project, job.experiment.name, output_dir, asdict(job)))
    return writers
