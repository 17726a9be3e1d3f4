# SPDX-License-Identifier: Apache-2.0
"""DriftSurf around models of scikit-learn and river, and as a scikit-learn estimator. Drift spec, section 12.1."""

from typing import TYPE_CHECKING, Any

from edgeops.drift.estimators.bank import EstimatorBank as EstimatorBank

if TYPE_CHECKING:
    from edgeops.drift.estimators.scikit import DriftSurfClassifier as DriftSurfClassifier
    from edgeops.drift.estimators.scikit import DriftSurfRegressor as DriftSurfRegressor


def __getattr__(name: str) -> Any:
    """The scikit-learn estimators, imported when they are asked for, as scikit-learn is an extra."""
    if name in ("DriftSurfClassifier", "DriftSurfRegressor"):
        from edgeops.drift.estimators import scikit

        return getattr(scikit, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
