"""The original's ways to act, to evaluate offline and to answer, with its arithmetic and our words: what the package's
are compared with.

    acting    instruction padded to its limit, logits of every slot over the whole vocabulary, two images decoded
    offline   the same without the images, one sample at a time; a file is opened for the image and for each action
    answers   one question at a time, a forward over everything for each word, logits of every slot; no cache
    blocks    the same for blocks of masks, which the original cannot decode

Rules: ``docs/from_upstream.md``.

Legend: L slots, V vocabulary, N image codes, T actions, n slots of a block, P patches.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.processing.image import fit, normalise, to_uint8
from models.processing.text import Prompter
from models.sequence import pad_left
from models.upvla import UPVLA
from models.vision.magvitv2 import MagVITv2
from tests.benchmarks.naive_step import _hidden, _logits, additive, chat_mask, encode, robot_mask


@dataclass(frozen=True)
class Naive:
    """The networks and how an instruction is padded."""

    model: UPVLA
    vq: MagVITv2
    prompter: Prompter

    @torch.inference_mode()
    def rollout_step(
        self, picture: NDArray[np.uint8], instruction: str, images: int = 2
    ) -> tuple[NDArray[np.float32], Tensor, list[NDArray[np.uint8]]]:
        """(actions [T, 7], codes [1, N] of the frame to come, uint8 [R, R, 3] of the frame now and of that to come).

        ``images``: the last ones of the frames alone; 0 decodes none.
        """
        actions, now, later = self._look(picture, instruction)
        decoded = (now, later)[2 - images :]
        return actions, later, [to_uint8(self.vq.decode(c))[0].permute(1, 2, 0).cpu().numpy() for c in decoded]

    @torch.inference_mode()
    def offline_sample(
        self, folder: Path, start: int, horizon: int, instruction: str
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(predicted, recorded) actions, both [horizon, 7]."""
        with np.load(folder / f"episode_{start:07d}.npz") as file:
            picture = file["rgb_static"]
        recorded = []
        for frame in range(start, start + horizon):
            with np.load(folder / f"episode_{frame:07d}.npz") as file:
                recorded.append(file["rel_actions"])
        return self._look(picture, instruction)[0][:horizon], np.stack(recorded).astype(np.float32)

    def _look(self, picture: NDArray[np.uint8], instruction: str) -> tuple[NDArray[np.float32], Tensor, Tensor]:
        model, vocab, device = self.model, self.model.vocab, self.model.device
        pixels = normalise(torch.from_numpy(fit(picture, model.spec.resolution)[None]).to(device))
        (now,) = encode(self.vq, [pixels])  # [1, N]
        text = pad_left([self.prompter.instruction(instruction)], vocab.pad, model.spec.max_seq_length + 1).to(device)

        def column(token: int, width: int = 1) -> Tensor:
            return torch.full((1, width), token, device=device)

        act_step = model.spec.act_step
        ids = torch.cat(
            [text, column(vocab.soi), vocab.code_ids(now), column(vocab.eoi), column(vocab.lvg, act_step)], dim=1
        )
        hidden = _hidden(model, model.backbone.embed(ids), additive(robot_mask(ids, vocab)))
        logits = _logits(model, hidden)  # [1, L, V]
        image = logits[:, text.shape[1] + 1 : -act_step - 1, vocab.first_code : vocab.mask]
        later = image.argmax(dim=-1)
        actions: NDArray[np.float32] = model.action_head(hidden[:, -act_step:])[0].float().cpu().numpy()
        return actions, now, later

    @torch.inference_mode()
    def answer(self, question: str, patches: Tensor, words: int) -> list[int]:
        """The likeliest word, so many times; ``patches`` [1, P, C]."""
        said = list[int]()
        for _ in range(words):
            logits = self._read(question, patches, said, [])
            said.append(int(logits[-1, : self.model.vocab.words].argmax()))
        return said

    @torch.inference_mode()
    def answer_in_blocks(self, question: str, patches: Tensor, words: int, size: int, at_once: int) -> list[int]:
        """Blocks of ``size`` masks, the ``at_once`` surest words of each forward kept; a word is read from the slot
        before it. The last block may be cut."""
        vocab, said = self.model.vocab, list[int]()
        while len(said) < words:
            block = [vocab.mask] * size
            useful = range(min(size, words - len(said)))
            while hidden := [slot for slot in useful if block[slot] == vocab.mask]:
                logits = self._read(question, patches, said, block)[-size - 1 : -1, : vocab.words]  # [n, words]
                sure, likeliest = logits.softmax(dim=-1).max(dim=-1)
                for slot in sorted(hidden, key=lambda slot: (-float(sure[slot]), slot))[:at_once]:
                    block[slot] = int(likeliest[slot])
            said += block[: len(useful)]
        return said

    def _read(self, question: str, patches: Tensor, said: list[int], block: list[int]) -> Tensor:
        """[L, V] logits of one forward over prompt, words said so far and a block that sees itself whole."""
        model, vocab = self.model, self.model.vocab
        assert model.projector is not None
        head = [vocab.mmu, *self.prompter.system_ids, vocab.soi]
        hole = [vocab.pad] * patches.shape[1]
        ids = torch.tensor(
            [[*head, *hole, vocab.eoi, *self.prompter.question(question), *said, *block]], device=model.device
        )
        embeds = model.backbone.embed(ids)
        seen = model.projector(patches)
        embeds = torch.cat([embeds[:, : len(head)], seen, embeds[:, len(head) + seen.shape[1] :]], dim=1)
        mask = chat_mask(ids, patches.shape[1]).clone()
        if block:
            mask[:, -len(block) :] = True
        return _logits(model, _hidden(model, embeds, additive(mask)))[0]
