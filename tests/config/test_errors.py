"""Every mistake stops the run at start with one line: the key, the value, what is allowed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import given as examples
from hypothesis import strategies as st

from common.files import PROJECT_DIR
from config.loading import ConfigError, load_job
from config.parsing import keys
from tests.config.conftest import Given

UPVLA = "config=config/upvla_action_tuning.yaml"


def complaint(argv: list[str], objective: str | None = None) -> str:
    with pytest.raises(ConfigError) as error:
        load_job(argv, objective=objective)  # type: ignore[arg-type]
    line = str(error.value)
    assert "\n" not in line
    return line


# what is typed -> what the line has to say, besides the key and the value themselves
MISTAKES = {
    "training.mixed_precison=no": "did you mean training.mixed_precision?",
    "optimizer.params.learing_rate=1": "did you mean optimizer.params.learning_rate?",
    "learning_rate=1": "did you mean optimizer.params.learning_rate?",
    "optimzer.name=adamw": "did you mean optimizer",
    "training.colour=red": "training has text_objective, ",
    "weather=red": "the top level has experiment, ",
    "training.seed.x=1": "expected a whole number",
    "training=5": "a section; its keys are text_objective, ",
    "training.seed=abc": "expected a whole number >= 0",
    "training.seed=1.5": "expected a whole number >= 0",
    "training.seed=": "expected a whole number >= 0",
    "training.seed=null": "expected a whole number >= 0",
    "training.enable_tf32=maybe": "expected true or false",
    "training.enable_tf32=1": "expected true or false",
    "training.mixed_precision=bf17": "expected no, fp16 or bf16 (did you mean bf16?)",
    "training.text_objective=bdd": "expected ar, mdm or bd",
    "experiment.tracker=tensorbord": "did you mean tensorboard?",
    "experiment.name=null": "expected a text",
    "experiment.resume_from_checkpoint=true": "expected false, latest, a step number",
    "experiment.resume_from_checkpoint=-1": "expected false, latest, a step number",
    "experiment.resume_from_checkpoint=./nowhere": "no such checkpoint",
    "act_step=0": "expected a whole number >= 1",
    "act_step=-3": "expected a whole number >= 1",
    "model.vla.num_view=3": "expected a whole number >= 1 and <= 2",
    "training.cond_dropout_prob=1.1": "expected a number >= 0 and <= 1",
    "training.cond_dropout_prob=nan": "expected a number >= 0 and <= 1",
    "training.label_smoothing=1": "expected a number >= 0 and < 1",
    "training.max_grad_norm=0": "expected a number > 0 or null",
    "training.gradient_accumulation_steps=0": "expected a whole number >= 1",
    "training.batch_size_pre=0": "expected a whole number >= 1",
    "training.batch_size_mmu=0": "dataset.und_type=null",
    "optimizer.params.learning_rate=-1e-4": "expected a number > 0",
    "block_diffusion.block_size_candidates=[4, 0]": "expected a list of whole numbers >= 1",
    "block_diffusion.block_size_candidates=four": "expected a list of whole numbers >= 1",
    "model.showo.attn_implementation=flash": "expected sdpa, eager or flex_attention",
    "model.showo.codebook_size=4096": "expected a whole number equal to 8192",
    "model.showo.vocab_size=58499": "expected 58498",
    "model.showo.num_vq_tokens=64": "expected 1024",
    "dataset.preprocessing.resolution=500": "multiple of 16",
    "dataset.params.resolution=256": "the same as dataset.preprocessing.resolution=512",
    "text_mdm.min_mask_ratio=1": "less than text_mdm.max_mask_ratio",
    "block_diffusion.action_infer_enabled=true": "needs block_diffusion.action_enabled=true",
    "model.framework=mdmvla": "set that to mdm (train_mdm_vla.py)",
    "block_diffusion.action_num_bins=9000": "expected a whole number >= 2 and <= 8192",
    "model.showo.w_clip_vit=false": "dataset.und_type=null",
    "dataset.und_type=lava_tuning": "expected llava_tuning or null",
    "dataset.gen_type=calvin": "expected future_view_prediction_w_action",
    "experiment.name=${training.sed}": "training.sed",
    "experiment.name=${training": "write ${section.key}",
    "experiment.name=${training}": "refers to a section",
    "training.seed=${training.mixed_precision}": "which is bf16",
    "dataset.params.train_pre_shards_path_or_url=/no/such place": "no such path; expected a folder",
    "dataset.params.train_pre_shards_path_or_url=config": "has no dataset_info.json",
    "dataset.params.train_pre_shards_path_or_url=config/base.yaml": "is a file; expected a folder",
    "dataset.params.train_mmu_shards_path_or_url=config": "has no llava_v1_5_mix665k.json",
    "dataset.params.train_mmu_shards_path_or_url=null": "dataset.und_type=null",
    "dataset.params.train_mmu_sources=config": "has no llava_v1_5_mix665k.json",
    "dataset.params.train_mmu_sources=nowhere/mix.json": "no such path; expected a folder or a json file",
    "dataset.params.train_mmu_weights=[1.0, 2.5]": "one for each of the 0 dataset.params.train_mmu_sources",
    "dataset.params.train_mmu_weights=[1, -2]": "expected a list of numbers > 0",
    "dataset.params.train_mmu_image_roots=[config, docs]": "expected one folder, or one for each",
    "dataset.params.on_bad_record=replace": "expected skip or error",
    "dataset.params.text_only=black": "expected skip or use",
    "model.showo.llm_model_path=./nowhere": "no such path; expected a folder, a weights file or a hub id org/name",
    "model.showo.llm_model_path=/nowhere/phi": "no such path",
    "model.showo.llm_model_path=~/nowhere/phi": "no such path",
    "model.showo.llm_model_path=phi": "hub id org/name",
    "model.showo.pretrained_model_path=run/model.safetensors": "no such path",
    "model.showo.pretrained_model_path=null": "expected",
    "model.vq_model.pretrained_model_path=config": "is a folder; expected a weights file",
    "mmu_image_root=nowhere": "no such path",
    "experiment.output_dir=pyproject.toml": "is a file; expected a folder",
    "experiment.output_dir=pyproject.toml/run": "is a file; expected a folder",
}


@pytest.mark.parametrize("typed", MISTAKES)
def test_a_mistake_is_answered_with_key_value_and_what_is_allowed(typed: str, given: Given) -> None:
    if typed == "model.showo.pretrained_model_path=null":
        argv = [UPVLA, *given.argv, typed, "model.showo.load_from_showo=true"]
    else:
        argv = [UPVLA, *given.argv, typed]
    line = complaint(argv)
    name, _, value = typed.partition("=")
    assert name.split(".x")[0] in line or name.startswith("optimzer.")  # the unknown section is named as a whole
    assert value in line
    if typed != "model.showo.pretrained_model_path=null":
        assert MISTAKES[typed] in line


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ([], "config=<file> is missing, e.g. python train_upvla.py config=./config/tiny_arvla.yaml"),
        (["config="], "config=<file> is missing"),
        (["config=config/tiny_arvl.yaml"], "did you mean config=./config/tiny_arvla.yaml?"),
        (["config=config"], "is a folder"),
        ([UPVLA, UPVLA], "given twice"),
        ([UPVLA, "training.seed"], "expected config=<file> or section.key=value"),
        ([UPVLA, "=3"], "expected config=<file> or section.key=value"),
        ([UPVLA, "--training.seed=3"], "expected training.seed=3, without a leading -"),
        (["--config=config/tiny_arvla.yaml"], "expected config=config/tiny_arvla.yaml, without a leading -"),
        ([UPVLA, "+training.seed=3"], "without a leading +"),
        ([UPVLA, "hydra/launcher=joblib"], "belongs to a sweep; add --multirun"),
        ([UPVLA, "hydra.sweep.dir=x"], "belongs to a sweep; add --multirun"),
        ([UPVLA], "dataset.params.train_pre_shards_path_or_url has to be given: robot demonstrations"),
    ],
)
def test_a_command_line_that_makes_no_sense_is_answered_with_what_to_type(typed: list[str], said: str) -> None:
    assert said in complaint(typed)


def test_elastic_and_annealed_blocks_exclude_each_other_and_need_candidates(given: Given) -> None:
    elastic = [UPVLA, *given.argv, "block_diffusion.elastic_block_enabled=true"]
    assert "anneal_steps=5" in complaint([*elastic, "block_diffusion.anneal_steps=5"])
    assert "block_size_candidates=[]" in complaint([*elastic, "block_diffusion.block_size_candidates=[]"])


def test_block_diffusion_text_cannot_be_trained_switched_off(given: Given) -> None:
    argv = ["config=config/bdvla_action_tuning.yaml", *given.argv, "block_diffusion.text_enabled=false"]
    assert "block_diffusion.text_enabled=false: has to be true" in complaint(argv)


def test_some_loss_must_count(given: Given) -> None:
    argv = [UPVLA, *given.argv, "training.pre_coeff=0", "training.act_coeff=0"]
    assert load_job(argv).training.mmu_coeff == 0.1
    assert "one loss needs a weight above 0" in complaint([*argv, "dataset.und_type=null"])


def test_a_section_that_is_not_there_is_reported_where_it_was_typed(given: Given) -> None:
    assert "(command line): no such key (did you mean training.seed?)" in complaint(
        [UPVLA, *given.argv, "trainng.seed=3"]
    )


def test_an_output_folder_that_cannot_be_written_is_said_at_start(
    given: Given, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)  # whoever runs the tests may be allowed everything
    line = complaint([UPVLA, *given.argv, f"experiment.output_dir={tmp_path}/runs/one"])
    assert (
        line
        == f"experiment.output_dir={tmp_path}/runs/one: {tmp_path} cannot be written to; expected a folder of yours"
    )


def test_a_job_of_another_objective_is_answered_with_the_command_to_run(given: Given) -> None:
    argv = ["config=config/bdvla_action_tuning.yaml", *given.argv, "question=which drawer?"]
    line = complaint(argv, objective="ar")
    assert "training.text_objective=bd" in line
    assert "train_upvla.py trains ar; run: python train_blockdiff_vla.py config=config/bdvla_action_tuning.yaml" in line
    assert "'question=which drawer?'" in line


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("training:\n  seed: [1\n", "line 3, column 1: not valid YAML"),
        ("training:\n\tseed: 1\n", "line 2, column 1: not valid YAML"),
        (
            "training: {seed: 1}\ntraining: {seed: 2}\n",
            "line 2, column 1: not valid YAML: key 'training' is given twice",
        ),
        ("- a\n- b\n", "expected sections with keys"),
        ("just words", "expected sections with keys"),
        ("defaults: 3\n", "no 3.yaml in"),
        ("defaults: {a: b}\n", "defaults={a: b}"),
        ("defaults: [bas]\n", "did you mean base?"),
        ("training: {sed: 1}\n", "training.sed=1 ("),
        ("training: hello\n", "training=hello ("),
        ("a: \x00\n", "not valid YAML"),
    ],
)
def test_a_broken_file_is_named_with_the_place(content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text(content)
    line = complaint([f"config={tmp_path}/broken.yaml"])
    assert said in line
    assert "broken.yaml" in line


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "weights.yaml").write_bytes(b"\xff\xfe\x00\x80")
    assert "weights.yaml: not a text file" in complaint([f"config={tmp_path}/weights.yaml"])


def test_files_that_include_each_other_are_named_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, other in (("one", "two"), ("two", "three"), ("three", "one")):
        (tmp_path / f"{name}.yaml").write_text(f"defaults: [{other}]\n")
    monkeypatch.chdir(tmp_path)
    assert "one.yaml -> two.yaml -> three.yaml -> one.yaml" in complaint(["config=one.yaml"])


def test_an_error_says_where_the_value_was_written(tmp_path: Path, given: Given) -> None:
    (tmp_path / "mine.yaml").write_text("defaults: [base]\ntraining: {seed: many}\n")
    assert "mine.yaml): expected" in complaint([f"config={tmp_path}/mine.yaml", *given.argv])
    assert "(command line): expected" in complaint([UPVLA, *given.argv, "training.seed=many"])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40, derandomize=True)
@examples(name=st.sampled_from(sorted(keys())), text=st.text(st.characters(codec="utf-8"), max_size=30))
def test_whatever_is_typed_the_answer_is_a_job_or_one_printable_line(given: Given, name: str, text: str) -> None:
    line = ""
    try:
        load_job([UPVLA, *given.argv, f"{name}={text}"])
    except ConfigError as error:
        line = str(error)
    assert line.isprintable()


@settings(deadline=None, max_examples=40, derandomize=True)
@examples(st.text(st.characters(codec="utf-8"), max_size=40))
def test_any_argument_is_understood_or_answered(text: str) -> None:
    if text.strip() in ("-h", "--help"):
        return
    with pytest.raises(ConfigError) as error:
        load_job([UPVLA, text])
    assert str(error.value).isprintable()


def test_an_entry_point_prints_one_line_and_exits_with_code_2() -> None:
    code = "from config.loading import load_job, main_or_exit; main_or_exit(lambda: load_job(objective='mdm'))"
    done = subprocess.run(
        [sys.executable, "-c", code, "config=config/tiny_mdmvla.yaml", "training.max_train_step=3"],
        cwd=PROJECT_DIR,
        env={**os.environ, "PYTHONPATH": str(PROJECT_DIR)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == (
        "config error: training.max_train_step=3 (command line): no such key (did you mean training.max_train_steps?)\n"
    )


def test_reading_a_configuration_imports_no_torch() -> None:
    code = "import sys, config.loading; sys.exit(sorted({'torch', 'numpy', 'transformers'} & set(sys.modules)) or None)"
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT_DIR, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def start(*argv: str) -> subprocess.CompletedProcess[str]:
    """Start training where importing torch ends the process with a traceback."""
    code = "import sys; sys.modules['torch'] = None; import train_upvla as t; "
    code += "t.main_or_exit(lambda: t.main(argv=sys.argv[1:]))"
    return subprocess.run(
        [sys.executable, "-c", code, *argv], cwd=PROJECT_DIR, capture_output=True, encoding="utf-8", timeout=120
    )


@pytest.mark.parametrize(
    ("holds", "key", "said"),
    [
        ({}, "model.showo.llm_model_path", "this folder holds no model: no config.json in it"),
        ({}, "model.showo.clip_model_path", "this folder holds no model: no config.json in it"),
        ({}, "model.vq_model.vq_model_name", "this folder holds no model: no *.safetensors"),
        ({}, "model.showo.pretrained_model_path", "this folder holds no model: no unwrapped_model/config.json"),
        ({"config.json": "{"}, "model.showo.llm_model_path", "config.json cannot be read"),
        ({"config.json": "[]"}, "model.showo.llm_model_path", "config.json holds no JSON object"),
        (
            {"config.json": '{"model_type": "phi"}'},
            "model.showo.clip_model_path",
            "holds a language model; expected a CL",
        ),
        (
            {"config.json": '{"model_type": "clip"}'},
            "model.showo.llm_model_path",
            "holds a CLIP model; expected a lang",
        ),
        (
            {"config.json": '{"model_type": "clip"}', "model.safetensors": ""},
            "model.vq_model.vq_model_name",
            "holds a CLIP model; expected a MagVITv2 image tokenizer",
        ),
    ],
)
def test_a_wrong_model_folder_is_named_before_torch_is_imported(
    holds: dict[str, str], key: str, said: str, given: Given, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for name, text in holds.items():
        (folder / name).write_text(text, encoding="utf-8")
    done = start("config=config/upvla_action_tuning.yaml", *given.argv, f"{key}={folder}")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert done.stderr.startswith(f"config error: {key}={folder}")
    assert said in done.stderr


def test_a_step_without_checkpoint_is_named_before_torch_is_imported(given: Given, tmp_path: Path) -> None:
    for step in (5, 20):
        (tmp_path / "out" / f"checkpoint-{step}").mkdir(parents=True)
    more = ["model.showo.load_from_showo=false", f"experiment.output_dir={tmp_path / 'out'}"]
    argv = ["config=config/tiny_arvla.yaml", *given.argv, *more, "experiment.resume_from_checkpoint=99"]
    done = start(*argv)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "resume_from_checkpoint=99: " in done.stderr
    assert "it has checkpoint-5, checkpoint-20" in done.stderr


def test_a_path_of_no_checkpoint_is_named(given: Given, tmp_path: Path) -> None:
    assert "it has no metadata.json" in complaint([UPVLA, *given.argv, f"experiment.resume_from_checkpoint={tmp_path}"])


def test_the_home_folder_is_expanded_in_every_path(
    given: Given, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "metadata.json").write_text("{}", encoding="utf-8")
    home = ["experiment.output_dir=~/run", "dataset.params.token_cache=~/codes", "dataset.params.clip_cache=~/clip"]
    job = load_job([UPVLA, *given.argv, *home, "experiment.resume_from_checkpoint=~/old"])
    assert job.experiment.output_dir == str(tmp_path / "run")
    assert job.experiment.resume_from_checkpoint == str(tmp_path / "old")
    assert (job.dataset.params.token_cache, job.dataset.params.clip_cache) == (
        str(tmp_path / "codes"),
        str(tmp_path / "clip"),
    )
    assert "~nosuchuser has no home folder" in complaint([UPVLA, *given.argv, "experiment.output_dir=~nosuchuser/run"])


@pytest.mark.parametrize("right", ["", ", tuned_model_path: y"])
def test_a_key_of_the_same_file_is_suggested_before_one_of_the_schema(tmp_path: Path, right: str) -> None:
    from policy_rollout.policies.model_yaml import load_model_yaml

    (tmp_path / "m.yaml").write_text(f"model: {{showo: {{tuned_model_pth: x{right}}}}}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"no such key \(did you mean model\.showo\.tuned_model_path\?\)"):
        load_model_yaml(tmp_path / "m.yaml")


CYCLES = {
    "cosine_with_restarts": {"0.5": "expected a whole number", "2.7": "expected a whole number", "99": "at most"},
    "linear": {"2": "has no effect"},
}


@pytest.mark.parametrize(
    ("scheduler", "cycles", "why"), [(name, n, why) for name, of in CYCLES.items() for n, why in of.items()]
)
def test_cycles_that_a_schedule_cannot_have_are_refused(scheduler: str, cycles: str, why: str) -> None:
    argv = ["config=config/tiny_bdvla.yaml", "training.max_train_steps=4", f"lr_scheduler.scheduler={scheduler}"]
    line = complaint([*argv, f"lr_scheduler.params.num_cycles={cycles}"])
    assert f"lr_scheduler.params.num_cycles={cycles}" in line
    assert why in line


def test_half_an_emoji_in_the_question_is_refused() -> None:
    assert "question" in complaint(["config=config/tiny_bdvla.yaml", "question=what is \ud83d?"])
