# SPDX-License-Identifier: Apache-2.0
"""Native kernels and drop-in modules that make PyTorch models train, adapt and run on small machines.

Subsystems are modules of their own: `edgeops.ragged` computes on real tokens only, `edgeops.perf` measures.
"""

from edgeops._native import cpu_isa as cpu_isa
from edgeops._native import native_status as native_status
from edgeops._version import __version__ as __version__

__all__ = ["__version__", "cpu_isa", "native_status"]
