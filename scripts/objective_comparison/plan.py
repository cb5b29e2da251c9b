"""Plan the runs of a comparison: their folders and the commands that train them."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import TypeVar

from common.files import write_text
from config.identity import difference, settings_in, settings_of
from config.loading import load_job
from config.schema import MMU_INDEX, Objective

Value = TypeVar("Value", int, str)
ROOT = Path(__file__).resolve().parents[2]
JOINT = "joint"
"""The recipe of ``bd`` with next-token prediction of the same answers."""
TEXT_OBJECTIVES: dict[str, Objective] = {"ar": "ar", "mdm": "mdm", "bd": "bd", JOINT: "bd"}
"""Names that are compared -> their text objectives."""
ENTRY_POINTS = {"ar": "train_upvla.py", "mdm": "train_mdm_vla.py", "bd": "train_blockdiff_vla.py"}
CONFIGS = {"ar": "tiny_arvla", "mdm": "tiny_mdmvla", "bd": "tiny_bdvla", JOINT: "tiny_jointvla"}
WITHOUT_AR = "text_diffusion.ar_aux_weight=0"
PLAN_FILE = "plan.json"
SAMPLE_RATES = ("speed/samples_per_s", "samples_per_s")
"""Names of the samples per second in a metrics.jsonl, the present one and that of earlier runs."""
BLANK_GREY = 200
BLANK_SIDE = 112


@dataclass(frozen=True)
class Budget:
    """Training settings that all runs share; the default takes a few minutes on two cores."""

    steps: int = 400
    batch_size_pre: int = 2
    batch_size_mmu: int = 8
    learning_rate: float = 2e-3
    overrides: tuple[str, ...] = ()

    def arguments(self) -> list[str]:
        return [
            f"training.max_train_steps={self.steps}",
            f"training.batch_size_pre={self.batch_size_pre}",
            f"training.batch_size_mmu={self.batch_size_mmu}",
            f"optimizer.params.learning_rate={self.learning_rate:g}",
            "lr_scheduler.params.warmup_steps=40",
            "optimizer.params.beta2=0.98",  # the losses fall a hundredfold within the run
            "training.mmu_coeff=5",  # the gradient of two robot samples is noisy and would dominate that of the text
            "experiment.log_every=1",  # the first step's losses are compared, and the curves are drawn
            "experiment.log_grad_norm_every=0",
            "experiment.eval_every=0",  # all runs are evaluated once, at the end
            "experiment.generate_every=0",
            f"experiment.save_every={max(50, self.steps // 4)}",
            "experiment.checkpoints_total_limit=1",
            *self.overrides,
        ]


@dataclass(frozen=True)
class RunPlan:
    """One run.

    ``blind``: trained on the same questions with a blank image in place of every image; ``settings``: of this run
    alone, as section.key=value.
    """

    objective: str
    seed: int
    blind: bool
    folder: Path
    settings: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.objective}_seed{self.seed}{'_blind' if self.blind else ''}"

    @property
    def finished(self) -> bool:
        """Whether the final model exists; a run writes it last."""
        return (self.folder / "model.safetensors").is_file()

    @property
    def results_file(self) -> Path:
        return self.folder / "judged.json"

    @property
    def metrics_file(self) -> Path:
        return self.folder / "metrics.jsonl"

    def command(self, budget: Budget, blank: Path) -> list[str]:
        """Return the command that trains it."""
        arguments = [
            sys.executable,
            ENTRY_POINTS[TEXT_OBJECTIVES[self.objective]],
            f"config=config/{CONFIGS[self.objective]}.yaml",
            f"experiment.name={self.name}",
            f"experiment.output_dir={self.folder}",
            f"training.seed={self.seed}",
            *budget.arguments(),
            *self.settings,
        ]
        if self.blind:
            arguments.append(f"dataset.params.train_mmu_shards_path_or_url={blank}")
        return arguments


@dataclass(frozen=True)
class Plan:
    """All runs in one folder."""

    folder: Path
    objectives: tuple[str, ...]
    seeds: tuple[int, ...]
    blind: bool
    budget: Budget

    @property
    def runs(self) -> list[RunPlan]:
        kinds = [False, True] if self.blind else [False]
        return [
            self._run(objective, seed, blind) for seed in self.seeds for blind in kinds for objective in self.objectives
        ]

    def _run(self, objective: str, seed: int, blind: bool) -> RunPlan:
        # Beside the joint recipe mdm and bd learn by diffusion alone; otherwise as their configurations have it.
        settings = (WITHOUT_AR,) if JOINT in self.objectives and objective in ("mdm", "bd") else ()
        run = RunPlan(objective, seed, blind, Path(), settings)
        return replace(run, folder=self.folder / "runs" / run.name)

    @property
    def blank_data(self) -> Path:
        return self.folder / "blank_pictures"

    def write_or_check(self) -> None:
        """Write the budget of this folder's runs, or compare it with the one that is stored.

        Objectives, seeds and blind runs may be added later. Raises ``ValueError`` if the budget differs, or if a run
        was trained with other settings than its command has now.
        """
        for run in self.runs:
            stored = settings_in(run.folder / "config.yaml")
            arguments = run.command(self.budget, self.blank_data)[2:]
            if stored is not None and (other := difference(stored, settings_of(load_job(arguments, None)))):
                raise ValueError(
                    f"{run.folder} was trained with {other}; give another --output-dir, or delete that folder"
                )
        file = self.folder / PLAN_FILE
        mine = json.loads(json.dumps(asdict(self.budget)))
        if not file.is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_text(file, json.dumps(mine, indent=1) + "\n")
            return
        stored_budget = json.loads(file.read_text(encoding="utf-8"))
        changes = [
            f"{key} {stored_budget.get(key)} (now {mine[key]})" for key in mine if stored_budget.get(key) != mine[key]
        ]
        if changes:
            raise ValueError(
                f"{self.folder} was run with another budget: {', '.join(changes)}; "
                "give another --output-dir or delete it"
            )


def overrides_from_run(run: Path) -> tuple[str, ...]:
    """Return overrides that start all runs from the model and the robot data of ``run`` or of a checkpoint in it.

    Raises ``ValueError`` or ``FileNotFoundError``."""
    configs = [folder / "config.yaml" for folder in (run, *run.parents)]
    config = next((file for file in configs if file.is_file()), None)
    if config is None:
        raise FileNotFoundError(f"--from-run {run}: neither it nor a folder above it has the config.yaml of a run")
    job = load_job([f"config={config}"], None)
    data = job.dataset.params
    return (
        "model.showo.load_from_showo=true",
        f"model.showo.pretrained_model_path={_short(run)}",
        f"model.showo.llm_model_path={_short(job.model.showo.llm_model_path)}",
        f"model.vq_model.vq_model_name={_short(job.model.vq_model.vq_model_name)}",
        f"model.vla.proprioception={job.model.vla.proprioception}",
        f"dataset.params.train_pre_shards_path_or_url={_short(data.train_pre_shards_path_or_url)}",
        "dataset.params.validation_pre_shards_path_or_url=null",  # actions are evaluated on the raw recording
        "training.pre_coeff=0.1",  # future images are new to it; their loss would dominate
    )


def _short(path: str | Path) -> str:
    """Return a path relative to the repository's root, where the runs are started."""
    return str(path).removeprefix(f"{ROOT}/")


def write_blank_images(source: Path, folder: Path) -> None:
    """Write the conversations of ``source`` with the same grey image in place of every image."""
    from PIL import Image  # planning alone does not need it

    records = json.loads((source / MMU_INDEX).read_text(encoding="utf-8"))
    blank, file = json.dumps([{**record, "image": "blank.png"} for record in records]), folder / MMU_INDEX
    if file.is_file() and file.read_text(encoding="utf-8") == blank:
        return
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (BLANK_SIDE, BLANK_SIDE), (BLANK_GREY,) * 3).save(folder / "blank.png")
    write_text(file, blank)


def read_objectives(text: str) -> tuple[str, ...]:
    """Parse ``ar,bd``. Raises ``ValueError`` for unknown names and for a name that is given twice."""
    names = tuple(name.strip() for name in text.split(","))
    if unknown := [name for name in names if name not in TEXT_OBJECTIVES]:
        raise ValueError(f"--objectives {text}: {unknown[0]!r} is unknown; choose from {', '.join(TEXT_OBJECTIVES)}")
    return _require_unique("--objectives", text, names)


def read_seeds(text: str) -> tuple[int, ...]:
    """Parse ``0,1,2``. Raises ``ValueError``."""
    try:
        seeds = tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise ValueError(f"--seeds {text}: expected whole numbers separated by commas, such as 0,1,2") from error
    if min(seeds) < 0:
        raise ValueError(f"--seeds {text}: seeds must be at least 0")
    return _require_unique("--seeds", text, seeds)


def _require_unique(option: str, text: str, values: tuple[Value, ...]) -> tuple[Value, ...]:
    if len(set(values)) < len(values):
        raise ValueError(f"{option} {text}: each may be given only once")
    return values


def read_curve(run: RunPlan) -> list[dict[str, float]]:
    """Return the logged metrics of each step; of a resumed run the last ones."""
    return read_metrics(run.metrics_file)


def read_metrics(file: Path) -> list[dict[str, float]]:
    """Return the lines of a metrics.jsonl by step, the last ones of each; none without the file."""
    lines: dict[int, dict[str, float]] = {}
    if file.is_file():
        for line in file.read_text(encoding="utf-8").splitlines():
            try:
                values = json.loads(line)
            except ValueError:  # an incomplete last line of a running run
                continue
            lines.setdefault(int(values["step"]), {}).update(values)
    return [lines[step] for step in sorted(lines)]


def sample_rate(lines: Sequence[Mapping[str, float]]) -> float | None:
    """Return the median of the samples per second in lines of a metrics.jsonl; None if they log none."""
    rates = [rate for line in lines for name in SAMPLE_RATES if (rate := line.get(name))]
    return median(rates) if rates else None


def pairs_of(objectives: Sequence[str]) -> list[tuple[str, str]]:
    """Return pairs (later, earlier), such as (bd, ar)."""
    return [(b, a) for i, a in enumerate(objectives) for b in objectives[i + 1 :]]
