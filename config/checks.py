"""What one key alone cannot tell: keys that contradict each other, and paths that are not there."""

from __future__ import annotations

import os
from pathlib import Path

from common.files import expand_home
from common.text import check_text
from config.build import Key, get, keys, put
from config.files import CONFIG_DIR, PROJECT_DIR, Tree, display
from config.help import OBJECTIVE_OF, SCRIPTS
from config.knob import MISSING
from config.model_folders import looks_like_hub_id, require_model
from config.schema import VQ_STRIDE, DataParams, Job
from config.values import ConfigError, shown


def check_across(job: Job, tree: Tree) -> None:
    """ConfigError if a key is left open or keys contradict each other."""
    showo = "model.showo.pretrained_model_path"
    if tree.source(showo) == "command line" and tree.source("model.showo.load_from_showo") != "command line":
        # Whoever names a checkpoint there wants it loaded, also where a file (embedded.yaml) has it off.
        job.model.showo.load_from_showo = job.model.showo.pretrained_model_path is not None
    for key in keys().values():
        if get(job, key.name) == MISSING and key.name not in _unused(job):
            raise ConfigError(f"{key.name} has to be given: {key.metadata['doc']}; write {key.name}=/path/to/...")
    try:
        check_text(job.question)
    except ValueError as error:
        raise ConfigError(f"question: {error}") from None
    _check_framework(job, tree)
    _check_losses(job)
    _check_schedule(job)
    _check_sizes(job)
    _check_text(job)


def default_validation(job: Job, tree: Tree, main: Path) -> list[str]:
    """Return the keys of validation data that the project's files set, beside training data that the user replaced.

    ``main``: the file of ``config=``, whose own keys are the user's choice.
    """
    project = {display(path) for path in CONFIG_DIR.glob("*.yaml")} - {display(main)}
    found = []
    for flow in ("pre", "mmu"):
        validation = f"dataset.params.validation_{flow}_shards_path_or_url"
        source = tree.source(validation)
        training = {tree.source(f"dataset.params.train_{flow}_shards_path_or_url")}
        if flow == "mmu" and job.dataset.params.train_mmu_sources:
            training = {tree.source("dataset.params.train_mmu_sources")}
        if get(job, validation) is not None and source in project and training != {source}:
            found.append(validation)
    return found


def without_effect(job: Job, tree: Tree) -> list[str]:
    """Return a line for each key of the command line that this run does not read."""
    objective, blocks, showo = job.training.text_objective, job.block_diffusion, job.model.showo
    text = job.dataset.und_type is not None
    data, bd, every = "dataset.params.", "block_diffusion.", job.experiment
    rules: list[tuple[bool, str, tuple[str, ...]]] = [
        (
            text,
            "dataset.und_type=null",
            (f"{data}train_mmu_", f"{data}validation_mmu_", "training.mmu_coeff", "training.batch_size_mmu"),
        ),
        (text and objective == "mdm", f"training.text_objective={objective}", ("text_mdm.",)),
        (text and objective != "ar", f"training.text_objective={objective}", ("text_diffusion.",)),
        (
            text and objective == "bd",
            f"training.text_objective={objective}",
            (f"{bd}block_size", f"{bd}elastic_block_enabled", f"{bd}anneal_steps"),
        ),
        (
            bool(blocks.elastic_block_enabled or blocks.anneal_steps),
            f"{bd}elastic_block_enabled=false and {bd}anneal_steps=0",
            (f"{bd}block_size_candidates",),
        ),
        (
            blocks.action_enabled,
            f"{bd}action_enabled=false",
            tuple(
                f"{bd}action_{name}" for name in ("coeff", "block_size", "num_bins", "conf_threshold", "infer_steps")
            ),
        ),
        (job.lora.rank > 0, "lora.rank=0", ("lora.alpha", "lora.targets", "lora.train_fully")),
        (
            not showo.auto_set_llm_vocab_size,
            "model.showo.auto_set_llm_vocab_size=true",
            ("model.showo.vocab_size", "model.showo.llm_vocab_size"),
        ),
        (not job.dataset.params.train_mmu_sources, f"{data}train_mmu_sources", (f"{data}train_mmu_shards",)),
        (bool(every.generate_every), "experiment.generate_every=0", ("question", "max_new_tokens", "mmu_image_root")),
        (bool(every.eval_every or every.generate_every), "experiment.eval_every=0", (f"{data}validation_",)),
    ]
    found: dict[str, str] = {}
    for is_read, why, starts in rules:
        for name in keys():
            if not is_read and name.startswith(starts) and tree.source(name) == "command line":
                found.setdefault(name, f"{name}={shown(get(job, name))} has no effect with {why}")
    return list(found.values())


def _unused(job: Job) -> set[str]:
    """Paths nothing will read."""
    unused = set()
    if job.dataset.und_type is None:
        unused |= {"dataset.params.train_mmu_shards_path_or_url", "dataset.params.validation_mmu_shards_path_or_url"}
    if job.dataset.und_type is None:
        unused |= {"dataset.params.train_mmu_sources", "dataset.params.train_mmu_image_roots"}
    elif job.dataset.params.train_mmu_sources:
        unused.add("dataset.params.train_mmu_shards_path_or_url")
    if not job.model.showo.load_from_showo:
        unused.add("model.showo.pretrained_model_path")
    return unused


def require_start(job: Job) -> None:
    """Raise ConfigError if a model folder or the checkpoint to resume from is certainly wrong. Needs no torch."""
    not_loaded = _unused(job) | _not_loaded(job)
    for key in keys().values():
        value = get(job, key.name)
        if key.metadata.get("path") == "model" and value is not None and key.name not in not_loaded:
            require_model(key.name, value)
    _check_resumed_step(job)


def _not_loaded(job: Job) -> set[str]:
    """Model folders that no network is loaded from."""
    found = set()
    if job.dataset.und_type is None or not job.model.showo.w_clip_vit:
        found.add("model.showo.clip_model_path")
    if job.model.vq_model.pretrained_model_path is not None:
        found.add("model.vq_model.vq_model_name")
    return found


def _check_framework(job: Job, tree: Tree) -> None:
    """A label in a file may be of a recipe whose first stage has another objective; one that is typed is meant."""
    framework, objective = job.model.framework, job.training.text_objective
    if tree.source("model.framework") == "command line" and OBJECTIVE_OF[framework] != objective:
        raise ConfigError(
            f"model.framework={framework} (command line): is a label and selects no loss, and this run has "
            f"training.text_objective={objective}; set that to {OBJECTIVE_OF[framework]} "
            f"({SCRIPTS[OBJECTIVE_OF[framework]]}), or leave model.framework out"
        )


def _check_losses(job: Job) -> None:
    training, dataset = job.training, job.dataset
    if dataset.und_type is not None and training.batch_size_mmu < 1:
        raise ConfigError(
            f"training.batch_size_mmu={training.batch_size_mmu}: expected a whole number >= 1; "
            "to train without conversations set dataset.und_type=null"
        )
    sources = dataset.params.train_mmu_sources
    if dataset.und_type is not None and not sources and dataset.params.train_mmu_shards_path_or_url is None:
        raise ConfigError(
            "dataset.params.train_mmu_shards_path_or_url=null: has to be given; "
            "to train without conversations set dataset.und_type=null"
        )
    _check_sources(dataset.params)
    if dataset.und_type is not None and not job.model.showo.w_clip_vit:
        raise ConfigError(
            "model.showo.w_clip_vit=false: conversations need the CLIP tower; or set dataset.und_type=null"
        )
    text = training.mmu_coeff if dataset.und_type is not None else 0.0
    if training.pre_coeff == training.act_coeff == text == 0:
        what = (
            "" if text == training.mmu_coeff else " (training.mmu_coeff counts for nothing with dataset.und_type=null)"
        )
        raise ConfigError(f"training.pre_coeff=0, training.act_coeff=0: one loss needs a weight above 0{what}")


def _check_schedule(job: Job) -> None:
    name, cycles = job.lr_scheduler.scheduler, job.lr_scheduler.params.num_cycles
    if cycles is None or name == "cosine":
        return
    start = f"lr_scheduler.params.num_cycles={cycles:g}: "
    if name != "cosine_with_restarts":
        raise ConfigError(f"{start}has no effect with lr_scheduler.scheduler={name}; set null, or another schedule")
    if not float(cycles).is_integer():
        raise ConfigError(
            f"{start}expected a whole number >= 1 for lr_scheduler.scheduler=cosine_with_restarts, which restarts "
            "after whole cycles; lr_scheduler.scheduler=cosine takes parts of a wave"
        )
    if cycles > job.training.max_train_steps:
        raise ConfigError(
            f"{start}expected at most training.max_train_steps={job.training.max_train_steps}, one restart a step"
        )


def _check_sources(params: DataParams) -> None:
    """Weights and image folders belong to sources."""
    sources, weights, roots = params.train_mmu_sources, params.train_mmu_weights, params.train_mmu_image_roots
    if weights and len(weights) != len(sources):
        raise ConfigError(
            f"dataset.params.train_mmu_weights={shown(weights)}: expected one for each of the {len(sources)} "
            "dataset.params.train_mmu_sources, or []"
        )
    if len(roots) > 1 and len(roots) != len(sources):
        raise ConfigError(
            f"dataset.params.train_mmu_image_roots={shown(roots)}: expected one folder, or one for each of the "
            f"{len(sources)} dataset.params.train_mmu_sources"
        )


def _check_sizes(job: Job) -> None:
    showo, dataset = job.model.showo, job.dataset
    side = dataset.preprocessing.resolution
    if dataset.params.resolution != side:
        raise ConfigError(
            f"dataset.params.resolution={dataset.params.resolution}: "
            f"expected the same as dataset.preprocessing.resolution={side}"
        )
    if side % VQ_STRIDE:
        raise ConfigError(f"dataset.preprocessing.resolution={side}: expected a multiple of {VQ_STRIDE}")
    if showo.num_vq_tokens != (side // VQ_STRIDE) ** 2:
        raise ConfigError(
            f"model.showo.num_vq_tokens={showo.num_vq_tokens}: expected {(side // VQ_STRIDE) ** 2} "
            f"for dataset.preprocessing.resolution={side}: (resolution / {VQ_STRIDE}) squared"
        )
    total = showo.llm_vocab_size + showo.num_new_special_tokens + showo.codebook_size + 1
    if not showo.auto_set_llm_vocab_size and showo.vocab_size != total:
        raise ConfigError(
            f"model.showo.vocab_size={showo.vocab_size}: expected {total} = llm_vocab_size + num_new_special_tokens + "
            "codebook_size + 1; or set model.showo.auto_set_llm_vocab_size=true"
        )


def _check_text(job: Job) -> None:
    blocks, mdm, objective = job.block_diffusion, job.text_mdm, job.training.text_objective
    if mdm.min_mask_ratio >= mdm.max_mask_ratio:
        raise ConfigError(
            f"text_mdm.min_mask_ratio={mdm.min_mask_ratio}: "
            f"expected less than text_mdm.max_mask_ratio={mdm.max_mask_ratio}"
        )
    if objective == "bd" and not blocks.text_enabled:
        raise ConfigError(
            "block_diffusion.text_enabled=false: has to be true for training.text_objective=bd; "
            "other objectives are training.text_objective=ar or mdm"
        )
    if not blocks.block_size_candidates and (blocks.elastic_block_enabled or blocks.anneal_steps):
        raise ConfigError("block_diffusion.block_size_candidates=[]: expected at least one block size, e.g. [4, 8, 16]")
    if blocks.elastic_block_enabled and blocks.anneal_steps:
        raise ConfigError(
            f"block_diffusion.anneal_steps={blocks.anneal_steps}: block sizes are either drawn or annealed; "
            "set block_diffusion.elastic_block_enabled=false"
        )
    if blocks.action_infer_enabled and not blocks.action_enabled:
        raise ConfigError("block_diffusion.action_infer_enabled=true: needs block_diffusion.action_enabled=true")
    if blocks.action_enabled and job.training.act_coeff == 0:
        raise ConfigError(
            "block_diffusion.action_enabled=true: needs training.act_coeff above 0, which its loss is weighed by too"
        )


def check_paths(job: Job, tree: Tree) -> None:
    """Every path that will be read exists and becomes absolute, hub ids stay as they are, `~` is expanded; ConfigError
    otherwise."""
    unused = _unused(job)
    for key in keys().values():
        value = get(job, key.name)
        if key.metadata.get("path") == "other":
            if isinstance(value, str) and value.startswith("~"):
                put(job, key.name, str(_expanded(key.name, value, tree)))
        elif key.metadata.get("path") not in (None, "other") and value is not None and key.name not in unused:
            paths = [_found(key, str(one), tree) for one in (value if isinstance(value, list) else [value])]
            put(job, key.name, paths if isinstance(value, list) else paths[0])
    if job.model.showo.load_from_showo and job.model.showo.pretrained_model_path is None:
        raise ConfigError(
            "model.showo.pretrained_model_path=null: has to be given with model.showo.load_from_showo=true; "
            "set that to false to start from model.showo.llm_model_path alone"
        )
    _check_output(job.experiment.output_dir)
    _check_resume(job)


def _check_output(output_dir: str) -> None:
    """The output folder can be made and written to, as far as that can be told without making it."""
    there = Path(output_dir).absolute()
    while not there.exists():
        there = there.parent
    start = f"experiment.output_dir={shown(output_dir)}:"
    if not there.is_dir():
        raise ConfigError(
            f"{start} {'' if there == Path(output_dir).absolute() else f'{there} '}is a file; expected a folder"
        )
    if not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(f"{start} {there} cannot be written to; expected a folder of yours")


_RESUME = "expected false, latest, a step number or the path of a checkpoint"


def _check_resume(job: Job) -> None:
    resume = job.experiment.resume_from_checkpoint
    if not isinstance(resume, str) or resume == "latest":
        return
    start = f"experiment.resume_from_checkpoint={shown(resume)}"
    if not Path(resume).exists():
        raise ConfigError(f"{start}: no such checkpoint; {_RESUME}")
    if not (Path(resume) / "metadata.json").is_file():
        raise ConfigError(f"{start}: not a checkpoint-<step> folder: it has no metadata.json; {_RESUME}")


def _check_resumed_step(job: Job) -> None:
    """A step that is named has its checkpoint. The first process alone looks for it, because it alone reads it."""
    step, output = job.experiment.resume_from_checkpoint, Path(job.experiment.output_dir)
    first = all(os.environ.get(name, "0") in ("", "0") for name in ("RANK", "SLURM_PROCID"))
    if step is False or isinstance(step, str) or not first or (output / f"checkpoint-{step}").is_dir():
        return
    have = sorted(int(path.name[11:]) for path in output.glob("checkpoint-*") if path.name[11:].isdecimal())
    raise ConfigError(
        f"experiment.resume_from_checkpoint={step}: {output} has no checkpoint-{step}, "
        f"it has {', '.join(f'checkpoint-{one}' for one in have) or 'none'}; {_RESUME}"
    )


def _found(key: Key, text: str, tree: Tree) -> str:
    """The absolute path of what a key names, or the hub id it names."""
    kind, start = key.metadata["path"], f"{key.name}={shown(text)} ({tree.source(key.name)})"
    expected = {
        "dir": "a folder",
        "list": "a folder or a json file",
        "weights": "a weights file",
        "model": "a folder, a weights file or a hub id org/name",
    }[kind]
    for folder in (Path.cwd(), PROJECT_DIR):
        path = folder / _expanded(key.name, text, tree)
        if not path.exists():
            continue
        if path.is_dir() if kind == "weights" else (kind == "dir" and not path.is_dir()):
            raise ConfigError(f"{start}: is a {'folder' if kind == 'weights' else 'file'}; expected {expected}")
        holds = key.metadata.get("holds")
        if holds and path.is_dir() and not (path / holds).is_file():
            raise ConfigError(f"{start}: this folder has no {holds}")
        return str(path.resolve())
    if kind == "model" and looks_like_hub_id(text):
        return text
    raise ConfigError(f"{start}: no such path; expected {expected}")


def _expanded(name: str, text: str, tree: Tree) -> Path:
    """The path without a leading `~`. Raises ConfigError if it names nobody's home folder."""
    try:
        return expand_home(text)
    except ValueError as error:
        raise ConfigError(f"{name}={shown(text)} ({tree.source(name)}): {error}") from None
