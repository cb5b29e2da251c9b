"""Check the robot data of a run: against their contracts, the configuration, and each other."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace

from common.constants import action_layout
from config.parsing import get, put
from config.schema import Job
from models.action.state import StateConvention
from training.data.checks.dataset import require
from training.data.checks.split import check_processed
from training.data.dataset_spec import DataContract, read_contract, state_convention
from training.data.episode_index import read_index


@dataclass(frozen=True)
class CheckedSplit:
    """Remarks on a split that fits its contract: doubtful findings, and what was compared."""

    doubtful: list[str]
    about: str


def drop_unusable_validation(job: Job, why: str | None = None) -> list[str]:
    """Drop validation data that come from a default of the configuration and do not fit the run.

    They do not fit if nothing is evaluated, if their actions have other units, or for the reason ``why``. Returns a
    line for the log for each dropped data set.
    """
    experiment, lines = job.experiment, []
    if why is None and not experiment.eval_every and not experiment.generate_every:
        why = "nothing is evaluated (experiment.eval_every=0)"
    for name in list(job.default_validation):
        root, reason = get(job, name), why
        if reason is None and name.endswith("validation_pre_shards_path_or_url"):
            try:
                _declared(job, job.dataset.params.train_pre_shards_path_or_url).require_same(_declared(job, root))
                _require_same_state(job, root)
            except (ValueError, FileNotFoundError) as error:
                reason = str(error)
        if reason is not None:
            put(job, name, None)
            job.default_validation.remove(name)
            lines.append(
                f"validation data {root}, which were not chosen for these training data, are left out: {reason}"
            )
    return lines


def declared_state(job: Job) -> StateConvention | None:
    """Return the convention of the states that the run trains on; None for ``model.vla.proprioception=none``.

    Raises ValueError if the training data have no states or do not declare them.
    """
    if job.model.vla.proprioception == "none":
        return None
    root = job.dataset.params.train_pre_shards_path_or_url
    return state_convention(read_contract(root), root)


def _require_same_state(job: Job, root: str) -> None:
    """Raise ValueError if the states of the data set ``root`` mean something else than those of the training data."""
    ours = declared_state(job)
    if ours is None:
        return
    theirs = state_convention(read_contract(root), root)
    for name in ("dim", "position", "rotation", "gripper", "angles"):
        if getattr(ours, name) != getattr(theirs, name):
            raise ValueError(
                f"{job.dataset.params.train_pre_shards_path_or_url} declares the state's {name} as "
                f"{getattr(ours, name)!r}, but {root} as {getattr(theirs, name)!r}; convert one of them, or set "
                "model.vla.proprioception=none"
            )


def check_data(job: Job) -> tuple[DataContract, list[CheckedSplit]]:
    """Check the robot data of a run, and return the contract of the training data and remarks on each split.

    Raises ValueError if data contradict their contract or the configuration, or validation data the training data.
    """
    params = job.dataset.params
    contract = _declared(job, params.train_pre_shards_path_or_url)
    dim, wanted = action_layout(contract.action).dim, job.model.vla.action_dim
    if dim != wanted:
        raise ValueError(
            f"model.vla.action_dim is {wanted}, but the actions of {params.train_pre_shards_path_or_url} have {dim} "
            f"numbers; set model.vla.action_dim={dim}, or name other data in "
            "dataset.params.train_pre_shards_path_or_url"
        )
    checked = [_checked(job, params.train_pre_shards_path_or_url, contract)]
    if params.validation_pre_shards_path_or_url is not None:
        validation = _declared(job, params.validation_pre_shards_path_or_url)
        contract.require_same(validation)
        _require_same_state(job, params.validation_pre_shards_path_or_url)
        # Its actions and states are normalised by the training data's statistics; its own are not used.
        validation = replace(validation, statistics=None, state_statistics=None)
        checked.append(_checked(job, params.validation_pre_shards_path_or_url, validation))
    return contract, checked


def _declared(job: Job, root: str) -> DataContract:
    """Return the contract of a processed split, for the chosen actions and their size."""
    key = job.dataset.action_key
    return read_contract(root).for_actions(read_index(root, images=False, action_key=key).action_dim).labelled(key)


def _checked(job: Job, root: str, contract: DataContract) -> CheckedSplit:
    """Return the remarks on a split. Raises ValueError for a gross contradiction between data and contract."""
    images, index, key = True, None, job.dataset.action_key
    with suppress(FileNotFoundError):  # a token cache needs no frames; without one, opening a frame raises later
        index = read_index(root, action_key=key)
    if index is None:
        images, index = False, read_index(root, images=False, action_key=key)
    checked = check_processed(
        index,
        contract,
        normalised=job.dataset.action_normalisation != "none",
        tokens=job.block_diffusion.action_enabled,
        images=images,
        states=job.model.vla.proprioception != "none",
    )
    return CheckedSplit(require(checked.findings), checked.about)
