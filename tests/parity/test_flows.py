"""Robot flow, mmu flow, prompting, greedy answers and one optimizer step equal the original's, to rounding."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from common.files import PROJECT_DIR
from models.decoding import generate
from models.pretrained.model_io import load_folder, save_folder, to_disk_names
from models.sequence import future_targets, pad_right, robot_sequence
from models.upvla import RobotTask
from scripts.dev.key_list import summarize
from tests.parity.flows import (
    LOSS,
    STATES_CLOSE,
    close,
    conversations,
    quotes_a_role,
    read_json,
    robot,
    text_task,
    upstream,
    upstream_settings,
)

pytestmark = pytest.mark.parity


def test_instructions_become_the_same_ids_labels_and_masks(parity: Path) -> None:
    arrays, texts = np.load(parity / "prompting.npz"), read_json(parity / "prompting_text.json")
    built = upstream(parity, max_seq_length=texts["max_text_len"])
    prompter, vocab = built.prompter, built.model.vocab
    ids = read_json(parity / "ids.json")
    assert (vocab.words, vocab.first_code, vocab.mask, vocab.size) == (
        ids["llm_vocab_size"],
        ids["image_code_offset"],
        ids["mask_token_id"],
        ids["vocab_size"],
    )
    for token, value in ids["special"].items():
        if token in ("<|sot|>", "<|eot|>", "<|pad|>"):
            assert value == {"<|sot|>": vocab.bos, "<|eot|>": vocab.eos, "<|pad|>": vocab.pad}[token]
        else:
            assert value == vocab.special(token)
    for sentence, expected in texts["all_calvin_validation"].items():
        assert prompter.instruction(sentence)[2:-1] == expected[: prompter.max_seq_length - 2], sentence

    codes = vocab.codes(torch.tensor(arrays["image_ids"]))
    width = texts["max_text_len"] + 1
    rows = [prompter.instruction(text) for text in texts["instructions"]]
    sequence = robot_sequence(vocab, rows, codes, built.spec.act_step, width)
    assert_array_equal(sequence.ids.numpy(), arrays["pre_ids"])
    assert_array_equal(sequence.ids.numpy(), arrays["pre_gen_ids"])
    valid = sequence.slots.valid.numpy()
    # Rows of padding are causal there and attend themselves alone here; nobody reads what they compute.
    assert_array_equal(sequence.rule.dense(sequence.slots)[:, 0].numpy()[valid], arrays["allow_mask_pre"][valid])
    assert sequence.image is not None
    targets = future_targets(vocab, vocab.codes(torch.tensor(arrays["target_ids"])))
    assert_array_equal(targets.numpy(), arrays["pre_labels"][:, sequence.image.columns])
    dropped = robot_sequence(vocab, [prompter.no_instruction()] * len(rows), codes, built.spec.act_step, width)
    assert_array_equal(dropped.ids.numpy(), arrays["dropped_ids"])


@pytest.mark.parametrize("views", [1, 2])
def test_the_robot_flow_has_the_same_losses_actions_and_future_codes(parity: Path, views: int) -> None:
    built = upstream(parity)
    model = built.model
    for pad in (True, False):  # the original's fixed width, and trimmed to the longest row
        sequence, arrays = robot(parity, views, built, pad)
        valid = sequence.slots.valid
        width = sequence.ids.shape[1]
        assert_array_equal(sequence.ids.numpy(), arrays["input_ids"][:, -width:])
        mask = sequence.rule.dense(sequence.slots)[:, 0].numpy()
        assert_array_equal(mask[valid.numpy()], arrays["allow_mask"][:, -width:, -width:][valid.numpy()])
        hidden = model.hidden_states(sequence)
        close(hidden[valid], arrays["last_hidden"][:, -width:][valid.numpy()])
        task = RobotTask(
            sequence,
            future_targets(model.vocab, torch.tensor(arrays["codes_future"])),
            torch.tensor(arrays["actions"]),
        )
        image, action = model.robot_losses(task)
        assert_allclose(image.mean.item(), arrays["loss_pre"], rtol=LOSS)
        assert_allclose(action.mean.item(), arrays["loss_act"], rtol=LOSS)
        prediction = model.predict(sequence, want_codes=True)
        close(prediction.actions, arrays["predict_actions"])
        close(prediction.actions, arrays["action_prediction"])
        assert prediction.codes is not None
        assert_array_equal(prediction.codes.numpy(), arrays["predicted_future_codes"])
        if pad:
            positions = torch.tensor(arrays["logits_positions"])
            at_valid = valid[:, positions]
            logits = model.backbone.logits(hidden[:, positions])
            close(logits[at_valid], arrays["logits_at_positions"][at_valid.numpy()])
            close(model.embed(sequence)[:, :4], arrays["hidden_layer0_in"])
            assert sequence.actions is not None
            close(model.action_head.pool(hidden[:, sequence.actions.columns]), arrays["map_pooled"])


def test_conversations_become_the_same_ids_and_labels(parity: Path) -> None:
    prompter = upstream(parity).prompter
    arrays, texts = np.load(parity / "mmu.npz"), read_json(parity / "mmu_text.json")
    assert prompter.system_prompt == texts["system_prompt"]
    assert texts["conversations"]
    for index, turns in enumerate(texts["conversations"]):
        assert_array_equal(prompter.system_ids, arrays[f"item{index}_input_ids_system"])
        row = prompter.conversation([(turn["from"], turn["value"]) for turn in turns])
        assert_array_equal(row.ids, arrays[f"item{index}_input_ids"])
        expected = arrays[f"item{index}_labels"]
        if quotes_a_role(turns) and (expected == -100).all():
            assert any(row.answer)
        else:
            assert_array_equal([i if answer else -100 for i, answer in zip(row.ids, row.answer, strict=True)], expected)


def test_the_mmu_flow_has_the_same_embeddings_mask_logits_and_loss(parity: Path) -> None:
    built = upstream(parity)
    model = built.model
    arrays, spans = np.load(parity / "mmu.npz"), read_json(parity / "mmu_text.json")["segments"]
    expected_ids = arrays["collated_input_ids"]
    padded = pad_right(conversations(parity, built).ids.tolist(), model.vocab.pad, expected_ids.shape[1])
    assert_array_equal(padded.numpy(), expected_ids)

    task = text_task(parity, built)
    sequence = task.sequence
    rows, width = sequence.ids.shape
    valid = sequence.slots.valid
    expected_mask = np.broadcast_to(arrays["allow_mask"][:width, :width], (rows, width, width))[valid.numpy()]
    ours = sequence.rule.dense(sequence.slots)[:, 0].numpy()[valid.numpy()]
    keys = np.repeat(valid.numpy()[:, None], width, axis=1)[valid.numpy()]
    assert_array_equal(ours[keys], expected_mask[keys])  # padding keys are never attended here
    loss, nats = model.text_loss(task)
    assert_allclose(loss.mean.item(), arrays["loss_mmu"], rtol=LOSS)
    assert_allclose(nats.mean.item(), arrays["loss_mmu_f64"], rtol=LOSS)
    embeds = model.embed(sequence)
    head, tail = arrays["embeddings_head"], arrays["embeddings_tail"]
    first, end = spans["clip"]
    close(embeds[:, : head.shape[1]], head)
    # The tail begins with the last patches; what the original pads beyond our longest row is not there here.
    start = end - 2
    close(embeds[:, start : start + tail.shape[1]], tail[:, : width - start])
    close(embeds[:, first : first + arrays["projected_first4"].shape[1]], arrays["projected_first4"])
    close(embeds[:, end - arrays["projected_last4"].shape[1] : end], arrays["projected_last4"])
    text = spans["text"][0]
    recorded = [0, spans["soi"][0], first, end - 1, spans["eoi"][0], text, text + 3]
    logits, expected = model.backbone.logits(model.hidden_states(sequence)[:, recorded]), arrays["logits_first64_at"]
    at_valid = valid[:, recorded]
    close(logits[..., : expected.shape[-1]][at_valid], expected[at_valid.numpy()])


def test_one_combined_step_has_the_same_losses_and_gradients(parity: Path) -> None:
    """Losses, every gradient norm, and weights after one AdamW step of the combined ar step."""
    built = upstream(parity, max_seq_length=read_json(parity / "mmu_text.json")["max_text_len"])
    model = built.model.train().requires_grad_(True)
    arrays, expected = np.load(parity / "step_ar.npz"), read_json(parity / "steps.json")["ar"]
    sequence, actions_of = robot(parity, 1, built, pad=False)
    future = RobotTask(
        sequence,
        future_targets(model.vocab, torch.tensor(actions_of["codes_future"])),
        torch.tensor(actions_of["actions"]),
    )
    losses = model(future, text_task(parity, built))
    assert_allclose(losses.image.mean.item(), arrays["loss_pre"], rtol=LOSS)
    assert_allclose(losses.action.mean.item(), arrays["loss_act"], rtol=LOSS)
    assert_allclose(losses.text.mean.item(), arrays["loss_text"], rtol=LOSS)
    weights = expected["coefficients"]
    total = (
        weights["pre"] * losses.image.mean + weights["act"] * losses.action.mean + weights["text"] * losses.text.mean
    )
    assert_allclose(total.item(), expected["total"], rtol=LOSS)
    total.backward()
    parameters = to_disk_names(dict(model.named_parameters()))
    for name, norm in expected["grad_norms"].items():
        gradient = parameters[name].grad
        assert (gradient is None) == (norm is None), name
        if gradient is not None:
            assert_allclose(gradient.norm().item(), norm, rtol=1e-4, atol=1e-7, err_msg=name)
    for key in arrays.files:
        if key.startswith("grad::"):
            gradient = parameters[key[len("grad::") :]].grad
            assert gradient is not None
            close(gradient, arrays[key], STATES_CLOSE)
    groups = read_json(parity / "optimizer_groups.json")  # the original's groups; ours exempt norms too
    settings = expected["optimizer"]
    optimizer = torch.optim.AdamW(
        [
            {"params": [parameters[name] for name in groups["decay"]], "weight_decay": settings["weight_decay"]},
            {"params": [parameters[name] for name in groups["no_decay"]], "weight_decay": 0.0},
        ],
        lr=settings["lr"],
        betas=tuple(settings["betas"]),
        eps=settings["eps"],
    )
    optimizer.step()
    for key in arrays.files:
        if key.startswith("stepped::"):
            name = key[len("stepped::") :]
            # Adam's first step is lr * sign(gradient): where the true gradient is zero (a key bias that rotary
            # embeddings do not touch shifts every score alike) the sign is rounding noise on both sides.
            real = np.abs(arrays[f"grad::{name}"]) > 1e-6
            assert real.any()
            close(parameters[name][torch.tensor(real)], arrays[key][real], STATES_CLOSE)


def test_greedy_answers_are_the_same_tokens(parity: Path) -> None:
    built = upstream(parity)
    arrays, texts = np.load(parity / "generate.npz"), read_json(parity / "generate_text.json")
    question = texts["prompt"].removeprefix("USER: ").removesuffix(" ASSISTANT:")
    patches = torch.tensor(np.load(parity / "mmu.npz")["clip_features"][:1])  # the recorded answers are about image 0
    system = built.prompter.system_ids
    for name, ids in (("with_system", system), ("no_system", [])):
        built.prompter.system_ids = list(ids)
        expected = arrays[f"{name}_tokens"].tolist()
        ask = partial(
            generate, built.model, built.prompter, [question], patches, max_new_tokens=len(expected), words_only=False
        )
        answer = ask()
        said = answer.ids[0]
        assert said == expected[: len(said)]
        # Ours ends at the model's own end-of-text; the original was asked for so many tokens whatever they are.
        assert len(said) == len(expected) or said[-1] == built.model.vocab.eos
        assert answer.stats.forwards == len(said)
        stopped = ask(stop=int(arrays[f"{name}_stop_token"]))
        assert stopped.ids[0] == arrays[f"{name}_tokens_with_stop"].tolist()


def test_the_original_run_folder_loads_by_every_name_and_survives_a_round_trip(parity: Path, tmp_path: Path) -> None:
    """Every way to name the original's run gives the same weights, and our folder gives them back."""
    run = parity / "ckpt/upvla_run"
    settings = upstream_settings(parity)
    reference = load_folder(run, upstream=settings)
    weights = reference.model.state_dict()
    saved = sorted(run.glob("checkpoint-*"))
    assert saved
    paths = [*saved, *(step / "unwrapped_model" for step in saved), run / "pytorch_model.bin"]
    for path in paths:
        other = load_folder(path, upstream=settings).model.state_dict()
        assert all(torch.equal(weights[name], other[name]) for name in weights), path
    save_folder(reference.model, reference.prompter, tmp_path / "ours")
    ours = load_folder(tmp_path / "ours")
    again = ours.model.state_dict()
    assert set(again) == set(weights)
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    assert ours.spec == reference.spec
    assert ours.prompter.instruction("open the drawer") == reference.prompter.instruction("open the drawer")


def test_real_size_models_have_the_released_names_and_shapes(parity: Path) -> None:
    """Names and shapes at real size, on the meta device: Phi-1.5 with action head, and Qwen3-1.7B."""
    from transformers import PhiConfig, Qwen3Config

    from models.language_model import Backbone
    from models.pretrained.model_config import ModelConfig
    from models.upvla import UPVLA

    def listing(file: str) -> dict[str, str]:
        lines = (parity / "keys" / file).read_text(encoding="utf-8").splitlines()
        rows = [line.split("\t") for line in lines]
        return {row[0]: row[1].replace(" ", "") for row in rows if "." in row[0]}

    phi = PhiConfig(hidden_size=2048, num_hidden_layers=24, num_attention_heads=32, intermediate_size=8192)
    with torch.device("meta"):
        model = UPVLA(
            ModelConfig(
                llm=phi.to_dict(), words=50295, bos=50256, eos=50256, act_step=10, num_view=1, num_vq_tokens=1024,
                clip_width=1024,
            )
        )  # fmt: skip
    ours = {
        name: str(list(tensor.shape)).replace(" ", "") for name, tensor in to_disk_names(model.state_dict()).items()
    }
    assert ours == listing("upvla_phi15.tsv")
    assert sum(parameter.numel() for parameter in model.parameters()) == 1_525_947_592

    qwen = Qwen3Config(
        vocab_size=151936, hidden_size=2048, num_hidden_layers=28, num_attention_heads=16, num_key_value_heads=8,
        head_dim=128, intermediate_size=6144, tie_word_embeddings=True,
    )  # fmt: skip
    with torch.device("meta"):
        backbone = Backbone(qwen, 151936)
    ours = {name: str(list(tensor.shape)).replace(" ", "") for name, tensor in backbone.lm.state_dict().items()}
    expected = listing("qwen3_1p7b_hf.tsv")
    assert {name: ours[name] for name in expected} == expected
    assert set(ours) - set(expected) <= {"lm_head.weight"}  # tied


def test_the_recipe_for_the_public_checkpoint_has_the_sizes_and_checksums_of_the_key_lists(parity: Path) -> None:
    page = (PROJECT_DIR / "docs" / "import_upvla.md").read_text(encoding="utf-8")
    for name, kept in (("upvla_phi15", ""), ("upvla_phi15", "showo"), ("magvitv2", "")):
        lines = (parity / "keys" / f"{name}.tsv").read_text().splitlines()
        rows = [line.split("\t") for line in lines if "." in line.split("\t")[0]]
        shapes = {row[0]: json.loads(row[1]) for row in rows}
        if kept:
            shapes = {key: shape for key, shape in shapes.items() if not key.startswith(("token_learner", "to_logits"))}
        count, numbers, digest = summarize(shapes)
        assert f"| {count} | {numbers:,} | {4 * numbers:,} | `{digest}` |" in page
