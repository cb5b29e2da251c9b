"""The networks, data, optimizer and objective of a training run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.optim import Optimizer

from config.schema import Job
from models.objectives import TextObjective
from models.pretrained.adapters import Base, InitialWeights, only_trained
from models.pretrained.model_io import save_folder
from models.processing.text import Prompter
from models.upvla import UPVLA
from models.vision.clip_encoder import ClipTower
from models.vision.magvitv2 import MagVITv2
from training.checkpointing import trained_weights
from training.data.batch import RobotBatch, TextBatch
from training.data.dataloader import CotrainLoader, Flow
from training.grounding.targets import Sentence
from training.optim import lora
from training.optim.ema import EMA
from training.optim.optimizer import Schedule


@dataclass(frozen=True)
class Components:
    """The components of a training loop. Only ``model`` is trained; ``vq`` and ``clip`` are frozen.

    The trainer wraps ``model`` for its processes; the attribute stays the unwrapped network. ``data``: training data;
    ``validation_...``: validation data, None if there are none. ``ema``: average of the weights, if one is kept
    (``training.ema_decay``); ``frozen_hash``: digest of all weights that are not trained; ``base_hash``: of those that
    adapters are added to, if checkpoints hold adapters alone; ``sentences``: instructions that random scenes are
    combined with (``training.ground_coeff``).
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
    validation_robot: Flow[RobotBatch] | None = None
    validation_text: Flow[TextBatch] | None = None
    ema: EMA | None = None
    frozen_hash: str = ""
    base_hash: str = ""
    sentences: Sequence[Sentence] = ()
    validation_scenes: Flow[RobotBatch] | None = None

    def normalize_actions(self, actions: Tensor) -> Tensor:
        """Return actions [..., A] in the units that the network learns (``dataset.action_normalisation``)."""
        scale = self.model.spec.data.scale
        return actions if scale is None else scale.apply(actions)

    def denormalize_actions(self, actions: Tensor) -> Tensor:
        """Return predicted actions [..., A] in the units of the data set."""
        scale = self.model.spec.data.scale
        return actions if scale is None else scale.undo(actions)

    def save_model(
        self, path: Path, step: int, state: Mapping[str, Tensor] | None = None, adapters_only: bool = False
    ) -> None:
        """Write the folder that inference reads.

        It holds the average of the weights if there is one, with adapters merged (the adapters are also written as
        files of their own).

        Args:
            state: weights to write, if ``model`` holds only a shard of them.
            adapters_only: write adapters and trained parameters, without the frozen weights.
        """
        settings, exported = self.job.lora, dict(self.model.state_dict() if state is None else state)
        if self.ema is not None:
            exported |= self.ema.values
        if adapters_only:
            trained = (name for name, p in self.model.named_parameters() if p.requires_grad)
            base = Base(InitialWeights.of(self.job), self.base_hash, lora.scale(settings))
            kept = dict(only_trained(exported, trained))
            save_folder(self.model, self.prompter, path, kept, global_step=step, base=base)
            return
        if settings.rank > 0:
            showo = self.job.model.showo
            source = showo.pretrained_model_path if showo.load_from_showo else showo.llm_model_path
            lora.save_adapter(exported, settings, path / lora.ADAPTER_FOLDER, str(source))
        merged = lora.merged(exported, settings) if settings.rank > 0 else exported
        save_folder(self.model, self.prompter, path, merged, global_step=step)

    def save_trained_weights(self, folder: Path, state: Mapping[str, Tensor] | None = None) -> None:
        """Write the trained weights into ``folder`` if they differ from those that ``save_model`` writes."""
        if trained_weights.is_needed(self.job):
            now = dict(self.model.named_parameters()) if state is None else state
            trained = {name: now[name] for name, p in self.model.named_parameters() if p.requires_grad}
            average = {} if self.ema is None else self.ema.values
            trained_weights.write(folder, self.job.lora, trained, average, self.frozen_hash)
