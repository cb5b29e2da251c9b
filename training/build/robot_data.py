"""Check the robot data of a run against its contract, and record what they declare in the model's description."""

from __future__ import annotations

from common.constants import CAMERAS, by_view
from config.schema import Job
from models.action.encoding import ActionScale
from models.upvla import UPVLA
from training.checkpointing.manifest import Checkpoint
from training.data.checks.robot_data import check_data, declared_state
from training.data.dataset_spec import DataContract, action_scale


def declare_data(job: Job, model: UPVLA, resumed: Checkpoint | None) -> list[str]:
    """Check the robot data, and record their cameras, action convention and action scale in the model's description.

    Returns lines for the log. Raises ValueError if data contradict their contract, or if validation data or the resumed
    checkpoint declare something else.
    """
    params, kind = job.dataset.params, job.dataset.action_normalisation
    contract, checked = check_data(job)
    notes = [f"data: {line}" for found in checked for line in (*found.doubtful, found.about)]
    cameras = _cameras(job, contract)
    scale = action_scale(contract, kind, params.train_pre_shards_path_or_url, job.dataset.action_key)
    saved = model.spec
    if resumed is not None and dict(saved.data.action_convention) != dict(contract.action):
        raise ValueError(
            f"{contract.path} declares actions as {dict(contract.action)}, but {resumed.path}, which this run "
            f"continues, learned {dict(saved.data.action_convention)}; choose another experiment.output_dir"
        )
    if resumed is not None and saved.data.scale != scale:
        raise ValueError(
            f"dataset.action_normalisation={kind} gives {_describe(scale)}, but {resumed.path}, which this run "
            f"continues, learned with {_describe(saved.data.scale)}; choose another experiment.output_dir"
        )
    if resumed is not None and saved.data.state_convention != declared_state(job):
        raise ValueError(
            f"{contract.path or params.train_pre_shards_path_or_url} declares other states, or has other statistics of "
            f"them, than the data of {resumed.path}, which this run continues; choose another experiment.output_dir"
        )
    if resumed is not None and saved.data.image_rotation != contract.image_rotation:
        raise ValueError(
            f"{contract.path} declares images rotated by {contract.image_rotation} degrees, but {resumed.path}, which "
            f"this run continues, learned from {saved.data.image_rotation}; choose another experiment.output_dir"
        )
    model.spec = saved.updated(
        action_convention=dict(contract.action),
        image_rotation=contract.image_rotation,
        action_scale=None if scale is None else scale.to_json(),
        cameras=cameras,
    )
    return notes if scale is None else [*notes, f"actions are normalised: {_describe(scale)}"]


def _cameras(job: Job, contract: DataContract) -> dict[str, list[int]]:
    """Return the declared image size of each view. Raises ValueError if a view has no camera."""
    views, cameras = job.model.vla.num_view, by_view(contract.cameras)
    missing = [view for view in CAMERAS[:views] if view not in cameras]
    if cameras and missing:
        declared = f"one camera ({next(iter(contract.cameras))})"
        raise ValueError(
            f"model.vla.num_view={views} reads {missing[0]}, but {contract.path} declares {declared}; "
            "allowed: another number of views, or a contract that names this camera"
        )
    return {name: list(sides) for name, sides in cameras.items()}


def _describe(scale: ActionScale | None) -> str:
    if scale is None:
        return "no normalisation"
    ranges = ", ".join(f"{low:.3g}..{high:.3g}" for low, high in zip(scale.low, scale.high, strict=True))
    return f"{scale.kind} over {ranges}"
