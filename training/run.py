"""One training run: its processes, its output folder and its log.

``open_run`` starts the processes, finds the checkpoint to resume, and closes everything at the end of the run.
``Run.prepare_output_dir`` opens the metric writers. All ranks do the same work; only rank 0 writes.
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
from training.checkpointing.checkpoint import archive_previous_run, find_checkpoint
from training.checkpointing.manifest import Checkpoint
from training.data.worker_processes import LostWorker
from training.distributed.host_sync import HostComm
from training.distributed.launch import start_processes
from training.failure.known_errors import is_lost_process
from training.failure.preemption import StopRequest, handle_stop_signals
from training.failure.status import write_status
from training.metrics.logger import METRICS_FILE, JsonLinesWriter, MetricsLogger, WandbWriter, Writer
from training.metrics.tensorboard import TensorBoardWriter


@dataclass(frozen=True)
class Run:
    """What the components of a training run share.

    ``resumed``: the checkpoint that it resumes, if any; ``comm``: communication between the processes on the host;
    ``stop_request``: a request to stop that this process has received.
    """

    job: Job
    accelerator: Accelerator
    output_dir: Path
    metrics_logger: MetricsLogger
    resumed: Checkpoint | None
    comm: HostComm
    stop_request: StopRequest

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
    def is_main_process(self) -> bool:
        """True on the rank that writes files and logs."""
        return self.accelerator.is_main_process

    @property
    def start_step(self) -> int:
        """Return the number of optimizer steps done before this run."""
        return self.resumed.step if self.resumed else 0

    def log(self, text: str) -> None:
        """Print a line above the progress bar, on the main process only."""
        if self.is_main_process:
            tqdm.write(text)

    def prepare_output_dir(self) -> None:
        """Open the output folder for writing. Called after all checks of the configuration have passed.

        Files of an earlier run are moved to a subfolder, unless this run resumes it.
        """
        try:
            self.comm.broadcast_from_main(self._open_folder)
        except OSError as error:  # a full or a read-only disk
            if not self.is_main_process:
                raise SystemExit(2) from None
            raise _unwritable(self.output_dir, error) from error

    def _open_folder(self) -> None:
        for note in archive_previous_run(self.output_dir, self.resumed):
            self.log(note)
        self.output_dir.mkdir(parents=True, exist_ok=True)
        write_text(self.output_dir / "config.yaml", to_yaml(self.job))
        for writer in _writers(self.job, self.output_dir, self.start_step):
            self.metrics_logger.add(writer)
        write_status(self.output_dir, "running", self.start_step, self.resumed.path if self.resumed else None)

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over all ranks (a collective call)."""
        return self.accelerator.reduce(tensor, reduction="sum")


@contextmanager
def open_run(job: Job) -> Iterator[Run]:
    """Open the run that ``job`` describes; nothing is written yet. Raises ConfigError for a mistake in the job."""
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
    """Set the process-wide settings of a run, and restore them at the end."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = (matmul.allow_tf32, cudnn.allow_tf32)
    # Data workers are forked after the tokenizer was used; without this it prints a warning in each of them.
    variables = {"TOKENIZERS_PARALLELISM": os.environ.get("TOKENIZERS_PARALLELISM", "false")}
    matmul.allow_tf32 = cudnn.allow_tf32 = job.training.enable_tf32
    try:
        with environment(variables):
            yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def _open(job: Job) -> Iterator[Run]:
    accelerator = start_processes(job)
    set_seed(job.training.seed)
    output_dir = Path(job.experiment.output_dir)
    comm = HostComm(accelerator)
    with ExitStack() as locks, handle_stop_signals() as stop_request:
        resumed, notes = _lock_output_dir(job, output_dir, comm, locks)
        run = Run(job, accelerator, output_dir, MetricsLogger(), resumed, comm, stop_request)
        for note in notes:
            run.log(note)
        try:
            yield run
            # Ranks that exit at different times can abort the process group of the others.
            accelerator.wait_for_everyone()
        except KeyboardInterrupt:
            run.log("stopped by Ctrl-C; experiment.resume_from_checkpoint=latest resumes from the last checkpoint")
            raise SystemExit(130) from None
        except RuntimeError as error:
            raise _describe_error(error) from error
        finally:
            for warning in run.metrics_logger.close():
                run.log(warning)
    accelerator.end_training()


def _lock_output_dir(
    job: Job, output_dir: Path, comm: HostComm, locks: ExitStack
) -> tuple[Checkpoint | None, list[str]]:
    """Lock the output folder on the main process until ``locks`` is closed.

    Returns the checkpoint to resume and notes on it.
    """
    purpose = f"a training run, {job.experiment.name}"
    try:
        comm.broadcast_from_main(lambda: locks.enter_context(hold(output_dir, purpose, "experiment.output_dir=")))
    except (ValueError, OSError) as error:
        if not comm.is_main:
            raise SystemExit(2) from None
        raise (_unwritable(output_dir, error) if isinstance(error, OSError) else ConfigError(str(error))) from error
    try:
        return comm.broadcast_from_main(lambda: find_checkpoint(output_dir, job.experiment.resume_from_checkpoint))
    except (ValueError, OSError) as error:
        if not comm.is_main:
            raise SystemExit(2) from None
        raise ConfigError(str(error)) from error


def _unwritable(output_dir: Path, error: OSError) -> ConfigError:
    where = "" if error.filename is None else f": {error.filename}"
    return ConfigError(f"experiment.output_dir={output_dir}: cannot be written to ({reason_of(error)}{where})")


def _describe_error(error: RuntimeError) -> BaseException:
    """Return a one-line exit for a lost process or data worker; any other error unchanged."""
    again = "the same command resumes from the last checkpoint"
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
        writers.append(TensorBoardWriter(output_dir / "logs", step, job.training.text_objective))
    elif job.experiment.tracker == "wandb":
        writers.append(WandbWriter(job.experiment.project, job.experiment.name, output_dir, asdict(job)))
    return writers
