"""Whole small runs of the entry point: they learn, they write what they promise, and they take the step they should."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train_upvla
from config.loading import ConfigError
from config.schema import MMU_INDEX
from models.pretrained.model_io import load_folder
from models.upvla import UPVLA
from tests.training.runs import Outcome, forget_processes, same
from tests.training.world import argv

Start = Callable[..., Outcome]


def test_the_losses_fall_when_little_data_is_seen_often(run: Start) -> None:
    curves = run(training__max_train_steps=18, training__batch_size_pre=4, lr_scheduler__scheduler="constant")
    for tag, factor in (("image/loss", 0.97), ("action/loss", 0.5), ("text/loss", 0.8), ("total/loss", 0.9)):
        values = curves.curve(tag)
        assert len(values) == 18
        assert sum(values[-4:]) / 4 < factor * values[0], tag
    last = curves.metrics[-1]
    assert last["total/loss"] == pytest.approx(last["image/loss"] + last["action/loss"] + last["text/loss"], rel=1e-5)
    assert last["text/nats_per_token"] == last["text/loss"]


def test_two_micro_batches_of_two_take_the_step_of_one_batch_of_four(run: Start) -> None:
    # Conversations differ in length, so a mean of the micro-batches' means would be another number.
    # (Epsilon keeps Adam from turning the rounding noise of a zero gradient into a full step.)
    whole = run("whole", training__batch_size_pre=4, training__batch_size_mmu=4, optimizer__params__epsilon=1e-3)
    halves = run("halves", training__gradient_accumulation_steps=2, optimizer__params__epsilon=1e-3)
    for tag in ("image/loss", "action/loss", "text/loss", "total/loss", "grad_norm"):
        assert halves.curve(tag) == pytest.approx(whole.curve(tag), rel=2e-5), tag
    assert same(whole.weights(), halves.weights(), tolerance=2e-5)
    less = run("less", optimizer__params__epsilon=1e-3)
    assert not same(whole.weights(), less.weights(), tolerance=2e-5)


def test_coefficients_weigh_the_losses(run: Start) -> None:
    record = run(training__pre_coeff=0.5, training__act_coeff=2, training__mmu_coeff=0.25).metrics[0]
    expected = 0.5 * record["image/loss"] + 2 * record["action/loss"] + 0.25 * record["text/loss"]
    assert record["total/loss"] == pytest.approx(expected, rel=1e-5)


def test_the_checkpoint_has_the_format_of_the_contract(run: Start) -> None:
    done = run(training__max_train_steps=3, experiment__save_every=2, experiment__tracker="tensorboard")
    assert {p.name for p in done.folder.iterdir()} == {
        "checkpoint-2",
        "checkpoint-3",
        "config.yaml",
        "README.md",
        "config.json",
        "model.safetensors",
        "tokenizer",
        "logs",
        "metrics.jsonl",
        "status.json",
    }
    for step in (2, 3):
        folder = done.folder / f"checkpoint-{step}"
        assert {p.name for p in folder.iterdir()} == {"unwrapped_model", "training_state", "metadata.json"}
        assert '"global_step": ' + str(step) in (folder / "metadata.json").read_text()
    assert same(done.weights(), done.weights(3))
    assert not same(done.weights(2), done.weights(3))
    # Everything acting needs: the folder loads by itself.
    assert load_folder(done.folder / "checkpoint-3").spec.act_step == load_folder(done.folder).spec.act_step == 4


def test_the_resolved_config_alone_starts_the_same_run(run: Start, world: Path, tmp_path: Path) -> None:
    first = run("first", training__seed=3)
    forget_processes()
    again = tmp_path / "again"
    train_upvla.main("ar", [f"config={first.folder / 'config.yaml'}", f"experiment.output_dir={again}"])
    assert same(first.weights(), Outcome(again).weights())


def test_tensorboard_shows_losses_rates_answers_and_future_frames(run: Start, world: Path) -> None:
    done = run(
        experiment__tracker="tensorboard",
        experiment__eval_every=2,
        experiment__generate_every=2,
        dataset__params__validation_pre_shards_path_or_url=world / "robot_validation",
        dataset__params__validation_mmu_shards_path_or_url=world / "chat",
        mmu_image_root=world / "chat",
        model__vla__num_view=2,
    )
    events = EventAccumulator(str(done.folder / "logs"))
    events.Reload()
    trained = {"loss/total", "loss/image", "loss/action", "loss/text", "optim/lr", "optim/grad_norm"}
    rates = {f"speed/{name}" for name in ("samples_per_s", "tokens_per_s", "step_s", "data_wait_share")}
    rates |= {f"speed/{name}" for name in ("model_tflops", "mfu", "peak_memory_gb")}
    validated = {f"loss_val/{name}" for name in ("image", "action", "text", "action_mae")}
    details = {
        f"details/text_{name}" for name in ("answer_tokens", "supervised_tokens", "accuracy", "perplexity_bound")
    }
    names = ("accuracy", "answer_tokens", "nats_error", "perplexity_bound", "picture_gap", "scored_per_answer_token")
    details |= {f"details_val/text_{name}" for name in names} | {"details_val/colour_action_change"}
    assert trained | rates | validated | details == set(events.Tags()["scalars"])
    assert "custom_scalars__config__" in events.Tags()["tensors"]
    (image,) = events.Images("future/now_predicted_true")[:1]
    assert image.width == 3 * 128 + 2 * 4 + 2 * 8  # now, predicted, true, with gaps and margins
    assert image.height > 4 * 2 * 128  # 4 samples of 2 views
    assert events.Images("answers/blue/image")[0].height > 256
    (answers,) = [r for r in done.metrics if "answers/blue" in r]
    assert answers["answers/blue"].count("**") == 4
    assert "**Which colour is it?**" in answers["answers/blue"]
    assert "**Is it red?**" in answers["answers/blue"]


def test_a_run_learns_from_several_sources_and_logs_their_content(
    run: Start, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = [{"from": "human", "value": "What is red?"}, {"from": "gpt", "value": "A colour."}]
    words = tmp_path / "words"
    words.mkdir()
    (words / MMU_INDEX).write_text(json.dumps([{"conversations": output}] * 3 + [{"image": "gone.png"}]))
    done = run(
        dataset__params__train_mmu_sources=f"[{world / 'chat'}, {words / MMU_INDEX}]",
        dataset__params__train_mmu_weights="[1, 3]",
        dataset__params__text_only="use",
        dataset__params__validation_mmu_shards_path_or_url=words,
        experiment__eval_every=2,
        experiment__generate_every=2,
    )
    message = capsys.readouterr().out
    assert "2 sources, an epoch is " in message
    assert "left out: 1 without a question and answer in turn [. 1]: record 3 'gone.png'" in message
    assert " passes) from " in message
    assert message.count(f"{MMU_INDEX}: 4 records, 3 usable [no image 3]") == 2  # trained on, and held out
    assert all(math.isfinite(record["text/loss"]) for record in done.metrics if "text/loss" in record)
    assert any("validation/text/nats_per_token" in record for record in done.metrics)
    assert not any("validation/text/picture_gap" in record for record in done.metrics)  # held-out: words alone


def test_without_a_folder_of_images_the_data_is_asked_about_with_its_own_answers(run: Start) -> None:
    done = run(experiment__generate_every=2)
    output = {tag: text for record in done.metrics for tag, text in record.items() if tag.startswith("answers/")}
    assert len(output) == 4
    assert "**Which colour is it?**" in output["answers/picture-0"]
    assert re.search(r"\*\(in the data: It is red\.\)\* (right|wrong)\n", output["answers/picture-0"])
    assert "**Is it red?**" in output["answers/picture-0"]


def test_a_folder_without_images_is_reported_at_start(run: Start, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"mmu_image_root=.*holds no image"):
        run(experiment__generate_every=2, mmu_image_root=tmp_path / "empty")
    assert not (tmp_path / "run").exists()


def test_an_unreadable_image_to_ask_about_is_reported_at_start(run: Start, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(b"no image")
    with pytest.raises(ConfigError, match=r"mmu_image_root=.*a\.png cannot be decoded as an image"):
        run(experiment__generate_every=2, mmu_image_root=tmp_path / "pictures")
    assert not (tmp_path / "run").exists()


def test_a_damaged_held_out_frame_ends_the_run_with_its_name(run: Start, world: Path, tmp_path: Path) -> None:
    held_out = tmp_path / "held_out"
    shutil.copytree(world / "robot_validation", held_out)
    frame = sorted(held_out.rglob("*.npz"))[1]
    frame.write_bytes(frame.read_bytes()[:100])
    with pytest.raises(SystemExit, match=f"{frame.name} cannot be read"):
        run(experiment__eval_every=1, dataset__params__validation_pre_shards_path_or_url=held_out)


def test_an_output_folder_that_cannot_be_made_is_a_line_and_no_traceback(run: Start) -> None:
    with pytest.raises(ConfigError, match=r"experiment\.output_dir=/proc/runs.* cannot be written to"):
        run(experiment__output_dir="/proc/runs/one")


def test_pred_tuning_leaves_the_action_head_as_it_was(run: Start) -> None:
    before = run("before", training__max_train_steps=1, training__act_coeff=0, optimizer__params__learning_rate=1e-12)
    after = run("after", training__max_train_steps=2, training__act_coeff=0)
    assert "action/loss" not in after.metrics[0]
    moved = {name for name, tensor in after.weights().items() if not torch.allclose(tensor, before.weights()[name])}
    assert not [name for name in moved if name.startswith(("token_learner", "to_logits"))]
    assert [name for name in moved if name.startswith("mm_projector")]


def test_without_the_mmu_flow_the_projector_rests_and_clip_is_not_needed(run: Start, tmp_path: Path) -> None:
    done = run(
        dataset__und_type="null",
        model__showo__w_clip_vit="false",
        dataset__params__train_mmu_shards_path_or_url="null",
    )
    assert "text/loss" not in done.metrics[0]
    assert done.metrics[0]["action/loss"] > 0
    assert not [name for name in done.weights() if name.startswith("mm_projector")]


@pytest.mark.parametrize("mode", ["max_size", "sequential"])
def test_flows_may_take_turns(run: Start, mode: str) -> None:
    done = run(training__max_train_steps=9, dataset__combined_loader_mode=mode)
    has_text = ["text/loss" in record for record in done.metrics]
    assert any(has_text)
    assert not all(has_text)


def test_bf16_trains_close_to_fp32(run: Start) -> None:
    full = run("full", training__max_train_steps=3)
    half = run("half", training__max_train_steps=3, training__mixed_precision="bf16")
    assert half.curve("total/loss") == pytest.approx(full.curve("total/loss"), rel=0.02)
    assert half.curve("total/loss") != full.curve("total/loss")
    assert all(tensor.dtype == torch.float32 for tensor in half.weights().values())


def test_fp16_without_a_gpu_is_refused_in_one_line(run: Start) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ConfigError, match=r"training\.mixed_precision"):
        run(training__mixed_precision="fp16")


def test_gradient_checkpointing_recomputes_and_changes_no_number(run: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0
    seen = UPVLA.hidden_states

    def counting(self: UPVLA, *args: object, **kwargs: object) -> torch.Tensor:
        layer = self.backbone.lm.model.layers[0].self_attn
        if not hasattr(layer, "counted"):
            layer.counted = True

            def count(*_: object) -> None:
                nonlocal calls
                calls += 1

            layer.register_forward_pre_hook(count)
        return seen(self, *args, **kwargs)

    monkeypatch.setattr(UPVLA, "hidden_states", counting)
    plain = run("plain", training__max_train_steps=1)
    without, calls = calls, 0
    saved = run("saved", training__max_train_steps=1, model__gradient_checkpointing="true")
    assert (without, calls) == (2, 4)  # two flows; each layer runs again in the backward pass
    assert same(plain.weights(), saved.weights(), tolerance=1e-6)


def test_clipping_bounds_the_step(run: Start) -> None:
    free = run("free", training__max_train_steps=1)
    clipped = run("clipped", training__max_train_steps=1, training__max_grad_norm=1e-9, optimizer__params__epsilon=1.0)
    assert clipped.curve("grad_norm") == free.curve("grad_norm")  # the norm before clipping is what is logged
    start = train_start(run)
    # With epsilon 1 AdamW's step is about lr times the gradient: nothing but decay is left of it.
    assert same(clipped.weights(), start, tolerance=1e-4)
    assert not same(free.weights(), start, tolerance=1e-4)


def train_start(run: Start) -> dict[str, torch.Tensor]:
    return run("start", training__max_train_steps=1, optimizer__params__learning_rate=1e-12).weights()


def test_data_workers_change_no_number(run: Start) -> None:
    assert run("none").curve("total/loss") == run("one", dataset__params__num_workers=1).curve("total/loss")


def test_a_loss_that_is_not_finite_stops_the_run_with_its_step(run: Start, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run(
            training__max_train_steps=30,
            experiment__log_every=10,
            experiment__save_every=1,
            optimizer__params__learning_rate=1e30,
        )
    message = str(stop.value)
    assert "is not finite" in message
    assert "checkpoint-" in message
    step = int(message.split("the loss of step ")[1].split()[0])
    assert 1 < step < 10
    assert f"checkpoint-{step}" not in message


def test_label_smoothing_changes_only_the_image_loss(run: Start) -> None:
    plain, smooth = run("plain").metrics[0], run("smooth", training__label_smoothing=0.1).metrics[0]
    assert smooth["image/loss"] != plain["image/loss"]
    assert smooth["action/loss"] == plain["action/loss"]
    assert smooth["text/loss"] == plain["text/loss"]


def test_the_learning_rate_logged_is_the_schedules(run: Start) -> None:
    done = run(training__max_train_steps=5, lr_scheduler__params__warmup_steps=2)
    cosine = [0.5 * (1 + math.cos(math.pi * i / 3)) for i in range(3)]
    assert done.curve("lr") == pytest.approx([0.003 * factor for factor in (0.0, 0.5, *cosine)])


def test_an_objective_given_to_another_script_names_the_right_one(world: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train_blockdiff_vla\.py"):
        train_upvla.main("ar", argv(world, tmp_path / "out", "training.text_objective=bd"))


def test_data_that_is_missing_or_wrong_is_reported_at_start(run: Start, tmp_path: Path, world: Path) -> None:
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "dataset_info.json").write_text('[{"instruction": "go", "frames": []}]')
    with pytest.raises(ConfigError, match=r"dataset_info\.json.*frame"):
        run(dataset__params__train_pre_shards_path_or_url=bad)
    with pytest.raises(ConfigError, match="num_vq_tokens"):
        run(model__showo__num_vq_tokens=9)
    with pytest.raises(ConfigError, match="holds a CLIP model; expected a language model"):
        run(model__showo__llm_model_path=world / "clip")
    assert not (tmp_path / "run").exists()
