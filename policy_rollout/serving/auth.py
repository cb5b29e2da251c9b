"""Who may connect, and what plain HTTP answers on the same port."""

from __future__ import annotations

import hmac
import json
from collections.abc import Mapping
from urllib.parse import parse_qs, urlsplit

from policy_rollout.serving.batching import Batcher

WS_PATHS = ("/", "/vla-eval", "/openpi")
"""Where a WebSocket may be opened: at the first the server finds out which protocol it is."""
HEALTH_PATHS = ("/health", "/healthz")
CONFIG_PATH = "/config"
_MAX_WAIT = 1.0


def has_token(token: str, path: str, authorization: str | None) -> bool:
    """Is the token there? As `Authorization: Bearer ...` or `Api-Key ...` (openpi's `api_key`), or as `?token=...` for
    clients that cannot set headers (vla-eval's)."""
    kind, _, given = (authorization or "").partition(" ")
    offers = [given.strip()] if kind.lower() in ("bearer", "api-key") else []
    offers += parse_qs(urlsplit(path).query).get("token", [])[:1]
    return any(hmac.compare_digest(offer.encode(), token.encode()) for offer in offers)


def is_browser_request(headers: Mapping[str, str]) -> bool:
    """Does a page in a browser ask? Any may send requests to this machine; an address that is typed says none."""
    return "Origin" in headers or headers.get("Sec-Fetch-Site", "none") != "none"


def configure(batcher: Batcher, most: int, query: str) -> tuple[int, str]:
    """GET /config: status and JSON. `?max_batch_size=4&max_wait_time=0.01` changes what it names, as vla-eval's own
    servers do; a batch never grows beyond `most`, which the server was started with."""
    applied: dict[str, float] = {}
    errors: list[str] = []
    for name, values in parse_qs(query).items():
        if name == "token":
            continue
        try:
            if name == "max_batch_size" and 1 <= int(values[-1]) <= most:
                batcher.max_batch = int(values[-1])
                applied[name] = batcher.max_batch
            elif name == "max_wait_time" and 0 <= float(values[-1]) <= _MAX_WAIT:
                batcher.max_wait = float(values[-1])
                applied[name] = batcher.max_wait
            else:
                raise ValueError
        except ValueError:
            allowed = f"max_batch_size 1..{most} and max_wait_time 0..{_MAX_WAIT:g}"
            errors.append(f"{name[:40]}={values[-1][:40]}: allowed are {allowed}")
    current = {"max_batch_size": batcher.max_batch, "max_wait_time": batcher.max_wait}
    content: Mapping[str, object] = {"applied": applied, "config": current} | ({"errors": errors} if errors else {})
    return (422 if errors and not applied else 200), json.dumps(content) + "\n"
