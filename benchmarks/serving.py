"""What serving costs, and what asking together gains: answers per second and their times, by number of clients.

The server of `policy_rollout/serve.py` runs in this process, the clients in another. With and without batching (by
`/config`, nothing else changes) in turn.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks.record import ROOT, arguments, parser, write
from benchmarks.serving_clients import SENTENCES, image
from benchmarks.sizes import SIZES, bearable, image_tokenizer, language_model
from benchmarks.timing import Spread, lap
from common.arguments import real, whole
from common.command import run_command
from config.load import load_job
from models.pretrained.model_io import build
from models.vision.magvitv2 import load_magvit
from policy_rollout.policies.interface import ActionConvention, Observation, Policy
from policy_rollout.policies.upvla import ConstantPolicy, UPVLAPolicy
from policy_rollout.serving.server import Server, Settings

NAME = "serving"
EMBEDDED = "embedded"
STAND_INS = {"nothing": 0.0, "fixed": 0.03}
"""Seconds that a forward of a policy without a network takes, whatever its batch: what is left is the server's time,
and what asking together gains where a forward is bound by latency, as a GPU's is."""
MODES = {"batched": 64, "one by one": 1}
SAME = 1e-4
SAME_GPU = 0.05
"""Largest difference, of actions of size 1, that sums of different order explain: float32 on a CPU, TF32 or bf16."""
DESCRIPTION = __doc__
EPILOG = """\
examples:
  the figures of the documentation (some minutes on two cores):
    python -m benchmarks.serving --out benchmarks/results/serving.json
  the server's own time, and a forward that takes 30 ms for any batch:
    python -m benchmarks.serving --size nothing
    python -m benchmarks.serving --size fixed
  the real size on a GPU, 32 simulators:
    python -m benchmarks.serving --size phi --device cuda --precision bf16 --clients 1,8,32"""


class StandIn(ConstantPolicy):
    """Answers after so many seconds, always the same."""

    def __init__(self, seconds: float) -> None:
        super().__init__(np.zeros(ActionConvention().dim, dtype=np.float32), act_step=10)
        self.seconds = seconds

    def act(self, observations: Sequence[Observation]) -> NDArray[np.float32]:
        time.sleep(self.seconds)
        return super().act(observations)


def policy_of(size: str, device: torch.device, precision: str) -> Policy:
    """Random weights: time does not depend on what was learned."""
    if size in STAND_INS:
        return StandIn(STAND_INS[size])
    if size == EMBEDDED:
        job = load_job(["config=./config/debug_arvla_1step.yaml"])
        return UPVLAPolicy(
            build(job), load_magvit(job.model.vq_model.vq_model_name), device=device, precision=precision
        )
    bearable(SIZES[size], device)
    built, vq = language_model(SIZES[size], device), image_tokenizer(SIZES[size], device)
    return UPVLAPolicy(built, vq, device=device, precision=precision)


@contextmanager
def served(policy: Policy, max_wait: float) -> Iterator[int]:
    """A server in a thread; its port."""
    ready = threading.Event()
    box: dict[str, Any] = {}

    async def serve() -> None:
        async with Server(policy, Settings(port=0, max_batch=64, max_wait=max_wait, report_every=0)) as server:
            box.update(server=server, loop=asyncio.get_running_loop())
            ready.set()
            await server.run()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    if not ready.wait(30):
        raise SystemExit("the server did not start")
    try:
        yield box["server"].port
    finally:
        box["loop"].call_soon_threadsafe(box["server"].stop)
        thread.join(30)


def ask(port: int, protocol: str, clients: int, requests: int, batch: int) -> dict[str, Any]:
    """One measurement: so many clients, each with so many questions one after the other."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/config?max_batch_size={batch}", timeout=30) as answer:
        answer.read()
    task = json.dumps({"port": port, "protocol": protocol, "clients": clients, "requests": requests})
    before = time.process_time()  # of the server: the clients are another process
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.serving_clients", task],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        encoding="utf-8",
    )
    if done.returncode:
        raise SystemExit(f"the clients failed: {done.stderr[-500:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found | {"server_cpu": time.process_time() - before}


def compare(policy: Policy, port: int, clients: int, tolerance: float) -> float:
    """Largest difference between answers of a full batch and the policy asked alone; raises ``SystemExit`` where they
    are not the same."""
    together = np.array(ask(port, "openpi", clients, 1, MODES["batched"])["first"])
    seen = [Observation(image(number, 0), SENTENCES[number % len(SENTENCES)]) for number in range(clients)]
    difference = float(np.abs(together - np.stack([policy.act([one])[0] for one in seen])).max())
    if difference > tolerance:
        raise SystemExit(f"answers to a batch differ from single ones by {difference:.2g}; nothing is timed")
    return difference


def row(laps: Sequence[dict[str, Any]], clients: int, requests: int) -> dict[str, Any]:
    """Spreads over the rounds."""
    return {
        "answers_per_second": Spread.of([clients * requests / lap["seconds"] for lap in laps]),
        "p50_ms": Spread.of([float(np.percentile(lap["milliseconds"], 50)) for lap in laps]),
        "p95_ms": Spread.of([float(np.percentile(lap["milliseconds"], 95)) for lap in laps]),
        "server_cpu_ms_per_answer": Spread.of([lap["server_cpu"] * 1000 / (clients * requests) for lap in laps]),
    }


def measure(port: int, options: Any, counts: Sequence[int]) -> dict[str, Any]:
    """By protocol, clients and mode; modes in turn, turned around every round."""
    protocols = {"openpi": options.requests, "vla-eval": options.requests * 4}
    found: dict[tuple[str, int, str], list[dict[str, Any]]] = {}
    with tqdm(total=options.rounds * len(counts) * len(MODES) * len(protocols), unit="run") as bar:
        for number in range(options.rounds):
            for protocol, requests in protocols.items():
                for clients in counts:
                    for mode in list(MODES) if number % 2 == 0 else list(reversed(MODES)):
                        ran = ask(port, protocol, clients, requests, MODES[mode])
                        found.setdefault((protocol, clients, mode), []).append(ran)
                        bar.update()
    rows: dict[str, Any] = {}
    for (protocol, clients, mode), laps in found.items():
        entry = rows.setdefault(f"{protocol}, {clients} clients", {"requests_each": protocols[protocol]})
        entry[mode] = row(laps, clients, protocols[protocol])
    for entry, key in ((rows[f"{p}, {c} clients"], (p, c)) for p in protocols for c in counts):
        fast, slow = (found[(*key, mode)] for mode in MODES)
        ratios = [b["seconds"] / a["seconds"] for a, b in zip(fast, slow, strict=True)]
        entry["times_faster_batched"] = Spread.of(ratios)
    return rows


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    made = parser(NAME, str(DESCRIPTION), EPILOG)
    made.add_argument("--size", choices=(EMBEDDED, *SIZES, *STAND_INS), default=EMBEDDED, help="(default embedded)")
    made.add_argument("--precision", choices=("no", "bf16", "fp16"), default="no", help="autocast (default no)")
    made.add_argument("--clients", default="1,4,8", help="numbers of clients (default 1,4,8)")
    made.add_argument(
        "--requests", type=whole(1), default=20, help="questions of each (default 20; vla-eval: 4 times that)"
    )
    made.add_argument("--max-wait-ms", type=real(0), default=5, help="as of the server (default 5)")
    options = made.parse_args(argv)
    torch.set_num_threads(options.threads)
    counts = [int(count) for count in options.clients.split(",")]
    policy = policy_of(options.size, options.device, options.precision)
    alone = [Observation(image(0, number), SENTENCES[0]) for number in range(options.requests)]
    policy.act(alone[:1])
    direct = [lap(lambda one=one: policy.act([one]), options.device).wall * 1000 for one in alone]  # type: ignore[misc]
    with served(policy, options.max_wait_ms / 1000) as port:
        difference = compare(policy, port, max(counts), SAME if options.device.type == "cpu" else SAME_GPU)
        rows = measure(port, options, counts)
    content = {
        "size": options.size,
        "act_step": policy.act_step,
        "max_wait_ms": options.max_wait_ms,
        "difference_of_a_batch": difference,
        "policy_alone_ms": Spread.of(direct),
        "rows": rows,
    }
    print(f"the policy itself, one observation: {Spread.of(direct)} ms")
    for name, entry in rows.items():
        print(f"{name}: batched is {entry['times_faster_batched']} times as fast")
        for mode in MODES:
            told = {key: str(value) for key, value in entry[mode].items()}
            print(
                f"  {mode:10}  {told['answers_per_second']} answers/s, {told['p50_ms']} ms, 95 %: {told['p95_ms']} ms, "
                f"CPU of the server: {told['server_cpu_ms_per_answer']} ms"
            )
    write(options.out, NAME, arguments(argv), options.device, options.threads, content)
    return content


if __name__ == "__main__":
    run_command(main)
