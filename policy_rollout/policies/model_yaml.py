"""The model yaml: which checkpoint a policy uses, and with which frozen networks.

It has the keys of a training configuration (a run's own `config.yaml` can be used) and one more,
`model.showo.tuned_model_path`. What the checkpoint's folder declares need not be repeated; repeated values must agree.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.files import PROJECT_DIR, display, read_object
from config.cli_help import OBJECTIVE_OF
from config.identity import command_of_recipe, command_of_run, output_folder
from config.loading import read_into
from config.model_folders import looks_like_hub_id, require_model
from config.parsing import ConfigError, build, get, new_tree, shown
from config.schema import MISSING, VQ_STRIDE, Framework, Job, Objective
from policy_rollout.policies.interface import ACTION_DECODERS

if TYPE_CHECKING:  # errors in the file are found without torch
    from models.decoding import ActionDecoding
    from models.pretrained.model_config import ModelConfig
    from models.pretrained.model_io import UpstreamSettings
    from policy_rollout.policies.language_decoder import LanguageDecoding

CHECKPOINT_KEY = "model.showo.tuned_model_path"
MODEL_OPTIONS = "give a checkpoint (the output folder of a run, checkpoint-<step> or a hub id) or a model yaml"
DECODING_KEYS = ("action_conf_threshold", "action_infer_steps")
"""Keys of section `block_diffusion`, and fields of a checkpoint's description: how action tokens are decoded."""
FROM_TOKENIZER = ("model.showo.llm_vocab_size", "model.showo.vocab_size")
_TRAINING_ONLY = "dataset.params.train_pre_shards_path_or_url"


@dataclass(frozen=True)
class ModelYaml:
    """A parsed model yaml. `checkpoint`: an absolute path or a hub id. `given`: the dotted keys that the file sets; all
    other values of `job` are the schema's defaults."""

    path: Path
    checkpoint: str
    job: Job
    given: frozenset[str]

    def require_checkpoint(self) -> None:
        """Raise `ConfigError` if the checkpoint or a frozen network is missing locally. Needs no torch."""
        vq = self.job.model.vq_model
        require_model(CHECKPOINT_KEY, self.checkpoint, display(self.path))
        if vq.pretrained_model_path is None:
            require_model("model.vq_model.vq_model_name", located(vq.vq_model_name), display(self.path))

    @property
    def upstream(self) -> UpstreamSettings:
        """Settings from this file that the folder of an original checkpoint does not declare."""
        from models.pretrained.model_config import DecodingDefaults
        from models.pretrained.model_io import UpstreamSettings

        showo, text = self.job.model.showo, self.job.dataset.preprocessing
        named = "model.showo.llm_model_path" in self.given
        return UpstreamSettings(
            llm_model_path=located(showo.llm_model_path) if named else None,
            num_view=self.job.model.vla.num_view,
            max_seq_length=text.max_seq_length,
            resolution=text.resolution,
            mask_logit_banned=showo.mask_logit_banned,
            decoding=DecodingDefaults(
                text_objective=self._text_objective or "ar",
                text_prediction=self.job.text_diffusion.prediction,
                text_block_size=self.job.block_diffusion.block_size,
                text_canvas_multiple=self.job.text_mdm.canvas_multiple,
            ),
        )

    @property
    def _text_objective(self) -> Objective | None:
        """The file's text objective: the key itself, else that of the framework; None without either."""
        if "training.text_objective" in self.given:
            return self.job.training.text_objective
        return OBJECTIVE_OF[self.job.model.framework] if "model.framework" in self.given else None

    def decoding(
        self, spec: ModelConfig, folder: Path, decoder: str | None = None
    ) -> ActionDecoding | LanguageDecoding | None:
        """Return how action tokens or sentences are decoded; None if the regression head is used.

        ``decoder`` (one of ``ACTION_DECODERS``) overrides the file's ``block_diffusion.action_infer_enabled``; the
        default is that of the training run. Raises `ConfigError` for a checkpoint without action tokens.
        """
        settings = self.job.block_diffusion
        if decoder not in (None, *ACTION_DECODERS):
            raise ConfigError(f"action decoder {decoder!r} is unknown; allowed: {', '.join(ACTION_DECODERS)}")
        default = spec.decoding.action_decoder
        if "block_diffusion.action_infer_enabled" in self.given:
            default = ACTION_DECODERS[int(settings.action_infer_enabled)]
        if (decoder or default) == "regression":
            return None
        if decoder == "language":
            from policy_rollout.policies.language_decoder import LanguageDecoding

            return LanguageDecoding()
        if spec.decoding.action_bins is None:
            setting = f"block_diffusion.action_infer_enabled=true ({display(self.path)})"
            raise ConfigError(
                f"{setting if decoder is None else f'action decoder {decoder}'}: the checkpoint {folder} was not "
                "trained with block_diffusion.action_enabled=true; it has the regression head only"
            )
        from models.decoding import ActionDecoding

        given = {name for name in DECODING_KEYS if f"block_diffusion.{name}" in self.given}
        threshold, forwards = (getattr(settings if name in given else spec.decoding, name) for name in DECODING_KEYS)
        return ActionDecoding(threshold, forwards)

    def require_agreement(self, spec: ModelConfig, folder: Path) -> None:
        """Raise `ConfigError` at the first key of this file that contradicts the checkpoint's description."""
        self._require_framework(spec, folder)
        from_tokenizer = FROM_TOKENIZER if self.job.model.showo.auto_set_llm_vocab_size else ()
        for key, declared in declared_keys(spec).items():
            if key in self.given and key not in from_tokenizer and get(self.job, key) != declared:
                raise ConfigError(
                    f"{key}={shown(get(self.job, key))} ({display(self.path)}), but the checkpoint {folder} was made "
                    f"with {shown(declared)}; remove the key, or name another checkpoint in {CHECKPOINT_KEY}"
                )
        if spec.num_vq_tokens != (spec.resolution // VQ_STRIDE) ** 2:
            raise ConfigError(
                f"dataset.preprocessing.resolution={spec.resolution} ({display(self.path)}): the checkpoint {folder} "
                f"reads {spec.num_vq_tokens} codes per camera, which is a resolution of "
                f"{round(spec.num_vq_tokens**0.5) * VQ_STRIDE}"
            )

    def _require_framework(self, spec: ModelConfig, folder: Path) -> None:
        framework = self.job.model.framework
        if "model.framework" not in self.given or framework == spec.framework:
            return
        if "training.text_objective" in self.given and not spec.framework:
            return  # a checkpoint of an older version or of the original: the objective is compared instead
        if OBJECTIVE_OF[framework] != spec.decoding.text_objective:
            allowed = " or ".join(name for name, its in OBJECTIVE_OF.items() if its == spec.decoding.text_objective)
            raise ConfigError(
                f"model.framework={framework} ({display(self.path)}), but the checkpoint {folder} was trained with "
                f"training.text_objective={spec.decoding.text_objective} ({allowed}); remove the key, or name another "
                f"checkpoint in {CHECKPOINT_KEY}"
            )


def declared_keys(spec: ModelConfig) -> dict[str, Any]:
    """Return dotted config keys and their values in a checkpoint's description."""
    return {
        "act_step": spec.act_step,
        "model.vla.num_view": spec.num_view,
        "model.vla.action_dim": spec.action_dim,
        "model.vla.proprioception": spec.proprioception,
        "model.showo.num_vq_tokens": spec.num_vq_tokens,
        "model.showo.codebook_size": spec.codebook_size,
        "model.showo.llm_vocab_size": spec.words,
        "model.showo.vocab_size": spec.vocab.size,
        "model.showo.w_clip_vit": spec.clip_width is not None,
        "dataset.preprocessing.max_seq_length": spec.max_seq_length,
        "dataset.preprocessing.resolution": spec.resolution,
        "dataset.params.resolution": spec.resolution,
        "training.text_objective": spec.decoding.text_objective,
        "model.showo.mask_logit_banned": spec.mask_logit_banned,
        "model.showo.code_bits": spec.code_bits,
    } | {**_declared_of_answers(spec), **_declared_of_tokens(spec)}


def _declared_of_answers(spec: ModelConfig) -> dict[str, Any]:
    """Return the keys of answer decoding that the text objective uses."""
    read = {
        "ar": (),
        "mdm": ("text_diffusion.prediction", "text_mdm.canvas_multiple"),
        "bd": ("text_diffusion.prediction", "block_diffusion.block_size"),
    }
    values = {
        "text_diffusion.prediction": spec.decoding.text_prediction,
        "text_mdm.canvas_multiple": spec.decoding.text_canvas_multiple,
        "block_diffusion.block_size": spec.decoding.text_block_size,
    }
    return {key: values[key] for key in read.get(spec.decoding.text_objective, ())}


def _declared_of_tokens(spec: ModelConfig) -> dict[str, Any]:
    """Return the keys of block-diffusion actions."""
    enabled = {"block_diffusion.action_enabled": spec.decoding.action_bins is not None}
    if spec.decoding.action_bins is None:
        return enabled
    return enabled | {
        "block_diffusion.action_num_bins": spec.decoding.action_bins,
        "block_diffusion.action_block_size": spec.decoding.action_block_size,
    }


def load_model_yaml(path: str | Path | None, checkpoint: str | Path | None = None) -> ModelYaml:
    """Read a model yaml; `checkpoint` overrides its `model.showo.tuned_model_path`.

    Without a yaml, that of the checkpoint is read (`yaml_of`). Raises `ConfigError` in one line: no such file, unknown
    key, impossible value, no checkpoint named, or one that does not exist yet (with the command that makes it).
    """
    if path is None:
        if checkpoint is None:
            raise ConfigError(f"name a model: {MODEL_OPTIONS}")
        checkpoint = local_checkpoint(str(checkpoint))
        path = yaml_of(checkpoint)
    file = Path(located(path))
    if file.is_dir():
        raise ConfigError(f"model config {path}: is a folder; name the .yaml file in it")
    if not file.is_file():
        raise ConfigError(f"model config {path}: no such file; the project has policy_rollout/*_model.yaml")
    tree = new_tree()
    read_into(tree, file)
    named = tree.values.pop(CHECKPOINT_KEY, None)
    given = frozenset(tree.values)
    if _TRAINING_ONLY not in given:
        tree.set(_TRAINING_ONLY, "(not read by a policy)", "default")
    job = build(tree, also=(CHECKPOINT_KEY,))  # first: a mistyped key may be the one that is missing
    if checkpoint is None:
        if named in (None, "", MISSING) or not isinstance(named, str):
            raise ConfigError(
                f"{CHECKPOINT_KEY} has to be given in {display(file)}: the folder that training wrote "
                "(its output_dir, or a checkpoint-<step> in it)"
            )
        checkpoint = str(tree.interpolated(CHECKPOINT_KEY, named))
    start = f"{CHECKPOINT_KEY}={shown(located(checkpoint))} ({display(file)}): there is no such"
    _require_made(located(checkpoint), start, job.model.framework)
    return ModelYaml(path=file, checkpoint=located(checkpoint), job=job, given=given)


def yaml_of(checkpoint: Path) -> Path:
    """Return the model yaml of a local checkpoint.

    It is the `config.yaml` of its run, else the project's yaml for the framework that its `config.json` names, which is
    that of UP-VLA for checkpoints of the original.
    """
    config = run_config(checkpoint)
    if config is not None:
        return config
    patterns = ("config.json", "unwrapped_model/config.json", "checkpoint-*/unwrapped_model/config.json")
    found = [file for pattern in patterns for file in sorted(checkpoint.glob(pattern))]
    description = found[-1] if found else checkpoint.parent / "config.json"  # next to a weights file
    saved: Any = read_object(description).get("blockdiff_vla") if description.is_file() else None
    framework = saved.get("framework") if isinstance(saved, dict) else None
    file = PROJECT_DIR / "policy_rollout" / f"{framework or 'upvla'}_model.yaml"
    if not file.is_file():
        raise ConfigError(f"checkpoint {checkpoint}: {description} has the unknown framework {framework!r}")
    return file


def run_config(checkpoint: Path) -> Path | None:
    """Return the `config.yaml` of the run that a checkpoint belongs to, or None."""
    for folder in (checkpoint, *checkpoint.parents[:2]):
        if (folder / "config.yaml").is_file():
            return folder / "config.yaml"
    return None


def local_checkpoint(checkpoint: str) -> Path:
    """Return the local path of a checkpoint, downloaded if it is a hub id. Raises `ConfigError`."""
    path = Path(located(checkpoint))
    if not path.exists():
        _require_made(checkpoint, f"checkpoint {checkpoint}: there is no such", "bdvla")
        from models.pretrained.weights_io import resolve_model_dir  # imports torch

        try:
            path = resolve_model_dir(checkpoint, key="checkpoint")
        except ValueError as error:
            raise ConfigError(str(error)) from None
    return path


def _require_made(checkpoint: str, start: str, framework: Framework) -> None:
    """Raise `ConfigError` with the command that makes the checkpoint if it is a local path and not there yet."""
    path = Path(checkpoint).expanduser()
    if path.exists():
        return
    output = output_folder(path)
    steps = sorted(folder.name for folder in output.glob("checkpoint-*"))
    if output != path and steps:
        raise ConfigError(f"{start} checkpoint; {output} has {', '.join(steps)}")
    command = command_of_run(output)
    if command is not None:
        raise ConfigError(f"{start} checkpoint yet; make it with: {command}")
    in_folder = path.parent.name == "outputs" or Path(located(path.parent)).is_dir()
    if not looks_like_hub_id(checkpoint) or in_folder:
        raise ConfigError(
            f"{start} checkpoint; give an existing path or a hub id (org/name), or train one, for example with: "
            f"{command_of_recipe(framework, output)}"
        )


def located(path: str | Path) -> str:
    """Return the absolute path of a file in the current folder, else in the project's; a hub id unchanged."""
    for folder in (Path.cwd(), PROJECT_DIR):
        candidate = folder / os.path.expanduser(path)
        if candidate.exists():
            return str(candidate.resolve())
    return str(path)
