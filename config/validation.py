"""Check keys against each other, and paths against the disk."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from common.files import CONFIG_DIR, PROJECT_DIR, display, expand_home
from common.text import check_text
from config.cli_help import OBJECTIVE_OF, SCRIPTS
from config.model_folders import looks_like_hub_id, require_model
from config.parsing import ConfigError, Key, Tree, get, keys, put, shown
from config.schema import MISSING, VQ_STRIDE, Job

Problems = Iterator[tuple[bool, str]]
"""(is it wrong, error message) of each rule."""
_RESUME = "expected false, latest, a step number or the path of a checkpoint"
_EXPECTED_PATHS = {
    "dir": "a folder",
    "list": "a folder or a json file",
    "weights": "a weights file",
    "model": "a folder, a weights file or a hub id org/name",
}


def check_across(job: Job, tree: Tree) -> None:
    """Raise ConfigError if a key is missing or keys contradict each other."""
    showo = "model.showo.pretrained_model_path"
    if tree.source(showo) == "command line" and tree.source("model.showo.load_from_showo") != "command line":
        # A checkpoint of the command line is loaded, also where a file (embedded.yaml) switches loading off.
        job.model.showo.load_from_showo = job.model.showo.pretrained_model_path is not None
    for key in keys().values():
        if get(job, key.name) == MISSING and key.name not in _unused(job):
            raise ConfigError(f"{key.name} has to be given: {key.metadata['doc']}; write {key.name}=/path/to/...")
    try:
        check_text(job.question)
    except ValueError as error:
        raise ConfigError(f"question: {error}") from None
    for wrong, line in chain(
        _framework(job, tree), _losses(job), _sources(job), _schedule(job), _sizes(job), _text(job), _actions(job)
    ):
        if wrong:
            raise ConfigError(line)


def _framework(job: Job, tree: Tree) -> Problems:
    # A file may name the recipe whose first stage has another objective; the command line has to agree.
    framework, objective = job.model.framework, job.training.text_objective
    right = OBJECTIVE_OF[framework]
    yield (
        tree.source("model.framework") == "command line" and right != objective,
        f"model.framework={framework} (command line): is a label and selects no loss, and this run has "
        f"training.text_objective={objective}; set that to {right} ({SCRIPTS[right]}), or leave model.framework out",
    )


def _losses(job: Job) -> Problems:
    training, params = job.training, job.dataset.params
    text = job.dataset.und_type is not None
    remedy = "to train without conversations set dataset.und_type=null"
    yield (
        text and training.batch_size_mmu < 1,
        f"training.batch_size_mmu={training.batch_size_mmu}: expected a whole number >= 1; {remedy}",
    )
    yield (
        text and not params.train_mmu_sources and params.train_mmu_shards_path_or_url is None,
        f"dataset.params.train_mmu_shards_path_or_url=null: has to be given; {remedy}",
    )
    yield (
        text and not job.model.showo.w_clip_vit,
        "model.showo.w_clip_vit=false: conversations need the CLIP tower; or set dataset.und_type=null",
    )
    unused = "" if text else " (training.mmu_coeff has no effect with dataset.und_type=null)"
    yield (
        training.pre_coeff == training.act_coeff == training.ground_coeff == 0 and not (text and training.mmu_coeff),
        f"training.pre_coeff=0, training.act_coeff=0: one loss needs a weight above 0{unused}",
    )
    others = training.pre_coeff or training.ground_coeff or (text and training.mmu_coeff)
    yield (
        training.insulate_backbone and not others and not job.block_diffusion.action_enabled,
        "training.insulate_backbone=true: no loss is left that trains the backbone, because the action loss does not; "
        f"give training.pre_coeff, ground_coeff or mmu_coeff a weight above 0{unused}, or, to train the action head on "
        "a fixed backbone, set training.freeze=[backbone.*]",
    )


def _sources(job: Job) -> Problems:
    params = job.dataset.params
    number = len(params.train_mmu_sources)
    weights, roots = params.train_mmu_weights, params.train_mmu_image_roots
    yield (
        bool(weights) and len(weights) != number,
        f"dataset.params.train_mmu_weights={shown(weights)}: expected one for each of the {number} "
        "dataset.params.train_mmu_sources, or []",
    )
    yield (
        len(roots) not in (0, 1, number),
        f"dataset.params.train_mmu_image_roots={shown(roots)}: expected one folder, or one for each of the {number} "
        "dataset.params.train_mmu_sources",
    )


def _schedule(job: Job) -> Problems:
    name, cycles = job.lr_scheduler.scheduler, job.lr_scheduler.params.num_cycles
    if cycles is None or name == "cosine":
        return
    start = f"lr_scheduler.params.num_cycles={cycles:g}: "
    yield (
        name != "cosine_with_restarts",
        f"{start}has no effect with lr_scheduler.scheduler={name}; set null, or another schedule",
    )
    yield (
        not float(cycles).is_integer(),
        f"{start}expected a whole number >= 1 for lr_scheduler.scheduler=cosine_with_restarts, which restarts after "
        "whole cycles; lr_scheduler.scheduler=cosine takes fractions",
    )
    yield (
        cycles > job.training.max_train_steps,
        f"{start}expected at most training.max_train_steps={job.training.max_train_steps}, one restart per step",
    )


def _sizes(job: Job) -> Problems:
    showo, side = job.model.showo, job.dataset.preprocessing.resolution
    codes = (side // VQ_STRIDE) ** 2
    total = showo.llm_vocab_size + showo.num_new_special_tokens + showo.codebook_size + 1
    yield (
        job.dataset.params.resolution != side,
        f"dataset.params.resolution={job.dataset.params.resolution}: expected the same as "
        f"dataset.preprocessing.resolution={side}",
    )
    yield side % VQ_STRIDE != 0, f"dataset.preprocessing.resolution={side}: expected a multiple of {VQ_STRIDE}"
    yield (
        showo.num_vq_tokens != codes,
        f"model.showo.num_vq_tokens={showo.num_vq_tokens}: expected {codes} for "
        f"dataset.preprocessing.resolution={side}: (resolution / {VQ_STRIDE}) squared",
    )
    yield (
        not showo.auto_set_llm_vocab_size and showo.vocab_size != total,
        f"model.showo.vocab_size={showo.vocab_size}: expected {total} = llm_vocab_size + num_new_special_tokens + "
        "codebook_size + 1; or set model.showo.auto_set_llm_vocab_size=true",
    )


def _text(job: Job) -> Problems:
    blocks, mdm = job.block_diffusion, job.text_mdm
    yield (
        mdm.min_mask_ratio >= mdm.max_mask_ratio,
        f"text_mdm.min_mask_ratio={mdm.min_mask_ratio}: expected less than "
        f"text_mdm.max_mask_ratio={mdm.max_mask_ratio}",
    )
    yield (
        job.training.text_objective == "bd" and not blocks.text_enabled,
        "block_diffusion.text_enabled=false: has to be true for training.text_objective=bd; other objectives are "
        "training.text_objective=ar or mdm",
    )
    yield (
        not blocks.block_size_candidates and bool(blocks.elastic_block_enabled or blocks.anneal_steps),
        "block_diffusion.block_size_candidates=[]: expected at least one block size, e.g. [4, 8, 16]",
    )
    yield (
        blocks.elastic_block_enabled and blocks.anneal_steps > 0,
        f"block_diffusion.anneal_steps={blocks.anneal_steps}: block sizes are either sampled or annealed; set "
        "block_diffusion.elastic_block_enabled=false",
    )


def _actions(job: Job) -> Problems:
    blocks, dropout = job.block_diffusion, job.training.state_dropout_prob
    yield (
        job.model.vla.proprioception != "none" and dropout == 1,
        "training.state_dropout_prob=1: a state that is always left out is not learned; set it below 1, or "
        "model.vla.proprioception=none",
    )
    yield (
        blocks.action_infer_enabled and not blocks.action_enabled,
        "block_diffusion.action_infer_enabled=true: needs block_diffusion.action_enabled=true",
    )
    yield (
        blocks.action_enabled and job.training.act_coeff == 0,
        "block_diffusion.action_enabled=true: needs training.act_coeff above 0, which also weights its loss",
    )


def default_validation(job: Job, tree: Tree, main: Path) -> list[str]:
    """Return the keys of validation data that the project's files set, while the user replaced the training data.

    main: the file of `config=`, whose own keys are the user's choice.
    """
    project = {display(path) for path in CONFIG_DIR.glob("*.yaml")} - {display(main)}
    found = []
    for flow in ("pre", "mmu"):
        validation, training = (f"dataset.params.{name}_{flow}_shards_path_or_url" for name in ("validation", "train"))
        if flow == "mmu" and job.dataset.params.train_mmu_sources:
            training = "dataset.params.train_mmu_sources"
        source = tree.source(validation)
        if get(job, validation) is not None and source in project and tree.source(training) != source:
            found.append(validation)
    return found


def without_effect(job: Job, tree: Tree) -> list[str]:
    """Return a line for each key of the command line that this run does not read."""
    objective, blocks, every = job.training.text_objective, job.block_diffusion, job.experiment
    text, sources = job.dataset.und_type is not None, bool(job.dataset.params.train_mmu_sources)
    ours, elastic = f"training.text_objective={objective}", bool(blocks.elastic_block_enabled or blocks.anneal_steps)
    bd, params = "block_diffusion.", "dataset.params."
    mmu_keys = (f"{params}train_mmu_", f"{params}validation_mmu_", "training.mmu_coeff", "training.batch_size_mmu")
    bd_keys = (f"{bd}block_size", f"{bd}elastic_block_enabled", f"{bd}anneal_steps")
    action_keys = tuple(
        f"{bd}action_{name}" for name in ("coeff", "block_size", "num_bins", "conf_threshold", "infer_")
    )
    ground_keys = (f"{params}ground_", f"{params}validation_ground_", "training.batch_size_ground")
    sizes = ("model.showo.vocab_size", "model.showo.llm_vocab_size")
    rules: list[tuple[bool, str, tuple[str, ...]]] = [  # is read, otherwise the reason, keys or prefixes of keys
        (text, "dataset.und_type=null", mmu_keys),
        (text and objective == "mdm", ours, ("text_mdm.",)),
        (text and objective != "ar", ours, ("text_diffusion.",)),
        (text and objective == "bd", ours, bd_keys),
        (elastic, f"{bd}elastic_block_enabled=false and {bd}anneal_steps=0", (f"{bd}block_size_candidates",)),
        (blocks.action_enabled, f"{bd}action_enabled=false", action_keys),
        (job.training.act_coeff > 0, "training.act_coeff=0", ("training.insulate_backbone",)),
        (job.training.ground_coeff > 0, "training.ground_coeff=0", ground_keys),
        (job.model.vla.proprioception != "none", "model.vla.proprioception=none", ("training.state_dropout_prob",)),
        (job.lora.rank > 0, "lora.rank=0", ("lora.alpha", "lora.targets", "lora.train_fully")),
        (job.lora.rank > 0, "lora.rank=0", ("experiment.save_adapters_only",)),
        (not job.model.showo.auto_set_llm_vocab_size, "model.showo.auto_set_llm_vocab_size=true", sizes),
        (not sources, f"{params}train_mmu_sources", (f"{params}train_mmu_shards",)),
        (bool(every.generate_every), "experiment.generate_every=0", ("question", "max_new_tokens", "mmu_image_root")),
        (bool(every.eval_every or every.generate_every), "experiment.eval_every=0", (f"{params}validation_",)),
    ]
    found: dict[str, str] = {}
    for is_read, reason, prefixes in rules:
        for name in keys():
            if not is_read and name.startswith(prefixes) and tree.source(name) == "command line":
                found.setdefault(name, f"{name}={shown(get(job, name))} has no effect with {reason}")
    return list(found.values())


def _unused(job: Job) -> set[str]:
    """Return the path keys that this run does not read."""
    names = set()
    if job.dataset.und_type is None:
        names |= {"validation_mmu_shards_path_or_url", "train_mmu_sources", "train_mmu_image_roots"}
    if job.dataset.und_type is None or job.dataset.params.train_mmu_sources:
        names.add("train_mmu_shards_path_or_url")
    unused = {f"dataset.params.{name}" for name in names}
    return unused if job.model.showo.load_from_showo else unused | {"model.showo.pretrained_model_path"}


def require_start(job: Job) -> None:
    """Raise ConfigError if a model folder or the checkpoint to resume from is certainly wrong. Needs no torch."""
    for name in model_keys(job):
        require_model(name, get(job, name))
    _check_resumed_step(job)


def model_keys(job: Job) -> list[str]:
    """Return the keys that name a model which the run loads."""
    not_loaded = _unused(job)
    if job.dataset.und_type is None or not job.model.showo.w_clip_vit:
        not_loaded.add("model.showo.clip_model_path")
    if job.model.vq_model.pretrained_model_path is not None:
        not_loaded.add("model.vq_model.vq_model_name")
    models = [key.name for key in keys().values() if key.metadata["path"] == "model" and key.name not in not_loaded]
    return [name for name in models if get(job, name) is not None]


def _check_resumed_step(job: Job) -> None:
    # Only the first process reads the checkpoint's number, so only this process checks it.
    step, output = job.experiment.resume_from_checkpoint, Path(job.experiment.output_dir)
    first = all(os.environ.get(name, "0") in ("", "0") for name in ("RANK", "SLURM_PROCID"))
    if step is False or isinstance(step, str) or not first or (output / f"checkpoint-{step}").is_dir():
        return
    steps = sorted(int(path.name[11:]) for path in output.glob("checkpoint-*") if path.name[11:].isdecimal())
    raise ConfigError(
        f"experiment.resume_from_checkpoint={step}: {output} has no checkpoint-{step}, "
        f"it has {', '.join(f'checkpoint-{number}' for number in steps) or 'none'}; {_RESUME}"
    )


def check_paths(job: Job, tree: Tree) -> None:
    """Make paths that will be read absolute, and expand `~` in all paths. Hub ids stay as they are.

    Raises ConfigError if a path does not exist or is not of the key's kind.
    """
    for problem in path_problems(job, tree):
        raise problem


def path_problems(job: Job, tree: Tree) -> Iterator[ConfigError]:
    """Make paths absolute as ``check_paths``, and yield the error of each path that is wrong."""
    unused = _unused(job)
    for key in keys().values():
        if key.metadata["path"] == "other" or key.name not in unused:
            try:
                _find_paths(job, key, tree)
            except ConfigError as error:
                yield error
    for check in (_check_start, _check_output, _check_resumed_path):
        try:
            check(job)
        except ConfigError as error:
            yield error


def _find_paths(job: Job, key: Key, tree: Tree) -> None:
    kind, value = key.metadata["path"], get(job, key.name)
    if kind == "other":
        if isinstance(value, str) and value.startswith("~"):
            put(job, key.name, str(_expanded(key.name, value, tree)))
    elif kind is not None and value is not None:
        found = [_find(key, str(text), tree) for text in (value if isinstance(value, list) else [value])]
        put(job, key.name, found if isinstance(value, list) else found[0])


def _check_start(job: Job) -> None:
    if job.model.showo.load_from_showo and job.model.showo.pretrained_model_path is None:
        raise ConfigError(
            "model.showo.pretrained_model_path=null: has to be given with model.showo.load_from_showo=true; "
            "set that to false to start from model.showo.llm_model_path alone"
        )


def _check_resumed_path(job: Job) -> None:
    resume = job.experiment.resume_from_checkpoint
    if isinstance(resume, str) and resume != "latest":
        start = f"experiment.resume_from_checkpoint={shown(resume)}"
        if not Path(resume).exists():
            raise ConfigError(f"{start}: no such checkpoint; {_RESUME}")
        if not (Path(resume) / "metadata.json").is_file():
            raise ConfigError(f"{start}: not a checkpoint-<step> folder: it has no metadata.json; {_RESUME}")


def _check_output(job: Job) -> None:
    """Raise ConfigError if the output folder certainly cannot be created or written to. Creates nothing."""
    output_dir = job.experiment.output_dir
    output = Path(output_dir).absolute()
    existing = next(path for path in (output, *output.parents) if path.exists())
    start = f"experiment.output_dir={shown(output_dir)}:"
    if not existing.is_dir():
        raise ConfigError(f"{start} {'' if existing == output else f'{existing} '}is a file; expected a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError(f"{start} {existing} cannot be written to; expected a folder of yours")


def _find(key: Key, text: str, tree: Tree) -> str:
    """Return the absolute path of a key's text, or its hub id. Raises ConfigError."""
    kind, start = key.metadata["path"], f"{key.name}={shown(text)} ({tree.source(key.name)})"
    expected, required = _EXPECTED_PATHS[kind], key.metadata["requires"]
    for folder in (Path.cwd(), PROJECT_DIR):
        path = folder / _expanded(key.name, text, tree)
        if not path.exists():
            continue
        if path.is_dir() if kind == "weights" else (kind == "dir" and not path.is_dir()):
            raise ConfigError(f"{start}: is a {'folder' if kind == 'weights' else 'file'}; expected {expected}")
        if required and path.is_dir() and not (path / required).is_file():
            raise ConfigError(f"{start}: this folder has no {required}")
        return str(path.resolve())
    if kind == "model" and looks_like_hub_id(text):
        return text
    raise ConfigError(f"{start}: no such path; expected {expected}")


def _expanded(name: str, text: str, tree: Tree) -> Path:
    """Return the path without a leading `~`. Raises ConfigError if that home folder does not exist."""
    try:
        return expand_home(text)
    except ValueError as error:
        raise ConfigError(f"{name}={shown(text)} ({tree.source(name)}): {error}") from None
