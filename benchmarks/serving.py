"""Measure the cost of serving a policy, and the gain of batching: answers per second and latency, by number of clients.

The server of policy_rollout/serve.py runs in this process, the clients in another. Runs with and without batching (by
`/config`, nothing else changes) alternate.

Examples:
  the figures of the documentation (some minutes on two cores):
    python -m benchmarks.serving --out benchmarks/results/serving.json
  the server's own time, and a forward that takes 30 ms for any batch:
    python -m benchmarks.serving --size nothing
    python -m benchmarks.serving --size fixed
  the real size on a GPU, 32 simulators:
    python -m benchmarks.serving --size phi --device cuda --precision bf16 --clients 1,8,32
"""

from __future__ import annotations

import argparse
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
from numpy.typing import NDArray

from benchmarks.harness.problems import SIZES, check_size, image_tokenizer, language_model
from benchmarks.harness.record import ROOT, Parser, write
from benchmarks.harness.serving_clients import SENTENCES, image
from benchmarks.harness.timing import Spread, lap
from common.arguments import real, whole
from common.command import progress_bar, run_command
from config.loading import load_job
from models.pretrained.model_io import build
from models.vision.magvitv2 import load_magvit
from policy_rollout.policies.baselines import ConstantPolicy
from policy_rollout.policies.interface import ActionConvention, Observation, Policy
from policy_rollout.policies.upvla import UPVLAPolicy
from policy_rollout.serving.server import Server, Settings

EMBEDDED = "embedded"
STAND_INS = {"nothing": 0.0, "fixed": 0.03}
"""Seconds that a forward of a policy without a network takes for any batch: the remaining time is the server's,
and the gain of batching is that of a forward bound by latency, as on a GPU."""
MODES = {"batched": 64, "one by one": 1}
SAME, SAME_GPU = 1e-4, 0.05
"""Largest difference, of actions of size 1, that sums of different order explain: float32 on a CPU, TF32 or bf16."""


class StandIn(ConstantPolicy):
    """A policy that returns the same actions after a fixed time."""

    def __init__(self, seconds: float) -> None:
        super().__init__(np.zeros(ActionConvention().dim, dtype=np.float32), act_step=10)
        self.seconds = seconds

    def act(self, observations: Sequence[Observation]) -> NDArray[np.float32]:
        time.sleep(self.seconds)
        return super().act(observations)


def load_policy(args: argparse.Namespace) -> Policy:
    """Return the policy of --size, with random weights."""
    if args.size in STAND_INS:
        return StandIn(STAND_INS[args.size])
    if args.size == EMBEDDED:
        job = load_job(["config=./config/debug_arvla_1step.yaml"])
        built, vq = build(job), load_magvit(job.model.vq_model.vq_model_name)
    else:
        args.anyway = False
        size = check_size(args)
        built, vq = language_model(size, args.device), image_tokenizer(size, args.device)
    return UPVLAPolicy(built, vq, device=args.device, precision=args.precision)


@contextmanager
def served(policy: Policy, max_wait: float) -> Iterator[int]:
    """Run a server in a thread; yield its port."""
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
    """Run clients, each of which sends its requests one after the other; return their times."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/config?max_batch_size={batch}", timeout=30) as answer:
        answer.read()
    task = json.dumps({"port": port, "protocol": protocol, "clients": clients, "requests": requests})
    before = time.process_time()  # of the server; the clients are another process
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.harness.serving_clients", task],
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
    """Return the largest difference between answers of a full batch and single ones. Exit if it is too large."""
    together = np.array(ask(port, "openpi", clients, 1, MODES["batched"])["first"])
    observations = [Observation(image(number, 0), SENTENCES[number % len(SENTENCES)]) for number in range(clients)]
    difference = float(np.abs(together - np.stack([policy.act([one])[0] for one in observations])).max())
    if difference > tolerance:
        raise SystemExit(f"answers to a batch differ from single ones by {difference:.2g}; nothing is timed")
    return difference


def measure(port: int, args: argparse.Namespace) -> dict[str, Any]:
    """Return results by protocol and number of clients; modes alternate, in reversed order every other round."""
    protocols = {"openpi": args.requests, "vla-eval": args.requests * 4}
    cases = [(protocol, clients) for protocol in protocols for clients in args.clients]
    found: dict[tuple[str, int, str], list[dict[str, Any]]] = {}
    with progress_bar(total=args.rounds * len(cases) * len(MODES), unit="run") as bar:
        for number in range(args.rounds):
            for protocol, clients in cases:
                for mode in list(MODES) if number % 2 == 0 else list(reversed(MODES)):
                    run = ask(port, protocol, clients, protocols[protocol], MODES[mode])
                    found.setdefault((protocol, clients, mode), []).append(run)
                    bar.update()
    rows: dict[str, Any] = {}
    for protocol, clients in cases:
        requests = protocols[protocol]
        runs = {mode: found[protocol, clients, mode] for mode in MODES}
        pairs = zip(*(runs[mode] for mode in MODES), strict=True)
        rows[f"{protocol}, {clients} clients"] = {
            "requests_each": requests,
            **{mode: summarize(runs[mode], clients * requests) for mode in MODES},
            "times_faster_batched": Spread.of([b["seconds"] / a["seconds"] for a, b in pairs]),
        }
    return rows


def summarize(runs: Sequence[dict[str, Any]], answers: int) -> dict[str, Spread]:
    """Return spreads over the rounds of one mode."""
    return {
        "answers_per_second": Spread.of([answers / run["seconds"] for run in runs]),
        "p50_ms": Spread.of([float(np.percentile(run["milliseconds"], 50)) for run in runs]),
        "p95_ms": Spread.of([float(np.percentile(run["milliseconds"], 95)) for run in runs]),
        "server_cpu_ms_per_answer": Spread.of([run["server_cpu"] * 1000 / answers for run in runs]),
    }


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = Parser("serving", __doc__)
    parser.add_argument("--size", choices=(EMBEDDED, *SIZES, *STAND_INS), default=EMBEDDED, help="policy (embedded)")
    parser.add_argument("--precision", choices=("no", "bf16", "fp16"), default="no", help="autocast (no)")
    parser.add_argument("--clients", default="1,4,8", help="numbers of clients (1,4,8)")
    parser.add_argument("--requests", type=whole(1), default=20, help="requests of each (20; vla-eval: 4 times that)")
    parser.add_argument("--max-wait-ms", type=real(0), default=5, help="as for the server (5)")
    args = parser.parse(argv)
    args.clients = [int(count) for count in args.clients.split(",")]
    policy = load_policy(args)
    alone = [Observation(image(0, number), SENTENCES[0]) for number in range(args.requests)]
    policy.act(alone[:1])
    direct = Spread.of([lap(lambda one=one: policy.act([one]), args.device).wall * 1000 for one in alone])  # type: ignore[misc]
    with served(policy, args.max_wait_ms / 1000) as port:
        difference = compare(policy, port, max(args.clients), SAME if args.device.type == "cpu" else SAME_GPU)
        rows = measure(port, args)
    content = {
        "size": args.size,
        "act_step": policy.act_step,
        "max_wait_ms": args.max_wait_ms,
        "difference_of_a_batch": difference,
        "policy_alone_ms": direct,
        "rows": rows,
    }
    print(f"the policy itself, one observation: {direct} ms")
    for name, entry in rows.items():
        print(f"{name}: batched is {entry['times_faster_batched']} times as fast")
        for mode in MODES:
            row = entry[mode]
            print(
                f"  {mode:10}  {row['answers_per_second']} answers/s, {row['p50_ms']} ms, 95 %: {row['p95_ms']} ms, "
                f"CPU of the server: {row['server_cpu_ms_per_answer']} ms"
            )
    write(args, content)
    return content


if __name__ == "__main__":
    run_command(main)
