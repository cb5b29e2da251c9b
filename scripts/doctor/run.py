"""Checks of a run: its configuration, data, models and checkpoints. Imports torch, but loads no model."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from common.files import display, read_object
from config.loading import ConfigError, inspect_job
from config.model_folders import download_command, looks_like_hub_id
from config.parsing import get, shown
from config.schema import Job
from config.validation import model_keys, require_start
from scripts.doctor.findings import Finding
from training.distributed.launch_environment import check_environment

RECORDS = 200
"""Conversations that are read."""
INDEX_BYTES = 100e6
"""Size of dataset_info.json above which making its index takes minutes."""
CHECKSUM_BYTES = 2e9
"""Size of a checkpoint up to which its checksums are verified; of larger ones the sizes of files are compared."""


def check_run(argv: Sequence[str], env: Mapping[str, str] = os.environ) -> Iterator[Finding]:
    """Check what the arguments of a training command name. Only the first error of a wrong key is found."""
    try:
        job, problems = inspect_job(argv)
    except ConfigError as error:
        yield Finding("config", "error", str(error), "python train_upvla.py --help lists all keys")
        return
    yield from (Finding("config", "error", str(problem)) for problem in problems)
    checks: tuple[Callable[[Job], object], ...] = (require_start, lambda job: check_environment(job, env))
    for check in checks:
        try:
            check(job)
        except ConfigError as error:
            yield Finding("config", "error", str(error))
    if not problems:
        yield Finding("config", "ok", f"{display(Path(str(job.config_path)))}: keys and paths are valid")
    yield from _robot_data(job)
    yield from _conversations(job)
    yield from _models(job)
    yield from _resumed(job)


def _robot_data(job: Job) -> Iterator[Finding]:
    from training.data.checks.robot_data import check_data, drop_unusable_validation
    from training.data.episode_index import INDEX_NAME

    root = Path(job.dataset.params.train_pre_shards_path_or_url)
    file = root / "dataset_info.json"
    if not file.is_file():
        return  # a finding on the configuration
    if file.stat().st_size > INDEX_BYTES and not (root / INDEX_NAME).is_file():
        text = f"{root} has no {INDEX_NAME}, which the first start makes in some minutes; its content is not checked"
        yield Finding("robot data", "note", text)
        return
    try:
        for line in drop_unusable_validation(job):
            yield Finding("robot data", "note", line)
        _, splits = check_data(job)
    except (ValueError, OSError) as error:
        yield Finding("robot data", "error", str(error), "docs/data.md describes the contract of a data set")
        return
    for split in splits:
        yield from (Finding("robot data", "warning", line) for line in split.doubtful)
        yield Finding("robot data", "ok", split.about)


def _conversations(job: Job) -> Iterator[Finding]:
    params = job.dataset.params
    if job.dataset.und_type is None:
        return
    files: Sequence[str | None] = params.train_mmu_sources or [params.train_mmu_shards_path_or_url]
    roots = params.train_mmu_image_roots
    for number, name in enumerate(files):
        if name is not None:
            root = roots[0 if len(roots) == 1 else number] if roots else None
            yield from _source(Path(name), None if root is None else Path(root))


def _source(path: Path, image_root: Path | None) -> Iterator[Finding]:
    from training.data.readers import LLAVA_NAME, iterate_json_values

    file = path / LLAVA_NAME if path.is_dir() else path
    if not file.is_file():
        return  # a finding on the configuration
    root = file.parent if image_root is None else image_root
    try:
        records = list(islice(iterate_json_values(file), RECORDS))
    except (ValueError, OSError) as error:
        yield Finding("conversations", "error", str(error), "docs/data.md describes the format")
        return
    named = [record.get("image") for record in records if isinstance(record, dict)]
    images = [image for image in named if isinstance(image, str) and image]
    missing = [image for image in images if not (root / image).is_file()]
    text = f"{file}: images of {len(images) - len(missing)} of the first {len(records)} records exist"
    if missing and len(missing) == len(images):
        remedy = f"{root / missing[0]} is one that does not exist: set the folder of the images (docs/data.md)"
        yield Finding("conversations", "error", text, remedy)
    elif missing:
        remedy = f"{root / missing[0]} is one that does not; such records are left out and counted"
        yield Finding("conversations", "warning", text, remedy)
    else:
        yield Finding("conversations", "ok", text)


def _models(job: Job) -> Iterator[Finding]:
    """Check that models of the hub are in the local cache, and that weights in local folders are complete."""
    for key in model_keys(job):
        value = get(job, key)
        if not Path(value).exists() and looks_like_hub_id(value):
            yield _of_hub(key, value)
        else:
            yield from _local_model(key, Path(value))


def _of_hub(key: str, name: str) -> Finding:
    from models.pretrained.weights_io import cached_snapshot

    weights = key != "model.showo.llm_model_path"
    if cached_snapshot(name, weights, ()) is not None:
        return Finding("models", "ok", f"{key}: {name} is in the local cache of the hub")
    remedy = f"{download_command(name)}, where there is network; the first start does it too"
    return Finding("models", "warning", f"{key}: {name} is not in the local cache of the hub", remedy)


def _local_model(key: str, path: Path) -> Iterator[Finding]:
    from models.pretrained.folders import model_folder
    from models.pretrained.weights_io import find_weights

    try:
        folder = model_folder(path) if key == "model.showo.pretrained_model_path" else path
        weights = path if path.is_file() else find_weights(folder)
        if weights is not None:
            _require_whole(weights)
    except (ValueError, OSError) as error:
        yield Finding("models", "error", f"{key}: {error}", "copy or download the model again")
        return
    what = "complete" if weights is not None else "without weights; they start at random"
    yield Finding("models", "ok", f"{key}: {display(folder)} is {what}")


def _require_whole(weights: Path) -> None:
    """Raise ValueError or OSError if a weights file is truncated. Reads headers only."""
    import zipfile

    from safetensors import SafetensorError, safe_open

    from models.pretrained.weights_io import weight_parts

    for part in weight_parts(weights):
        if part.suffix == ".safetensors":
            try:
                with safe_open(part, "numpy"):
                    pass
            except SafetensorError as error:
                raise ValueError(f"{part} is damaged: {error}") from error
        elif not zipfile.is_zipfile(part) and part.stat().st_size == 0:  # old files of torch are no archives
            raise ValueError(f"{part} is empty")


def _resumed(job: Job) -> Iterator[Finding]:
    """Check the checkpoints of the output folder, and that the newest one belongs to this configuration."""
    from training.checkpointing.manifest import list_checkpoints

    output, choice = Path(job.experiment.output_dir), job.experiment.resume_from_checkpoint
    if choice is False:
        return
    paths = list_checkpoints(output) if choice in (True, "latest") else [_named(output, str(choice))]
    if not paths:
        yield Finding("checkpoints", "ok", f"{display(output)} has no checkpoint: the run starts at step 0")
    for path in reversed(paths):
        problem = _damage(path)
        if problem is not None:
            yield Finding("checkpoints", "warning", problem, "the run resumes from an older one; delete this folder")
            continue
        yield _matching(job, path)
        return


def _named(output: Path, choice: str) -> Path:
    return output / f"checkpoint-{choice}" if choice.isdecimal() else Path(choice)


def _damage(checkpoint: Path) -> str | None:
    from training.checkpointing.manifest import open_checkpoint

    size = sum(file.stat().st_size for file in checkpoint.rglob("*") if file.is_file())
    try:
        open_checkpoint(checkpoint, checksums=size <= CHECKSUM_BYTES)
    except ValueError as error:
        return str(error)
    return None


def _matching(job: Job, checkpoint: Path) -> Finding:
    """Return a finding on the description of a checkpoint's model and the keys of the run."""
    differing = differing_keys(job, checkpoint / "unwrapped_model")
    if differing:
        text = f"{display(checkpoint)} was made with {', '.join(differing)}"
        remedy = "remove these overrides, or choose another experiment.output_dir"
        return Finding("checkpoints", "error", text, remedy)
    return Finding(
        "checkpoints", "ok", f"{display(checkpoint)} is complete and fits the configuration: the run resumes"
    )


def differing_keys(job: Job, model: Path) -> list[str]:
    """Return `key=value (the run has ...)` for each key that differs from the description of a saved model."""
    from models.pretrained.folders import CONFIG_FILE, SPEC_FIELD
    from models.pretrained.model_config import ModelConfig
    from policy_rollout.policies.model_yaml import FROM_TOKENIZER, declared_keys

    saved: Any = read_object(model / CONFIG_FILE).get(SPEC_FIELD)
    if not isinstance(saved, dict):
        return []  # of the original: its folder declares less
    skipped = FROM_TOKENIZER if job.model.showo.auto_set_llm_vocab_size else ()
    declared = declared_keys(ModelConfig.from_json(saved)).items()
    return [
        f"{key}={shown(value)} (the run has {shown(get(job, key))})"
        for key, value in declared
        if key not in skipped and get(job, key) != value
    ]


def check_checkpoint(checkpoint: str) -> Iterator[Finding]:
    """Check a trained model that commands get as ``--checkpoint``: found, complete, with its image tokenizer."""
    from models.pretrained.folders import model_folder
    from policy_rollout.policies.model_yaml import load_model_yaml

    try:
        config = load_model_yaml(None, checkpoint)
        config.require_checkpoint()
        if not Path(config.checkpoint).exists():
            yield _of_hub("checkpoint", config.checkpoint)
            return
        folder = model_folder(config.checkpoint)
    except (ValueError, OSError) as error:
        yield Finding("checkpoint", "error", str(error))
        return
    yield from _local_model("model.showo.pretrained_model_path", folder)
    vq = config.job.model.vq_model
    name = vq.pretrained_model_path or vq.vq_model_name
    if Path(name).exists():
        yield from _local_model("model.vq_model.vq_model_name", Path(name))
    else:
        yield _of_hub("model.vq_model.vq_model_name", name)
    differing = differing_keys(config.job, folder)
    if differing:
        text = f"{display(folder)} was made with {', '.join(differing)}, which {display(config.path)} contradicts"
        yield Finding("checkpoint", "error", text, f"correct {display(config.path)}")
    else:
        yield Finding("checkpoint", "ok", f"{display(folder)} fits {display(config.path)}")
