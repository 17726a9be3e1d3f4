# SPDX-License-Identifier: Apache-2.0
"""Dynamic graphs run batched: record cells, schedule them, run every batch at once. ED-Batch (ICML 2023), ACRoBat.

Trees, lattices, parsers: a program that runs one node at a time is recorded, and equal cells of all instances of a
mini-batch run together.
"""

from edgeops import _native as _native
from edgeops.batching._ops import register as _register
from edgeops.batching.cell import Ragged as Ragged
from edgeops.batching.cell import cell as cell
from edgeops.batching.session import Session as Session
from edgeops.batching.session import session as session

# kept for the life of the process: dropping a torch Library unregisters its rules
_library = _register() if _native.available() else None
