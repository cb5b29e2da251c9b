"""The grid of the study, its statistics on invented results, its page, and the whole command at its smallest size."""

from __future__ import annotations

import csv
import json
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.statistics.runs import SMALLEST_P
from config.loading import load_job
from config.schema import MMU_INDEX, ROBOT_INDEX, Job
from policy_rollout.calvin.tasks import TASK_NAMES
from policy_rollout.desk.task_sets import ALL_TASKS, DOORS
from scripts.objective_comparison.processes import Work, run_works
from scripts.study import __main__ as study_command
from scripts.study import data as study_data
from scripts.study.measure import FILE, Measured, _made_with, farthest_mm, groups_of
from scripts.study.plan import (
    OBJECTIVES,
    PLACES,
    PLANS,
    SCRATCH,
    SENTENCES,
    TOYS,
    Data,
    Plan,
    Run,
    act,
    arguments,
    command,
    folder_of,
    plan_of,
)
from scripts.study.report import first_steps, read_results, write_report
from scripts.study.table import Comparison, compare, controls, is_main, metric_of, record_rows
from scripts.study.work import Study

ITEMS = 120


# --- the grid --------------------------------------------------------------------------------------------------------


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """The default plan, with the folders that its settings name."""
    data = Data(tmp_path / "data")
    for folder in (data.doors, data.moments, data.held_out_doors):
        folder.mkdir(parents=True)
        (folder / ROBOT_INDEX).touch()
    for folder in (data.places, data.held_out_places):
        folder.mkdir()
        (folder / MMU_INDEX).touch()
    made = Study(PLANS["factors"], data, tmp_path / "study")
    for run in made.plan.runs:
        folder_of(run, made.folder).mkdir(parents=True)
        (folder_of(run, made.folder) / "config.json").write_text("{}")
    return made


def job_of(run: Run, study: Study) -> Job:
    return load_job(command(run, study.plan, study.data, study.folder)[2:], None)


def test_every_run_comes_after_the_one_that_it_starts_from_and_none_twice() -> None:
    for plan in PLANS.values():
        assert len({run.name for run in plan.runs}) == len(plan.runs)
        for number, run in enumerate(plan.runs):
            assert run.start is None or run.start in plan.runs[:number]
            assert run.stage == 1 or run.text or run.image or not run.insulated, "nothing would train the backbone"


@pytest.mark.parametrize("plan", ["default", "factors"])
def test_the_main_line_has_three_seeds_of_every_objective_and_every_factor_occurs(plan: str) -> None:
    main = [run for run in PLANS[plan].runs if is_main(run)]
    assert {(run.objective, run.seed) for run in main} == {(o, s) for o in OBJECTIVES for s in range(3)}
    factors = {(run.words, run.text, run.image, run.insulated) for run in PLANS[plan].runs if run.stage == 2}
    assert factors >= {(PLACES, 0.1, False, False), (TOYS, 0.0, False, False), (TOYS, 1.0, False, False)}
    assert factors >= {(TOYS, 0.1, False, True), (TOYS, 0.1, True, False)}
    assert {run.tasks for run in PLANS[plan].runs} == {"", DOORS.name, ALL_TASKS.name}


def test_settings_hold_for_every_run_and_its_data_but_not_for_the_model_that_a_run_starts_from(study: Study) -> None:
    given = ("model.showo.llm_model_path=./assets/tiny_phi", "model.showo.pretrained_model_path=/weights")
    tokenizer = ("model.vq_model.vq_model_name=/magvit", "dataset.preprocessing.resolution=512")
    plan = plan_of("trial", "", [*given, *tokenizer])
    for run in plan.runs:
        made = arguments(run, plan, study.data, study.folder)
        settings = dict(line.split("=", 1) for line in made)
        assert settings["model.showo.llm_model_path"] == "./assets/tiny_phi"
        start = "/weights" if run.start is None else str(folder_of(run.start, study.folder))
        assert settings["model.showo.pretrained_model_path"] == start
    cached = [command for command, _ in study_data.commands(plan, study.data) if "--tokenizer" in command]
    assert cached
    assert all(command[-4:] == ["--tokenizer", "/magvit", "--resolution", "512"] for command in cached)
    with pytest.raises(ValueError, match="assets/tiny_phi: expected key=value"):
        plan_of("trial", "", ["assets/tiny_phi"])


def test_runs_of_stage_1_differ_in_objective_seed_and_words_alone(study: Study) -> None:
    jobs = {run: job_of(run, study) for run in study.plan.runs if run.stage == 1}
    first = next(iter(jobs.values()))
    for run, job in jobs.items():
        assert job.training.text_objective == {"joint": "bd"}.get(run.objective, run.objective)
        assert job.training.seed == run.seed
        assert (job.text_diffusion.ar_aux_weight > 0) == (run.objective == "joint")
        assert (job.training.act_coeff, job.training.mmu_coeff) == (0, 1)
        assert (job.dataset.params.train_mmu_shards_path_or_url == str(study.data.places)) == (run.words == PLACES)
        job.training.text_objective, job.training.seed, job.model.framework = "ar", 0, first.model.framework
        job.experiment, job.text_diffusion = first.experiment, first.text_diffusion
        job.dataset.params.train_mmu_shards_path_or_url = first.dataset.params.train_mmu_shards_path_or_url
        job.dataset.params.validation_mmu_shards_path_or_url = first.dataset.params.validation_mmu_shards_path_or_url
        job.max_new_tokens, job.text_mdm = first.max_new_tokens, first.text_mdm
        job.config_path, job.without_effect = first.config_path, first.without_effect
        assert job == first, run.name


def test_runs_of_stage_2_start_from_stage_1_and_have_the_losses_of_their_name(study: Study) -> None:
    for run in (run for run in study.plan.runs if run.stage == 2):
        job = job_of(run, study)
        training = job.training
        start = None if run.start is None else str(folder_of(run.start, study.folder))
        assert (job.model.showo.pretrained_model_path, job.model.showo.load_from_showo) == (start, start is not None)
        assert (training.act_coeff, training.insulate_backbone) == (1, run.insulated)
        assert (training.pre_coeff > 0) == run.image
        assert (job.dataset.und_type is not None) == (run.text > 0)
        if run.text:
            assert training.mmu_coeff == run.text
        assert job.dataset.params.train_pre_shards_path_or_url == str(study.data.actions(run.tasks)[0])


def test_ranks_share_all_runs_and_a_start_is_on_the_rank_of_its_runs(study: Study) -> None:
    parts = [study.of_rank(rank, 3) for rank in range(3)]
    assert sorted(run.name for part in parts for run in part) == sorted(run.name for run in study.plan.runs)
    for part in parts:
        assert all(run.start is None or run.start in part for run in part)


def test_the_data_of_another_size_are_refused_and_those_of_a_rank_have_to_be_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, data, ran = PLANS["trial"], Data(tmp_path / "data"), list[list[str]]()

    class Done:
        returncode = 0

    monkeypatch.setattr(subprocess, "run", lambda command, **_: ran.append(command) or Done())
    with pytest.raises(ValueError, match="are not complete; make them first"):
        study_data.require(plan, data)
    study_data.make(plan, data, 2)
    count = len(ran)
    assert count == len(list(study_data.commands(plan, data)))
    assert all(command[-2:] in (["--processes", "2"], ["--workers", "2"]) for command in ran if "desk" in command[1])
    study_data.make(plan, data, 2)
    assert len(ran) == count, "made once"
    study_data.require(plan, data)
    with pytest.raises(ValueError, match=r"--data .*was made by .*; give another"):
        study_data.make(PLANS["factors"], data, 2)


def test_sizes_of_a_plan_can_be_changed_and_mistakes_are_one_line() -> None:
    assert plan_of("default", "steps_words=7,tried=34").sizes == replace(
        PLANS["factors"].sizes, steps_words=7, tried=34
    )
    assert plan_of("main", "") == PLANS["main"]
    for wrong in ("steps=7", "tried=0", "tried"):
        with pytest.raises(ValueError, match=rf"--sizes {wrong}: expected NAME=NUMBER .* steps_words"):
            plan_of("default", wrong)


def test_a_dry_run_prints_every_run_and_the_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--plan", "factors", "--dry-run", "--output-dir", str(tmp_path / "out"), "--processes", "2"]
    assert study_command.main(given) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(PLANS["factors"].runs) + 1
    assert "hours with 2 processes" in lines[-1]
    assert not (tmp_path / "out").exists()


# --- processes -------------------------------------------------------------------------------------------------------


def test_a_work_runs_after_those_that_it_needs_and_not_after_a_failed_one(tmp_path: Path) -> None:
    def work(name: str, script: str, *after: str) -> Work:
        return Work(name, ["sh", "-c", script], tmp_path / f"{name}.log", (tmp_path / name).is_file, after)

    touch = "touch {}/{}"
    works = [
        work("second", f"test -e {tmp_path}/first && {touch.format(tmp_path, 'second')}", "first"),
        work("first", touch.format(tmp_path, "first")),
        work("broken", "echo no such disk; exit 3"),
        work("never", touch.format(tmp_path, "never"), "broken"),
    ]
    ended = {one.name: failure for one, failure in run_works(works, 2)}
    assert ended.keys() == {"first", "second", "broken"}
    assert ended["first"] is ended["second"] is None
    assert "broken ended with code 3" in str(ended["broken"])
    assert "no such disk" in str(ended["broken"])
    assert [one.name for one, _ in run_works(works, 2)] == ["broken"], "the others are finished or need it"


# --- statistics ------------------------------------------------------------------------------------------------------


def invented(run: Run) -> Measured:
    """Results with known answers: ``bd`` speaks better than the others, and acting with a text weight of 0 costs words.

    An item is as hard in every run, and a run differs a little by its seed.
    """
    rng, found = np.random.default_rng(run.seed), Measured()
    hard = np.random.default_rng(99).random(ITEMS)
    exact = 0.85 if run.objective == "bd" else 0.55
    if run.stage == 2 and run.text == 0:
        exact -= 0.4
    if run.speaks:
        right = (hard < exact).astype(float)
        found.add("exact match", right)
        found.add("nats per token", 1.2 - right + 0.01 * rng.normal(size=ITEMS), [8.0] * ITEMS)
        found.add("place error", 150 - 100 * right)
        found.add("image use of words", right - 0.1)
    if run.stage == 2:
        done = (hard < (0.3 if run.objective == SCRATCH else 0.6)).astype(float)
        found.add("success", done)
        found.add("success: lift", done[:20])
        found.add("tasks in a row", [int(3 * one) for one in hard])
        found.add("action MAE", 0.1 + 0.001 * rng.normal(size=ITEMS), [10.0] * ITEMS)
        found.add("follows the task", done)
        found.add("follows the colour", done[:30])
        found.add("image use of actions", done)
    found.numbers = {"ms per answer": 12.0, "tokens per forward": 1.5}
    return found


@pytest.fixture
def results() -> dict[Run, Measured]:
    return {run: invented(run) for run in PLANS["factors"].runs}


def find(comparisons: list[Comparison], question: str, first: str, metric: str) -> Iterator[Comparison]:
    for one in comparisons:
        if one.question.startswith(question) and one.pair.first == first and one.metric.name == metric:
            yield one


def test_differences_equivalence_and_what_cannot_be_said(results: dict[Run, Measured]) -> None:
    found = compare(results)
    spoken = next(find(found, "objectives, before acting, toys", "bd", "exact match"))
    assert spoken.verdict == "bd is better"
    assert spoken.runs == 3
    assert next(find(found, "objectives, before acting, toys", "mdm", "exact match")).verdict == "equivalent"
    assert next(find(found, "objectives, doors", "bd", "action MAE")).verdict == "equivalent"
    assert next(find(found, "words before acting", "bd", "success")).verdict == "bd is better"
    tax = next(find(found, "weight of text", "0", "exact match"))
    assert (tax.verdict, tax.runs) == ("0.1 is better", len(OBJECTIVES))
    kept = [one for one in found if one.question.startswith("text kept") and one.metric.name == "exact match"]
    assert {one.verdict for one in kept} == {"equivalent", "before is better"}
    assert all(one.pair.adjusted is not None and one.pair.adjusted >= one.pair.p_value for one in found)
    few = compare({run: invented(run) for run in [*PLANS["factors"].runs][:2]})
    assert {one.question.split(",")[0] for one in few} == {"text kept by ar"}


@pytest.mark.parametrize("plan", ["default", "factors", "full"])
def test_the_correction_leaves_room_for_a_clear_difference(plan: str) -> None:
    """Ten thousand resamples prove no p-value below SMALLEST_P: times the number of comparisons it has to be small."""
    count = len(compare({run: invented(run) for run in PLANS[plan].runs}))
    assert count * SMALLEST_P < 0.05


def test_runs_are_paired_by_objective_and_seed(results: dict[Run, Measured]) -> None:
    insulated = next(find(compare(results), "insulation", "insulated", "success"))
    assert insulated.runs == len(OBJECTIVES)
    del results[act("bd", TOYS, 0, DOORS.name, insulated=True)]
    assert next(find(compare(results), "insulation", "insulated", "success")).runs == len(OBJECTIVES) - 1


def test_the_control_arm_has_every_metric_of_several_seeds(results: dict[Run, Measured]) -> None:
    found = controls(PLANS["factors"].arms, results)
    assert found["exact match"].largest == 0
    assert 0 < found["nats per token"].largest < 0.01
    assert "success" in found
    one_seed = {run: measured for run, measured in results.items() if run.seed == 0}
    assert controls(PLANS["factors"].arms, one_seed) == {}


def test_records_have_every_item(results: dict[Run, Measured]) -> None:
    rows = list(record_rows(results))
    assert len(rows) == sum(len(values) for found in results.values() for values in found.values.values())
    assert {row["higher_is_better"] for row in rows if row["metric"] == "place error"} == {0}
    assert metric_of("success: lift").unit == "share"


def test_groups_hold_every_task_once_and_an_unknown_cell_is_far() -> None:
    for tasks in (ALL_TASKS.tasks, DOORS.tasks):
        groups = groups_of(tasks)
        assert sorted(task for members in groups.values() for task in members) == sorted(tasks)
    assert set(groups_of(TASK_NAMES)) == {"rotate", "push", "doors and lights", "lift", "place", "stack"}
    assert farthest_mm((-0.45, -0.5, 0.4)) == pytest.approx(1000 * np.hypot(0.875, 0.725))


# --- the page --------------------------------------------------------------------------------------------------------


def store(study: Study, run: Run, image_loss: float = 8.5) -> None:
    folder = folder_of(run, study.folder)
    folder.mkdir(parents=True, exist_ok=True)
    found = invented(run)
    found.first_step = {"image/loss": image_loss} if run.stage == 1 or run.image else {}
    found.first_step |= {"action/loss": 0.3} if run.stage == 2 else {}
    content = {"made_with": _made_with(study.plan), "run": asdict(run), "results": asdict(found)}
    (folder / FILE).write_text(json.dumps(content))


def test_sentences_are_executed_after_acting_was_learned_with_them() -> None:
    runs = PLANS["language"].runs
    assert [run.objective for run in runs if run.acts_by_words] == list(OBJECTIVES)
    assert all(run.words == SENTENCES for run in runs)
    assert not any(run.acts_by_words for run in PLANS["full"].runs)


def test_data_of_a_plan_with_sentences_serve_a_plan_without(tmp_path: Path) -> None:
    data = Data(tmp_path)
    lines = [study_data._line(made, data) for made, _ in study_data.commands(PLANS["language"], data)]
    (tmp_path / study_data.MADE).write_text(json.dumps(lines))
    assert study_data.is_complete(PLANS["language"], data)
    assert study_data.is_complete(PLANS["main"], data)
    (tmp_path / study_data.MADE).write_text(json.dumps(lines[:-1]))
    assert study_data.is_complete(PLANS["main"], data)
    assert not study_data.is_complete(PLANS["language"], data)


def test_a_plan_makes_the_data_of_its_runs_only(tmp_path: Path) -> None:
    def programs(plan: str) -> set[str]:
        made = (command for command, _ in study_data.commands(PLANS[plan], Data(tmp_path)))
        return {command[1] if command[0] == "-m" else Path(command[0]).stem for command in made}

    doors = {"make_desk_demos", "process_calvin", "tokenize_images"}
    assert programs("main") == doors
    assert programs("language") == doors | {"preprocess_data.language_actions"}
    others = {"make_desk_scenes", "preprocess_data.place_questions", "preprocess_data.desk_moments"}
    assert programs("default") == doors | others


def test_the_page_grows_as_runs_end(tmp_path: Path) -> None:
    study = Study(PLANS["factors"], Data(tmp_path / "data"), tmp_path / "study")
    assert write_report(study, "a command") == {}
    assert not (study.folder / "summary.md").exists()
    for run in study.plan.runs[:4]:
        store(study, run)
    assert len(write_report(study, "a command")) == 4
    assert "4 of 55 runs are finished; this page grows" in (study.folder / "summary.md").read_text()
    for run in study.plan.runs:
        store(study, run)
    write_report(study, "a command", ["places_ar_seed9 ended with code 1; the end of a log:\n  ..."])
    text = (study.folder / "summary.md").read_text()
    for part in ("55 of 55 runs are finished", "| bd, toys | 3 | 8", "lift", "bd is better", "Control, the same arm"):
        assert part in text, part
    assert "ended with code 1" in text
    assert "identical to the last digit" in text
    assert "differ by" not in text
    with Image.open(study.folder / "study.png") as figure:
        assert figure.size[0] > 1000
    with (study.folder / "records.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["format"] for row in rows} == {"study/1"}
    assert json.loads((study.folder / "results.json").read_text())["arms"]["toys_bd"]["seeds"] == [0, 1, 2]


def test_a_first_step_that_differs_is_found(tmp_path: Path) -> None:
    study = Study(PLANS["factors"], Data(tmp_path / "data"), tmp_path / "study")
    for run in study.plan.runs:
        store(study, run, 8.6 if run == Run("bd", TOYS, 0) else 8.5)
    wrong = [first for first in first_steps(read_results(study)) if not first.identical]
    assert [first.what for first in wrong] == ["before acting, seed 0"]
    assert "differ by 0.1" in str(wrong[0])


def test_results_of_other_sizes_are_measured_again(tmp_path: Path) -> None:
    study = Study(PLANS["factors"], Data(tmp_path / "data"), tmp_path / "study")
    run = study.plan.runs[0]
    store(study, run)
    assert study.measured(run)
    other: Plan = replace(study.plan, sizes=replace(study.plan.sizes, questions=5))
    assert not Study(other, study.data, study.folder).measured(run)


def test_measured_runs_are_not_trained_again_on_a_machine_without_their_weights(tmp_path: Path) -> None:
    study = Study(PLANS["main"], Data(tmp_path / "data"), tmp_path / "study")
    start, follower = Run("ar", TOYS, 0), act("ar", TOYS, 0, DOORS.name)
    store(study, start)
    todo = {work.name for work in study.works(0, 1) if not work.finished()}
    assert {start.name, follower.name, f"measure {follower.name}"} <= todo, "its weights are needed for the other run"
    assert f"measure {start.name}" not in todo
    store(study, follower)
    done = {work.name for work in study.works(0, 1) if work.finished()}
    assert done == {name for run in (start, follower) for name in (run.name, f"measure {run.name}")}


def test_joint_with_other_weights_is_compared_with_its_own_recipe(study: Study) -> None:
    runs = PLANS["weights"].runs
    jobs = [job_of(run, replace(study, plan=PLANS["weights"])) for run in runs]
    assert [job.text_diffusion.ar_aux_weight for job in jobs[:3]] == [1, 0.1, 0.3]
    found = compare({run: invented(run) for run in runs})
    assert {(one.pair.first, one.pair.second, one.runs) for one in found} == {("0.1", "1", 3), ("0.3", "1", 3)}
    assert {row["objective"] for row in record_rows({run: invented(run) for run in runs})} == {
        "joint",
        "joint0.1",
        "joint0.3",
    }


@pytest.mark.slow
def test_the_whole_command_at_its_smallest_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--plan", "trial", "--data", str(tmp_path / "data"), "--output-dir", str(tmp_path / "out")]
    assert study_command.main([*given, "--processes", "2"]) == 0
    plan = PLANS["trial"]
    text = (tmp_path / "out/summary.md").read_text()
    assert f"{len(plan.runs)} of {len(plan.runs)} runs are finished" in text
    assert (tmp_path / "out/decoding/decoding.png").is_file()
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/runs").rglob("*") if path.is_file()}
    capsys.readouterr()
    assert study_command.main([*given, "--processes", "2"]) == 0
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps, "nothing is done twice"
    assert f"done: {len(plan.runs)} of {len(plan.runs)} runs are measured" in capsys.readouterr().out
