"""The commands around offline evaluation, typed as the contract writes them."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

import train_upvla
from config.schema import Job
from policy_rollout.policies.model_yaml import load_model_yaml
from preprocess_data import tokenize_images
from scripts import eval_upvla_offline_actions, prepare_calvin_debug_processed, smoke_upvla_minimal
from scripts import summarize_offline_eval_json as summarize
from tests.policy.recorded_play import WINDOWS
from tests.policy.saved_model import write_model, write_tokenizer_of_images
from tests.tiny import write_language_model
from training.data.calvin import CalvinSplit
from training.data.dataset_spec import write_contract

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"), act_step=4)


def evaluate(split_dir: Path, *options: str) -> int:
    return eval_upvla_offline_actions.main(["--dataset-root", str(split_dir.parent), "--split", "validation", *options])


def test_an_evaluation_writes_its_figures_with_all_that_is_needed_to_repeat_it(split_dir, model, tmp_path, capsys):
    out = tmp_path / "results" / "out.json"
    options = ["--model-config", str(model), "--device", "cpu", "--stride", "4", "--clip-action"]
    assert evaluate(split_dir, *options, "--output-json", str(out)) == 0
    result = json.loads(out.read_text())
    assert result["overall"]["samples"] == result["counts"]["samples"] == 3 + 1 + 4
    assert result["counts"]["samples_without_max_samples"] == 3 + 1 + 4
    assert set(result["counts"]) >= {"clipped_actions", "cut_instructions", "samples_with_cut_instruction"}
    assert set(result["per_task"]) == {"lift_red", "open_drawer"}
    assert sum(task["steps"] for task in result["per_task"].values()) == result["overall"]["steps"]
    assert result["settings"]["clip_action"] is True
    assert result["settings"]["stride"] == 4
    assert len(result["policy"]["weights_sha256"]) == 64
    assert result["policy"]["checkpoint"].endswith("checkpoint-3/unwrapped_model")
    assert result["policy"]["act_step"] == 4
    assert result["versions"]["torch"]
    assert [path.name for path in out.parent.iterdir()] == ["out.json"]
    assert "open_drawer" in capsys.readouterr().out


def test_an_evaluation_from_the_token_cache_opens_no_frame_and_has_the_same_figures(
    split_dir, model, tmp_path, capsys, monkeypatch
):
    options = ["--model-config", str(model), "--device", "cpu", "--stride", "3"]
    assert evaluate(split_dir, *options, "--output-json", str(tmp_path / "pictures.json")) == 0
    (tmp_path / "caches").mkdir()
    options += ["--token-cache", str(tmp_path / "caches")]
    assert evaluate(split_dir, *options) == 2
    told = capsys.readouterr().err
    command = shlex.split(told.partition("Make it: ")[2])
    assert command[:2] == ["python", "preprocess_data/tokenize_images.py"]
    assert tokenize_images.main(command[2:]) == 0
    monkeypatch.setattr(CalvinSplit, "frame", lambda *given: pytest.fail("a frame was opened"))
    assert evaluate(split_dir, *options, "--output-json", str(tmp_path / "codes.json")) == 0
    images, codes = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("pictures", "codes"))
    assert codes["overall"] == pytest.approx(images["overall"], rel=1e-6)
    assert codes["settings"]["token_cache"] == str(tmp_path / "caches")


def test_a_token_cache_of_another_tokenizer_or_for_a_baseline_is_refused(split_dir, model, tmp_path, capsys):
    other = write_tokenizer_of_images(make_folder(tmp_path / "other"), seed=1)
    words = ["--data", str(split_dir), "--tokenizer", str(other), "--resolution", "32", "--device", "cpu"]
    assert tokenize_images.main([*words, "--output", str(tmp_path / "caches")]) == 0
    capsys.readouterr()
    assert evaluate(split_dir, "--model-config", str(model), "--token-cache", str(tmp_path / "caches")) == 2
    assert "made by a tokenizer of other weights (other)" in capsys.readouterr().err
    assert evaluate(split_dir, "--baseline", "zero", "--token-cache", str(tmp_path / "caches")) == 2
    assert "a baseline reads no images" in capsys.readouterr().err


def make_folder(path: Path) -> Path:
    path.mkdir()
    return path


@pytest.fixture(scope="module")
def model_with_tokens(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("model_with_tokens"), act_step=4, action_bins=16)


def test_the_decoder_of_actions_is_chosen_and_recorded_with_its_cost(split_dir, model_with_tokens, tmp_path, capsys):
    base = ["--model-config", str(model_with_tokens), "--device", "cpu", "--stride", "4"]
    results = {}
    for decoder in (None, "regression", "block_diffusion"):
        out = tmp_path / f"{decoder}.json"
        chosen = [] if decoder is None else ["--action-decoder", decoder]
        assert evaluate(split_dir, *base, *chosen, "--output-json", str(out)) == 0
        results[decoder] = json.loads(out.read_text())
    assert "actions by block_diffusion" in capsys.readouterr().out
    assert results[None]["overall"] == results["regression"]["overall"] != results["block_diffusion"]["overall"]
    assert results[None]["policy"]["action_decoder"] == "regression"
    assert results[None]["policy"]["forwards_per_chunk"] == 1
    policy = results["block_diffusion"]["policy"]
    assert policy["action_decoder"] == "block_diffusion"
    assert policy["action_decoding"] == {"threshold": 0.9, "forwards": 8}
    assert 4 <= policy["forwards_per_chunk"] <= 28


@pytest.mark.parametrize("how", [["--model-config"], ["--baseline", "zero"]])
def test_a_decoder_that_is_not_there_is_one_line(split_dir, model, capsys, how):
    options = [*how, str(model)] if how == ["--model-config"] else how
    assert evaluate(split_dir, *options, "--device", "cpu", "--action-decoder", "block_diffusion") == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert ("not trained with block_diffusion.action_enabled=true" if len(how) == 1 else "a baseline has none") in said


def test_batched_and_one_by_one_evaluations_agree(split_dir, model, tmp_path):
    for size in (1, 16):
        options = ["--model-config", str(model), "--device", "cpu", "--batch-size", str(size)]
        assert evaluate(split_dir, *options, "--output-json", str(tmp_path / f"{size}.json")) == 0
    one, many = (json.loads((tmp_path / f"{size}.json").read_text())["overall"] for size in (1, 16))
    assert many == pytest.approx(one, abs=1e-5)


def test_start_only_and_max_samples_choose_the_samples(split_dir, model, tmp_path):
    out = tmp_path / "out.json"
    base = ["--model-config", str(model), "--device", "cpu", "--output-json", str(out)]
    assert evaluate(split_dir, *base, "--start-only") == 0
    assert json.loads(out.read_text())["overall"]["samples"] == len(WINDOWS)
    assert evaluate(split_dir, *base, "--max-samples", "2") == 0
    assert json.loads(out.read_text())["overall"]["samples"] == 2


def test_a_missing_gpu_is_announced_and_the_cpu_used(split_dir, model, capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert evaluate(split_dir, "--model-config", str(model), "--device", "cuda:0", "--start-only") == 0
    assert "replaced by the CPU" in capsys.readouterr().err


def test_the_mean_action_is_the_best_constant_in_squared_error_on_its_own_split(split_dir, tmp_path):
    scores = {}
    for baseline in ("mean", "zero"):
        out = tmp_path / f"{baseline}.json"
        options = ["--baseline", baseline, "--act-step", "1", "--train-split", str(split_dir)]
        assert evaluate(split_dir, *options, "--output-json", str(out)) == 0
        scores[baseline] = json.loads(out.read_text())["overall"]["rmse_all"]
    assert scores["mean"] < scores["zero"]


def test_a_constant_means_what_its_numbers_were_recorded_as(split_dir, tmp_path, capsys):
    robot = shutil.copytree(split_dir, tmp_path / "robot" / "validation")
    write_contract(robot, {}, {"rate_hz": 5}, np.zeros((1, 7)))
    assert evaluate(robot, "--baseline", "zero") == 0
    assert evaluate(robot, "--baseline", "mean", "--train-split", str(robot)) == 0
    assert evaluate(robot, "--baseline", "mean", "--train-split", str(split_dir)) != 0
    assert "rate_hz 30 (policy) vs 5" in capsys.readouterr().err


def processed(split_dir: Path, folder: Path) -> Path:
    command = ["--source-split-dir", str(split_dir), "--output-dir", str(folder), "--instruction", "open the drawer"]
    assert prepare_calvin_debug_processed.main(command) == 0
    return folder


def test_the_mean_of_a_processed_split_is_the_mean_over_its_frames(split_dir, tmp_path):
    processed(split_dir, tmp_path / "processed")
    out = tmp_path / "out.json"
    options = ["--baseline", "mean", "--train-split", str(tmp_path / "processed"), "--output-json", str(out)]
    assert evaluate(split_dir, *options) == 0
    assert json.loads(out.read_text())["policy"]["action"] == pytest.approx([0.195] * 6 + [0.0], abs=1e-6)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--model-config", "nothing.yaml"], "nothing.yaml: no such file"),
        (["--baseline", "zero", "--batch-size", "-1"], "--batch-size must be at least 0, got -1"),
        (["--baseline", "zero", "--stride", "0"], "--stride must be at least 1, got 0"),
        (["--baseline", "mean"], "training is not a directory"),
        (["--baseline", "zero", "--output-json", "/proc/out/a.json"], "/proc/out/a.json: the folder cannot be made"),
        (["--baseline", "zero", "--output-json", "/"], "--output-json /: is a folder"),
    ],
)
def test_a_wrong_option_is_one_line_and_exit_code_2(split_dir, capsys, options, complaint):
    assert evaluate(split_dir, *options) == 2
    message = capsys.readouterr().err.strip()
    assert complaint in message
    assert "\n" not in message


def test_a_missing_split_is_named(tmp_path, capsys):
    command = ["--dataset-root", str(tmp_path), "--split", "held_out", "--baseline", "zero"]
    assert eval_upvla_offline_actions.main(command) == 2
    assert str(tmp_path / "held_out") in capsys.readouterr().err


def test_the_summary_is_a_markdown_table_with_a_row_for_each_file(split_dir, tmp_path, capsys):
    for baseline, steps in (("zero", "1"), ("mean", "10")):
        options = ["--baseline", baseline, "--train-split", str(split_dir), "--act-step", steps]
        assert evaluate(split_dir, *options, "--output-json", str(tmp_path / f"{baseline}.json")) == 0
    capsys.readouterr()
    inputs = ["--inputs", str(tmp_path / "zero.json"), str(tmp_path / "mean.json")]
    assert summarize.main([*inputs, "--per-task", "mae_all", "--output", str(tmp_path / "summary.md")]) == 0
    printed = capsys.readouterr().out
    assert printed == (tmp_path / "summary.md").read_text()
    lines = printed.splitlines()
    assert [line.split("|")[1].strip() for line in lines[:4]] == ["evaluation", "---", "zero", "mean"]
    zero = json.loads((tmp_path / "zero.json").read_text())["overall"]
    assert f"| zero | {zero['samples']} | {zero['steps']} | {zero['mae_all']:.4f} |" in printed
    assert "| lift_red |" in printed
    assert len({line.count("|") for line in lines[:4]}) == 1


def test_files_of_the_same_name_are_distinguished_by_their_folder(tmp_path):
    assert summarize.names_of([Path("a/out.json"), Path("b/out.json"), Path("c.json")]) == ["a/out", "b/out", "c"]


def test_a_file_that_is_no_result_is_named(tmp_path, capsys):
    (tmp_path / "x.json").write_text('{"overall": {}}')
    assert summarize.main(["--inputs", str(tmp_path / "x.json")]) == 2
    assert "x.json is not an offline evaluation" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["eval_upvla_offline_actions", "summarize_offline_eval_json"])
def test_scripts_start_as_files_from_any_folder_and_teach_their_options(name, tmp_path):
    command = [sys.executable, str(ROOT / "scripts" / f"{name}.py"), "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout
    assert len(done.stdout.splitlines()) > 8
    assert done.stderr == ""


@pytest.mark.parametrize("file", sorted((ROOT / "policy_rollout").glob("*_model.yaml")), ids=lambda file: file.stem)
def test_every_shipped_model_yaml_loads_in_ours_and_in_omegaconf(file, tmp_path):
    settings = OmegaConf.load(file)
    settings.model.showo.tuned_model_path = str(tmp_path)
    OmegaConf.save(settings, tmp_path / "copy.yaml")
    loaded = load_model_yaml(tmp_path / "copy.yaml")
    assert loaded.checkpoint == str(tmp_path)
    if file.stem != "desk_model":  # named by its data; the others by their framework
        assert loaded.job.model.framework in file.stem
    assert loaded.job.model.vq_model.vq_model_name
    assert isinstance(loaded.job, Job)


def small_models(folder: Path) -> list[str]:
    """Overrides that put models of this test in place of the embedded ones."""
    language, vq = write_language_model(folder / "llm"), write_model(folder / "other").parent / "vq"
    return [
        f"model.showo.llm_model_path={language}",
        f"model.vq_model.vq_model_name={vq}",
        f"model.showo.clip_model_path={vq}",
        "model.showo.w_clip_vit=false",
        "model.showo.num_vq_tokens=4",
        "dataset.und_type=null",
        "dataset.preprocessing.resolution=32",
    ]


def test_the_smoke_script_trains_one_step_and_acts(split_dir, tmp_path, capsys):
    dataset = processed(split_dir, tmp_path / "processed")
    assert smoke_upvla_minimal.main(["--dataset-path", str(dataset), *small_models(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "smoke_ok=True" in printed
    assert "image/loss=" in printed
    assert "action_chunk=[1, 10, 7]" in printed


def test_the_smoke_script_says_what_is_wrong_with_its_data(tmp_path, capsys):
    assert smoke_upvla_minimal.main(["--dataset-path", str(tmp_path), *small_models(tmp_path)]) == 2
    message = capsys.readouterr().err.strip()
    assert "dataset_info.json" in message
    assert "\n" not in message


def test_prepare_train_point_the_yaml_at_it_and_evaluate(split_dir, tmp_path):
    """The quick-start flow of the README, each step by its own command."""
    dataset, models = processed(split_dir, tmp_path / "processed"), small_models(tmp_path)
    config = f"config={ROOT / 'config' / 'debug_arvla_1step.yaml'}"
    data = f"dataset.params.train_pre_shards_path_or_url={dataset}"
    train_upvla.main("ar", [config, data, f"experiment.output_dir={tmp_path / 'run'}", "act_step=4", *models])

    settings = OmegaConf.load(ROOT / "policy_rollout" / "debug_arvla_model.yaml")
    settings.model.showo.tuned_model_path = str(tmp_path / "run" / "checkpoint-1")
    settings.model.vq_model.vq_model_name = str(tmp_path / "other" / "vq")
    OmegaConf.save(settings, tmp_path / "mine.yaml")
    out = tmp_path / "out.json"
    assert evaluate(split_dir, "--model-config", str(tmp_path / "mine.yaml"), "--output-json", str(out)) == 0
    assert json.loads(out.read_text())["policy"]["act_step"] == 4
    assert json.loads(out.read_text())["overall"]["samples"] == 28
