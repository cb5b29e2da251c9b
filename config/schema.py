"""What can be set: one dataclass for each section of a run configuration, and the only list of keys there is.

Every field is declared by `config.knob.key(default, doc, ...)`: the one-line `doc` is the documentation of the knob
(`--help` prints it); bounds and path kinds beside it are what `config.load` checks before anything expensive starts.
Nothing here imports torch; nothing below this package sees anything but these plain dataclasses.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal

from config.knob import MISSING, key

Objective = Literal["ar", "mdm", "bd"]
Framework = Literal["upvla", "arvla", "mdmvla", "bdvla"]
Tracker = Literal["tensorboard", "wandb", "none"]
LoaderMode = Literal["min_size", "max_size", "max_size_cycle", "sequential"]
Precision = Literal["no", "fp16", "bf16"]
Device = Literal["auto", "cpu", "cuda"]
Attention = Literal["sdpa", "eager", "flex_attention"]
ActionNormalisation = Literal["none", "min_max", "quantile"]
OnBadRecord = Literal["skip", "error"]
TextOnly = Literal["skip", "use"]
Schedule = Literal[
    "constant", "constant_with_warmup", "cosine", "cosine_with_restarts", "inverse_sqrt", "linear", "polynomial"
]


CODEBOOK_SIZE: Final = 8192
SPECIAL_TOKENS: Final = 10
VQ_STRIDE: Final = 16
"""Pixels along one side of an image that become one VQ token (four stride-2 convolutions)."""
ROBOT_INDEX: Final = "dataset_info.json"
MMU_INDEX: Final = "llava_v1_5_mix665k.json"


@dataclass
class Experiment:
    """The run: names, folders, and how often something is written (all intervals in optimizer steps; 0 = never)."""

    project: str = key("blockdiff-vla", "project name shown by the tracker")
    name: str = key("run", "name of this run in the tracker")
    output_dir: str = key(
        "outputs/run", "folder for config.yaml, logs/, checkpoint-<step>/ and the final model", path="other"
    )
    tracker: Tracker = key("tensorboard", "where metrics go")
    save_every: int = key(10000, "steps between checkpoints", at_least=0)
    eval_every: int = key(2500, "steps between evaluations on the validation data", at_least=0)
    generate_every: int = key(5000, "steps between logged answers and predicted frames", at_least=0)
    log_every: int = key(50, "steps between logged metrics", at_least=1)
    log_grad_norm_every: int = key(500, "steps between logged gradient norms", at_least=0)
    resume_from_checkpoint: str | int | Literal[False] = key(
        "latest",
        "false, latest (of output_dir, if there is one), a step number, or the path of a checkpoint",
        at_least=0,
        path="other",
        says="false, latest, a step number >= 0 or the path of a checkpoint",
    )
    checkpoints_total_limit: int | None = key(None, "checkpoints to keep; null = all", at_least=1)


@dataclass
class VQModel:
    """Image tokenizer: frames to codes and back; frozen."""

    type: Literal["magvitv2"] = key("magvitv2", "kind of image tokenizer")
    vq_model_name: str = key("showlab/magvitv2", "folder or hub id of the tokenizer", path="model")
    pretrained_model_path: str | None = key(
        None, "bare weights file (with or without a `model` key) used instead of the folder's weights", path="weights"
    )


@dataclass
class Showo:
    """Backbone: a causal language model whose vocabulary is grown by special tokens, image codes and the mask."""

    load_from_showo: bool = key(
        True,
        "start from pretrained_model_path (naming one on the command line sets this); false = from llm_model_path",
    )
    pretrained_model_path: str | None = key(
        "showlab/show-o-w-clip-vit-512x512",
        "folder, weights file or hub id of the Show-o / UP-VLA checkpoint; read if load_from_showo",
        path="model",
    )
    llm_model_path: str = key(
        "microsoft/phi-1_5",
        "folder or hub id of tokenizer and language model (no weights in it: random start)",
        path="model",
    )
    llm_backbone: str = key(
        "auto", "auto (as llm_model_path's config.json says), or its transformers type: phi, qwen3, ..."
    )
    trust_remote_code: bool = key(False, "let transformers run code that comes with llm_model_path")
    attn_implementation: Attention = key(
        "sdpa", "attention kernel: torch's fused one, plain matrix products, or tiles of a mask (GPU)"
    )
    auto_set_llm_vocab_size: bool = key(False, "take vocab_size and llm_vocab_size from the tokenizer")
    w_clip_vit: bool = key(True, "image questions see CLIP patches through the projector")
    clip_model_path: str = key(
        "openai/clip-vit-large-patch14-336", "folder or hub id of the frozen CLIP vision tower", path="model"
    )
    vocab_size: int = key(
        58498, "words + special tokens + image codes + 1 mask; ignored with auto_set_llm_vocab_size", at_least=1
    )
    llm_vocab_size: int = key(
        50295, "words in the tokenizer before additions; ignored with auto_set_llm_vocab_size", at_least=1
    )
    codebook_size: int = key(CODEBOOK_SIZE, "image codes", at_least=CODEBOOK_SIZE, at_most=CODEBOOK_SIZE)
    num_vq_tokens: int = key(1024, "codes per camera image: (resolution / 16) squared", at_least=1)
    num_new_special_tokens: int = key(
        SPECIAL_TOKENS, "special tokens added to the tokenizer", at_least=SPECIAL_TOKENS, at_most=SPECIAL_TOKENS
    )
    mask_logit_banned: bool = key(
        True, "text heads never predict the mask token (its logit is -inf); false = as upstream"
    )


@dataclass
class VLA:
    """The robot's side of the model."""

    num_view: int = key(1, "cameras: 1 = static, 2 = static + gripper", at_least=1, at_most=2)
    action_dim: int = key(7, "numbers of an action; the robot data must have as many", at_least=1)


@dataclass
class Model:
    """The networks."""

    framework: Framework = key(
        "upvla", "label of the recipe, of its log and config.yaml; the loss is training.text_objective's"
    )
    gradient_checkpointing: bool = key(
        True, "recompute activations in the backward pass: less memory, about a quarter more time"
    )
    vq_model: VQModel = field(default_factory=VQModel)
    showo: Showo = field(default_factory=Showo)
    vla: VLA = field(default_factory=VLA)


@dataclass
class TextDiffusion:
    """What masked diffusion (mdm) and block diffusion (bd) share."""

    prediction: Literal["shift", "aligned"] = key(
        "shift", "slot a token is read from: the one before it (as in AR), or its own"
    )
    weighting: Literal["nelbo", "uniform"] = key(
        "nelbo", "weights of masked tokens: exact likelihood bound, or plain mean"
    )
    ar_aux_weight: float = key(0.0, "weight of the AR loss on the clean answer, added to the text loss", at_least=0.0)


@dataclass
class BlockDiffusion:
    """Block diffusion of answers (text_objective bd) and, optionally, of actions."""

    text_enabled: bool = key(True, "block-diffuse answers; must be true for text_objective bd, unused otherwise")
    block_size: int = key(32, "tokens per block, counted from the start of the answer", at_least=1)
    elastic_block_enabled: bool = key(False, "draw the block size per sample from block_size_candidates")
    block_size_candidates: list[int] = key(
        [8, 16, 32, 64], "block sizes to draw from (or to pass through, see anneal_steps)", at_least=1
    )
    anneal_steps: int = key(
        0,
        "steps in which the block size grows through the smaller block_size_candidates to block_size; 0 = none",
        at_least=0,
    )
    mask_eps: float = key(0.001, "smallest mask ratio of a block", at_least=0.0, below=1.0)
    complementary_mask: bool = key(True, "a second noisy view masks what the first shows (bd and mdm)")
    action_enabled: bool = key(False, "also train block-diffusion actions beside the regression head")
    action_infer_enabled: bool = key(
        False,
        "act by decoding them in place of the regression head (written into the checkpoint; a model yaml may say "
        "otherwise); needs action_enabled",
    )
    action_coeff: float = key(1.0, "weight of their loss beside the regression's, times training.act_coeff", above=0.0)
    action_block_size: int = key(7, "action tokens per block; 7 is one time step", at_least=1)
    action_num_bins: int = key(256, "bins per action dimension over [-1, 1]", at_least=2, at_most=CODEBOOK_SIZE)
    action_conf_threshold: float = key(0.9, "decoding accepts action tokens above this probability", at_least=0.0)
    action_infer_steps: int = key(8, "most forwards per block of actions", at_least=1)


@dataclass
class TextMDM:
    """Masked diffusion of answers (text_objective mdm)."""

    min_mask_ratio: float = key(0.0, "lower end of the mask ratio", at_least=0.0, at_most=1.0)
    max_mask_ratio: float = key(
        1.0, "upper end; below 1 a fully masked answer is never trained", above=0.0, at_most=1.0
    )
    canvas_multiple: int = key(
        32,
        "answers are continued with end-of-text to a multiple of this many tokens, so their length is not given away",
        at_least=1,
    )


@dataclass
class DataParams:
    """Where the data lies and how it is read."""

    train_pre_shards_path_or_url: str = key(
        MISSING, f"robot demonstrations: folder with {ROBOT_INDEX}", path="dir", holds=ROBOT_INDEX
    )
    train_mmu_shards_path_or_url: str | None = key(
        None,
        f"image conversations: folder with {MMU_INDEX}; read unless dataset.und_type is null",
        path="dir",
        holds=MMU_INDEX,
    )
    train_mmu_sources: list[str] = key(
        [],
        f"several of them, mixed: folders with {MMU_INDEX}, or json files; read in place of "
        "train_mmu_shards_path_or_url",
        path="list",
        holds=MMU_INDEX,
    )
    train_mmu_weights: list[float] = key(
        [], "share of each of train_mmu_sources in an epoch, in any unit; [] = by their sizes", above=0.0
    )
    train_mmu_image_roots: list[str] = key(
        [],
        "folders that the images' paths start from: one, or one for each source; [] = the folder of each json",
        path="dir",
    )
    on_bad_record: OnBadRecord = key(
        "skip",
        "conversations that cannot be used (no such image, undecodable, no answer): left out and named, or"
        " an end of the run",
    )
    text_only: TextOnly = key("skip", "conversations without an image: left out and counted, or learned without one")
    validation_pre_shards_path_or_url: str | None = key(
        None, "held-out robot demonstrations for eval_every; null = none", path="dir", holds=ROBOT_INDEX
    )
    validation_mmu_shards_path_or_url: str | None = key(
        None, "held-out image conversations for eval_every; null = none", path="dir", holds=MMU_INDEX
    )
    num_workers: int = key(4, "loader processes per data set and rank; 0 = in the training process", at_least=0)
    resolution: int = key(
        512, "side of the square camera image in pixels; equals dataset.preprocessing.resolution", at_least=VQ_STRIDE
    )
    token_cache: str | Literal[False] = key(
        "auto",
        "image codes made by preprocess_data/tokenize_images.py, read in place of the robot's images: auto (from "
        "token_cache in the data, where there is one), false (encode images in the step), or a folder of caches",
        path="other",
    )
    clip_cache: str | Literal[False] = key(
        "auto",
        "CLIP's patches made by preprocess_data/clip_features.py, read in place of the conversations' images: auto "
        "(from clip_cache beside the json, where there is one), false (see images in the step), or a folder of them",
        path="other",
    )
    mask_action_padding: bool = key(False, "leave the padded actions at an episode's end out of the action loss")


@dataclass
class Preprocessing:
    """Sizes every sample is brought to."""

    max_seq_length: int = key(576, "text slots of a robot sequence (one more holds the task token)", at_least=8)
    resolution: int = key(512, "side of the square camera image in pixels, a multiple of 16", at_least=VQ_STRIDE)


@dataclass
class Augment:
    """Random changes of the robot's images, the same for a sample's frames now and later; all 0 = none."""

    crop: float = key(0.0, "largest share of the side that is cut off before resizing back", at_least=0.0, below=1.0)
    shift: float = key(0.0, "largest shift in shares of the side; the border is repeated", at_least=0.0, below=1.0)
    brightness: float = key(0.0, "largest relative change of brightness", at_least=0.0, at_most=1.0)
    contrast: float = key(0.0, "largest relative change of contrast", at_least=0.0, at_most=1.0)
    saturation: float = key(0.0, "largest relative change of saturation", at_least=0.0, at_most=1.0)


@dataclass
class Dataset:
    """The two data flows."""

    gen_type: Literal["future_view_prediction_w_action"] = key(
        "future_view_prediction_w_action", "kind of the robot flow"
    )
    und_type: Literal["llava_tuning"] | None = key(
        "llava_tuning", "kind of the multimodal flow; null = train without it"
    )
    combined_loader_mode: LoaderMode = key(
        "max_size_cycle",
        "an epoch ends with the shorter flow (min_size), or the longer (max_size, max_size_cycle restarts the other)",
    )
    params: DataParams = field(default_factory=DataParams)
    augment: Augment = field(default_factory=Augment)
    action_normalisation: ActionNormalisation = key(
        "none",
        "bring each action number into [-1, 1] by the training data's extremes, or by its 1st and 99th percentile",
    )
    preprocessing: Preprocessing = field(default_factory=Preprocessing)


@dataclass
class OptimizerParams:
    """AdamW's numbers."""

    learning_rate: float = key(1e-4, "peak learning rate", above=0.0)
    beta1: float = key(0.9, "decay of the first moment", at_least=0.0, below=1.0)
    beta2: float = key(0.999, "decay of the second moment", at_least=0.0, below=1.0)
    weight_decay: float = key(0.01, "decoupled weight decay; biases and norms are exempt", at_least=0.0)
    epsilon: float = key(1e-8, "added to the root of the second moment", above=0.0)


@dataclass
class Optimizer:
    """How weights move."""

    name: Literal["adamw", "adamw_8bit"] = key(
        "adamw", "adamw (torch's fused one), or adamw_8bit: moments in 8 bits, not 32 (needs the package bitsandbytes)"
    )
    params: OptimizerParams = field(default_factory=OptimizerParams)


@dataclass
class ScheduleParams:
    """Numbers of the learning-rate schedule."""

    warmup_steps: int = key(1000, "optimizer steps of linear warm-up from 0", at_least=0)
    num_cycles: float | None = key(
        None, "cosine: waves (null = half a wave); cosine_with_restarts: hard restarts", above=0.0
    )
    power: float = key(1.0, "polynomial: exponent", above=0.0)


@dataclass
class LRScheduler:
    """How the learning rate moves; it reaches its end at training.max_train_steps."""

    scheduler: Schedule = key("cosine", "schedule, by transformers' name")
    params: ScheduleParams = field(default_factory=ScheduleParams)


@dataclass
class LoRA:
    """Low-rank adapters in the backbone (peft): the backbone rests, small matrices beside its own are trained."""

    rank: int = key(0, "rank of the adapters; 0 = none, the backbone itself is trained", at_least=0)
    alpha: float | None = key(None, "adapters are scaled by alpha / rank; null = twice the rank", above=0.0)
    targets: list[str] = key(
        [], "linear layers of the backbone that get one, by the end of their name, e.g. [q_proj, v_proj]; [] = all"
    )
    train_fully: list[str] = key(
        ["projector.*", "action_head.*"],
        "names of parameters (* stands for anything) trained as a whole beside the adapters; "
        "all that lies outside the adapters and is not named here rests",
    )


@dataclass
class Training:
    """The losses and the loop."""

    text_objective: Objective = key("ar", "THE SWITCH: autoregressive, masked diffusion or block diffusion text loss")
    pre_coeff: float = key(1.0, "weight of the image (future frame) loss", at_least=0.0)
    mmu_coeff: float = key(0.1, "weight of the text loss", at_least=0.0)
    act_coeff: float = key(1.0, "weight of the action loss", at_least=0.0)
    batch_size_pre: int = key(4, "robot samples per micro-batch and process", at_least=1)
    batch_size_mmu: int = key(
        4, "conversations per micro-batch and process; unused when dataset.und_type is null", at_least=0
    )
    gradient_accumulation_steps: int = key(1, "micro-batches per optimizer step", at_least=1)
    mixed_precision: Precision = key("bf16", "arithmetic of the forward pass")
    enable_tf32: bool = key(True, "TF32 matrix products on NVIDIA GPUs")
    device: Device = key("auto", "auto takes a GPU if there is one")
    compile: bool = key(False, "torch.compile the backbone")
    length_multiple: int | None = key(
        None,
        "pad what is trained on to a multiple of so many slots; null = 128 with flex_attention, which is compiled for "
        "each length, else no padding",
        at_least=1,
    )
    freeze: list[str] = key(
        [], "names of parameters (* stands for anything) that are not trained, e.g. [backbone.lm.model.embed_tokens.*]"
    )
    ema_decay: float | None = key(
        None,
        "average the weights after every step with this decay (less at first: at most (1 + step) / (10 + step)); "
        "the average is evaluated, saved and acts; null = no average",
        above=0.0,
        below=1.0,
    )
    seed: int = key(10086, "seed of weights, data order and masks", at_least=0)
    max_train_steps: int = key(200000, "optimizer steps of the run", at_least=1)
    cond_dropout_prob: float = key(
        0.0, "share of robot samples whose instruction is emptied", at_least=0.0, at_most=1.0
    )
    label_smoothing: float = key(0.0, "label smoothing of the image loss", at_least=0.0, below=1.0)
    max_grad_norm: float | None = key(None, "clip the gradient to this norm; null = do not clip", above=0.0)
    explosion_factor: float | None = key(
        20.0,
        "stop when loss or gradient norm stay above this multiple of their running median; null = only if not finite",
        above=1.0,
    )


@dataclass
class Job:
    """One training run, complete. `config.load.load_job` makes it; nothing below reads a YAML file."""

    experiment: Experiment = field(default_factory=Experiment)
    model: Model = field(default_factory=Model)
    text_diffusion: TextDiffusion = field(default_factory=TextDiffusion)
    block_diffusion: BlockDiffusion = field(default_factory=BlockDiffusion)
    text_mdm: TextMDM = field(default_factory=TextMDM)
    dataset: Dataset = field(default_factory=Dataset)
    optimizer: Optimizer = field(default_factory=Optimizer)
    lora: LoRA = field(default_factory=LoRA)
    lr_scheduler: LRScheduler = field(default_factory=LRScheduler)
    training: Training = field(default_factory=Training)
    act_step: int = key(10, "T: actions per chunk, and distance in frames of the predicted future frame", at_least=1)
    mmu_image_root: str | None = key(
        None, "folder of images asked about at generate_every; null = from the data", path="dir"
    )
    question: str = key("Please describe this image.", "what is asked about them; several are split by ' *** '")
    max_new_tokens: int = key(100, "longest generated answer in tokens", at_least=1)
    config_path: str | None = field(default=None, compare=False, metadata={"hidden": True})
    """The file this job was read from; not a key."""
    default_validation: list[str] = field(default_factory=list, compare=False, metadata={"hidden": True})
    """Keys of validation data that came with other training data and were not chosen by the user; not a key."""
    without_effect: list[str] = field(default_factory=list, compare=False, metadata={"hidden": True})
    """Lines about keys of the command line that this run does not read; not a key."""
