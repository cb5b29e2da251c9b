"""The original's training step, with its arithmetic and our words: what the package's step is compared with.

    main forward   [robot rows; chat rows], all of one fixed length, logits of every slot, over the whole vocabulary
    mdm            one more forward over the words of the robot's rows, one over those of the chat rows
    bd             the same with [noisy | clean] rows, twice: the complementary copy follows as rows of its own

Frames are encoded inside the step, a call for each moment, with the losses of the codebook that nobody reads; CLIP runs
through its last layer. Rules: ``docs/from_upstream.md``. The losses of the main forward are those of the package. Those
of the extra passes are the original's own: they see no image, diffuse the instruction too, and count positions on.
(A pass for each view that computes the package's own text loss is ``naive_text.py``.)

Legend: B robot rows, C chat rows, L slots of the main forward, l words of a row, M text slots, N codes, T actions.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPVisionModel
from transformers.activations import ACT2FN

from models.sequence import pad_left, pad_right
from models.upvla import UPVLA
from models.vision.magvitv2 import MagVITv2
from models.vocabulary import Vocabulary
from preprocess_data.tiny_assets.lfq_loss import codebook_losses

NOBODY = -100
RATIOS = (0.15, 0.60)
EPS = 1e-3
PATCHES_FROM = 30  # <|mmu|>, 28 words of the system prompt, <|soi|>


@dataclass(frozen=True)
class TextPass:
    """One extra forward over words alone: ``ids`` [R, l], ``labels`` [R, l] (``NOBODY``: not scored; as long as the
    half that is scored), ``mask`` [1, 1, l, l] additive."""

    ids: Tensor
    labels: Tensor
    mask: Tensor


@dataclass(frozen=True)
class Rows:
    """What one step reads. ``robot`` [B, L] with ``targets`` [B, L] at the image span, ``chat`` [C, L] with ``labels``
    [C, L], ``mask`` [B + C, 1, L, L] additive; ``patches`` [C, P, W]; ``actions`` [B, T, A]; ``words``: the clean words
    of either flow and which of them may be hidden, both [R, l]."""

    robot: Tensor
    targets: Tensor
    chat: Tensor
    labels: Tensor
    mask: Tensor
    patches: Tensor
    actions: Tensor
    words: tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]


def slow_model(model: UPVLA) -> UPVLA:
    """The same weights under the activation as the original computes it (Phi's ``gelu_new``, term by term)."""
    slow = copy.deepcopy(model)
    for module in slow.backbone.modules():
        if hasattr(module, "activation_fn"):
            module.activation_fn = ACT2FN["gelu_new"]
    return slow


@torch.no_grad()
def encode(vq: MagVITv2, moments: Sequence[Tensor]) -> list[Tensor]:
    """Frames of each moment [B, 3, R, R] in [-1, 1] -> codes [B, N]; what training a tokenizer needs comes along."""
    found = []
    for pixels in moments:
        latent = vq.latent(pixels)
        found.append(vq.quantize.codes(latent).flatten(1))
        codebook_losses(latent)  # thrown away
    return found


@torch.no_grad()
def see(tower: CLIPVisionModel, pixels: Tensor) -> Tensor:
    """[C, P, W]: hidden states before the last layer, which runs too."""
    features: Tensor = tower(pixel_values=pixels, output_hidden_states=True).hidden_states[-2]
    return features[:, 1:]


def rows_of(
    vocab: Vocabulary,
    instructions: Sequence[Sequence[int]],
    now: Tensor,
    later: Tensor,
    actions: Tensor,
    system: Sequence[int],
    conversations: Sequence[Sequence[int]],
    answers: Sequence[Sequence[bool]],
    patches: Tensor,
    max_seq_length: int,
) -> Rows:
    """Both flows at the fixed length M + 1 + N + 2 + T."""
    device = now.device
    text = pad_left(instructions, vocab.pad, max_seq_length + 1).to(device)  # [B, M + 1]

    def row(codes: Tensor) -> Tensor:
        def column(token: int, width: int = 1) -> Tensor:
            return torch.full((len(codes), width), token, device=device)

        ends = column(vocab.soi), vocab.code_ids(codes), column(vocab.eoi), column(vocab.lvg, actions.shape[1])
        return torch.cat([text, *ends], dim=1)

    robot, targets = row(now), row(later)
    length = robot.shape[1]
    head = [vocab.mmu, *system, vocab.soi]
    room = length - len(head) - patches.shape[1] - 1
    words = pad_right(conversations, vocab.pad, room).to(device)
    answer = pad_right([[int(a) for a in one] for one in answers], 0, room).bool().to(device)
    start = torch.tensor(head, device=device).expand(len(words), -1)
    end = torch.full_like(words[:, :1], vocab.eoi)
    hole = torch.full_like(words[:, :1], vocab.pad).expand(-1, patches.shape[1])
    chat = torch.cat([start, hole, end, words], dim=1)
    nobody = torch.full_like(chat[:, : -words.shape[1]], NOBODY)
    learned = torch.where(answer, words, NOBODY)
    real = torch.ones_like(text).bool()
    real[:, 0] = False
    return Rows(
        robot=robot,
        targets=targets,
        chat=chat,
        labels=torch.cat([nobody, learned], dim=1),
        mask=additive(torch.cat([robot_mask(robot, vocab), chat_mask(chat, patches.shape[1])])),
        patches=patches,
        actions=actions,
        words=(
            (text, real & (text != vocab.pad)),
            (torch.cat([start, end, words], dim=1), F.pad(answer, (len(head) + 1, 0))),
        ),
    )


def robot_mask(ids: Tensor, vocab: Vocabulary) -> Tensor:
    """[B, L, L], True attends: causal over what is no padding; from soi to eoi everything that is none."""
    columns = torch.arange(ids.shape[1], device=ids.device)
    q, k = columns[:, None], columns[None]
    leading = (ids == vocab.pad).sum(1)[:, None, None]
    in_image = ((ids == vocab.soi).cumsum(1) - (ids == vocab.eoi).cumsum(1) + (ids == vocab.eoi).long()).bool()
    return torch.where(q < leading, k <= q, (k >= leading) & ((k <= q) | in_image[:, :, None]))


def chat_mask(ids: Tensor, patches: int) -> Tensor:
    """[C, L, L], True attends: causal, and everybody sees the image."""
    columns = torch.arange(ids.shape[1], device=ids.device)
    q, k = columns[:, None], columns[None]
    seen = (k <= q) | ((k >= PATCHES_FROM) & (k < PATCHES_FROM + patches))
    return seen.expand(len(ids), -1, -1)


def additive(mask: Tensor) -> Tensor:
    """[R, l, l] -> [R, 1, l, l] of 0 and the lowest number."""
    return torch.zeros(mask.shape, device=mask.device).masked_fill_(~mask, torch.finfo(torch.float32).min)[:, None]


def masked_pass(ids: Tensor, hidden: Tensor, mask_id: int) -> TextPass:
    """``mdm``: hidden words [R, l] are shown as the mask; all slots see all, padding too."""
    length = ids.shape[1]
    everything = torch.zeros(1, 1, length, length, device=ids.device)
    return TextPass(torch.where(hidden, mask_id, ids), torch.where(hidden, ids, NOBODY), everything)


def block_pass(ids: Tensor, hidden: Tensor, may_hide: Tensor, size: int, mask_id: int) -> TextPass:
    """``bd``: rows [noisy | clean], then those that hide the rest of what may be hidden; blocks from column 0."""
    hidden, twice = torch.cat([hidden, may_hide & ~hidden]), torch.cat([ids, ids])
    offset = torch.arange(ids.shape[1], device=ids.device)
    block = torch.cat([offset, offset]) // size
    noisy = torch.arange(2 * ids.shape[1], device=ids.device) < ids.shape[1]
    q, k, q_noisy, k_noisy = block[:, None], block[None], noisy[:, None], noisy[None]
    own = q_noisy & k_noisy & (q == k)
    past = q_noisy & ~k_noisy & (k < q)
    clean = ~q_noisy & ~k_noisy & (k <= q)
    shown = torch.cat([torch.where(hidden, mask_id, twice), twice], dim=1)
    return TextPass(shown, torch.where(hidden, twice, NOBODY), additive((own | past | clean)[None]))


def text_passes(objective: str, rows: Rows, mask_id: int, size: int, draw: torch.Generator) -> list[TextPass]:
    """The extra forwards of an objective, with its draws."""
    found = []
    for ids, may_hide in rows.words if objective != "ar" else ():
        u = torch.rand(ids.shape, generator=draw).to(ids.device)
        if objective == "mdm":
            ratio = RATIOS[0] + (RATIOS[1] - RATIOS[0]) * torch.rand(len(ids), 1, generator=draw).to(ids.device)
            found.append(masked_pass(ids, (u < ratio) & may_hide, mask_id))
        else:
            level = torch.rand(len(ids), -(-ids.shape[1] // size), generator=draw).to(ids.device)
            ratio = ((1 - EPS) * level + EPS).repeat_interleave(size, dim=1)[:, : ids.shape[1]]
            found.append(block_pass(ids, (u < ratio) & may_hide, may_hide, size, mask_id))
    return found


def main_losses(model: UPVLA, rows: Rows) -> dict[str, Tensor]:
    """Means of the losses of the one forward over both flows: ``image``, ``action``, ``text`` (next token)."""
    batch, act_step = len(rows.robot), rows.actions.shape[1]
    assert model.projector is not None
    embeds = model.backbone.embed(torch.cat([rows.robot, rows.chat]))  # [B + C, L, D]
    seen = model.projector(rows.patches)
    chat = torch.cat(
        [embeds[batch:, :PATCHES_FROM], seen, embeds[batch:, PATCHES_FROM + rows.patches.shape[1] :]], dim=1
    )
    hidden = _hidden(model, torch.cat([embeds[:batch], chat]), rows.mask)
    logits = _logits(model, hidden)  # [B + C, L, V]
    span = slice(rows.robot.shape[1] - act_step - int(model.spec.num_image_tokens) - 2, -act_step)
    image = F.cross_entropy(logits[:batch, span].flatten(0, 1), rows.targets[:, span].flatten())
    predicted = model.action_head(hidden[:batch, -act_step:])
    text = F.cross_entropy(logits[batch:, :-1].flatten(0, 1), rows.labels[:, 1:].flatten(), ignore_index=NOBODY)
    return {"image": image, "action": F.mse_loss(predicted, rows.actions), "text": text}


def text_loss(model: UPVLA, one: TextPass) -> Tensor:
    """Mean cross-entropy of the hidden words of one extra forward; a word is read from the slot before it."""
    hidden = _hidden(model, model.backbone.embed(one.ids), one.mask)
    logits = _logits(model, hidden)[:, : one.labels.shape[1]]
    return F.cross_entropy(
        logits[:, :-1].flatten(0, 1), one.labels[:, 1:].flatten(), ignore_index=NOBODY, reduction="sum"
    ) / (one.labels[:, 1:] != NOBODY).sum().clamp_min(1)


def losses(model: UPVLA, rows: Rows, passes: Sequence[TextPass]) -> dict[str, Tensor]:
    """All losses of a step. ``learned``: the text loss that counts; next token where there are no extra forwards, or
    else the mean over them (the next-token loss is then computed all the same, to be logged)."""
    found = main_losses(model, rows)
    terms = [text_loss(model, one) for one in passes]
    return {**found, "learned": torch.stack(terms).mean() if terms else found["text"]}


def _hidden(model: UPVLA, embeds: Tensor, mask: Tensor) -> Tensor:
    positions = torch.arange(embeds.shape[1], device=embeds.device).expand(len(embeds), -1)
    out = model.backbone.lm.base_model(
        inputs_embeds=embeds, attention_mask=mask.to(embeds.dtype), position_ids=positions, use_cache=False
    )
    hidden: Tensor = out.last_hidden_state
    return hidden


def _logits(model: UPVLA, hidden: Tensor) -> Tensor:
    head: nn.Linear = model.backbone.lm.get_output_embeddings()
    logits: Tensor = head(hidden).float()
    return logits
