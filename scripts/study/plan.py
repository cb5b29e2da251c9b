"""The grid of the study: its runs, their settings, and named plans.

A run of stage 1 learns images and words, a run of stage 2 starts from its model and learns to act. All runs have the
same network (``assets/nano_phi``, two cameras), and those of a stage the same number of steps and samples, in the same
order. A seed gives every objective the same starting weights. Not equal: ``bd`` and ``joint`` read more slots in a step
(the clean answer beside two noisy copies), so a step takes longer; ``joint`` has one more loss.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path

from policy_rollout.desk.task_sets import ALL_TASKS, DOORS
from scripts.objective_comparison.plan import CONFIGS, ENTRY_POINTS, JOINT, TEXT_OBJECTIVES, WITHOUT_AR

OBJECTIVES = tuple(TEXT_OBJECTIVES)
PLACES, TOYS, SENTENCES = "places", "toys", "sentences"
"""Questions of place about random scenes of the desk; the bundled questions about toys, which bear on no action; the
next actions as a sentence (language actions), which the policy can execute."""
WORDS = (PLACES, TOYS)
"""Words of the plans without language actions."""
SCRATCH = "scratch"
"""In place of an objective: stage 2 from random weights, without words."""
LONGEST = {TOYS: 16, PLACES: 32, SENTENCES: 72}
"""Tokens of an answer at most: of toys 13, of places 25, of 2,327 sentences of doors and lights 65, with its end."""
CANVAS = {TOYS: 16, PLACES: 32, SENTENCES: 32}
"""Multiple of tokens to which ``mdm`` pads an answer."""
MAIN_WORDS, MAIN_TASKS, MAIN_TEXT = TOYS, DOORS.name, 0.1
"""Words, task set and weight of the text loss of the main line: what these networks learn within the steps."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of the data and of the runs of a plan.

    ``scenes``, ``held_out_scenes``: random scenes with questions of place; ``episodes``: of demonstrations of doors and
    lights; ``moments``, ``held_out_moments``: frames with the next actions of experts, of all tasks; ``steps_*``:
    optimizer steps of stage 1 and of stage 2; ``tried``: single tasks in closed loop, ``controls``: of them for each
    control; ``chains``: of tasks in a row; ``questions``: held-out questions; ``frames``: held-out frames of actions.
    """

    scenes: int = 6000
    held_out_scenes: int = 600
    episodes: int = 60
    held_out_episodes: int = 6
    moments: int = 12000
    held_out_moments: int = 600
    steps_words: int = 500
    steps_act: int = 600
    batch_words: int = 16
    batch_images: int = 8
    batch_act: int = 32
    batch_words_act: int = 8
    tried: int = 68
    controls: int = 34
    chains: int = 10
    questions: int = 192
    frames: int = 400


@dataclass(frozen=True)
class Run:
    """One run of the grid.

    ``objective``: of its words, or SCRATCH; ``words``: what it learned to speak about; ``tasks``: the task set that it
    learns to act on, empty in stage 1; ``text``: weight of the text loss; ``image``: whether the image loss is on;
    ``insulated``: no gradient of the action loss into the backbone; ``next_token``: weight of next-token prediction in
    ``joint``, unused otherwise.
    """

    objective: str
    words: str
    seed: int
    tasks: str = ""
    text: float = 1.0
    image: bool = True
    insulated: bool = False
    next_token: float = 1.0

    @property
    def stage(self) -> int:
        return 2 if self.tasks else 1

    @property
    def start(self) -> Run | None:
        """The run of stage 1 whose model this one starts from."""
        if self.stage == 1 or self.objective == SCRATCH:
            return None
        return Run(self.objective, self.words, self.seed, next_token=self.next_token)

    @property
    def label(self) -> str:
        """The objective, with the weight of next-token prediction if it is not 1."""
        return self.objective if self.next_token == 1 else f"{self.objective}{self.next_token:g}"

    @property
    def arm(self) -> str:
        """The name without the seed: runs of one arm differ in their seed only."""
        start = SCRATCH if self.objective == SCRATCH else f"{self.words}_{self.label}"
        if self.stage == 1:
            return start
        losses = f"text{self.text:g}_{'image' if self.image else 'noimage'}{'_insulated' if self.insulated else ''}"
        return f"{start}_{self.tasks}_{losses}"

    @property
    def name(self) -> str:
        return f"{self.arm}_seed{self.seed}"

    @property
    def speaks(self) -> bool:
        return self.objective != SCRATCH

    @property
    def acts_by_words(self) -> bool:
        """Whether its words are actions, which the policy can execute in place of the regression head's."""
        return self.stage == 2 and self.words == SENTENCES and self.speaks and self.text > 0


@dataclass(frozen=True)
class Data:
    """Folders of the data, below ``root``; ``scripts/study/data.py`` makes them."""

    root: Path

    @property
    def places(self) -> Path:
        return self.root / "places"

    @property
    def held_out_places(self) -> Path:
        return self.root / "places_validation"

    @property
    def doors_recording(self) -> Path:
        return self.root / "doors"

    @property
    def doors(self) -> Path:
        return self.root / "doors_training"

    @property
    def held_out_doors(self) -> Path:
        return self.root / "doors_validation"

    @property
    def moments(self) -> Path:
        return self.root / "moments" / "training"

    @property
    def held_out_moments(self) -> Path:
        return self.root / "moments" / "validation"

    def words(self, kind: str) -> tuple[Path, Path]:
        """Return (training, held-out) conversations."""
        if kind == SENTENCES:
            return self.root / SENTENCES, self.root / f"{SENTENCES}_validation"
        toys = Path("dummy_data/llava"), Path("dummy_data/llava_validation")
        return toys if kind == TOYS else (self.places, self.held_out_places)

    def actions(self, tasks: str) -> tuple[Path, Path]:
        """Return (training, held-out) processed splits of a task set."""
        return (self.doors, self.held_out_doors) if tasks == DOORS.name else (self.moments, self.held_out_moments)


@dataclass(frozen=True)
class Plan:
    """A named grid.

    ``settings``: ``key=value`` of the configuration for every run, in place of those of the study, such as the network.
    """

    name: str
    about: str
    runs: tuple[Run, ...]
    sizes: Sizes = Sizes()
    settings: tuple[str, ...] = ()

    def setting(self, key: str, default: str) -> str:
        """Return the value of a key in ``settings``."""
        return dict(line.split("=", 1) for line in self.settings).get(key, default)

    @cached_property
    def arms(self) -> dict[str, list[Run]]:
        """Arm -> its runs, by seed."""
        found: dict[str, list[Run]] = {}
        for run in self.runs:
            found.setdefault(run.arm, []).append(run)
        return found


def with_starts(runs: Iterable[Run]) -> tuple[Run, ...]:
    """Return the runs, each after the run that it starts from, without repetitions."""
    found: dict[Run, None] = {}
    for run in runs:
        if run.start is not None:
            found.setdefault(run.start)
        found.setdefault(run)
    return tuple(found)


def act(objective: str, words: str, seed: int, tasks: str, text: float = MAIN_TEXT, **factors: bool) -> Run:
    """Return a run of stage 2, without image loss by default. Frames of moments (``all``) have no later frame."""
    return Run(objective, words, seed, tasks, text, factors.pop("image", False), **factors)


def main_line(seeds: Iterable[int]) -> list[Run]:
    """Return the main line: every objective, and a network that never learned words."""
    found = []
    for seed in seeds:
        found += [act(objective, MAIN_WORDS, seed, MAIN_TASKS) for objective in OBJECTIVES]
        found.append(act(SCRATCH, MAIN_WORDS, seed, MAIN_TASKS, text=0.0))
    return found


def _factors(seeds: Iterable[int], objectives: Iterable[str] = OBJECTIVES) -> list[Run]:
    """Return each factor on its own, against the main line: text weight, insulation, image loss, words, tasks."""
    found = []
    for seed in seeds:
        for objective in objectives:
            found += [act(objective, MAIN_WORDS, seed, MAIN_TASKS, text=text) for text in (0.0, 1.0)]
            found += [act(objective, MAIN_WORDS, seed, MAIN_TASKS, insulated=True)]
            found += [act(objective, MAIN_WORDS, seed, MAIN_TASKS, image=True)]
            found += [act(objective, PLACES, seed, tasks) for tasks in (MAIN_TASKS, ALL_TASKS.name)]
    return found


def _full(seeds: Iterable[int]) -> list[Run]:
    """Return every combination of the factors; without any loss for an insulated backbone there is no run."""
    found = main_line(seeds)
    for seed in seeds:
        for objective in OBJECTIVES:
            for words in WORDS:
                for text in (0.0, 0.1, 1.0):
                    for tasks, images in ((ALL_TASKS.name, (False,)), (DOORS.name, (True, False))):
                        for image in images:
                            for insulated in (False, True) if text or image else (False,):
                                found.append(act(objective, words, seed, tasks, text, image=image, insulated=insulated))
    return found


TRIAL = Sizes(
    *(24, 8, 2, 1, 256, 16),  # scenes, episodes, moments, each with the held-out ones
    *(3, 3, 2, 2, 2, 2),  # steps and batches
    *(34, 8, 1, 4, 8),  # what is measured
)
PLANS = {
    plan.name: plan
    for plan in (
        Plan(
            "default",
            "the main line with three seeds; every other factor for ar and joint with one",
            with_starts([*main_line((0, 1, 2)), *_factors((0,), ("ar", JOINT))]),
        ),
        Plan("main", "the main line with three seeds", with_starts(main_line((0, 1, 2)))),
        Plan(
            "factors",
            "the main line with three seeds, every other factor with one",
            with_starts([*main_line((0, 1, 2)), *_factors((0,))]),
        ),
        Plan(
            "seeds",
            "the main line and every factor with three seeds",
            with_starts(main_line((0, 1, 2)) + _factors((0, 1, 2))),
        ),
        Plan(
            "language",
            "language actions beside the regression head: doors and lights, all objectives, one seed",
            with_starts([act(objective, SENTENCES, 0, DOORS.name, text=1.0, image=False) for objective in OBJECTIVES]),
        ),
        Plan(
            "weights",
            "joint with several weights of next-token prediction, before acting, three seeds",
            tuple(Run(JOINT, MAIN_WORDS, seed, next_token=weight) for seed in (0, 1, 2) for weight in (1.0, 0.1, 0.3)),
        ),
        Plan("full", "every combination of the factors with three seeds", with_starts(_full((0, 1, 2)))),
        Plan(
            "trial",
            "ar and joint with three steps and little data: whether everything runs, no result",
            with_starts(
                [
                    *(act(objective, MAIN_WORDS, 0, MAIN_TASKS) for objective in ("ar", JOINT)),
                    act("ar", MAIN_WORDS, 0, MAIN_TASKS, insulated=True),
                    act("ar", MAIN_WORDS, 0, MAIN_TASKS, image=True),
                    act("ar", PLACES, 0, ALL_TASKS.name),
                    act("ar", SENTENCES, 0, DOORS.name, text=1.0, image=False),
                ]
            ),
            TRIAL,
        ),
    )
}


# --- settings of a run ------------------------------------------------------------------------------------------------


def command(run: Run, plan: Plan, data: Data, folder: Path) -> list[str]:
    """Return the command that trains a run into ``folder``/runs/<name>."""
    objective = "ar" if run.objective == SCRATCH else run.objective
    script = ENTRY_POINTS[TEXT_OBJECTIVES[objective]]
    return [sys.executable, script, f"config=config/{CONFIGS[objective]}.yaml", *arguments(run, plan, data, folder)]


def arguments(run: Run, plan: Plan, data: Data, folder: Path) -> list[str]:
    """Return the overrides of a run."""
    sizes, words = plan.sizes, data.words(run.words)
    start = run.start
    steps = sizes.steps_words if run.stage == 1 else sizes.steps_act
    found = [
        f"experiment.name={run.name}",
        f"experiment.output_dir={folder_of(run, folder)}",
        "experiment.log_every=1",
        "experiment.log_grad_norm_every=0",
        "experiment.eval_every=0",
        "experiment.generate_every=0",
        f"experiment.save_every={max(1, min(250, steps // 2))}",
        "experiment.checkpoints_total_limit=1",
        "model.showo.llm_model_path=./assets/nano_phi",
        "model.showo.code_bits=true",
        "model.vla.num_view=2",
        f"max_new_tokens={LONGEST[run.words]}",
        f"text_mdm.canvas_multiple={CANVAS[run.words]}",
        "optimizer.params.learning_rate=1.5e-3",
        "optimizer.params.beta2=0.98",
        f"lr_scheduler.params.warmup_steps={min(100, steps // 3)}",
        f"training.seed={run.seed}",
        f"training.max_train_steps={steps}",
        "dataset.params.validation_pre_shards_path_or_url=null",
    ]
    if run.objective in ("mdm", "bd"):
        found.append(WITHOUT_AR)
    elif run.objective == JOINT:
        found.append(f"text_diffusion.ar_aux_weight={run.next_token:g}")
    if run.stage == 1:
        found += _stage_1(sizes, data)
    else:
        found += _stage_2(run, sizes, data)
    found += plan.settings
    if start is not None:
        found.append(f"model.showo.pretrained_model_path={folder_of(start, folder)}")
    if run.stage == 1 or (run.speaks and run.text > 0):
        found.append(f"dataset.params.train_mmu_shards_path_or_url={words[0]}")
        found.append(f"dataset.params.validation_mmu_shards_path_or_url={words[1]}")
    else:
        found.append("dataset.und_type=null")
    return found


def _stage_1(sizes: Sizes, data: Data) -> list[str]:
    return [
        f"dataset.params.train_pre_shards_path_or_url={data.doors}",
        "training.pre_coeff=0.1",
        "training.act_coeff=0",
        "training.mmu_coeff=1",
        f"training.batch_size_pre={sizes.batch_images}",
        f"training.batch_size_mmu={sizes.batch_words}",
    ]


def _stage_2(run: Run, sizes: Sizes, data: Data) -> list[str]:
    return [
        f"dataset.params.train_pre_shards_path_or_url={data.actions(run.tasks)[0]}",
        "model.vla.proprioception=pose",
        f"training.pre_coeff={0.1 if run.image else 0}",
        "training.act_coeff=1",
        f"training.mmu_coeff={run.text:g}",
        f"training.insulate_backbone={'true' if run.insulated else 'false'}",
        f"training.batch_size_pre={sizes.batch_act}",
        f"training.batch_size_mmu={sizes.batch_words_act}",
    ]


def folder_of(run: Run, folder: Path) -> Path:
    """Return the output folder of a run."""
    return folder / "runs" / run.name


def plan_of(name: str, sizes: str, settings: Iterable[str] = ()) -> Plan:
    """Return a named plan with settings and other sizes, such as ``steps_words=3000,tried=68``. Raises ValueError."""
    plan, changed = PLANS[name], dict[str, int]()
    known = [field.name for field in fields(Sizes)]
    for part in (part for part in sizes.split(",") if part):
        key, _, value = part.partition("=")
        if key not in known or not value.isdecimal() or int(value) < 1:
            raise ValueError(f"--sizes {part}: expected NAME=NUMBER of at least 1, with a name of {', '.join(known)}")
        changed[key] = int(value)
    settings = tuple(settings)
    if wrong := [line for line in settings if "=" not in line]:
        raise ValueError(f"{wrong[0]}: expected key=value, as for the training commands")
    return replace(plan, sizes=replace(plan.sizes, **changed), settings=settings)
