"""Ranks wait for long work of the first one by short messages."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from accelerate import Accelerator

from training.distributed import host_sync
from training.distributed.host_sync import HostComm


def test_long_work_of_the_main_rank_exchanges_messages_and_raises_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_sync, "HEARTBEAT_S", 0.02)
    comm, messages = HostComm(Accelerator(cpu=True)), []
    broadcast = comm.broadcast_from_main

    def count(function: Callable[[], Any]) -> Any:
        messages.append(broadcast(function))
        return messages[-1]

    monkeypatch.setattr(comm, "broadcast_from_main", count)
    done: list[str] = []

    def work() -> None:
        time.sleep(0.2)
        done.append("rewritten")

    comm.run_on_main(work)
    assert done == ["rewritten"]
    assert messages[-1] is True
    assert messages.count(False) == len(messages) - 1 >= 3

    def fail() -> None:
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        comm.run_on_main(fail)


def test_a_rank_that_waits_does_no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    comm, answers = HostComm(Accelerator(cpu=True)), [False, False, True]
    comm.is_main = False
    monkeypatch.setattr(comm, "broadcast_from_main", lambda function: answers.pop(0))
    comm.run_on_main(lambda: pytest.fail("the main rank works"))
    assert answers == []
