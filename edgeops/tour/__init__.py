# SPDX-License-Identifier: Apache-2.0
"""Every subsystem on real input, measured against what a user would have used otherwise, in one HTML report.

A subsystem joins the tour with one file in `edgeops/tour/chapters/` that defines `CHAPTER`; see `chapter.py` for what
such a file holds. `edgeops tour` is the command line of this package.
"""

from .chapter import Chapter, ChapterResult, Check, Context, Missing, TourConfig, missing_packages
from .discover import discover, select
from .runner import Outcome, Tour, run_tour

__all__ = [
    "Chapter",
    "ChapterResult",
    "Check",
    "Context",
    "Missing",
    "Outcome",
    "Tour",
    "TourConfig",
    "discover",
    "missing_packages",
    "run_tour",
    "select",
]
