# SPDX-License-Identifier: Apache-2.0
"""Stand-alone detectors behind one protocol, and how to judge them. Drift spec, sections 5 and 13."""

from edgeops.drift.detection.judged import evaluate_detector as evaluate_detector
from edgeops.drift.detection.judged import judge as judge
