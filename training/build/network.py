"""Build the network of a run from its configuration, or from the checkpoint that it resumes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from config.schema import Job
from models.action.state import StateConvention
from models.attention_mask import TILE
from models.grounding import ground_target
from models.language_model import FLEX
from models.pretrained.model_io import Built, build, decoding_defaults, load_folder, require_same_words
from models.upvla import UPVLA
from models.vision.magvitv2 import MagVITv2
from training.checkpointing import trained_weights
from training.checkpointing.manifest import Checkpoint
from training.distributed.launch import describe, is_sharded
from training.optim import lora
from training.optim.compile import compile_backbone
from training.optim.ema import EMA
from training.optim.freeze import freeze
from training.run import Run

SAME_FIELDS = {
    "act_step": "act_step",
    "action_dim": "model.vla.action_dim",
    "num_view": "model.vla.num_view",
    "proprioception": "model.vla.proprioception",
    "num_vq_tokens": "model.showo.num_vq_tokens",
    "code_bits": "model.showo.code_bits",
    "clip_width": "the width of model.showo.clip_model_path",
    "resolution": "dataset.preprocessing.resolution",
    "max_seq_length": "dataset.preprocessing.max_seq_length",
    "words": "the vocabulary of model.showo.llm_model_path",
}
"""Fields of the model's description that a resumed run must share with its checkpoint -> their names in messages."""
SAME_SIZES = ("model_type", "hidden_size", "num_hidden_layers")
"""Fields of the language model's configuration that a resumed run must share with its checkpoint."""


def build_network(
    job: Job,
    resumed: Checkpoint | None,
    state: StateConvention | None = None,
    workspace: Mapping[str, Any] | None = None,
) -> tuple[Built, trained_weights.TrainedWeights | None]:
    """Return the network at the start of the run, and the trained weights of the resumed checkpoint if it stores them
    separately (EMA or LoRA). ``state``: the states that the training data declare; ``workspace``: that of positions."""
    saved = None if resumed is None else trained_weights.read(resumed.state_dir)
    if resumed is None:
        built = build(job, state=state, workspace=workspace)
    elif job.lora.rank == 0:
        built = _load_resumed(job, resumed)
    elif saved is not None and saved.lora.get("rank"):
        # For its checks and data: the weights are those of the start, with the saved adapters.
        data = _load_resumed(job, resumed, "meta").spec.data
        built = replace(build(job, state=data.state_convention, workspace=workspace), notes=())
        spec = built.model.spec
        built.model.spec = replace(spec, data=replace(data, workspace=spec.data.workspace))
    else:
        raise ValueError(
            f"lora.rank={job.lora.rank}, but {resumed.path}, which this run continues, was trained without adapters; "
            "start a new run from its weights (model.showo.pretrained_model_path)"
        )
    model = built.model
    notes = [*built.notes, *lora.attach(model, job), *freeze_modules_without_loss(job, model)]
    notes += freeze(model, job.training.freeze)
    if saved is not None:
        trained_weights.restore(saved, model, job.lora)
    if job.model.gradient_checkpointing:
        model.backbone.enable_gradient_checkpointing()
    if job.training.compile:
        compile_backbone(model.backbone, keep_graph=job.training.insulate_backbone)
    return replace(built, notes=tuple(notes)), saved


def set_attention(job: Job, model: UPVLA, device: torch.device) -> None:
    """Set the attention kernel that the job names (not the checkpoint's), and the length multiple that it needs."""
    kernel, multiple = job.model.showo.attn_implementation, job.training.length_multiple
    if kernel == FLEX and device.type == "cpu":
        raise ValueError(
            "model.showo.attn_implementation=flex_attention: torch has no backward of it on a CPU; set sdpa"
        )
    model.backbone.set_attn_implementation(kernel)
    model.length_multiple = multiple or (TILE if kernel == FLEX else 1)


def check_insulation(run: Run, model: UPVLA) -> None:
    """Raise ValueError if the launch cannot insulate the backbone and train the encoder of the robot's state."""
    if run.job.training.insulate_backbone and model.state_encoder is not None and is_sharded(run.accelerator):
        raise ValueError(
            "training.insulate_backbone=true with model.vla.proprioception=pose needs whole weights on every process, "
            f"and with {describe(run.accelerator)} none has them; launch with DDP or ZeRO-1/2"
        )


def check_adapters_only(run: Run) -> None:
    """Raise ValueError if the launch writes the frozen weights into every training state."""
    if run.job.experiment.save_adapters_only and is_sharded(run.accelerator):
        raise ValueError(
            f"experiment.save_adapters_only=true: {describe(run.accelerator)} writes shards of all weights, frozen "
            "ones too; set it to false, or launch with DDP or ZeRO-1/2"
        )


def build_ema(run: Run, model: UPVLA, saved: trained_weights.TrainedWeights | None, notes: list[str]) -> EMA | None:
    """Return the run's average of the weights, restored from a checkpoint, and record it in the model's description."""
    decay = run.job.training.ema_decay
    model.spec = replace(model.spec, weights="trained" if decay is None else f"average, decay {decay:g}")
    if decay is None:
        return None
    if is_sharded(run.accelerator):
        raise ValueError(
            f"training.ema_decay={decay:g}: an average needs whole weights on every process, and with "
            f"{describe(run.accelerator)} none has them; allowed: null, or a launch with DDP or ZeRO-1/2"
        )
    ema = EMA(model, decay)
    if saved is not None and saved.average:
        ema.load(saved.average)
    elif run.resumed is not None:
        notes.append(f"training.ema_decay: {run.resumed.path} has no average yet; it starts from the weights there")
    return ema


def set_image_tokenizer(job: Job, resumed: Checkpoint | None, model: UPVLA, vq: MagVITv2) -> None:
    """Check the image tokenizer and record its identity in the model's description.

    Raises ValueError if it makes another number of codes than declared, or if the resumed checkpoint was trained on
    the codes of another tokenizer.
    """
    before, now = model.spec.data.image_tokenizer, vq.weights_hash
    if resumed is not None and before and before != now:
        raise ValueError(
            f"model.vq_model.vq_model_name={job.model.vq_model.vq_model_name} has the weights {now[:12]}, but "
            f"{resumed.path}, which this run continues, learned the codes of {before[:12]}; choose another "
            "experiment.output_dir, or the image tokenizer of that run"
        )
    model.spec = model.spec.updated(image_tokenizer=now)
    side, declared = job.dataset.preprocessing.resolution // vq.stride, job.model.showo.num_vq_tokens
    if side * side != declared:
        raise ValueError(
            f"model.showo.num_vq_tokens={declared}, but {job.model.vq_model.vq_model_name} makes {side} x {side} = "
            f"{side * side} codes of dataset.preprocessing.resolution={job.dataset.preprocessing.resolution}"
        )


def _load_resumed(job: Job, resumed: Checkpoint, device: str = "cpu") -> Built:
    """Return the checkpoint's network. Raises ValueError if the configuration describes another one."""
    built = load_folder(resumed.model_dir, device, trust_remote_code=job.model.showo.trust_remote_code)
    meta = build(job, device="meta")
    saved, wanted = built.spec, meta.spec
    pairs = {key: (getattr(saved, field), getattr(wanted, field)) for field, key in SAME_FIELDS.items()}
    bins = saved.decoding.action_bins, wanted.decoding.action_bins
    if None not in bins:  # with other bins the ids mean other numbers
        pairs["block_diffusion.action_num_bins"] = bins
    saved_llm, wanted_llm = built.model.backbone.config, meta.model.backbone.config
    for field in SAME_SIZES:  # attributes: each family has its own keys for them in config.json
        pairs[f"model.showo.llm_model_path's {field}"] = (getattr(saved_llm, field), getattr(wanted_llm, field))
    if saved.data.workspace is not None and job.training.ground_coeff > 0:
        pairs["training.ground_target"] = ground_target(saved.data.workspace), job.training.ground_target
    for key, (before, now) in pairs.items():
        if before != now:
            raise ValueError(
                f"{key} is {now}, but {resumed.path}, which this run continues, was trained with {before}; "
                "choose another experiment.output_dir, or experiment.resume_from_checkpoint=false"
            )
    if wanted.data.workspace is not None and saved.data.workspace is None:
        raise ValueError(
            f"training.ground_coeff is {job.training.ground_coeff:g}, but {resumed.path}, which this run continues, "
            "has no ground head; start a new run from its weights (model.showo.pretrained_model_path)"
        )
    require_same_words(built.prompter.tokenizer, meta.prompter.tokenizer, str(resumed.path))
    recipe, banned = job.model.framework, job.model.showo.mask_logit_banned
    built.model.spec = replace(saved, decoding=decoding_defaults(job), framework=recipe, mask_logit_banned=banned)
    built.model.requires_grad_(True)
    return replace(built, notes=())


def freeze_modules_without_loss(job: Job, model: UPVLA) -> list[str]:
    """Freeze modules that no weighted loss reaches. Without a gradient, weight decay would still change them."""
    notes = []
    if job.training.act_coeff == 0:
        model.action_head.requires_grad_(False)
        notes.append("training.act_coeff is 0: the action head is not trained")
        if model.state_encoder is not None and job.training.pre_coeff == 0:
            model.state_encoder.requires_grad_(False)
            notes.append("no weighted loss of the robot flow: the state encoder is not trained")
    if model.ground_head is not None and job.training.ground_coeff == 0:
        model.ground_head.requires_grad_(False)
        notes.append("training.ground_coeff is 0: the ground head is not trained")
    if model.projector is not None and (job.dataset.und_type is None or job.training.mmu_coeff == 0):
        model.projector.requires_grad_(False)
        notes.append("no weighted text loss: the projector of images is not trained")
    others = job.training.pre_coeff or job.training.ground_coeff or job.block_diffusion.action_enabled
    if model.code_bits is not None and job.training.insulate_backbone and not others:
        model.code_bits.requires_grad_(False)
        notes.append("training.insulate_backbone: no loss trains the vectors of code bits")
    return notes
