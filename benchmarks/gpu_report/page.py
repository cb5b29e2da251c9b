"""The page of the report: targets, one table per section, and what failed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.gpu_report.sections import SECTIONS, TARGETS, Target
from common.tables import markdown_table

TITLES = {
    "mfu": "MFU",
    "ms": "ms a step",
    "tflops": "model TFLOP/s",
    "peak_gb": "peak GB",
    "tokens_per_s": "tokens/s",
    "samples_per_s": "samples/s",
    "p50_ms": "p50, ms",
    "p95_ms": "p95, ms",
    "calls_per_s": "calls/s",
    "peak_gib": "peak GiB",
    "card_gib": "card GiB",
}
"""Titles of columns that are not the figure's name with spaces."""


def page(content: Mapping[str, Any]) -> str:
    """Return the report as Markdown. ``content``: the JSON file's content."""
    machine = content.get("worker", {}).get("hardware", {})
    lines = [
        "# GPU report",
        "",
        f"{machine.get('gpu', machine.get('cpu', 'no machine answered'))}, {content['settings']['size']} size. "
        f"{summary(content['cases'])}.",
        "",
        "The JSON file next to this page has commit, versions and all figures. Networks have random weights; training",
        "is in bf16 with float32 weights, without gradient checkpointing; samples are robot samples and conversations.",
        "",
        "## Targets",
        "",
        markdown_table(("target", "best", "case", "reached"), [_target(one, content["cases"]) for one in TARGETS]),
    ]
    for section in SECTIONS:
        cases = {key: one for key, one in content["cases"].items() if one["section"] == section}
        lines += ["", f"## {section.capitalize()}", "", _table(cases)]
    return "\n".join(lines) + "\n"


def summary(cases: Mapping[str, Mapping[str, Any]]) -> str:
    """Return how many cases have which status, in one line."""
    counts = {status: sum(one["status"] == status for one in cases.values()) for status in _STATUS}
    return f"{len(cases)} cases: " + ", ".join(f"{count} {status}" for status, count in counts.items() if count)


_STATUS = ("done", "failed", "skipped", "not run")


def _table(cases: Mapping[str, Mapping[str, Any]]) -> str:
    names = list(dict.fromkeys(name for one in cases.values() for name in one["figures"]))
    rows = [
        [one["name"], *(_cell(name, one["figures"].get(name)) for name in names), _status(one)]
        for one in cases.values()
    ]
    return markdown_table(("case", *(TITLES.get(name, name.replace("_", " ")) for name in names), "status"), rows)


def _status(one: Mapping[str, Any]) -> str:
    message = str(one["message"]).replace("|", "/")
    return f"{one['status']}: {message}" if message else str(one["status"])


def _cell(name: str, value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.1%}" if name == "mfu" else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)


def _target(target: Target, cases: Mapping[str, Mapping[str, Any]]) -> tuple[str, str, str, str]:
    """Return the row of a target: the best case of its section decides."""
    measured = {
        one["name"]: float(one["figures"][target.figure])
        for one in cases.values()
        if one["section"] == target.section and target.figure in one["figures"]
    }
    if not measured:
        return target.text, "", "", "not measured"
    best = (min if target.at_most else max)(measured, key=lambda name: measured[name])
    value = measured[best]
    return target.text, _cell(target.figure, value), best, "yes" if target.reached(value) else "no"
