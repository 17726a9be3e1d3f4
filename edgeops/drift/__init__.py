# SPDX-License-Identifier: Apache-2.0
"""Learning from streams whose distribution changes: DriftSurf (ICML 2021), its base learner, and streams."""

from edgeops import _native as _native
from edgeops.drift._ops import register as _register
from edgeops.drift.adaptation import EntropyAdapter as EntropyAdapter
from edgeops.drift.adaptation import GuardedAdapter as GuardedAdapter
from edgeops.drift.evaluate import majority as majority
from edgeops.drift.evaluate import no_change as no_change
from edgeops.drift.evaluate import prequential as prequential
from edgeops.drift.logistic import Logistic as Logistic
from edgeops.drift.logistic import PublishedLogistic as PublishedLogistic
from edgeops.drift.population import DriftSurfPopulation as DriftSurfPopulation
from edgeops.drift.published import PublishedDecision as PublishedDecision
from edgeops.drift.published import PublishedMonitor as PublishedMonitor
from edgeops.drift.streams import DriftStream as DriftStream
from edgeops.drift.strsaga import PointStore as PointStore
from edgeops.drift.strsaga import StrsagaBank as StrsagaBank
from edgeops.drift.strsaga import visits as visits

# kept for the life of the process: dropping a torch Library unregisters its rules
_library = _register() if _native.available() else None
