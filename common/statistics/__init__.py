"""Statistics of evaluations: intervals, comparisons on the same items, and a test that may stop at any time."""

from common.statistics.intervals import (
    Interval,
    average_length,
    bootstrap_mean,
    bootstrap_sums,
    clustered_rate,
    rate_difference,
    rate_difference_p,
    wilson,
)
from common.statistics.pairs import FEWEST_APART, LEVEL, Control, Pair, control_of, holm, pair_of, pairs_of, with_holm
from common.statistics.runs import Difference, mean_of_runs, paired_difference
from common.statistics.sequential import SequentialResult, SequentialTest

__all__ = [
    "FEWEST_APART",
    "LEVEL",
    "Control",
    "Difference",
    "Interval",
    "Pair",
    "SequentialResult",
    "SequentialTest",
    "average_length",
    "bootstrap_mean",
    "bootstrap_sums",
    "clustered_rate",
    "control_of",
    "holm",
    "mean_of_runs",
    "pair_of",
    "paired_difference",
    "pairs_of",
    "rate_difference",
    "rate_difference_p",
    "wilson",
    "with_holm",
]
