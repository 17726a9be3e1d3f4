# SPDX-License-Identifier: Apache-2.0
"""Measuring, written once: clock, statistics, environment, result record, roofs, memory, plots and the HTML report.

Nothing here knows a subsystem. Everything that prints a time, a ratio or a share of the roof goes through these names,
so that a figure in the README, in the tour's report and in `bench/results/` is the same kind of figure.
Importing this package imports neither matplotlib nor jinja2: `plots` and `report` load them when they are called.
"""

from .clock import CLOCKS, interleave
from .environment import Environment, capture
from .memory import PeakMemory, peak_memory
from .record import LABELS, Record, append_jsonl, read_jsonl, replace_text, write_jsonl
from .report import Report
from .roof import Roof, copy_roof, copy_work, default_clock, measure_roof, sgemm_roof, sgemm_work, thread_count
from .stats import Ratio, Samples, geomean, paired_ratio

__all__ = [
    "CLOCKS",
    "LABELS",
    "Environment",
    "PeakMemory",
    "Ratio",
    "Record",
    "Report",
    "Roof",
    "Samples",
    "append_jsonl",
    "capture",
    "copy_roof",
    "copy_work",
    "default_clock",
    "geomean",
    "interleave",
    "measure_roof",
    "paired_ratio",
    "peak_memory",
    "read_jsonl",
    "replace_text",
    "sgemm_roof",
    "sgemm_work",
    "thread_count",
    "write_jsonl",
]
