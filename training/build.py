"""Everything a run needs, made from its configuration: networks, data, objective, optimizer; and what to say of it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from common.process_rank import process_rank
from config.load import ConfigError
from config.schema import Job
from models.attention_mask import TILE
from models.language_model import FLEX
from models.language_model.positions import beyond_positions
from models.objectives import TextObjective, text_objective
from models.pretrained.model_io import Built, build, decoding_defaults, load_folder, require_same_words, save_folder
from models.processing.image import ClipImageSpec
from models.processing.instruction_length import cut_instructions, describe_cut, require_distinct
from models.processing.text import Prompter
from models.upvla import UPVLA
from models.vision.clip_encoder import ClipTower, load_clip
from models.vision.magvitv2 import MagVITv2, load_magvit
from training.checkpointing import trained_weights
from training.checkpointing.manifest import Checkpoint
from training.data.batch import RobotBatch, TextBatch, collate_robot, collate_text
from training.data.dataloader import (
    CotrainLoader,
    Flow,
    codes_in,
    conversation_budget,
    conversations_in,
    cotrain_loader,
    robot_dataset,
    text_dataset,
)
from training.data.episode_index import ProcessedIndex
from training.data.worker_processes import shared_memory_note
from training.distributed.launch import describe, is_sharded, told
from training.future_view_prediction_w_action_dataset import DataProvider
from training.optim import lora
from training.optim.compile import compile_backbone
from training.optim.ema import EMA
from training.optim.freeze import freeze
from training.optim.optimizer import Schedule, build_optimizer, schedule_notes
from training.robot_data_spec import declare_data, leave_out_validation
from training.run import Run

SAME_FIELDS = {
    "act_step": "act_step",
    "num_view": "model.vla.num_view",
    "action_dim": "model.vla.action_dim",
    "num_vq_tokens": "model.showo.num_vq_tokens",
    "clip_width": "the width of model.showo.clip_model_path",
    "resolution": "dataset.preprocessing.resolution",
    "max_seq_length": "dataset.preprocessing.max_seq_length",
    "words": "the vocabulary of model.showo.llm_model_path",
}
"""What a run and the checkpoint it continues have to agree on: field of the model's description -> what to call it."""
SAME_SIZES = ("model_type", "hidden_size", "num_hidden_layers")


@dataclass(frozen=True)
class Parts:
    """What a training loop is made of. ``model`` alone is trained; ``vq`` and ``clip`` are frozen and stand outside.
    (The trainer wraps ``model`` for its processes; this one stays the network itself.)

    ``data``: what is trained on; ``heldout_...``: what is measured on, None where there is none. ``average``: of the
    weights, where one is kept (``training.ema_decay``); ``resting``: the identity of all that is not trained.
    """

    job: Job
    device: torch.device
    model: UPVLA
    prompter: Prompter
    vq: MagVITv2
    clip: ClipTower | None
    objective: TextObjective
    optimizer: Optimizer
    schedule: Schedule
    data: CotrainLoader
    heldout_robot: Flow[RobotBatch] | None = None
    heldout_text: Flow[TextBatch] | None = None
    average: EMA | None = None
    resting: str = ""

    def normalised(self, actions: Tensor) -> Tensor:
        """[..., A] as recorded -> as the network learns them (``dataset.action_normalisation``)."""
        scale = self.model.spec.data.scale
        return actions if scale is None else scale.apply(actions)

    def denormalize_actions(self, actions: Tensor) -> Tensor:
        """The way back, for what the network says."""
        scale = self.model.spec.data.scale
        return actions if scale is None else scale.undo(actions)

    def save_model(self, path: Path, step: int, state: Mapping[str, Tensor] | None = None) -> None:
        """Write the folder that acting needs; ``state``: its weights, where ``model`` holds only a part of them.

        What acts is the average of the weights where there is one, and has adapters merged in (they lie beside it).
        """
        settings, acting = self.job.lora, dict(self.model.state_dict() if state is None else state)
        if self.average is not None:
            acting |= self.average.values
        if settings.rank > 0:
            showo = self.job.model.showo
            base = showo.pretrained_model_path if showo.load_from_showo else showo.llm_model_path
            lora.save_adapter(acting, settings, path / lora.ADAPTER_FOLDER, str(base))
            acting = lora.merged(acting, settings)
        save_folder(self.model, self.prompter, path, acting, global_step=step)

    def save_live(self, folder: Path, state: Mapping[str, Tensor] | None = None) -> None:
        """Write what learns, where that is something else, beside the optimizer's state in ``folder``."""
        if trained_weights.is_needed(self.job):
            now = dict(self.model.named_parameters()) if state is None else state
            trained = {name: now[name] for name, p in self.model.named_parameters() if p.requires_grad}
            average = {} if self.average is None else self.average.values
            trained_weights.write(folder, self.job.lora, trained, average, self.resting)


def setup(job: Job, run: Run) -> Parts:
    """Build the parts of a run and say what they are. What the user got wrong comes out as ``ConfigError``."""
    try:
        parts, notes = _build(job, run)
    except (ValueError, FileNotFoundError) as error:
        raise ConfigError(str(error)) from error
    memory = shared_memory_note(parts.data.in_flight, process_rank(os.environ).local_world)
    if memory is not None:
        run.say(memory)
    for line in [*_summary(run, parts), *(f"  note     {note}" for note in notes)]:
        run.say(line)
    return parts


def _build(job: Job, run: Run) -> tuple[Parts, list[str]]:
    built, saved = _model(job, run.resumed)
    _choose_attention(job, built.model, run.device)
    resting = trained_weights.identity_of_the_rest(built.model) if trained_weights.is_needed(job) else ""
    model, notes = built.model.to(run.device), [*built.notes, *leave_out_validation(job)]
    notes += declare_data(job, model, run.resumed)
    average = _average(job, run, model, saved, notes)
    vq = load_magvit(job.model.vq_model.vq_model_name, job.model.vq_model.pretrained_model_path)
    built.model.spec = built.model.spec.updated(image_tokenizer=_same_image_tokenizer(job, run.resumed, built, vq))
    vq = vq.to(run.device)
    clip = load_clip(job.model.showo.clip_model_path).to(run.device) if _needs_clip(job) else None
    _check_codes(job, vq)
    # Without a tower images are not opened and take no place in a conversation.
    image_spec, patches = (None, 0) if clip is None else (clip.image_spec, clip.num_patches)
    try:
        heldout_robot, heldout_text = _heldout(job, run, built.prompter, image_spec, patches, vq, clip)
    except (ValueError, FileNotFoundError) as error:
        if not job.default_validation:
            raise
        notes += leave_out_validation(job, str(error))
        heldout_robot, heldout_text = _heldout(job, run, built.prompter, image_spec, patches, vq, clip)
    data = cotrain_loader(job, built.prompter, image_spec, run.rank, run.world, patches, vq, clip)
    for flow in (data.robot, heldout_robot):
        if flow is not None and isinstance(flow.dataset, DataProvider):
            notes += _instruction_notes(built.prompter, flow.dataset.data)
    notes += [*job.without_effect, *schedule_notes(job), *_position_notes(job, model, built.prompter, patches)]
    parts = Parts(
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
        heldout_robot=heldout_robot,
        heldout_text=heldout_text,
        average=average,
        resting=resting,
    )
    return parts, notes


def _model(job: Job, resumed: Checkpoint | None) -> tuple[Built, trained_weights.LiveWeights | None]:
    """The network at the start of the run: from the configuration, or from the checkpoint that is continued; with what
    that one says of the weights that learn, where they are not the ones that act."""
    saved = None if resumed is None else trained_weights.read(resumed.state_dir)
    if resumed is None:
        built = build(job)
    elif job.lora.rank == 0:
        built = _continued(job, resumed)
    elif saved is not None and saved.lora.get("rank"):
        _continued(job, resumed)  # for what it sees to; merged weights cannot be taken apart again
        built = replace(build(job), notes=())
    else:
        raise ValueError(
            f"lora.rank={job.lora.rank}, but {resumed.path}, which this run continues, was trained without adapters; "
            "start a new run from its weights (model.showo.pretrained_model_path)"
        )
    model = built.model
    notes = [*built.notes, *lora.attach(model, job), *_freeze_what_learns_nothing(job, model)]
    notes += freeze(model, job.training.freeze)
    if saved is not None:
        trained_weights.put_back(saved, model, job.lora)
    if job.model.gradient_checkpointing:
        model.backbone.enable_gradient_checkpointing()
    if job.training.compile:
        compile_backbone(model.backbone)
    return replace(built, notes=tuple(notes)), saved


def _choose_attention(job: Job, model: UPVLA, device: torch.device) -> None:
    """The kernel that the run asks for (a checkpoint names that of its own run), and the lengths that go with it."""
    kernel, multiple = job.model.showo.attn_implementation, job.training.length_multiple
    if kernel == FLEX and device.type == "cpu":
        raise ValueError(
            "model.showo.attn_implementation=flex_attention: torch has no backward of it on a CPU; set sdpa"
        )
    model.backbone.set_attn_implementation(kernel)
    model.length_multiple = multiple or (TILE if kernel == FLEX else 1)


def _average(
    job: Job, run: Run, model: UPVLA, saved: trained_weights.LiveWeights | None, notes: list[str]
) -> EMA | None:
    """The average of the weights that the run keeps, as far as it got, and what the model's description says of it."""
    decay = job.training.ema_decay
    model.spec = replace(model.spec, weights="trained" if decay is None else f"average, decay {decay:g}")
    if decay is None:
        return None
    if is_sharded(run.accelerator):
        raise ValueError(
            f"training.ema_decay={decay:g}: an average needs whole weights on every process, and with "
            f"{describe(run.accelerator)} none has them; allowed: null, or a launch with DDP or ZeRO-1/2"
        )
    average = EMA(model, decay)
    if saved is not None and saved.average:
        average.load(saved.average)
    elif run.resumed is not None:
        notes.append(f"training.ema_decay: {run.resumed.path} has no average yet; it starts from the weights there")
    return average


def _continued(job: Job, resumed: Checkpoint) -> Built:
    """The checkpoint's network, if it is the one that the configuration describes; ``ValueError`` if not."""
    built = load_folder(resumed.model_dir, trust_remote_code=job.model.showo.trust_remote_code)
    meta = build(job, device="meta")
    saved, wanted = built.spec, meta.spec
    pairs = {key: (getattr(saved, field), getattr(wanted, field)) for field, key in SAME_FIELDS.items()}
    if (
        saved.decoding.action_bins is not None and wanted.decoding.action_bins is not None
    ):  # with other bins the ids mean other numbers
        pairs["block_diffusion.action_num_bins"] = (saved.decoding.action_bins, wanted.decoding.action_bins)
    had_llm, want_llm = built.model.backbone.config, meta.model.backbone.config
    for field in SAME_SIZES:  # attributes: in a config.json each family has its own words for them
        pairs[f"model.showo.llm_model_path's {field}"] = (getattr(had_llm, field), getattr(want_llm, field))
    for key, (had, want) in pairs.items():
        if had != want:
            raise ValueError(
                f"{key} is {want}, but {resumed.path}, which this run continues, was trained with {had}; "
                "choose another experiment.output_dir, or experiment.resume_from_checkpoint=false"
            )
    require_same_words(built.prompter.tokenizer, meta.prompter.tokenizer, str(resumed.path))
    recipe, banned = job.model.framework, job.model.showo.mask_logit_banned
    built.model.spec = replace(saved, decoding=decoding_defaults(job), framework=recipe, mask_logit_banned=banned)
    built.model.requires_grad_(True)
    return replace(built, notes=())


def _needs_clip(job: Job) -> bool:
    """The tower is used by the mmu flow and by the answers that are logged."""
    asks = bool(job.experiment.generate_every) and job.mmu_image_root is not None
    return job.model.showo.w_clip_vit and (job.dataset.und_type is not None or asks)


def _freeze_what_learns_nothing(job: Job, model: UPVLA) -> list[str]:
    """Parts that no weighted loss reaches are frozen: their gradient would be zero, but weight decay would not."""
    notes = []
    if job.training.act_coeff == 0:
        model.action_head.requires_grad_(False)
        notes.append("training.act_coeff is 0: the action head is not trained")
    if model.projector is not None and (job.dataset.und_type is None or job.training.mmu_coeff == 0):
        model.projector.requires_grad_(False)
        notes.append("no weighted text loss: the projector of images is not trained")
    return notes


def _same_image_tokenizer(job: Job, resumed: Checkpoint | None, built: Built, vq: MagVITv2) -> str:
    """The identity of the image tokenizer. ``ValueError`` where the checkpoint that is continued has learned the codes
    of another one."""
    had, now = built.spec.data.image_tokenizer, vq.weights_hash
    if resumed is not None and had and had != now:
        raise ValueError(
            f"model.vq_model.vq_model_name={job.model.vq_model.vq_model_name} has the weights {now[:12]}, but "
            f"{resumed.path}, which this run continues, learned the codes of {had[:12]}; choose another "
            "experiment.output_dir, or the image tokenizer of that run"
        )
    return now


def _instruction_notes(prompter: Prompter, index: ProcessedIndex) -> list[str]:
    """Return a line about the instructions of a split that are cut. Raise ``ValueError`` if the cut makes two of them
    one."""
    numbers = np.unique(np.asarray(index.instruction_of)).tolist()
    texts = [index.texts[number] for number in numbers]
    cut = cut_instructions(prompter, texts)
    if not cut:
        return []
    require_distinct(prompter, texts, cut, str(index.path))
    return [f"{index.path}: {describe_cut(prompter, cut, len(numbers))}"]


def _position_notes(job: Job, model: UPVLA, prompter: Prompter, patches: int) -> list[str]:
    """Return a line for each flow whose rows reach positions that the backbone was not made for."""
    spec, config = model.spec, model.backbone.config
    robot = 3 + spec.num_image_tokens + 2 + spec.act_step
    remedy = "take fewer cameras, a smaller dataset.preprocessing.resolution, or another model.showo.llm_model_path"
    found = [beyond_positions(config, robot, "rows of the robot flow, without any instruction,", remedy)]
    longest = robot + spec.max_seq_length - 2
    if found == [None]:
        remedy = f"lower dataset.preprocessing.max_seq_length (now {spec.max_seq_length})"
        found.append(beyond_positions(config, longest, "the longest rows of the robot flow", remedy))
    if job.dataset.und_type is not None:
        budget, room = conversation_budget(job, prompter, patches), prompter.tokenizer.model_max_length
        if budget == room - len(prompter.system_ids):
            found.append(f"conversations are cut to {budget} ids, because the tokenizer's model_max_length is {room}")
        text = 1 + len(prompter.system_ids) + (patches + 2 if patches else 0) + budget
        remedy = f"lower dataset.preprocessing.max_seq_length (now {spec.max_seq_length})"
        found.append(beyond_positions(config, text, "the longest conversations", remedy))
    return [line for line in found if line is not None]


def _check_codes(job: Job, vq: MagVITv2) -> None:
    side, said = job.dataset.preprocessing.resolution // vq.stride, job.model.showo.num_vq_tokens
    if side * side != said:
        raise ValueError(
            f"model.showo.num_vq_tokens={said}, but {job.model.vq_model.vq_model_name} makes {side} x {side} = "
            f"{side * side} codes of dataset.preprocessing.resolution={job.dataset.preprocessing.resolution}"
        )


def _heldout(
    job: Job,
    run: Run,
    prompter: Prompter,
    image_spec: ClipImageSpec | None,
    patches: int,
    vq: MagVITv2,
    clip: ClipTower | None,
) -> tuple[Flow[RobotBatch] | None, Flow[TextBatch] | None]:
    """The flows that ``eval_every`` measures on."""
    params, training = job.dataset.params, job.training
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


def _summary(run: Run, parts: Parts) -> list[str]:
    """What is about to be trained, in a few lines."""
    job, spec, settings = parts.job, parts.model.spec, parts.job.training
    count = sum(p.numel() for p in parts.model.parameters())
    trained = sum(p.numel() for p in parts.model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for m in (parts.vq, parts.clip) if m is not None for p in m.parameters())
    system = len(parts.prompter.system_ids)
    mmu = 1 + system + (0 if parts.clip is None else parts.clip.num_patches + 2)
    rows = f"{settings.batch_size_pre} robot" + (f" + {settings.batch_size_mmu} mmu" if parts.data.text else "")
    tokens = settings.act_coeff * job.block_diffusion.action_coeff if job.block_diffusion.action_enabled else None
    more = "" if tokens is None else f" + {tokens:g} block-diffusion action"
    many = f"{settings.gradient_accumulation_steps} micro-batch(es) x {told(run.accelerator)}"
    return [
        f"{job.experiment.name}: {job.model.framework}, text objective {settings.text_objective}, on {run.device} "
        f"({'fp32' if settings.mixed_precision == 'no' else settings.mixed_precision}), seed {settings.seed}",
        f"  model    {_short(count)} parameters, {_short(trained)} trained; frozen beside it: {_short(frozen)}",
        f"  tokens   robot row {spec.num_image_tokens + 2 + spec.act_step} + instruction, mmu row {mmu} + conversation",
        f"  data     {parts.data.describe()}",
        *(f"           {line}" for flow in (parts.data.robot, parts.heldout_robot) for line in codes_in(flow)),
        *(f"           {line}" for flow in (parts.data.text, parts.heldout_text) for line in conversations_in(flow)),
        f"  step     {rows} x {many}; {settings.max_train_steps} steps, {job.lr_scheduler.scheduler} schedule, "
        f"learning rate {job.optimizer.params.learning_rate:g}",
        f"  loss     {settings.pre_coeff:g} image + {settings.act_coeff:g} action + {settings.mmu_coeff:g} text{more}",
        f"  output   {run.output_dir}",
    ]


def _short(number: int) -> str:
    for size, letter in ((1_000_000_000, "B"), (1_000_000, "M"), (1_000, "k")):
        if number >= size:
            return f"{number / size:.4g} {letter}"
    return str(number)
