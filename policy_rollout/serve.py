"""Serve a model to simulators and robots: `python -m policy_rollout.serve --checkpoint outputs/mine`."""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from common.command import run_command
from policy_rollout.policies.interface import ACTION_DECODERS, CAMERAS, Policy, image_rotation_of, state_read_by
from policy_rollout.policies.model_options import add_model_options, require_model_options

if TYPE_CHECKING:  # websockets and msgpack are imported only to start a server
    from policy_rollout.serving.server import Settings

TOKEN_VARIABLE = "BLOCKDIFF_SERVE_TOKEN"
DESCRIPTION = """\
Returns actions for observations over a WebSocket. Two protocols on one port: that of vla-eval (`vla-eval run`: one
action per observation, in its benchmark's units) and that of openpi-client (one chunk per observation, in the model's
own units). Observations of several clients are batched into one forward."""
EPILOG = f"""\
examples:
  on this machine, for this machine:
    python -m policy_rollout.serve --checkpoint assets/desk_policy --port 8000
  for a robot in the same network, with a token (as a variable it is not in the list of processes):
    {TOKEN_VARIABLE}=... python -m policy_rollout.serve --checkpoint assets/desk_policy --host 0.0.0.0
  replan after every 5 actions; 8 simulators at once on a GPU:
    python -m policy_rollout.serve --checkpoint assets/desk_policy --replan-every 5 --device cuda --max-batch 8
  check that it runs, and its batching:
    curl http://127.0.0.1:8000/health;  curl http://127.0.0.1:8000/config

addresses: ws://HOST:PORT/vla-eval, ws://HOST:PORT/openpi, and ws://HOST:PORT for either (a client that sends
hello first is vla-eval). Stop with Ctrl-C or SIGTERM: answers in progress are still sent. More in docs/serving.md."""


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m policy_rollout.serve",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    model = made.add_argument_group("the model")
    add_model_options(model)
    model.add_argument("--device", default="auto", help="auto (default), cpu, cuda or cuda:<n>")
    model.add_argument("--precision", choices=("no", "bf16", "fp16"), help="of the network (default: as in the yaml)")
    model.add_argument("--action-decoder", choices=ACTION_DECODERS, help="(default: as in the yaml)")
    chunks = made.add_argument_group("execution of chunks (vla-eval; openpi's clients execute chunks themselves)")
    chunks.add_argument("--replan-every", type=int, help="actions executed of every chunk (default: all)")
    chunks.add_argument("--ensemble", type=float, help="average overlapping chunks with exp(-m * age) (default: none)")
    chunks.add_argument(
        "--camera",
        action="append",
        default=[],
        metavar="OURS=THEIRS",
        help="name of a camera in vla-eval's images, e.g. rgb_static=agentview; may be repeated (default: the "
        "benchmark's name for CALVIN, LIBERO and SimplerEnv, else ours)",
    )
    network = made.add_argument_group("network")
    network.add_argument("--host", default="127.0.0.1", help="127.0.0.1 (default): this machine only; 0.0.0.0: all")
    network.add_argument("--port", type=int, default=8000, help="(default: 8000; 0: any free port)")
    network.add_argument("--token", help=f"token that clients must send; better in the variable {TOKEN_VARIABLE}")
    network.add_argument("--max-sessions", type=int, default=64, help="clients at once (default: 64)")
    network.add_argument("--max-message-mb", type=float, default=8, help="of one message (default: 8)")
    network.add_argument("--max-pixels", type=int, default=1 << 22, help="of one image (default: 4194304)")
    batching = made.add_argument_group("batching and statistics")
    batching.add_argument("--max-batch", type=int, default=16, help="observations in one forward (default: 16)")
    batching.add_argument(
        "--max-wait-ms", type=float, default=5, help="an observation waits this long for others (default: 5)"
    )
    batching.add_argument(
        "--report-every", type=float, default=30, help="seconds between lines of statistics (default: 30; 0: none)"
    )
    return made


def settings(options: argparse.Namespace) -> Settings:
    """Return the checked settings. Raises `ValueError` naming the invalid option."""
    from policy_rollout.serving.server import Settings
    from policy_rollout.serving.wire import Limits

    for name, low, high in (
        ("port", 0, 65535),
        ("max_batch", 1, 4096),
        ("max_wait_ms", 0, 1000),
        ("max_sessions", 1, 100_000),
        ("max_message_mb", 0.01, 1024),
        ("max_pixels", 1, 1 << 28),
        ("report_every", 0, 86400),
    ):
        if not low <= getattr(options, name) <= high:
            flag = name.replace("_", "-")
            raise ValueError(f"--{flag} must lie in {low}..{high}, got {getattr(options, name)}")
    names: dict[str, str] = {}
    for pair in options.camera:
        ours, equals, theirs = pair.partition("=")
        if ours not in CAMERAS or not equals or not theirs:
            raise ValueError(f"--camera {pair}: give one of {', '.join(CAMERAS)}, =, and the client's name for it")
        names[ours] = theirs
    token = options.token if options.token is not None else os.environ.get(TOKEN_VARIABLE)
    if token is not None and not token.strip():
        raise ValueError("the token is empty; omit --token, or give one")
    return Settings(
        host=options.host,
        port=options.port,
        token=token,
        max_batch=options.max_batch,
        max_wait=options.max_wait_ms / 1000,
        replan_every=options.replan_every,
        ensemble=options.ensemble,
        limits=Limits(
            message_bytes=int(options.max_message_mb * (1 << 20)),
            pixels=options.max_pixels,
            sessions=options.max_sessions,
        ),
        names=names,
        report_every=options.report_every,
    )


def is_local(host: str) -> bool:
    """Return whether only this machine can reach a host address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def banner(policy: Policy, model: str, chosen: Settings, port: int, device: str) -> str:
    """Return the startup message: model, addresses, limits, and a warning if the server is open without a token."""
    convention = policy.convention
    address = f"{chosen.host}:{port}"
    batch, wait = chosen.max_batch, chosen.max_wait * 1000
    lines = [
        f"model     {model}, on {device}",
        f"cameras   {', '.join(policy.cameras)}; chunks of {policy.act_step} actions, replanning after "
        f"{chosen.replan_every or policy.act_step}",
        f"actions   {convention.kind}, 1.0 = {convention.position_m_per_unit:g} m and "
        f"{convention.rotation_rad_per_unit:g} rad in the {convention.frame} frame, gripper {convention.gripper}",
        f"vla-eval  ws://{address}/vla-eval   (in the benchmark's units; metres and radians if it is unknown)",
        f"openpi    ws://{address}/openpi     (chunks, in the units above)",
        f"either    ws://{address}            http://{address}/health /healthz /config",
        f"batching  up to {batch} at once, waiting {wait:g} ms at most; {chosen.limits.sessions} sessions, "
        f"{chosen.limits.message_bytes / (1 << 20):g} MB a message",
        f"token     {'required' if chosen.token else 'none'}",
    ]
    if (state := state_read_by(policy)) is not None:
        lines.insert(2, f"state     {state}, in every observation (openpi observation/state, vla-eval states)")
    if turned := image_rotation_of(policy):
        lines.insert(2, f"images    rotated by {turned} degrees against those of the camera (vla-eval: by the server)")
    if not is_local(chosen.host) and not chosen.token:
        lines.append(
            f"WARNING   {chosen.host} is open to other machines and no token is required: anyone there can use this "
            f"model. Set {TOKEN_VARIABLE}. The connection is not encrypted: use a tunnel outside your own network."
        )
    return "\n".join(lines)


async def serve(
    policy: Policy,
    chosen: Settings,
    model: str,
    device: str,
    image_shapes: Mapping[str, Sequence[int]] | None = None,
) -> None:
    """Serve until Ctrl-C or SIGTERM. A second signal ends the process immediately."""
    from policy_rollout.serving.server import Server

    loop = asyncio.get_running_loop()
    server = Server(policy, chosen, model=model, image_shapes=image_shapes, log=lambda line: print(line, flush=True))
    async with server:

        def stop() -> None:
            print("stopping: answers in progress are still sent", flush=True)
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)
            server.stop()

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop)
        print(banner(policy, model, chosen, server.port, device), flush=True)
        print(f"ready on port {server.port}", flush=True)
        await server.run()
    print(f"stopped: {server.stats.total()}", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    try:
        chosen = settings(options)
        require_model_options(options)
        from policy_rollout.policies.upvla import UPVLAPolicy  # imports torch, after all checks that need none

        policy = UPVLAPolicy.from_config(
            options.model_config,
            device=options.device,
            checkpoint=options.checkpoint,
            action_decoder=options.action_decoder,
            precision=options.precision,
        )
        assert policy.source is not None
        policy.warm_up()
        asyncio.run(serve(policy, chosen, str(policy.source.checkpoint), str(policy.device), policy.spec.data.cameras))
    except ImportError as error:
        if error.name not in ("websockets", "msgpack"):
            raise
        print(f"serve: {error.name} is not installed; pip install -r requirements_minimal.txt", file=sys.stderr)
        return 2
    except (ValueError, OSError) as error:
        print(f"serve: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    run_command(main)
