"""Build the components of a run: networks, data, objective, optimizer."""

from __future__ import annotations

import os

from common.processes import process_rank
from common.shared_memory import shared_memory_note
from config.loading import ConfigError
from config.schema import Job
from models.device import LARGE, return_freed_memory
from models.objectives import text_objective
from models.processing.image import ClipImageSpec
from models.processing.text import Prompter
from models.vision.clip_encoder import ClipTower, load_clip
from models.vision.magvitv2 import MagVITv2, load_magvit
from training.build.components import Components
from training.build.network import (
    build_ema,
    build_network,
    check_adapters_only,
    check_insulation,
    set_attention,
    set_image_tokenizer,
)
from training.build.robot_data import declare_data
from training.build.summary import instruction_notes, position_notes, summary
from training.checkpointing import trained_weights
from training.data.batch import RobotBatch, TextBatch, collate_robot, collate_text
from training.data.checks.robot_data import declared_state, drop_unusable_validation
from training.data.dataloader import Flow, cotrain_loader, robot_dataset, text_dataset
from training.data.object_positions import COMMAND, FILE
from training.future_view_prediction_w_action_dataset import DataProvider
from training.grounding.targets import declared_workspace, sentences_of
from training.optim.optimizer import Schedule, build_optimizer, schedule_notes
from training.run import Run


def setup(run: Run) -> Components:
    """Build the components of a run and log a summary. Raises ConfigError for a mistake in the configuration."""
    try:
        components, notes = _build(run)
    except (ValueError, FileNotFoundError) as error:
        raise ConfigError(str(error)) from error
    memory = shared_memory_note(components.data.in_flight, process_rank(os.environ).local_world)
    if memory is not None:
        run.log(memory)
    for line in [*summary(run, components), *(f"  note     {note}" for note in notes)]:
        run.log(line)
    return components


def _build(run: Run) -> tuple[Components, list[str]]:
    job = run.job
    built, saved = build_network(job, run.resumed, declared_state(job), declared_workspace(job))
    if run.device.type == "cpu" and sum(p.numel() * p.element_size() for p in built.model.parameters()) > LARGE:
        return_freed_memory()
    set_attention(job, built.model, run.device)
    check_insulation(run, built.model)
    check_adapters_only(run)
    frozen_hash = trained_weights.frozen_weights_hash(built.model) if trained_weights.is_needed(job) else ""
    adapters_only = job.experiment.save_adapters_only and job.lora.rank > 0
    base_hash = trained_weights.base_weights_hash(built.model) if adapters_only else ""
    model, notes = built.model.to(run.device), [*built.notes, *drop_unusable_validation(job)]
    notes += declare_data(job, model, run.resumed)
    ema = build_ema(run, model, saved, notes)
    vq = load_magvit(job.model.vq_model.vq_model_name, job.model.vq_model.pretrained_model_path)
    set_image_tokenizer(job, run.resumed, model, vq)
    vq = vq.to(run.device)
    clip = load_clip(job.model.showo.clip_model_path).to(run.device) if needs_clip(job) else None
    # Without a tower images are not opened and take no slots in a conversation.
    image_spec, patches = (None, 0) if clip is None else (clip.image_spec, clip.num_patches)
    try:
        validation = _validation_flows(run, built.prompter, image_spec, patches, vq, clip)
    except (ValueError, FileNotFoundError) as error:
        if not job.default_validation:
            raise
        notes += drop_unusable_validation(job, str(error))
        validation = _validation_flows(run, built.prompter, image_spec, patches, vq, clip)
    data = cotrain_loader(job, built.prompter, image_spec, run.rank, run.world, patches, vq, clip)
    for flow in (data.robot, validation[0]):
        if flow is not None and isinstance(flow.dataset, DataProvider):
            notes += instruction_notes(built.prompter, flow.dataset.data)
    notes += [*job.without_effect, *schedule_notes(job), *position_notes(job, model, built.prompter, patches)]
    components = Components(
        job=job,
        device=run.device,
        model=model,
        prompter=built.prompter,
        vq=vq,
        clip=clip,
        objective=text_objective(job),
        optimizer=build_optimizer(model, job, run.device),
        schedule=Schedule.of(job),
        data=data,
        validation_robot=validation[0],
        validation_text=validation[1],
        ema=ema,
        frozen_hash=frozen_hash,
        base_hash=base_hash,
        sentences=sentences_of(data.scenes),
        validation_scenes=_validation_scenes(run, vq),
    )
    return components, notes


def needs_clip(job: Job) -> bool:
    """Return True if the mmu flow or the answers that are logged read images."""
    logs_answers = bool(job.experiment.generate_every) and job.mmu_image_root is not None
    return job.model.showo.w_clip_vit and (job.dataset.und_type is not None or logs_answers)


def _validation_scenes(run: Run, vq: MagVITv2) -> Flow[RobotBatch] | None:
    """Return the random scenes that ``eval_every`` evaluates on."""
    job, root = run.job, run.job.dataset.params.validation_ground_shards_path
    if root is None or job.training.ground_coeff == 0:
        return None
    data = robot_dataset(job, root, vq)
    if data.positions is None:
        raise ValueError(f"dataset.params.validation_ground_shards_path={root} has no {FILE}; run {COMMAND} {root}")
    size = job.training.batch_size_ground
    return Flow(data, collate_robot, size, job.training.seed, rank=run.rank, world=run.world)


def _validation_flows(
    run: Run,
    prompter: Prompter,
    image_spec: ClipImageSpec | None,
    patches: int,
    vq: MagVITv2,
    clip: ClipTower | None,
) -> tuple[Flow[RobotBatch] | None, Flow[TextBatch] | None]:
    """Return the flows that ``eval_every`` evaluates on."""
    job, params, training = run.job, run.job.dataset.params, run.job.training
    robot: Flow[RobotBatch] | None = None
    text: Flow[TextBatch] | None = None
    if params.validation_pre_shards_path_or_url is not None:
        data = robot_dataset(job, params.validation_pre_shards_path_or_url, vq)
        robot = Flow(data, collate_robot, training.batch_size_pre, training.seed, rank=run.rank, world=run.world)
    if params.validation_mmu_shards_path_or_url is not None and job.dataset.und_type is not None:
        turns = text_dataset(job, prompter, image_spec, params.validation_mmu_shards_path_or_url, patches, clip=clip)
        size = max(training.batch_size_mmu, 1)
        text = Flow(turns, collate_text, size, training.seed, rank=run.rank, world=run.world)
    return robot, text
