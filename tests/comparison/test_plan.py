"""Which runs there are, what each is told, and what a folder refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from common.folder_lock import hold
from config.loading import load_job, to_yaml
from scripts import compare_objectives
from scripts.objective_comparison import plan as plans
from scripts.objective_comparison.plan import (
    Budget,
    Plan,
    overrides_from_run,
    read_curve,
    read_objectives,
    read_seeds,
    write_blank_images,
)

ROOT = Path(__file__).resolve().parents[2]


def plan_of(folder: Path, **changed: object) -> Plan:
    settings = {"objectives": ("ar", "mdm", "bd"), "seeds": (0,), "blind": False, "budget": Budget(steps=8)}
    return Plan(folder, **{**settings, **changed})  # type: ignore[arg-type]


def test_the_runs_of_a_plan_differ_in_objective_seed_and_images_alone(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, seeds=(0, 1), blind=True)
    assert len(plan.runs) == 3 * 2 * 2
    jobs = {}
    for run in plan.runs:
        arguments = run.command(plan.budget, ROOT / "dummy_data/llava")[2:]
        jobs[run.name] = load_job([f"config={ROOT}/{arguments[0].removeprefix('config=')}", *arguments[1:]], None)
    for name, job in jobs.items():
        assert job.training.text_objective == name.split("_")[0]
        assert job.training.seed == int(name.split("seed")[1][0])
        job.training.text_objective, job.training.seed, job.experiment, job.model.framework = "ar", 0, None, "arvla"  # type: ignore[assignment]
        job.text_diffusion = None  # type: ignore[assignment]
        assert job == jobs["ar_seed0"], name


def test_a_folder_refuses_runs_of_another_budget_and_takes_more_seeds(tmp_path: Path) -> None:
    plan_of(tmp_path).write_or_check()
    plan_of(tmp_path, seeds=(0, 1), objectives=("bd",), blind=True).write_or_check()
    with pytest.raises(ValueError, match=r"steps 8 \(now 9\).*another --output-dir"):
        plan_of(tmp_path, budget=Budget(steps=9)).write_or_check()
    with pytest.raises(ValueError, match="overrides"):
        plan_of(tmp_path, budget=Budget(steps=8, overrides=("training.mmu_coeff=2",))).write_or_check()


def test_blank_conversations_say_the_same_about_an_image_of_nothing(tmp_path: Path) -> None:
    write_blank_images(ROOT / "dummy_data/llava_validation", tmp_path / "blank")
    records, blank = (
        json.loads((folder / "llava_v1_5_mix665k.json").read_text())
        for folder in (ROOT / "dummy_data/llava_validation", tmp_path / "blank")
    )
    assert [r["conversations"] for r in blank] == [r["conversations"] for r in records]
    assert {r["image"] for r in blank} == {"blank.png"}
    assert len(Image.open(tmp_path / "blank/blank.png").getcolors()) == 1  # type: ignore[arg-type]


def test_a_curve_of_a_resumed_run_has_the_last_word_on_every_step(tmp_path: Path) -> None:
    run = plan_of(tmp_path).runs[0]
    run.folder.mkdir(parents=True)
    run.metrics_file.write_text('{"step": 1, "a": 1}\n{"step": 2, "a": 2}\n{"step": 2, "a": 3}\n{"step": 3, "a')
    assert read_curve(run) == [{"step": 1, "a": 1}, {"step": 2, "a": 3}]


@pytest.mark.parametrize(
    ("read", "text", "says"),
    [
        (read_objectives, "ar,bf", "'bf' is unknown; choose from ar, mdm, bd"),
        (read_objectives, "ar,ar", "each may be given only once"),
        (read_seeds, "0,x", "expected whole numbers"),
        (read_seeds, "-1", "at least 0"),
    ],
)
def test_a_mistaken_list_is_told_in_a_line(read: object, text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        read(text)  # type: ignore[operator]


def test_a_mistake_on_the_command_line_ends_it_before_anything_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--output-dir", str(tmp_path / "out")]
    assert compare_objectives.main([*out, "training.lr=1"]) == 2
    assert "training.lr" in capsys.readouterr().err
    assert compare_objectives.main([*out, "--objectives", "ar,xx"]) == 2
    assert compare_objectives.main([*out, "--steps", "0"]) == 2
    assert "max_train_steps" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_going_on_from_a_run_takes_its_model_tokenizer_and_data_and_names_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FileNotFoundError, match=r"--from-run .*config\.yaml"):
        overrides_from_run(tmp_path / "run/checkpoint-5")
    (tmp_path / "run/checkpoint-5").mkdir(parents=True)
    (tmp_path / "run/config.yaml").touch()
    embedded = load_job([f"config={ROOT}/config/tiny_arvla.yaml"], None)
    monkeypatch.setattr(plans, "load_job", lambda argv, objective: embedded)
    begun = overrides_from_run(tmp_path / "run/checkpoint-5")
    assert f"model.showo.pretrained_model_path={tmp_path}/run/checkpoint-5" in begun
    assert "model.showo.llm_model_path=assets/tiny_phi" in begun
    assert "model.vq_model.vq_model_name=assets/tiny_magvit" in begun
    assert "dataset.params.train_pre_shards_path_or_url=dummy_data/calvin_processed_training" in begun
    assert "model.vla.proprioception=none" in begun  # that of the run


def test_runs_that_were_trained_with_other_settings_and_blank_images_of_other_data_are_not_taken(
    tmp_path: Path,
) -> None:
    plan = plan_of(tmp_path)
    run = plan.runs[0]
    run.folder.mkdir(parents=True)
    job = load_job(run.command(plan.budget, plan.blank_data)[2:], None)
    (run.folder / "config.yaml").write_text(to_yaml(job), encoding="utf-8")
    plan.write_or_check()
    job.training.mmu_coeff += 1
    (run.folder / "config.yaml").write_text(to_yaml(job), encoding="utf-8")
    with pytest.raises(ValueError, match=r"training\.mmu_coeff=6\.0, now it is 5\.0"):
        plan.write_or_check()
    write_blank_images(ROOT / "dummy_data/llava_validation", tmp_path / "blank")
    write_blank_images(ROOT / "dummy_data/llava", tmp_path / "blank")
    blank, source = (
        json.loads((folder / "llava_v1_5_mix665k.json").read_text(encoding="utf-8"))
        for folder in (tmp_path / "blank", ROOT / "dummy_data/llava")
    )
    assert [r["conversations"] for r in blank] == [r["conversations"] for r in source]


def test_two_comparisons_do_not_write_into_one_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with hold(tmp_path / "out", "another comparison", "--output-dir "):
        assert compare_objectives.main(["--output-dir", str(tmp_path / "out")]) == 2
    assert f"--output-dir {tmp_path / 'out'}" in capsys.readouterr().err
