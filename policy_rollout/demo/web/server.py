"""Serve the page until Ctrl-C or SIGTERM: on this machine only by default, without any request to the network."""

from __future__ import annotations

import logging
import signal
import tempfile
import threading

from common.processes import environment
from policy_rollout.demo.web.answers import load_text_models
from policy_rollout.demo.web.play import Play, SharedModel, Start
from policy_rollout.demo.web.sessions import Sessions
from policy_rollout.demo.web.settings import Choices, WebSettings, free_port
from policy_rollout.desk.task_sets import TaskSet
from policy_rollout.serve import is_local

CHECK_SECONDS = 5.0
"""Time between two searches for idle plays."""


def serve(model: SharedModel, tasks: TaskSet, choices: Choices, settings: WebSettings, device: str) -> None:
    """Serve until a signal. Raises ``ValueError`` or ``OSError`` if a text model or the address cannot be used."""
    stopped = threading.Event()
    text_models = load_text_models(settings.text_models, device)
    with tempfile.TemporaryDirectory(prefix="blockdiff-demo-") as cache, environment(_variables(cache)):
        import gradio as gr

        from policy_rollout.demo.web.page import FOLDER, make_page

        start = Start(choices.scene, choices.seed)
        sessions = Sessions(lambda: Play(model, tasks, start), settings.max_sessions, settings.timeout)
        page = make_page(sessions, model, text_models, choices)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stopped.set())
        port = free_port(settings.host, settings.port)
        page.launch(
            server_name=settings.host,
            server_port=port,
            share=False,
            inbrowser=False,
            prevent_thread_lock=True,
            quiet=True,
            ssr_mode=False,
            footer_links=[],
            theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
            css_paths=FOLDER / "page.css",
        )
        try:
            if not is_local(settings.host):
                print(f"WARNING: {settings.host} is open to other machines: anyone there can use this page")
            print(f"open http://{_shown(settings.host)}:{port} in a browser; Ctrl-C stops", flush=True)
            while not stopped.wait(CHECK_SECONDS):
                sessions.close_idle()
        finally:
            print("stopping", flush=True)
            sessions.close_all()
            page.server.config.timeout_graceful_shutdown = 1  # the streams of open pages would be waited for,
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # and their end be logged as errors
            page.close(verbose=False)


def _variables(cache: str) -> dict[str, str]:
    """Return the environment of gradio: no reports to its makers, and its files in a folder that is deleted."""
    return {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1", "GRADIO_TEMP_DIR": cache}


def _shown(host: str) -> str:
    """Return the host in a URL that works on this machine."""
    if host in ("0.0.0.0", "::"):
        return "localhost"
    return f"[{host}]" if ":" in host else host
