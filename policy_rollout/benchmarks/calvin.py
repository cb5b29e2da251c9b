"""The published CALVIN: the official chains in the real simulator, which the user installs (docs/calvin.md)."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from common.files import expand_home
from policy_rollout.benchmarks.base import Settings, official_jobs
from policy_rollout.calvin.egl import Graphics, find_graphics
from policy_rollout.calvin.installation import (
    ANNOTATIONS_IN_CALVIN,
    check_packages,
    find_annotations,
    find_split,
    package_commit,
    package_folder,
    read_annotations,
)
from policy_rollout.calvin.oracle import VERSION, TaskOracle
from policy_rollout.calvin.simulator import CONFIGURATION, SECTIONS, WARM_UP_IMAGES, read_configuration
from policy_rollout.calvin.trial import try_environment
from policy_rollout.closed_loop.interface import ChainJob, Env
from policy_rollout.policies.interface import ActionConvention

RENDERERS = ("egl", "tiny")
OWN = "own"
"""Value of `annotations`: this project's instructions instead of CALVIN's."""
WITHOUT_CALVIN = (
    "environment=calvin: the package calvin_env is not installed; bash scripts/install_calvin_env.sh installs it. "
    "environment=desk runs the same chains on the embedded desk"
)


@dataclass(frozen=True)
class CalvinBenchmark:
    """CALVIN's simulator. `split`: the folder of a validation split, of which `.hydra/merged_config.yaml` is read.
    `instructions`: by task; None: this project's. `settings`: the stamp."""

    split: Path
    graphics: Graphics
    instructions: Mapping[str, str] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    name = "calvin"
    convention = ActionConvention()
    envs_per_process = 1

    def stamp(self) -> dict[str, Any]:
        return dict(self.settings)

    def jobs(self, count: int) -> list[ChainJob]:
        jobs, texts = official_jobs(count), self.instructions
        if texts is None:
            return jobs
        return [replace(job, instructions=tuple(texts[task] for task in job.tasks)) for job in jobs]

    def make_env(self) -> Env:
        from policy_rollout.calvin.simulator import CalvinEnv

        return CalvinEnv(self.split, self.graphics.egl, self.graphics.device)

    def oracle(self) -> TaskOracle:
        return TaskOracle()


def from_settings(settings: Settings) -> CalvinBenchmark:
    """Return the benchmark. Raises ``ValueError`` or ``FileNotFoundError`` if a part of CALVIN is missing."""
    if package_folder() is None:
        raise ValueError(WITHOUT_CALVIN)
    split = _split(settings)
    description = _description(split)
    instructions, annotations = _instructions(settings.get("annotations"))
    check_packages()
    graphics = _graphics(settings)
    try_environment(split, graphics)
    stamp = {
        "name": CalvinBenchmark.name,
        **description,
        "renderer": graphics.name,
        # In records without this key, the first images have no shadows.
        **({"warm_up_images": WARM_UP_IMAGES} if graphics.egl else {}),
        "annotations": annotations,
        "oracle": VERSION,
        "versions": {"calvin_env": package_commit(), "pybullet": _version("pybullet"), "numpy": _version("numpy")},
    }
    return CalvinBenchmark(split, graphics, instructions, stamp)


def _split(settings: Settings) -> Path:
    given = settings.get("dataset_path") or settings.get("root_data_dir")
    if not given:
        raise ValueError("dataset_path has to be given: the folder of task_ABC_D, task_D_D, ... of CALVIN's data")
    return find_split(expand_home(str(given)))


def _instructions(given: Any) -> tuple[dict[str, str] | None, str]:
    """Return CALVIN's instructions (None: our own) and a name that identifies them."""
    if given == OWN:
        return None, OWN
    file = expand_home(str(given)) if given else find_annotations()
    if file is None:
        raise ValueError(
            f"annotations: the installed calvin_env is not in a checkout of CALVIN with {ANNOTATIONS_IN_CALVIN}; name "
            f"that file, or set annotations={OWN} for this project's instructions (not comparable to published results)"
        )
    instructions = read_annotations(file)
    digest = hashlib.sha256(json.dumps(instructions, sort_keys=True).encode()).hexdigest()
    return instructions, f"{file.name} {digest[:12]}"


def _graphics(settings: Settings) -> Graphics:
    """Return the graphics of `renderer`: egl, tiny, or by default egl if it works."""
    renderer = settings.get("renderer")
    if renderer not in (None, *RENDERERS):
        raise ValueError(f"renderer={renderer}: calvin has {', '.join(RENDERERS)}")
    if renderer == "tiny":
        return Graphics(False)
    found, problem = find_graphics(_cuda_number(settings))
    if found is None and renderer == "egl":
        raise ValueError(f"renderer=egl: {problem}; renderer=tiny draws on the CPU")
    if found is None:
        consequence = "images are drawn on the CPU (renderer=tiny) and differ from those of CALVIN's data"
        print(f"notice: {problem}; {consequence}", file=sys.stderr)
    elif problem:
        print(f"notice: {problem}; images are drawn by {found.vendor} on the first that works", file=sys.stderr)
    return found or Graphics(False)


def _cuda_number(settings: Settings) -> int | None:
    """Return the number of the policy's GPU, which also draws; None on the CPU."""
    device = str(settings.get("device", "auto")).removeprefix("cuda:")
    if device == "cpu":
        return None
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count:
        return None
    rank = int(settings.get("local_rank") or 0)
    return int(device) if device.isdecimal() and not rank else rank % count


def _description(split: Path) -> dict[str, Any]:
    """Return what outcomes depend on: the table's name, the images' sizes, a digest of all other settings."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    configuration = read_configuration(split)
    try:
        sections: dict[str, Any] = {
            name: OmegaConf.to_container(configuration[name], resolve=True) for name in SECTIONS
        }
        sections["env"].pop("use_egl", None)  # set by `renderer`
        tables = [Path(str(body["file"])).stem for body in sections["scene"]["objects"]["fixed_objects"].values()]
        sizes = {name: [camera["height"], camera["width"]] for name, camera in sections["cameras"].items()}
    except (OmegaConfBaseException, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{split / CONFIGURATION} does not describe CALVIN's environment: {reason}") from error
    digest = hashlib.sha256(json.dumps(sections, sort_keys=True).encode()).hexdigest()
    return {"scene": ", ".join(tables), "pictures": sizes, "configuration_sha256": digest}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
