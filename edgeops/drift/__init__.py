# SPDX-License-Identifier: Apache-2.0
"""Learning from streams whose distribution changes: DriftSurf (ICML 2021), its base learner, and streams."""

from edgeops import _native as _native
from edgeops.drift._ops import register as _register
from edgeops.drift.adaptation import EntropyAdapter as EntropyAdapter
from edgeops.drift.adaptation import GuardedAdapter as GuardedAdapter
from edgeops.drift.detection import evaluate_detector as evaluate_detector
from edgeops.drift.detection.detectors import Detector as Detector
from edgeops.drift.detection.detectors import detector as detector
from edgeops.drift.detection.reset import BankLearner as BankLearner
from edgeops.drift.detection.reset import ResetOn as ResetOn
from edgeops.drift.estimators import EstimatorBank as EstimatorBank
from edgeops.drift.evaluation import Evaluation as Evaluation
from edgeops.drift.evaluation import Run as Run
from edgeops.drift.evaluation.prequential import majority as majority
from edgeops.drift.evaluation.prequential import no_change as no_change
from edgeops.drift.evaluation.prequential import prequential as prequential
from edgeops.drift.evaluation.report import Report as Report
from edgeops.drift.linear.candor import Candor as Candor
from edgeops.drift.linear.logistic import Logistic as Logistic
from edgeops.drift.linear.logistic import PublishedLogistic as PublishedLogistic
from edgeops.drift.linear.strsaga import PointStore as PointStore
from edgeops.drift.linear.strsaga import StrsagaBank as StrsagaBank
from edgeops.drift.linear.strsaga import visits as visits
from edgeops.drift.linear.surf import DriftSurfLogistic as DriftSurfLogistic
from edgeops.drift.modules.buffer import ReplayBuffer as ReplayBuffer
from edgeops.drift.modules.surf import DriftReport as DriftReport
from edgeops.drift.modules.surf import DriftSurf as DriftSurf
from edgeops.drift.monitor import Decision as Decision
from edgeops.drift.monitor import DriftMonitor as DriftMonitor
from edgeops.drift.pooled import ClientMonitor as ClientMonitor
from edgeops.drift.pooled import ClientReport as ClientReport
from edgeops.drift.pooled import PooledMonitor as PooledMonitor
from edgeops.drift.population import DriftSurfPopulation as DriftSurfPopulation
from edgeops.drift.published import PublishedDecision as PublishedDecision
from edgeops.drift.published import PublishedMonitor as PublishedMonitor
from edgeops.drift.streams import Delayed as Delayed
from edgeops.drift.streams import DriftStream as DriftStream
from edgeops.drift.streams import read_csv as read_csv
from edgeops.drift.streams import read_stream as read_stream
from edgeops.drift.trial import Bank as Bank
from edgeops.drift.trial import Trial as Trial

# kept for the life of the process: dropping a torch Library unregisters its rules
_library = _register() if _native.available() else None
