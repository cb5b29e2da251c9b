"""Lines for the log at the start of a run: a summary of it, and notes on its data."""

from __future__ import annotations

import numpy as np
import torch

from config.schema import Job
from models.language_model.positions import beyond_positions
from models.processing.instruction_length import cut_instructions, describe_cut, require_distinct
from models.processing.text import Prompter
from models.upvla import UPVLA
from training.build.components import Components
from training.data.dataloader import conversation_budget, describe_conversations, describe_token_cache
from training.data.episode_index import ProcessedIndex
from training.distributed.launch import format_launch
from training.run import Run


def summary(run: Run, components: Components) -> list[str]:
    """Return what is about to be trained, in a few lines."""
    job, spec, settings, data = run.job, components.model.spec, run.job.training, components.data
    count = sum(p.numel() for p in components.model.parameters())
    trained = sum(p.numel() for p in components.model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for m in (components.vq, components.clip) if m is not None for p in m.parameters())
    system = len(components.prompter.system_ids)
    mmu = 1 + system + (0 if components.clip is None else components.clip.num_patches + 2)
    rows = f"{settings.batch_size_pre} robot" + (f" + {settings.batch_size_mmu} mmu" if data.text else "")
    tokens = settings.act_coeff * job.block_diffusion.action_coeff if job.block_diffusion.action_enabled else None
    more = "" if tokens is None else f" + {tokens:g} block-diffusion action"
    many = f"{settings.gradient_accumulation_steps} micro-batch(es) x {format_launch(run.accelerator)}"
    caches = [line for flow in (data.robot, components.validation_robot) for line in describe_token_cache(flow)]
    texts = [line for flow in (data.text, components.validation_text) for line in describe_conversations(flow)]
    return [
        f"{job.experiment.name}: {job.model.framework}, text objective {settings.text_objective}, on {run.device} "
        f"({'fp32' if settings.mixed_precision == 'no' else settings.mixed_precision}), seed {settings.seed}",
        f"  model    {_short(count)} parameters, {_short(trained)} trained; frozen besides: {_short(frozen)}",
        f"  tokens   robot row {spec.num_image_tokens + 2 + spec.act_step} + instruction, mmu row {mmu} + conversation",
        *_state_lines(job, components),
        f"  data     {data.describe()}",
        *(f"           {line}" for line in [*caches, *texts]),
        f"  step     {rows} x {many}; {settings.max_train_steps} steps, {job.lr_scheduler.scheduler} schedule, "
        f"learning rate {job.optimizer.params.learning_rate:g}",
        f"  loss     {settings.pre_coeff:g} image + {settings.act_coeff:g} action + {settings.mmu_coeff:g} text{more}",
        f"  output   {run.output_dir}",
        *_memory_warning(job, run.device, count + frozen, trained),
    ]


def _state_lines(job: Job, components: Components) -> list[str]:
    """Return a line about the robot's state if the model reads it."""
    convention = components.model.spec.data.state_convention
    if convention is None:
        return []
    dropped = f", left out of {job.training.state_dropout_prob:.3g} of the samples"
    what = f"{convention.features} features of the {convention.dim} numbers of the robot's state"
    return [f"  state    {what}{dropped if job.training.state_dropout_prob else ''}"]


def _memory_warning(job: Job, device: torch.device, parameters: int, trained: int) -> list[str]:
    """Return a line if weights, gradients and moments alone take more than the GPU has. Sharding is not considered."""
    if device.type != "cuda":
        return []
    needed = 4 * parameters + trained * (12 if job.optimizer.name == "adamw" else 6)
    available = torch.cuda.get_device_properties(device).total_memory
    if needed <= available:
        return []
    sizes = f"{needed / 2**30:.1f} GB without activations, {device} has {available / 2**30:.1f} GB"
    return [f"  warning  {sizes}; see python scripts/estimate_memory.py"]


def instruction_notes(prompter: Prompter, index: ProcessedIndex) -> list[str]:
    """Return a line about the instructions of a split that are cut. Raises ValueError if two become the same."""
    numbers = np.unique(np.asarray(index.instruction_of)).tolist()
    texts = [index.texts[number] for number in numbers]
    cut = cut_instructions(prompter, texts)
    if not cut:
        return []
    require_distinct(prompter, texts, cut, str(index.path))
    return [f"{index.path}: {describe_cut(prompter, cut, len(numbers))}"]


def position_notes(job: Job, model: UPVLA, prompter: Prompter, patches: int) -> list[str]:
    """Return a line for each flow whose rows are longer than the positions that the backbone supports."""
    spec, config = model.spec, model.backbone.config
    robot = 3 + spec.num_image_tokens + 2 + spec.act_step
    remedy = "take fewer cameras, a smaller dataset.preprocessing.resolution, or another model.showo.llm_model_path"
    found = [beyond_positions(config, robot, "rows of the robot flow, without any instruction,", remedy)]
    longest = robot + spec.max_seq_length - 2
    shorter = f"lower dataset.preprocessing.max_seq_length (now {spec.max_seq_length})"
    if found == [None]:
        found.append(beyond_positions(config, longest, "the longest rows of the robot flow", shorter))
    if job.dataset.und_type is not None:
        budget, limit = conversation_budget(job, prompter, patches), prompter.tokenizer.model_max_length
        if budget == limit - len(prompter.system_ids):
            found.append(f"conversations are cut to {budget} ids, because the tokenizer's model_max_length is {limit}")
        text = 1 + len(prompter.system_ids) + (patches + 2 if patches else 0) + budget
        found.append(beyond_positions(config, text, "the longest conversations", shorter))
    return [line for line in found if line is not None]


def _short(number: int) -> str:
    for size, letter in ((1_000_000_000, "B"), (1_000_000, "M"), (1_000, "k")):
        if number >= size:
            return f"{number / size:.4g} {letter}"
    return str(number)
