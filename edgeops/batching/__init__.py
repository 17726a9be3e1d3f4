# SPDX-License-Identifier: Apache-2.0
"""Dynamic graphs run batched: record cells, schedule them, run every batch at once. ED-Batch (ICML 2023), ACRoBat.

Trees, lattices, parsers: a program that runs one node at a time is recorded, and equal cells of all instances of a
mini-batch run together. Start with `cell` and `session`; `edgeops.batching.cells` has built-in cells.
"""

from edgeops import _native as _native
from edgeops.batching._ops import register as _register
from edgeops.batching.cell import Ragged as Ragged
from edgeops.batching.cell import cell as cell
from edgeops.batching.coarse import Coarse as Coarse
from edgeops.batching.coarse import coarsen as coarsen
from edgeops.batching.layout import Layout as Layout
from edgeops.batching.layout import plan_layout as plan_layout
from edgeops.batching.marks import Phase as Phase
from edgeops.batching.marks import balanced as balanced
from edgeops.batching.marks import each as each
from edgeops.batching.marks import ghost as ghost
from edgeops.batching.marks import phase as phase
from edgeops.batching.plan_cache import PlanCache as PlanCache
from edgeops.batching.programs import gather as gather
from edgeops.batching.programs import run as run
from edgeops.batching.programs import stack as stack
from edgeops.batching.programs import wait as wait
from edgeops.batching.report import Report as Report
from edgeops.batching.schedule import FSMPolicy as FSMPolicy
from edgeops.batching.schedule import Graph as Graph
from edgeops.batching.schedule import Schedule as Schedule
from edgeops.batching.schedule import lower_bound as lower_bound
from edgeops.batching.schedule import schedule as schedule
from edgeops.batching.session import Session as Session
from edgeops.batching.session import session as session
from edgeops.batching.static_cell import CellPlan as CellPlan
from edgeops.batching.static_cell import plan_cell as plan_cell

# kept for the life of the process: dropping a torch Library unregisters its rules
_library = _register() if _native.available() else None
