"""The command of the closed loop: processes, refusals, and results."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize
from omegaconf import OmegaConf
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from common.processes import ProcessRank, process_rank
from policy_rollout import calvin_evaluate_upvla as app
from policy_rollout.benchmarks import desk
from policy_rollout.benchmarks.desk import DeskBenchmark
from policy_rollout.closed_loop import records
from policy_rollout.closed_loop.evaluation import RolloutSettings, run_distributed
from policy_rollout.closed_loop.interface import ChainRecord
from policy_rollout.closed_loop.progress import Progress
from policy_rollout.closed_loop.work_queue import EXPIRY, Worker
from policy_rollout.policies.interface import Observation
from tests.policy.counting import Counting, Still, job
from tests.policy.saved_model import write_model


def settings(*overrides: str) -> dict[str, Any]:
    """What the command gets."""
    with initialize(version_base="1.3", config_path="../../policy_conf"):
        config = compose("calvin_evaluate_upvla", [*overrides])
    found = OmegaConf.to_container(config, resolve=True)
    assert isinstance(found, dict)
    return {str(name): value for name, value in found.items()}


def test_torchrun_and_slurm_say_which_process_this_is() -> None:
    step = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "1"}
    assert process_rank(step) == ProcessRank(3, 4, 1)
    assert process_rank({**step, "WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}) == ProcessRank(1, 2, 1)
    assert process_rank({**step, "SLURM_STEP_NUM_TASKS": "1"}) == ProcessRank()
    assert process_rank({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}) == ProcessRank(), (
        "a batch script is no task of a step"
    )
    half = {**step, "WORLD_SIZE": "4"}
    assert process_rank(half) == ProcessRank(3, 4, 1), "a job script that sets one of torchrun's variables"


def test_the_processes_of_torchrun_agree_on_a_folder_also_when_they_are_started_again(monkeypatch: Any) -> None:
    agent = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    env = {"TORCHELASTIC_USE_AGENT_STORE": "True", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(agent.port)}
    times = iter(["first", "second", "third"])
    monkeypatch.setattr("time.strftime", lambda _: next(times))
    assert [app.agreed_time(env) for _ in range(3)] == ["first"] * 3
    with pytest.raises(ValueError, match="log_dir has to be given"):
        app.agreed_time({})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("environment=moon", r"environment=moon: allowed are .*desk"),
        ("environment=offline", r"environment=offline: allowed are .*desk"),
        ("environment=../desk", r"environment=\.\./desk: allowed are"),
        ("scene=E", "scene=E: the desk has A, B, C, D"),
        ("renderer=oil", "renderer=oil: the desk has raycast, gl"),
        ("num_sequences=0", "num_sequences=0: expected a whole number of at least 1"),
        ("ep_len=1.5", r"ep_len=1\.5: expected a whole number"),
        ("workers=-1", "workers=-1: expected null or a whole number of at least 0"),
        ("replan_every=0", "replan_every=0: expected null"),
        ("ensemble=-1", "ensemble=-1: expected null or a number of at least 0"),
        ("ensemble=true", "ensemble=True: expected null or a number of at least 0"),
        ("num_sequences=true", "num_sequences=True: expected a whole number"),
        ("save_rollout_as_video=no", "save_rollout_as_video=no: expected true or false"),
        ("log_wandb=no", "log_wandb=no: expected true or false"),
    ],
)
def test_what_cannot_be_run_is_reported_in_one_line(change: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said) as error:
        app.evaluate(
            settings("model_config=x", "environment=desk", f"log_dir={tmp_path / 'log'}", change), ProcessRank()
        )
    assert "\n" not in str(error.value)
    assert not (tmp_path / "log").exists()


def test_a_folder_that_cannot_be_written_is_one_line_and_exit_code_2(monkeypatch: Any, capsys: Any) -> None:
    def refused(*_: Any) -> None:
        raise PermissionError(13, "Permission denied", "/nowhere/settings.json")

    monkeypatch.setattr(app, "evaluate", refused)
    with pytest.raises(SystemExit, match="2"):
        app.main(OmegaConf.create({"model_config": "x"}))
    error = capsys.readouterr().err
    assert "/nowhere/settings.json" in error
    assert error.count("\n") == 1


def test_wandb_that_is_missing_is_reported_before_anything_is_loaded(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match=r"log_wandb=true: the package wandb is not installed \(pip install wandb\)"):
        app.evaluate(settings("model_config=x", "environment=desk", "log_wandb=true"), ProcessRank())


def test_wandb_gets_every_chain_and_of_the_results(model: Path, tmp_path: Path, monkeypatch: Any) -> None:
    heard: list[Any] = []

    class Run:
        summary: dict[str, float] = {}  # noqa: RUF012

        def log(self, row: Any, step: int) -> None:
            heard.append((step, row))

        def finish(self, exit_code: int) -> None:
            heard.append(("finished", exit_code))

    fake = type(sys)("wandb")
    fake.__spec__ = type(json.__spec__)("wandb", None)
    fake.init = lambda **options: Run()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", fake)
    app.evaluate(short(model, tmp_path, "log_wandb=true"), ProcessRank())
    assert heard == [(1, {"average_length": 0.0}), (2, {"average_length": 0.0}), ("finished", 0)]
    assert Run.summary["success/1"] == 0.0


def test_environments_get_as_many_processes_as_they_need(monkeypatch: Any) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)))
    desk, alone = DeskBenchmark(), type("Alone", (DeskBenchmark,), {"envs_per_process": 1, "name": "alone"})()
    assert app.worker_count({"workers": None, "parallel": 8}, desk, ProcessRank()) == 6
    assert app.worker_count({"workers": None, "parallel": 8}, desk, ProcessRank(local_world=3)) == 2
    assert app.worker_count({"workers": 0, "parallel": 8}, desk, ProcessRank()) == 0
    assert app.worker_count({"workers": None, "parallel": 8}, alone, ProcessRank()) == 8
    assert app.worker_count({"workers": 0, "parallel": 1}, alone, ProcessRank()) == 0
    with pytest.raises(ValueError, match="workers=2: a process can have at most 1 environments of alone"):
        app.worker_count({"workers": 2, "parallel": 8}, alone, ProcessRank())


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


def short(model: Path, log_dir: Path, *overrides: str) -> dict[str, Any]:
    return settings(
        f"model_config={model}",
        "environment=desk",
        "device=cpu",
        "num_sequences=2",
        "ep_len=6",
        "workers=0",
        f"log_dir={log_dir}",
        *overrides,
    )


def test_an_evaluation_leaves_results_that_say_what_they_depend_on(model: Path, tmp_path: Path, capsys: Any) -> None:
    app.evaluate(short(model, tmp_path, "ensemble=0.1", "replan_every=2"), ProcessRank())
    results = json.loads((tmp_path / "results.json").read_text())
    assert [(row["index"], row["completed"], row["steps"]) for row in results["records"]] == [(0, 0, [6]), (1, 0, [6])]
    kept = results["settings"]
    assert kept["ensemble"] == 0.1
    assert kept["benchmark"]["renderer"] == "raycast"
    assert len(kept["checkpoint_sha256"]) == 64
    rates, mean, report = capsys.readouterr().out.splitlines()[-3:]
    assert rates == "success 1/5: 0.0% 2/5: 0.0% 3/5: 0.0% 4/5: 0.0% 5/5: 0.0%"
    assert mean.startswith("average length 0.000 [0.000, 3.288] over 2 chains")
    assert mean.endswith(str(tmp_path / "results.json"))
    assert report == f"report in {tmp_path / 'report.html'}"


def test_a_remaining_process_writes_the_report_if_process_0_died(model: Path, tmp_path: Path) -> None:
    second = ProcessRank(rank=1, world=2)
    app.evaluate(short(model, tmp_path), second)
    report = tmp_path / "report.html"
    assert report.read_text(encoding="utf-8").startswith("<!doctype html>")
    report.write_text("there is one")
    app.evaluate(short(model, tmp_path), second)
    assert report.read_text() == "there is one", "it is newer than every record"


def test_records_of_another_desk_are_refused(model: Path, tmp_path: Path, monkeypatch: Any) -> None:
    app.evaluate(short(model, tmp_path), ProcessRank())
    monkeypatch.setattr(desk, "DESK_VERSION", desk.DESK_VERSION + 1)
    with pytest.raises(ValueError, match=r"benchmark\.versions\.desk="):
        app.evaluate(short(model, tmp_path), ProcessRank())


def test_more_chains_are_added_to_an_evaluation_and_other_settings_are_refused(model: Path, tmp_path: Path) -> None:
    app.evaluate(short(model, tmp_path), ProcessRank())
    first = json.loads((tmp_path / "results.json").read_text())["records"]
    app.evaluate(short(model, tmp_path, "num_sequences=3"), ProcessRank())
    assert json.loads((tmp_path / "results.json").read_text())["records"][:2] == first
    assert sum(len(file.read_text().splitlines()) for file in (tmp_path / "records").iterdir()) == 3
    with pytest.raises(ValueError, match="ep_len=6, now it is 7"):
        app.evaluate(short(model, tmp_path, "ep_len=7"), ProcessRank())


@pytest.mark.parametrize(
    ("change", "said"),
    [("replan_every=99", "replan_every must lie in 1..act_step"), ("num_sequences=1001", "1 to 1000 chains")],
)
def test_what_is_refused_late_leaves_the_folder_unclaimed(model: Path, tmp_path: Path, change: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        app.evaluate(short(model, tmp_path / "log", change), ProcessRank())
    assert not (tmp_path / "log").exists()


def test_records_of_other_chains_are_refused(tmp_path: Path) -> None:
    jobs = [job(i, 1) for i in range(2)]
    records.append(tmp_path, "me", ChainRecord(1, ("something else",), 1, (2,)))
    with pytest.raises(ValueError, match="chain 1 was recorded as something else"):
        run_distributed(tmp_path, Counting(), Still(), jobs, RolloutSettings(), Progress(tmp_path, jobs, rank=1))
    assert not (tmp_path / "owners").exists()


@pytest.mark.parametrize(("count", "shares"), [(4, [2, 2]), (5, [2, 3]), (2, [1, 1])])
def test_fewer_chains_than_environments_are_shared_by_the_processes(
    tmp_path: Path, count: int, shares: list[int]
) -> None:
    """Two processes with 8 environments each: at the first look of both, each has its share and no more."""
    jobs, both_look, first = [job(i, 9) for i in range(count)], threading.Barrier(2, timeout=20), []

    class Waits(Still):
        looked = False

        def act(self, observations: Sequence[Observation]) -> Any:
            if not self.looked:
                self.looked = True
                first.append(len(observations))
                both_look.wait()
            return super().act(observations)

    def take_part() -> None:
        run_distributed(
            tmp_path,
            Counting(),
            Waits(),
            jobs,
            RolloutSettings(parallel=8),
            Progress(tmp_path, jobs, rank=1),
            processes=2,
        )

    records.claim(tmp_path, {})
    threads = [threading.Thread(target=take_part, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(40)
    assert sorted(first) == shares
    assert sorted(records.read(tmp_path)) == list(range(count))


def test_a_process_whose_partner_never_comes_runs_all_chains(tmp_path: Path) -> None:
    jobs = [job(i, 9) for i in range(5)]
    records.claim(tmp_path, {})
    run_distributed(
        tmp_path, Counting(), Still(), jobs, RolloutSettings(parallel=8), Progress(tmp_path, jobs, rank=1), processes=4
    )
    assert sorted(records.read(tmp_path)) == list(range(5))


def test_the_command_shares_the_chains_by_the_number_of_its_processes(
    model: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    given: list[int] = []

    def listens(*arguments: Any, **more: Any) -> dict[str, Any]:
        given.append(arguments[7])
        return run_distributed(*arguments, **more)

    monkeypatch.setattr(app, "run_distributed", listens)
    app.evaluate(short(model, tmp_path), ProcessRank(rank=0, world=3))
    assert given == [3]


def taken(worker: Worker, count: int = 3, recorded: tuple[int, ...] = ()) -> list[int]:
    return [job.index for job in worker.claim([job(i, 1) for i in range(count)], lambda index: index in recorded)]


def test_a_chain_is_claimed_once_and_released_when_its_worker_ends(tmp_path: Path) -> None:
    with Worker(tmp_path) as first, Worker(tmp_path) as second:
        assert next(first.claim([job(0, 1)], lambda _: False)).index == 0
        assert taken(second) == [1, 2]
        assert taken(first) == []
    with Worker(tmp_path) as third:
        assert taken(third, recorded=(1,)) == [0, 2]


def test_two_that_find_the_same_dead_worker_do_not_both_claim_its_chain(tmp_path: Path) -> None:
    with Worker(tmp_path) as dead:
        assert taken(dead, 1) == [0]
    with Worker(tmp_path) as one, Worker(tmp_path) as other:
        # Both have looked before either takes.
        of_one, of_other = (o.claim([job(0, 1), job(1, 1)], lambda _: False) for o in (one, other))
        assert [next(of_one).index, next(of_other).index] == [0, 1]
        assert taken(one, 2) == taken(other, 2) == []


def test_a_worker_on_another_machine_is_alive_for_as_long_as_its_lease_lasts(tmp_path: Path) -> None:
    with Worker(tmp_path) as here, Worker(tmp_path) as away:
        assert taken(away, 1) == [0]
        sign = tmp_path / "owners" / away.name
        sign.write_text(json.dumps({"machine": "elsewhere", "process": "1 1"}))
        assert taken(here, 1) == []
        now = sign.stat().st_mtime
        os.utime(sign, (now, now - EXPIRY - 5))
        assert taken(here, 1) == [0]
