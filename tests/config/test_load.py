"""Jobs are composed from files and the command line as the contract says."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given as examples
from hypothesis import settings
from hypothesis import strategies as st

from common.files import CONFIG_DIR, PROJECT_DIR
from config.cli_help import FRAGMENTS
from config.loading import ConfigError, load_job, to_yaml
from config.parsing import keys
from config.schema import Job
from tests.config.conftest import Given

RUNS = sorted(p.stem for p in CONFIG_DIR.glob("*.yaml") if p.stem not in FRAGMENTS)
CONTRACT = """
    upvla_pred_tuning upvla_action_tuning arvla_pred_tuning arvla_action_tuning mdmvla_stage1_pred_tuning
    mdmvla_stage2_action_tuning mdmvla_action_tuning bdvla_action_tuning bdvla_action_tuning_qwen3_elastic
    mdmvla_stage1_ar_pred_tuning debug_arvla_1step debug_mdmvla_1step debug_bdvla_1step
    tiny_arvla tiny_mdmvla tiny_bdvla
"""
quick = settings(deadline=None, max_examples=40, derandomize=True)  # the same examples everywhere
UPVLA = "config=config/upvla_action_tuning.yaml"


def load(*argv: str) -> Job:
    """A job of which only the text matters: no paths have to exist."""
    return load_job(
        [*argv, *(f"dataset.params.train_{flow}_shards_path_or_url=/data" for flow in ("pre", "mmu"))], paths=False
    )


def test_every_run_configuration_of_the_contract_is_there() -> None:
    assert set(CONTRACT.split()) <= set(RUNS)


@pytest.mark.parametrize("run", RUNS)
def test_every_shipped_run_configuration_loads_for_its_objective_and_no_other(run: str, given: Given) -> None:
    embedded = run.startswith(("tiny", "debug"))
    needed = ("assets/tiny_phi", "assets/tiny_magvit", "assets/tiny_clip", "dummy_data/calvin_processed_training")
    if embedded and not all((PROJECT_DIR / folder).is_dir() for folder in needed):
        pytest.skip("the embedded models and data are not made yet (python -m preprocess_data.tiny_assets)")
    argv = [f"config=./config/{run}.yaml", *([] if embedded else given.argv)]
    if "stage2" in run:
        argv.append("model.showo.pretrained_model_path=org/stage1")
    job = load_job(argv)
    assert load_job(argv, objective=job.training.text_objective) == job
    for other in {"ar", "mdm", "bd"} - {job.training.text_objective}:
        with pytest.raises(ConfigError, match=r"run: python train_\w+\.py config="):
            load_job(argv, objective=other)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("run", "objective", "coefficients", "accumulation"),
    [
        ("upvla_pred_tuning", "ar", (1.0, 0.1, 0.0), 1),
        ("arvla_pred_tuning", "ar", (1.0, 0.1, 0.0), 1),
        ("mdmvla_stage1_pred_tuning", "mdm", (1.0, 0.1, 0.0), 1),
        ("mdmvla_stage1_ar_pred_tuning", "ar", (1.0, 0.1, 0.0), 1),
        ("upvla_action_tuning", "ar", (1.0, 0.1, 1.0), 1),
        ("arvla_action_tuning", "ar", (1.0, 1.0, 1.0), 4),
        ("mdmvla_action_tuning", "mdm", (1.0, 1.0, 1.0), 4),
        ("bdvla_action_tuning", "bd", (1.0, 1.0, 1.0), 4),
    ],
)
def test_the_full_size_recipes_carry_the_originals_numbers(
    run: str, objective: str, coefficients: tuple[float, ...], accumulation: int
) -> None:
    job = load(f"config=config/{run}.yaml")
    training = job.training
    assert (training.pre_coeff, training.mmu_coeff, training.act_coeff) == coefficients
    assert (training.text_objective, training.gradient_accumulation_steps) == (objective, accumulation)
    assert (training.batch_size_pre, training.batch_size_mmu, training.max_train_steps) == (4, 4, 200000)
    assert (job.lr_scheduler.params.warmup_steps, training.mixed_precision) == (1000, "bf16")
    assert (job.model.showo.vocab_size, job.model.showo.num_vq_tokens) == (58498, 1024)
    assert (job.dataset.preprocessing.max_seq_length, job.dataset.preprocessing.resolution) == (576, 512)


def test_the_command_line_wins_over_the_file_and_the_file_over_its_defaults(tmp_path: Path) -> None:
    (tmp_path / "parent.yaml").write_text(
        "defaults: [base]\ntraining: {seed: 1, batch_size_pre: 11, batch_size_mmu: 12}\n"
    )
    (tmp_path / "child.yaml").write_text("defaults: [parent]\ntraining: {batch_size_pre: 21, batch_size_mmu: 22}\n")
    training = load(f"config={tmp_path}/child.yaml", "training.batch_size_mmu=32").training
    assert (training.seed, training.batch_size_pre, training.batch_size_mmu) == (1, 21, 32)
    assert training.max_train_steps == 200000  # from config/base.yaml, which is not beside them


def test_a_later_entry_of_the_defaults_list_wins(tmp_path: Path) -> None:
    for name, seed in (("one", 1), ("two", 2)):
        (tmp_path / f"{name}.yaml").write_text(f"training: {{seed: {seed}}}\n")
    (tmp_path / "run.yaml").write_text("defaults: [one, two]\n")
    assert load(f"config={tmp_path}/run.yaml").training.seed == 2


def test_a_copy_outside_the_repository_means_the_same_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "base.yaml"  # even under the name of the file it includes
    copy.write_text((CONFIG_DIR / "bdvla_action_tuning.yaml").read_text())
    here = load("config=config/bdvla_action_tuning.yaml")
    monkeypatch.chdir(tmp_path)
    assert load("config=base.yaml") == here
    assert load("config=./config/bdvla_action_tuning.yaml") == here  # the project's, from any folder


def test_relative_paths_mean_the_current_folder_first_and_the_project_next(
    given: Given, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(given.root)
    argv = [UPVLA, "dataset.params.train_pre_shards_path_or_url=robot", "dataset.und_type=null", "mmu_image_root=docs"]
    job = load_job(argv)
    assert job.dataset.params.train_pre_shards_path_or_url == str(given.root / "robot")
    assert job.mmu_image_root == str(PROJECT_DIR / "docs")


def test_several_sources_of_conversations_stand_in_for_the_one(given: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(given.root)
    (given.root / "more.json").write_text("[]")
    robot = given.argv[0]
    sources = ["dataset.params.train_mmu_sources=[mmu, more.json]", "dataset.params.train_mmu_weights=3,0.5"]
    params = load_job([UPVLA, robot, *sources, "dataset.params.train_mmu_image_roots=[robot]"]).dataset.params
    assert params.train_mmu_sources == [str(given.root / "mmu"), str(given.root / "more.json")]
    assert params.train_mmu_weights == [3.0, 0.5]
    assert params.train_mmu_image_roots == [str(given.root / "robot")]
    unread = load_job([UPVLA, robot, "dataset.und_type=null", "dataset.params.train_mmu_sources=[gone]"])
    assert unread.dataset.params.train_mmu_sources == ["gone"]


@pytest.mark.parametrize("word", ["no", "'no'", '"no"', "false"])
def test_mixed_precision_no_is_a_word_and_not_a_truth_value(word: str) -> None:
    assert load(UPVLA, f"training.mixed_precision={word}").training.mixed_precision == "no"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("false", False),
        ("no", False),
        ("null", False),
        ("latest", "latest"),
        ("300", 300),
        ("'300'", "300"),
        ("a=b", "a=b"),
    ],
)
def test_resuming_takes_false_latest_a_step_or_a_path(text: str, value: object) -> None:
    found = load(UPVLA, f"experiment.resume_from_checkpoint={text}").experiment.resume_from_checkpoint
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("text", ["[4,8]", "[4, 8]", "4,8", " [ 4 , 8 ] "])
def test_a_list_is_written_with_or_without_brackets(text: str) -> None:
    assert load(UPVLA, f"block_diffusion.block_size_candidates={text}").block_diffusion.block_size_candidates == [4, 8]


def test_a_section_can_be_given_as_a_whole() -> None:
    job = load(UPVLA, "text_mdm={min_mask_ratio: 0.2, max_mask_ratio: 0.5}", "text_mdm.max_mask_ratio=0.6")
    assert (job.text_mdm.min_mask_ratio, job.text_mdm.max_mask_ratio) == (0.2, 0.6)


def test_a_value_can_refer_to_another_key() -> None:
    job = load(UPVLA, "dataset.preprocessing.resolution=256", "model.showo.num_vq_tokens=256")
    assert job.dataset.params.resolution == 256
    assert load(UPVLA, "experiment.name=seed ${training.seed}").experiment.name == "seed 10086"
    assert load(UPVLA, "experiment.name=\\${training.seed}").experiment.name == "${training.seed}"


def test_naming_a_checkpoint_on_the_command_line_asks_for_loading_it() -> None:
    showo = "model.showo.pretrained_model_path=org/weights"
    debug = "config=config/debug_arvla_1step.yaml"
    assert not load(debug).model.showo.load_from_showo
    assert load(debug, showo).model.showo.load_from_showo
    assert not load(debug, showo, "model.showo.load_from_showo=false").model.showo.load_from_showo


def test_without_conversations_their_folder_is_not_needed(given: Given) -> None:
    job = load_job([UPVLA, given.argv[0], "dataset.und_type=null"])
    assert job.dataset.und_type is None


anything = st.text(st.characters(codec="utf-8"), min_size=1).map(str.strip).filter(bool)


@quick
@examples(anything)
def test_any_text_arrives_verbatim_from_the_command_line(text: str) -> None:
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    if "${" in text or quoted or text.lower() in ("null", "~", "true", "???"):
        return
    assert load(UPVLA, f"question={text}").question == text


@quick
@examples(anything)
def test_any_text_survives_quoting(text: str) -> None:
    if "${" in text or text == "???":
        return
    assert load(UPVLA, f"question={yaml.safe_dump(text, default_style=chr(34), width=10**9)}").question == text


@quick
@examples(
    question=anything,
    image_root=st.none() | anything,
    rate=st.floats(1e-30, 1e30),
    sizes=st.lists(st.integers(1, 10**6), min_size=1),
    resume=st.just(False) | st.integers(0, 10**9) | anything,
    norm=st.none() | st.floats(1e-9, 1e9),
)
def test_a_resolved_configuration_loads_as_the_same_job(
    tmp_path_factory: pytest.TempPathFactory,
    question: str,
    image_root: str | None,
    rate: float,
    sizes: list[int],
    resume: str | int | bool,
    norm: float | None,
) -> None:
    job = load(UPVLA)
    if "???" in (question, image_root, resume):
        return
    job.question, job.mmu_image_root, job.optimizer.params.learning_rate = question, image_root, rate
    job.block_diffusion.block_size_candidates, job.training.max_grad_norm = sizes, norm
    job.experiment.resume_from_checkpoint = resume  # type: ignore[assignment]
    path = tmp_path_factory.mktemp("run") / "config.yaml"
    path.write_text(to_yaml(job), encoding="utf-8")
    again = load_job([f"config={path}"], paths=False)
    assert again == job
    assert type(again.experiment.resume_from_checkpoint) is type(resume)


@quick
@examples(st.data())
def test_every_number_is_read_back_as_it_was_written(data: st.DataObject) -> None:
    numbers = [k for k in keys().values() if k.annotation in (int, float) and isinstance(k.default, int | float)]
    key = data.draw(st.sampled_from(numbers))
    # The default itself is always a legal value and contradicts nothing.
    text = data.draw(st.sampled_from([str(key.default), f" {key.default} ", repr(key.default)]))
    assert load("config=config/base.yaml", f"{key.name}={text}") == load(
        "config=config/base.yaml", f"{key.name}={key.default}"
    )


def test_every_key_has_one_line_of_documentation(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        load_job(["--help"], objective="bd")
    printed = capsys.readouterr().out
    assert stop.value.code == 0
    assert "train_blockdiff_vla.py config=./config/tiny_bdvla.yaml" in printed
    for key in keys().values():
        assert f"  {key.name}  [" in printed
        assert key.metadata["doc"] in printed
        assert "\n" not in key.metadata["doc"]


def test_every_file_is_plain_yaml_for_other_tools() -> None:
    for path in CONFIG_DIR.glob("*.yaml"):
        assert isinstance(yaml.safe_load(path.read_text()), dict), path


@pytest.mark.parametrize(
    ("config", "settings", "unread"),
    [
        ("tiny_arvla", ["text_mdm.min_mask_ratio=0.2", "text_diffusion.weighting=uniform"], 2),
        ("tiny_arvla", ["block_diffusion.block_size=4", "block_diffusion.action_num_bins=64", "lora.alpha=4"], 3),
        ("tiny_bdvla", ["block_diffusion.block_size=4", "text_diffusion.weighting=uniform"], 0),
        ("tiny_bdvla", ["block_diffusion.block_size_candidates=[4,8]"], 1),
        ("tiny_arvla", ["dataset.und_type=null", "training.batch_size_mmu=3", "training.mmu_coeff=0.5"], 2),
        ("tiny_arvla", ["experiment.generate_every=0", "question=Why?", "max_new_tokens=7"], 2),
        ("tiny_arvla", ["lora.rank=2", "lora.alpha=4", "training.seed=3"], 0),
    ],
)
def test_typed_keys_that_the_run_does_not_read_are_named(config: str, settings: list[str], unread: int) -> None:
    lines = load_job([f"config=config/{config}.yaml", *settings]).without_effect
    assert len(lines) == unread
    for line in lines:
        assert any(line.startswith(setting.partition("=")[0] + "=") for setting in settings)
