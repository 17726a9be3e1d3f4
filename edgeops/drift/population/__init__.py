# SPDX-License-Identifier: Apache-2.0
"""Thousands of independent learners stepped as one program. Drift spec, sections 12 and 14."""

from edgeops.drift.population._stacked import SGD as SGD
from edgeops.drift.population._stacked import Adam as Adam
from edgeops.drift.population.learners import DriftSurfPopulation as DriftSurfPopulation
