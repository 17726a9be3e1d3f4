# SPDX-License-Identifier: Apache-2.0
"""DriftSurf around models of scikit-learn and river, and as a scikit-learn estimator. Drift spec, section 12.1."""

from edgeops.drift.estimators.bank import EstimatorBank as EstimatorBank
