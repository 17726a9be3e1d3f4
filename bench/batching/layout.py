# SPDX-License-Identifier: Apache-2.0
"""Planning time and copies of static cells: `python -m bench.batching.layout`.

Process CPU time of one `plan_cell` (batches and layout), the median of `ROUNDS`; copies of the plan beside those of the
order in which the cell is written, for the same batches.
"""

from __future__ import annotations

import statistics
import time

from edgeops.batching._static_cells import CELLS
from edgeops.batching.layout import judge_order
from edgeops.batching.static_cell import CellGraph, CellPlan, plan_cell

ROUNDS = 51


def operands(plan: CellPlan) -> list[list[list[int]]]:
    """The batches of a plan as `judge_order` takes them."""
    ids = {name: i for i, name in enumerate(plan.names)}
    ids |= dict.fromkeys(plan.cell.weights, -1)
    ids |= {name: -2 - i for i, name in enumerate(plan.cell.inputs) if name not in ids}
    args = {op.name: [ids[a] for a in op.args] for op in plan.cell.ops}
    return [
        [[ids[name] for name in batch], *(list(s) for s in zip(*(args[name] for name in batch)))]
        for batch in plan.batches
    ]


def measure(cell: CellGraph, place_inputs: bool) -> tuple[CellPlan, float]:
    """The plan, and its median CPU time in milliseconds."""
    plan, times = plan_cell(cell, place_inputs=place_inputs), []
    for _ in range(ROUNDS):
        begin = time.process_time_ns()
        plan_cell(cell, place_inputs=place_inputs)
        times.append((time.process_time_ns() - begin) / 1e6)
    return plan, statistics.median(times)


def main() -> None:
    """Print one line per cell and place of its inputs."""
    print(
        f"{'cell':18} {'inputs':9} {'ops':>4} {'batches':>7} {'copies':>6} {'as written':>10} {'proven':>6} {'ms':>7}"
    )
    for name, make in CELLS.items():
        for place_inputs in (False, True):
            plan, ms = measure(make(), place_inputs)
            written = judge_order(range(len(plan.names)), operands(plan)).copies
            proven = "yes" if plan.fewest and plan.layout.minimal else "no"
            where = "laid out" if place_inputs else "elsewhere"
            print(
                f"{name:18} {where:9} {len(plan.cell.ops):4} {len(plan.batches):7} {plan.layout.copies:6} "
                f"{written:10} {proven:>6} {ms:7.3f}"
            )


if __name__ == "__main__":
    main()
