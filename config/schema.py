"""The settings of a training run: one dataclass for each section, and the only list of keys.

Every key is declared by `field(default, doc, ...)` (`config.fields`). `--help` prints its one-line `doc`.
`config.parsing` checks its type and bounds, and `config.validation` its path, before torch is imported.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from common.constants import CODEBOOK_SIZE
from config.fields import field, internal, section

Objective = Literal["ar", "mdm", "bd"]
Framework = Literal["upvla", "arvla", "mdmvla", "bdvla"]
Tracker = Literal["tensorboard", "wandb", "none"]
LoaderMode = Literal["min_size", "max_size", "max_size_cycle", "sequential"]
Precision = Literal["no", "fp16", "bf16"]
Device = Literal["auto", "cpu", "cuda"]
Attention = Literal["sdpa", "eager", "flex_attention"]
Proprioception = Literal["none", "pose"]
ActionNormalisation = Literal["none", "min_max", "quantile"]
ActionKey = Literal["rel_actions", "expert_actions"]
ActionLoss = Literal["mse", "l1"]
GroundTarget = Literal["position", "offset"]
OnBadRecord = Literal["skip", "error"]
TextOnly = Literal["skip", "use"]
Schedule = Literal[
    "constant", "constant_with_warmup", "cosine", "cosine_with_restarts", "inverse_sqrt", "linear", "polynomial"
]

MISSING: Final = "???"
"""Value of a key that the user has to give; `load_job` refuses a job that still has one."""
SPECIAL_TOKENS: Final = 10
VQ_STRIDE: Final = 16
"""Pixels along one side of an image that become one VQ token (four stride-2 convolutions)."""
ROBOT_INDEX: Final = "dataset_info.json"
MMU_INDEX: Final = "llava_v1_5_mix665k.json"


@dataclass
class Experiment:
    """Names, folders, and the intervals of what is written (in optimizer steps; 0 = never)."""

    project: str = field("blockdiff-vla", "project name in the tracker")
    name: str = field("run", "name of this run in the tracker")
    output_dir: str = field("outputs/run", "folder of config.yaml, logs/, checkpoints and final model", path="other")
    tracker: Tracker = field("tensorboard", "where metrics are logged")
    save_every: int = field(10000, "steps between checkpoints", ge=0)
    eval_every: int = field(2500, "steps between evaluations on the validation data", ge=0)
    generate_every: int = field(5000, "steps between logged answers and predicted frames", ge=0)
    log_every: int = field(50, "steps between logged metrics", ge=1)
    log_grad_norm_every: int = field(500, "steps between logged gradient norms", ge=0)
    resume_from_checkpoint: Literal[False] | int | str = field(
        "latest",
        "false, latest (of output_dir, if there is one), a step number, or the path of a checkpoint",
        path="other",
        allowed="false, latest, a step number >= 0 or the path of a checkpoint",
        ge=0,
    )
    save_adapters_only: bool = field(False, "with lora: no frozen weights in checkpoints before the last step")
    checkpoints_total_limit: int | None = field(None, "number of checkpoints to keep; null = all", ge=1)


@dataclass
class VQModel:
    """Image tokenizer between frames and codes; frozen."""

    type: Literal["magvitv2"] = field("magvitv2", "kind of image tokenizer")
    vq_model_name: str = field("showlab/magvitv2", "folder or hub id of the tokenizer", path="model")
    pretrained_model_path: str | None = field(
        None, "weights file (with or without a `model` key) used instead of the folder's weights", path="weights"
    )


@dataclass
class Showo:
    """Backbone: a causal language model whose vocabulary is extended by special tokens, image codes and the mask."""

    load_from_showo: bool = field(
        True, "start from pretrained_model_path (giving one on the command line sets this); false = from llm_model_path"
    )
    pretrained_model_path: str | None = field(
        "showlab/show-o-w-clip-vit-512x512",
        "folder, weights file or hub id of the Show-o / UP-VLA checkpoint; read if load_from_showo",
        path="model",
    )
    llm_model_path: str = field(
        "microsoft/phi-1_5",
        "folder or hub id of tokenizer and language model (without weights: random initialization)",
        path="model",
    )
    llm_backbone: str = field("auto", "auto (as in llm_model_path), or a transformers type: phi, qwen3, ...")
    trust_remote_code: bool = field(False, "let transformers run code from llm_model_path")
    attn_implementation: Attention = field(
        "sdpa", "attention kernel: torch's fused one, plain matrix products, or block-sparse flex_attention (GPU)"
    )
    code_bits: bool = field(
        False, "add one learned vector for each of its 13 bits to the embedding of an image code (small models)"
    )
    auto_set_llm_vocab_size: bool = field(False, "set vocab_size and llm_vocab_size from the tokenizer")
    w_clip_vit: bool = field(True, "image questions read CLIP patches through the projector")
    clip_model_path: str = field("openai/clip-vit-large-patch14-336", "folder or hub id of CLIP's tower", path="model")
    vocab_size: int = field(58498, "text + special tokens + image codes + 1 mask; see auto_set_llm_vocab_size", ge=1)
    llm_vocab_size: int = field(50295, "tokens of the tokenizer before additions; see auto_set_llm_vocab_size", ge=1)
    codebook_size: int = field(CODEBOOK_SIZE, "image codes", ge=CODEBOOK_SIZE, le=CODEBOOK_SIZE)
    num_vq_tokens: int = field(1024, "codes per camera image: (resolution / 16) squared", ge=1)
    num_new_special_tokens: int = field(SPECIAL_TOKENS, "added special tokens", ge=SPECIAL_TOKENS, le=SPECIAL_TOKENS)
    mask_logit_banned: bool = field(True, "text heads never predict the mask token (logit -inf); false = as upstream")


@dataclass
class VLA:
    """Cameras and actions of the robot."""

    num_view: int = field(1, "cameras: 1 = static, 2 = static + gripper", ge=1, le=2)
    action_dim: int = field(7, "numbers of an action; the robot data must have as many", ge=1)
    proprioception: Proprioception = field(
        "none", "also read the robot's state: pose = position, rotation and gripper, as the robot data declare them"
    )


@dataclass
class Model:
    """The networks."""

    framework: Framework = field("upvla", "label of the recipe; training.text_objective selects the loss")
    gradient_checkpointing: bool = field(True, "recompute activations in the backward pass: less memory, more time")
    vq_model: VQModel = section(VQModel)
    showo: Showo = section(Showo)
    vla: VLA = section(VLA)


@dataclass
class TextDiffusion:
    """Settings that masked diffusion (mdm) and block diffusion (bd) share."""

    prediction: Literal["shift", "aligned"] = field("shift", "slot that predicts a token: the one before, or its own")
    weighting: Literal["nelbo", "uniform"] = field("nelbo", "weights of masked tokens: exact bound, or plain mean")
    ar_aux_weight: float = field(0.0, "weight of the AR loss on the clean answer, added to the text loss", ge=0.0)


@dataclass
class BlockDiffusion:
    """Block diffusion of answers (text_objective bd) and, optionally, of actions."""

    text_enabled: bool = field(True, "block diffusion of answers; must be true for text_objective bd, unused otherwise")
    block_size: int = field(32, "tokens per block, counted from the start of the answer", ge=1)
    elastic_block_enabled: bool = field(False, "sample the block size of each answer from block_size_candidates")
    block_size_candidates: list[int] = field([8, 16, 32, 64], "sizes to sample, or for anneal_steps", ge=1)
    anneal_steps: int = field(0, "steps that grow block sizes through the candidates to block_size; 0 = none", ge=0)
    mask_eps: float = field(0.001, "smallest mask ratio of a block", ge=0.0, lt=1.0)
    complementary_mask: bool = field(True, "a second noisy copy masks what the first leaves clean (bd and mdm)")
    action_enabled: bool = field(False, "also train block-diffusion actions, in addition to the regression head")
    action_infer_enabled: bool = field(
        False, "act with them instead of the regression head; needs action_enabled; a model yaml can override it"
    )
    action_coeff: float = field(1.0, "weight of their loss, times training.act_coeff; the regression has 1", gt=0.0)
    action_block_size: int = field(7, "action tokens per block; 7 is one time step", ge=1)
    action_num_bins: int = field(256, "bins per action dimension over [-1, 1]", ge=2, le=CODEBOOK_SIZE)
    action_conf_threshold: float = field(0.9, "decoding accepts action tokens above this probability", ge=0.0)
    action_infer_steps: int = field(8, "maximum number of forward passes per block of actions", ge=1)


@dataclass
class TextMDM:
    """Masked diffusion of answers (text_objective mdm)."""

    min_mask_ratio: float = field(0.0, "lower bound of the mask ratio", ge=0.0, le=1.0)
    max_mask_ratio: float = field(1.0, "upper bound; below 1 a fully masked answer is never trained", gt=0.0, le=1.0)
    canvas_multiple: int = field(32, "pad answers with end-of-text to a multiple of this many tokens", ge=1)


@dataclass
class DataParams:
    """Paths of the data and how it is read."""

    train_pre_shards_path_or_url: str = field(
        MISSING, f"robot demonstrations: folder with {ROBOT_INDEX}", path="dir", requires=ROBOT_INDEX
    )
    train_mmu_shards_path_or_url: str | None = field(
        None,
        f"image conversations: folder with {MMU_INDEX}; read unless dataset.und_type is null",
        path="dir",
        requires=MMU_INDEX,
    )
    train_mmu_sources: list[str] = field(
        [], f"a mixture instead: folders with {MMU_INDEX}, or JSON files", path="list", requires=MMU_INDEX
    )
    train_mmu_weights: list[float] = field([], "relative share of each of train_mmu_sources; [] = by size", gt=0.0)
    train_mmu_image_roots: list[str] = field([], "image folders: one, or one per source; [] = by the JSON", path="dir")
    on_bad_record: OnBadRecord = field(
        "skip", "unusable conversations (missing or undecodable image, no answer): skip and report, or raise an error"
    )
    text_only: TextOnly = field("skip", "conversations without an image: skip and count, or use for training")
    validation_pre_shards_path_or_url: str | None = field(
        None, "held-out robot demonstrations; null = none", path="dir", requires=ROBOT_INDEX
    )
    validation_mmu_shards_path_or_url: str | None = field(
        None, "held-out image conversations; null = none", path="dir", requires=MMU_INDEX
    )
    num_workers: int = field(4, "loader processes per data set and rank; 0 = in the training process", ge=0)
    resolution: int = field(512, "side of a camera image in pixels, as in dataset.preprocessing", ge=VQ_STRIDE)
    token_cache: Literal[False] | str = field(
        "auto",
        "image codes from preprocess_data/tokenize_images.py, read instead of robot images: auto (token_cache in the "
        "data, if it exists), false (encode images in the step), or a folder of caches",
        path="other",
    )
    clip_cache: Literal[False] | str = field(
        "auto",
        "CLIP patches from preprocess_data/clip_features.py, read instead of conversation images: auto (clip_cache "
        "next to the JSON file, if it exists), false (encode images in the step), or a folder of caches",
        path="other",
    )
    ground_shards_path: str | None = field(
        None,
        "random scenes (preprocess_data/make_desk_scenes.py), in which positions of objects are learned; null = none",
        path="dir",
        requires=ROBOT_INDEX,
    )
    validation_ground_shards_path: str | None = field(
        None, "held-out random scenes; null = none", path="dir", requires=ROBOT_INDEX
    )
    mask_action_padding: bool = field(False, "exclude the padded actions at the end of an episode from the action loss")


@dataclass
class Preprocessing:
    """Sizes of all samples."""

    max_seq_length: int = field(576, "text slots of a robot sequence (one more is for the task token)", ge=8)
    resolution: int = field(512, "side of the square camera image in pixels, a multiple of 16", ge=VQ_STRIDE)


@dataclass
class Augment:
    """Random changes of the robot images, the same for the current and the future frame of a sample; 0 = none."""

    crop: float = field(0.0, "largest fraction of the side that is cropped before resizing back", ge=0.0, lt=1.0)
    shift: float = field(0.0, "largest shift as a fraction of the side; the border is repeated", ge=0.0, lt=1.0)
    brightness: float = field(0.0, "largest relative change of brightness", ge=0.0, le=1.0)
    contrast: float = field(0.0, "largest relative change of contrast", ge=0.0, le=1.0)
    saturation: float = field(0.0, "largest relative change of saturation", ge=0.0, le=1.0)


@dataclass
class Dataset:
    """The robot data and the multimodal data."""

    gen_type: Literal["future_view_prediction_w_action"] = field("future_view_prediction_w_action", "robot data")
    und_type: Literal["llava_tuning"] | None = field("llava_tuning", "multimodal data; null = train without it")
    combined_loader_mode: LoaderMode = field(
        "max_size_cycle",
        "an epoch ends with the shorter data set (min_size) or the longer (max_size; max_size_cycle repeats the other)",
    )
    params: DataParams = section(DataParams)
    augment: Augment = section(Augment)
    action_normalisation: ActionNormalisation = field(
        "none", "scale each action dimension to [-1, 1] by the training data's extremes or 1st and 99th percentiles"
    )
    action_key: ActionKey = field(
        "rel_actions", "label: the recorded motion, or what the expert wanted in the recorded state (expert_actions)"
    )
    preprocessing: Preprocessing = section(Preprocessing)


@dataclass
class OptimizerParams:
    """AdamW's parameters."""

    learning_rate: float = field(1e-4, "peak learning rate", gt=0.0)
    beta1: float = field(0.9, "decay of the first moment", ge=0.0, lt=1.0)
    beta2: float = field(0.999, "decay of the second moment", ge=0.0, lt=1.0)
    weight_decay: float = field(0.01, "decoupled weight decay; biases and norms are exempt", ge=0.0)
    epsilon: float = field(1e-8, "added to the root of the second moment", gt=0.0)


@dataclass
class Optimizer:
    """The optimizer."""

    name: Literal["adamw", "adamw_8bit"] = field(
        "adamw", "adamw (torch's fused one), or adamw_8bit: moments in 8 bits, not 32 (needs the package bitsandbytes)"
    )
    params: OptimizerParams = section(OptimizerParams)


@dataclass
class ScheduleParams:
    """Parameters of the learning-rate schedule."""

    warmup_steps: int = field(1000, "optimizer steps of linear warm-up from 0", ge=0)
    num_cycles: float | None = field(None, "cosine: waves (null = half of one); cosine_with_restarts: restarts", gt=0.0)
    power: float = field(1.0, "polynomial: exponent", gt=0.0)


@dataclass
class LRScheduler:
    """The learning-rate schedule; it ends at training.max_train_steps."""

    scheduler: Schedule = field("cosine", "schedule, by transformers' name")
    params: ScheduleParams = section(ScheduleParams)


@dataclass
class LoRA:
    """Low-rank adapters (peft): the backbone is frozen, and small matrices next to its own are trained."""

    rank: int = field(0, "rank of the adapters; 0 = none, the backbone itself is trained", ge=0)
    alpha: float | None = field(None, "adapters are scaled by alpha / rank; null = twice the rank", gt=0.0)
    targets: list[str] = field(
        [], "linear layers of the backbone that get an adapter, by the end of their name, e.g. [q_proj]; [] = all"
    )
    train_fully: list[str] = field(
        ["projector.*", "action_head.*"], "parameters (* matches anything) trained in full too; all others are frozen"
    )


@dataclass
class Training:
    """The losses and the loop."""

    text_objective: Objective = field("ar", "THE SWITCH: autoregressive, masked diffusion or block diffusion text loss")
    pre_coeff: float = field(1.0, "weight of the image (future frame) loss", ge=0.0)
    mmu_coeff: float = field(0.1, "weight of the text loss", ge=0.0)
    act_coeff: float = field(1.0, "weight of the action loss", ge=0.0)
    action_loss: ActionLoss = field("mse", "error of a number of an action: squared (mse) or absolute (l1)")
    insulate_backbone: bool = field(
        False, "the action loss trains the action head and the state encoder, and has no gradient into the backbone"
    )
    ground_coeff: float = field(
        0.0, "weight of the position of the object that the instruction names (needs object_positions.index)", ge=0.0
    )
    ground_target: GroundTarget = field(
        "position",
        "what it is learned as: position (in the workspace, squared error) or offset (from the hand, smooth absolute "
        "error, which is precise near the hand; needs model.vla.proprioception=pose)",
    )
    batch_size_pre: int = field(4, "robot samples per micro-batch and process", ge=1)
    batch_size_mmu: int = field(4, "conversations per micro-batch and process; unused with dataset.und_type=null", ge=0)
    batch_size_ground: int = field(24, "random scenes (ground_shards_path) per micro-batch and process", ge=1)
    gradient_accumulation_steps: int = field(1, "micro-batches per optimizer step", ge=1)
    mixed_precision: Precision = field("bf16", "precision of the forward pass")
    enable_tf32: bool = field(True, "TF32 matrix products on NVIDIA GPUs")
    device: Device = field("auto", "auto uses a GPU if there is one")
    compile: bool = field(False, "torch.compile the backbone")
    length_multiple: int | None = field(
        None,
        "pad training sequences to a multiple of this many slots; null = 128 with flex_attention (compiled for each "
        "length), otherwise no padding",
        ge=1,
    )
    freeze: list[str] = field([], "parameters that are not trained, e.g. [backbone.lm.model.embed_tokens.*]")
    ema_decay: float | None = field(
        None,
        "decay of an average of the weights, updated at every step (at most (1 + step) / (10 + step)); the average is "
        "evaluated, saved and used for acting; null = no average",
        gt=0.0,
        lt=1.0,
    )
    seed: int = field(10086, "seed of weights, data order and masks", ge=0)
    max_train_steps: int = field(200000, "optimizer steps of the run", ge=1)
    cond_dropout_prob: float = field(0.0, "fraction of robot samples whose instruction is emptied", ge=0.0, le=1.0)
    state_dropout_prob: float = field(0.0, "fraction of robot samples whose state is left out", ge=0.0, le=1.0)
    label_smoothing: float = field(0.0, "label smoothing of the image loss", ge=0.0, lt=1.0)
    max_grad_norm: float | None = field(None, "clip the gradient to this norm; null = do not clip", gt=0.0)
    explosion_factor: float | None = field(
        20.0,
        "stop when loss or gradient norm stay above this multiple of their running median; null = if not finite",
        gt=1.0,
    )


@dataclass
class Job:
    """One training run. `config.loading.load_job` returns it; nothing above this package reads a YAML file."""

    experiment: Experiment = section(Experiment)
    model: Model = section(Model)
    text_diffusion: TextDiffusion = section(TextDiffusion)
    block_diffusion: BlockDiffusion = section(BlockDiffusion)
    text_mdm: TextMDM = section(TextMDM)
    dataset: Dataset = section(Dataset)
    optimizer: Optimizer = section(Optimizer)
    lora: LoRA = section(LoRA)
    lr_scheduler: LRScheduler = section(LRScheduler)
    training: Training = section(Training)
    act_step: int = field(10, "T: actions per chunk, and distance in frames of the predicted future frame", ge=1)
    mmu_image_root: str | None = field(None, "folder of images for question; null = from the data", path="dir")
    question: str = field("Please describe this image.", "question about these images; several are split by ' *** '")
    max_new_tokens: int = field(100, "longest generated answer in tokens", ge=1)
    config_path: str | None = internal(lambda: None)
    """The file of this job."""
    default_validation: list[str] = internal(list)
    """Keys of validation data from the project's files, next to training data that the user replaced."""
    without_effect: list[str] = internal(list)
    """One line for each key of the command line that this run does not read."""
