# SPDX-License-Identifier: Apache-2.0
"""Schedules of dynamic graphs: nodes of equal type that are ready together run as one batch (ED-Batch, ICML 2023).

A graph is recorded first, then scheduled, then run. Few batches mean few kernel launches; finding the fewest is
NP-hard, so there are several schedulers and a lower bound to judge them by.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgeops._runtime import batching as _native

Ints = npt.NDArray[np.int32]
Longs = npt.NDArray[np.int64]


class Graph:
    """Typed nodes in topological order and the nodes they read."""

    def __init__(self, types, arg_start, args, *, lone=(), keys=None) -> None:
        self.types = np.ascontiguousarray(types, np.int32)
        self.arg_start = np.ascontiguousarray(arg_start, np.int64)
        self.args = np.ascontiguousarray(args, np.int32)
        count = int(self.types.max(initial=-1)) + 1
        self.lone = np.zeros(count, np.uint8)
        self.lone[list(lone)] = 1
        self._native = _native.Graph(self.types, self.arg_start, self.args, self.lone)


def lower_bound(graph):
    return graph._native.lower_bound()


def schedule(graph, scheduler="sufficient"):
    if scheduler == "depth":
        return _native.schedule_depth(graph._native)
    if scheduler.startswith("agenda"):
        return _native.schedule_agenda(graph._native, scheduler != "agenda")
    return _native.schedule_sufficient(graph._native)
