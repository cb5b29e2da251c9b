"""Access tokens, refusal of browser requests, and the plain HTTP endpoints on the same port."""

from __future__ import annotations

import hmac
import json
from collections.abc import Mapping
from urllib.parse import parse_qs, urlsplit

from policy_rollout.serving.batching import Batcher

WS_PATHS = ("/", "/vla-eval", "/openpi")
"""Paths of WebSockets. At the first, the server detects the protocol."""
HEALTH_PATHS = ("/health", "/healthz")
CONFIG_PATH = "/config"
_MAX_WAIT = 1.0


def has_token(token: str, path: str, authorization: str | None) -> bool:
    """Return whether a request has the token: as `Authorization: Bearer ...` or `Api-Key ...` (openpi's `api_key`), or
    as `?token=...` for clients that cannot set headers (vla-eval's)."""
    kind, _, given = (authorization or "").partition(" ")
    tokens = [given.strip()] if kind.lower() in ("bearer", "api-key") else []
    tokens += parse_qs(urlsplit(path).query).get("token", [])[:1]
    return any(hmac.compare_digest(found.encode(), token.encode()) for found in tokens)


def is_browser_request(headers: Mapping[str, str]) -> bool:
    """Return whether a page in a browser sent the request; an address typed by the user has none of these headers."""
    return "Origin" in headers or headers.get("Sec-Fetch-Site", "none") != "none"


def configure(batcher: Batcher, limit: int, query: str) -> tuple[int, str]:
    """Return status and JSON of GET /config. `?max_batch_size=4&max_wait_time=0.01` sets the named values, as in
    vla-eval's own servers. `limit`: the largest batch, set when the server was started."""
    applied: dict[str, float] = {}
    errors: list[str] = []
    for name, values in parse_qs(query).items():
        if name == "token":
            continue
        try:
            if name == "max_batch_size" and 1 <= int(values[-1]) <= limit:
                batcher.max_batch = int(values[-1])
                applied[name] = batcher.max_batch
            elif name == "max_wait_time" and 0 <= float(values[-1]) <= _MAX_WAIT:
                batcher.max_wait = float(values[-1])
                applied[name] = batcher.max_wait
            else:
                raise ValueError
        except ValueError:
            allowed = f"max_batch_size 1..{limit} and max_wait_time 0..{_MAX_WAIT:g}"
            errors.append(f"{name[:40]}={values[-1][:40]}: allowed are {allowed}")
    current = {"max_batch_size": batcher.max_batch, "max_wait_time": batcher.max_wait}
    content: Mapping[str, object] = {"applied": applied, "config": current} | ({"errors": errors} if errors else {})
    return (422 if errors and not applied else 200), json.dumps(content) + "\n"
