# SPDX-License-Identifier: Apache-2.0
"""What ran when, of the simulator and of the pipeline alike, and as a file for ui.perfetto.dev or chrome://tracing."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from edgeops.offload.schedule import RESOURCES


class Event(NamedTuple):
    """A stage of a layer that ran on a resource; seconds on one clock."""

    resource: str
    stage: str
    layer: int
    step: int
    start: float
    end: float


def chrome_trace(events: Iterable[Event], label: str) -> dict[str, Any]:
    """Events in the Trace Event Format, one row a resource, the first one at 0.

    Args:
        events: in any order.
        label: where they come from: `"measured"`, `"emulated"` or `"simulated"`; the name of the process in the trace.

    >>> trace = chrome_trace([Event("cpu", "update", 3, 0, 5.0, 5.5)], "simulated")
    >>> trace["traceEvents"][-1]["name"], trace["traceEvents"][-1]["dur"]
    ('update 3', 500000.0)
    """
    found = sorted(events, key=lambda event: event.start)
    origin = found[0].start if found else 0.0
    names: list[dict[str, Any]] = [{"ph": "M", "pid": 1, "name": "process_name", "args": {"name": label}}]
    for row, name in enumerate(RESOURCES):
        names.append({"ph": "M", "pid": 1, "tid": row, "name": "thread_name", "args": {"name": name}})
        names.append({"ph": "M", "pid": 1, "tid": row, "name": "thread_sort_index", "args": {"sort_index": row}})
    spans = [
        {
            "ph": "X",
            "pid": 1,
            "tid": RESOURCES.index(event.resource),
            "name": f"{event.stage} {event.layer}",
            "cat": event.stage,
            "ts": round(1e6 * (event.start - origin), 3),
            "dur": round(1e6 * (event.end - event.start), 3),
            "args": {"layer": event.layer, "step": event.step},
        }
        for event in found
    ]
    return {"displayTimeUnit": "ms", "traceEvents": names + spans}


def write_trace(path: str | os.PathLike[str], events: Iterable[Event], label: str) -> None:
    """Write `chrome_trace` as JSON; the file is whole or not there.

    Raises:
        OSError: the folder cannot be written.
    """
    target = Path(path)
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        part.write_text(json.dumps(chrome_trace(events, label)), encoding="utf-8")
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
