"""The model yaml: which checkpoint acts, and with which frozen networks around it.

It is written with the keys of a training configuration (a run's own `config.yaml` serves) and one more,
`model.showo.tuned_model_path`. What the checkpoint's folder says about itself need not be repeated; where it is
repeated it has to agree.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from config.build import build, get, new_tree
from config.files import PROJECT_DIR, display, read_into
from config.help import OBJECTIVE_OF
from config.knob import MISSING
from config.model_folders import require_model
from config.run_lookup import command_of_recipe, command_of_run, output_folder
from config.schema import VQ_STRIDE, Job, Objective
from config.values import ConfigError, shown
from policy_rollout.policies.interface import ACTION_DECODERS

if TYPE_CHECKING:  # a mistake in the file is found without torch
    from models.decoding import ActionDecoding
    from models.pretrained.model_config import ModelConfig
    from models.pretrained.model_io import UpstreamSettings

CHECKPOINT_KEY = "model.showo.tuned_model_path"
DECODING_KEYS = ("action_conf_threshold", "action_infer_steps")
"""Of the section `block_diffusion` and of a checkpoint's description: how action tokens are decoded."""
_FROM_TOKENIZER = ("model.showo.llm_vocab_size", "model.showo.vocab_size")
_TRAINING_ONLY = "dataset.params.train_pre_shards_path_or_url"


@dataclass(frozen=True)
class ModelYaml:
    """`checkpoint`: a path (absolute) or hub id. `given`: the dotted keys that the file sets; the rest of `job` is
    the schema's defaults."""

    path: Path
    checkpoint: str
    job: Job
    given: frozenset[str]

    def require_checkpoint(self) -> None:
        """Raise `ConfigError` if the checkpoint or a frozen network is certainly not there. Needs no torch."""
        vq = self.job.model.vq_model
        require_model(CHECKPOINT_KEY, self.checkpoint, display(self.path))
        if vq.pretrained_model_path is None:
            require_model("model.vq_model.vq_model_name", located(vq.vq_model_name), display(self.path))

    @property
    def upstream(self) -> UpstreamSettings:
        """What an original checkpoint's folder leaves open, answered by this file."""
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
        """What the file says of the text objective: the key itself, else by the framework; None if it has neither."""
        if "training.text_objective" in self.given:
            return self.job.training.text_objective
        return OBJECTIVE_OF[self.job.model.framework] if "model.framework" in self.given else None

    def decoding(self, spec: ModelConfig, folder: Path, wish: str | None = None) -> ActionDecoding | None:
        """How action tokens are decoded, None where the regression head acts. ``wish`` (one of ``ACTION_DECODERS``)
        stands in for the file's ``block_diffusion.action_infer_enabled``. What neither says is as the training run had
        it.

        Raises `ConfigError` for a checkpoint that never learned action tokens.
        """
        settings = self.job.block_diffusion
        if wish not in (None, *ACTION_DECODERS):
            raise ConfigError(f"action decoder {wish!r} is unknown; allowed: {', '.join(ACTION_DECODERS)}")
        decoder = spec.decoding.action_decoder
        if "block_diffusion.action_infer_enabled" in self.given:
            decoder = ACTION_DECODERS[int(settings.action_infer_enabled)]
        if (wish or decoder) == ACTION_DECODERS[0]:
            return None
        if spec.decoding.action_bins is None:
            asked = f"block_diffusion.action_infer_enabled=true ({display(self.path)})"
            raise ConfigError(
                f"{asked if wish is None else f'action decoder {wish}'}: the checkpoint {folder} was not trained with "
                "block_diffusion.action_enabled=true; it acts by its regression head alone"
            )
        from models.decoding import ActionDecoding

        given = {name for name in DECODING_KEYS if f"block_diffusion.{name}" in self.given}
        threshold, forwards = (getattr(settings if name in given else spec.decoding, name) for name in DECODING_KEYS)
        return ActionDecoding(threshold, forwards)

    def require_agreement(self, spec: ModelConfig, folder: Path) -> None:
        """Raises `ConfigError` at the first key of this file that contradicts what the checkpoint says of itself."""
        self._require_framework(spec, folder)
        from_tokenizer = _FROM_TOKENIZER if self.job.model.showo.auto_set_llm_vocab_size else ()
        for key, declared in _declared(spec).items():
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
            return  # of an older version or the original: the objective decides, and is compared itself
        if OBJECTIVE_OF[framework] != spec.decoding.text_objective:
            fitting = " or ".join(name for name, its in OBJECTIVE_OF.items() if its == spec.decoding.text_objective)
            raise ConfigError(
                f"model.framework={framework} ({display(self.path)}), but the checkpoint {folder} was trained with "
                f"training.text_objective={spec.decoding.text_objective} ({fitting}); remove the key, or name another "
                f"checkpoint in {CHECKPOINT_KEY}"
            )


def _declared(spec: ModelConfig) -> dict[str, Any]:
    """Dotted config keys and the values that a checkpoint's description gives them."""
    return {
        "act_step": spec.act_step,
        "model.vla.num_view": spec.num_view,
        "model.vla.action_dim": spec.action_dim,
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
    } | {**_declared_of_answers(spec), **_declared_of_tokens(spec)}


def _declared_of_answers(spec: ModelConfig) -> dict[str, Any]:
    """Of how answers are decoded, as far as the objective reads it."""
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
    """Of block-diffusion actions; a checkpoint without has nothing to say of them but that."""
    learned = {"block_diffusion.action_enabled": spec.decoding.action_bins is not None}
    if spec.decoding.action_bins is None:
        return learned
    return learned | {
        "block_diffusion.action_num_bins": spec.decoding.action_bins,
        "block_diffusion.action_block_size": spec.decoding.action_block_size,
    }


def load_model_yaml(path: str | Path, checkpoint: str | Path | None = None) -> ModelYaml:
    """Read a model yaml; `checkpoint` stands in for its `model.showo.tuned_model_path`.

    Raises `ConfigError` in one line: no such file, unknown key, impossible value, no checkpoint named, or one that is
    not there yet (with the command that makes it).
    """
    file = Path(located(path))
    if file.is_dir():
        raise ConfigError(f"model config {path}: is a folder; name the .yaml file in it")
    if not file.is_file():
        raise ConfigError(f"model config {path}: no such file; the project has policy_rollout/*_model.yaml")
    tree = new_tree()
    read_into(tree, file)
    showo = tree.values.get("model", {})
    showo = showo.get("showo", {}) if isinstance(showo, dict) else {}
    named = showo.pop("tuned_model_path", None) if isinstance(showo, dict) else None
    given = frozenset(_dotted(tree.values))
    if _TRAINING_ONLY not in given:
        tree.set(_TRAINING_ONLY, "(not read when acting)", "default")
    job = build(tree, also=(CHECKPOINT_KEY,))  # first: a mistyped key may be the one that is missing
    if checkpoint is None:
        if named in (None, "", MISSING) or not isinstance(named, str):
            raise ConfigError(
                f"{CHECKPOINT_KEY} has to be given in {display(file)}: the folder that training wrote "
                "(its output_dir, or a checkpoint-<step> in it)"
            )
        checkpoint = str(tree.interpolated(CHECKPOINT_KEY, named))
    _require_made(located(checkpoint), job, file)
    return ModelYaml(path=file, checkpoint=located(checkpoint), job=job, given=given)


def _require_made(checkpoint: str, job: Job, file: Path) -> None:
    """Raise `ConfigError` with the command that makes the checkpoint if it is a local path and not there yet."""
    path = Path(checkpoint).expanduser()
    if path.exists():
        return
    start, output = f"{CHECKPOINT_KEY}={shown(checkpoint)} ({display(file)}): there is no such", output_folder(path)
    steps = sorted(folder.name for folder in output.glob("checkpoint-*"))
    if output != path and steps:
        raise ConfigError(f"{start} checkpoint; {output} has {', '.join(steps)}")
    command = command_of_run(output)
    if command is not None:
        raise ConfigError(f"{start} checkpoint yet; make it with: {command}")
    if checkpoint.startswith((".", "~", "/")) or checkpoint.count("/") != 1:
        raise ConfigError(
            f"{start} checkpoint; give an existing path or a hub id (org/name), or train one, for example with: "
            f"{command_of_recipe(job.model.framework, output)}"
        )


def located(path: str | Path) -> str:
    """A path seen from the current folder, else from the project's, made absolute; a hub id as it is."""
    for folder in (Path.cwd(), PROJECT_DIR):
        candidate = folder / os.path.expanduser(path)
        if candidate.exists():
            return str(candidate.resolve())
    return str(path)


def _dotted(tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _dotted(value, f"{prefix}{name}.")
        else:
            yield prefix + name
