# SPDX-License-Identifier: Apache-2.0
"""Prequential evaluation: runs, reports beside rules that learn nothing, plots. Drift spec, section 8."""

from edgeops.drift.evaluation.runs import Evaluation as Evaluation
from edgeops.drift.evaluation.runs import Run as Run
from edgeops.drift.evaluation.runs import batches_to_recover as batches_to_recover
from edgeops.drift.evaluation.runs import recovery as recovery
from edgeops.drift.evaluation.runs import size_of as size_of
from edgeops.drift.evaluation.runs import wrong_switches as wrong_switches
