# SPDX-License-Identifier: Apache-2.0
"""Every way to learn logistic regression from a drifting stream, by the name that tables use."""

from __future__ import annotations

from collections.abc import Callable

from edgeops.drift.linear.logistic import Aue, Aware, Logistic, Mddm, PublishedLogistic
from edgeops.drift.linear.surf import DriftSurfLogistic
from edgeops.drift.published import PublishedMonitor

LEARNERS: dict[str, Callable[..., Logistic]] = {
    "Oblivious": lambda d, drifts, **s: Logistic(d, **s),
    "Aware": lambda d, drifts, **s: Aware(d, drifts, **s),
    "MDDM-G": lambda d, drifts, **s: Mddm(d, **s),
    "MDDM-A": lambda d, drifts, **s: Mddm(d, weights="arithmetic", **s),
    "MDDM-E": lambda d, drifts, **s: Mddm(d, weights="euler", **s),
    "AUE": lambda d, drifts, **s: Aue(d, **s),
    "Standard": lambda d, drifts, **s: PublishedLogistic(d, PublishedMonitor("standard"), **s),
    "DS-A": lambda d, drifts, **s: PublishedLogistic(d, PublishedMonitor("A"), **s),
    "DS-B": lambda d, drifts, **s: PublishedLogistic(d, PublishedMonitor("B"), **s),
    "DS-C": lambda d, drifts, **s: PublishedLogistic(d, PublishedMonitor("C"), **s),
    "DS-D": lambda d, drifts, **s: DriftSurfLogistic(d, **s),
}
"""Name -> `make(features, drifts, eta=, mu=, seed=)`, with the settings of the experiments (section 3.6)."""
