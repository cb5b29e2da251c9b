"""The sections of the report in their order, the columns of their tables, and their targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.gpu_report import acting, correctness, presets, text_answers, training_steps
from benchmarks.gpu_report.case import Case

SECTIONS = (
    correctness.SECTION,
    training_steps.SECTION,
    acting.LATENCY,
    acting.THROUGHPUT,
    text_answers.SECTION,
    presets.SECTION,
)


@dataclass(frozen=True)
class Target:
    """A figure that at least one case of a section should reach."""

    section: str
    figure: str
    value: float
    at_most: bool
    text: str

    def reached(self, value: float) -> bool:
        return value <= self.value if self.at_most else value >= self.value


TARGETS = (
    Target(training_steps.SECTION, "mfu", 0.45, False, "45 % MFU in training"),
    Target(acting.LATENCY, "calls_per_s", 20.0, False, "20 policy calls per second at batch 1"),
    Target(acting.LATENCY, "p50_ms", 40.0, True, "at most 40 ms for a policy call at batch 1"),
)


def all_cases(size: str, networks: Sequence[str]) -> list[Case]:
    """Return the cases of ``--size`` and ``--networks`` in the order in which they run."""
    found = [
        *correctness.cases(size, networks),
        *training_steps.cases(size, networks),
        *acting.cases(size, networks),
        *text_answers.cases(size, networks),
        *presets.cases(size, networks),
    ]
    return sorted(found, key=lambda case: SECTIONS.index(case.section))
