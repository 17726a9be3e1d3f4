# SPDX-License-Identifier: Apache-2.0
"""Measure what must be shown and say PASS or FAIL.

    python -m bench.check C5             # one item
    python -m bench.check all            # every item
    python -m bench.check C5 --records bench/results/X.jsonl   # judge a finished run

Items and bounds are the table in `bench/targets.py`. Each figure gets a line, each item a verdict. Exit code 0 means
that all are met.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from bench import exact, overhead, registry, run, speed, speed_gpu, table, targets
from bench.batching import ladder, lattice_lstm, models, programs, record, schedule, tree_lstm
from bench.drift import overhead as drift_overhead
from bench.drift import table as drift_table
from bench.offload import moments, projectors, published, quality, side_by_side, simulate
from bench.ragged import layer_memory
from bench.registry import GateFailed, Unavailable
from edgeops import perf

Figures = dict[str, float]
# Quartiles of the roof further apart than this share of it make shares of the roof unreliable.
_SHAKY = 0.1


def _overhead() -> Figures:
    seen = {name: cost for name, cost in overhead.measure().items() if "for scale" not in name}
    for name, (plain, grad) in seen.items():
        print(f"  {name}: {plain:.1f} µs without grad, {grad:.1f} µs with")
    return {
        "slowest public op without grad": max(plain for plain, _ in seen.values()),
        "slowest public op with grad": max(grad for _, grad in seen.values()),
    }


def _import() -> Figures:
    seconds, pulled = overhead.import_cost()
    print(f"  optional packages imported: {', '.join(pulled) or 'none'}")
    return {"import edgeops on top of torch": seconds, "optional packages that it imports": float(len(pulled))}


EXACT: dict[str, Callable[[], Figures]] = {
    "C1": exact.addressing,
    "C2": exact.models,
    "C3": exact.accuracy,
    "C4": exact.invariance,
    "C13": layer_memory.training,
    "C16": exact.varlen,
    "B1": schedule.counts,
    "B2": schedule.costs,
    "B3": schedule.held_out,
    "B4": schedule.learning,
    "B6": record.figures,
    "B7": lambda: tree_lstm.figures(False),
    "B8": lambda: tree_lstm.figures(True),
    "B9": programs.figures,
    "B10": models.figures,
    "B11": lattice_lstm.figures,
    "B12": tree_lstm.grid_figures,
    "B13": ladder.figures,
    "D10": drift_overhead.figures,
    "O9": projectors.shrunken,
    "O10": moments.figures,
    "O12": quality.figures,
    "O13": quality.half_figures,
    "O14": simulate.emulation_figures,
    "O15": published.figures,
    "O16": simulate.choice_figures,
    "D1": drift_table.reproduction,
    "D4": drift_table.form_d,
    "D5": drift_table.gradual,
    "D6": drift_table.shared_budget,
    "overhead": _overhead,
    "import": _import,
}

# shown with an item that is measured, without a target: what only some machines have
BESIDES: dict[str, Callable[[], None]] = {"O3": side_by_side.show}


def _measured(item: str, settings: run.Settings, out: Path | None) -> list[perf.Record]:
    if item in speed_gpu.ITEMS:
        rounds, workloads = speed_gpu.ITEMS[item].rounds, speed_gpu.workloads(item)
        settings = dataclasses.replace(settings, suite="gpu", device="cuda")
    else:
        rounds, workloads = speed.ITEMS[item].rounds, [registry.workload(speed.ITEMS[item].workload)]
    settings = dataclasses.replace(settings, rounds=settings.rounds or rounds, memory=out is not None)
    with table.progress() as (step, tell):
        return run.run(workloads, settings, out=out, tell=tell, progress=step)


def _judged(item: str, chosen: Sequence[perf.Record], fresh: bool) -> Figures:
    """Figures of an item from its records, and what is measured besides them."""
    if item not in speed_gpu.ITEMS:
        return speed.ITEMS[item].figures(table.groups(chosen))
    entry = speed_gpu.ITEMS[item]
    seen = entry.figures(table.groups(chosen))
    if entry.besides is not None and (fresh or torch.cuda.is_available()):
        seen |= entry.besides(torch.device("cuda"))
    return seen


def figures(item: str, settings: run.Settings, records: Sequence[perf.Record] | None, out: Path | None) -> Figures:
    """Measure an item, or read its figures from records of an earlier run.

    Raises:
        Unavailable: the item needs what is not on this machine.
        GateFailed: a candidate's result is wrong.
    """
    if item in EXACT:
        return EXACT[item]()
    chosen = _measured(item, settings, out) if records is None else records
    gpu = speed_gpu.ITEMS.get(item)
    wanted = (speed.ITEMS[item].workload,) if gpu is None else gpu.workloads
    chosen = [r for r in chosen if r.workload in wanted and (gpu is None or r.samples.clock == "cuda")]
    table.show_records(chosen)
    if any(r.notes.get("synthetic") for r in chosen):
        print(f"{item}: lengths are synthetic here, so this verdict is only a rehearsal")
    _warn_of_noise(item, chosen)
    if records is None and item in BESIDES:
        BESIDES[item]()
    return _judged(item, chosen, records is None)


def _warn_of_noise(item: str, records: Sequence[perf.Record]) -> None:
    """Say where the roof, a constant, moved during a run: a share of it is then a guess, and above 1 plainly wrong."""
    shaky = {r.case: r.notes["roof_spread"] for r in records if r.notes.get("roof_spread", 0) > _SHAKY}
    above = sorted({r.case for r in records if (r.roof_share or 0) > 1})
    if shaky:
        moved = ", ".join(f"{case} {100 * spread:.0f} %" for case, spread in shaky.items())
        print(f"{item}: the roof moved within a run ({moved} between quartiles): repeat on a quieter machine")
    if above:
        print(f"{item}: a share of the roof above 1 is noise ({', '.join(above)}): repeat on a quieter machine")


def verdict(item: str, seen: Figures) -> tuple[bool, list[str]]:
    """Whether all targets of an item are met, and one line a figure. A figure that is missing is not met."""
    lines, fine = [], True
    for target in targets.of(item):
        value = seen.get(target.figure, float("nan"))
        met = target.met(value)
        fine = fine and met
        unit = f" {target.unit}" if target.unit else ""
        mark = "pass" if met else "MISS"
        lines.append(
            f"{item} {mark}  {target.figure}: {value:.4g}{unit} (must be {target.rule} {target.bound:g}{unit})"
        )
    return fine, lines


def check(
    item: str, settings: run.Settings, records: Sequence[perf.Record] | None = None, out: Path | None = None
) -> bool:
    """Measure one item with one thread (items about threads set their own), print its lines and its verdict."""
    try:
        with perf.thread_count(1):
            fine, lines = verdict(item, figures(item, settings, records, out))
    except (Unavailable, GateFailed) as reason:
        print(f"{item} FAIL  {reason}")
        return False
    print("\n".join(lines))
    print(f"{item} {'PASS' if fine else 'FAIL'}")
    return fine


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns 0 all met, 1 not, 2 wrong use."""
    parser = argparse.ArgumentParser(prog="python -m bench.check", description="Measure what must be shown.")
    parser.add_argument("item", nargs="+", help=f"one or more of {', '.join(targets.items())}, or all")
    parser.add_argument("--records", type=Path, action="append", help="judge these records instead of measuring")
    parser.add_argument("--rounds", type=int, default=0, help="samples per candidate; default: what the item needs")
    parser.add_argument("--out", type=Path, help="append the records of measured items to this file")
    given = parser.parse_args(argv)
    chosen = list(targets.items() if given.item == ["all"] else given.item)
    if given.item == ["all"] and not given.records and not torch.cuda.is_available():
        print(f"left out, {speed_gpu.NO_GPU}: {', '.join(speed_gpu.ITEMS)}")
        chosen = [item for item in chosen if item not in speed_gpu.ITEMS]
    unknown = [item for item in chosen if item not in targets.items()]
    if unknown:
        print(f"bench.check: item must be one of {', '.join(targets.items())}; got {unknown}.", file=sys.stderr)
        return 2
    records = None
    if given.records:
        records = [record for path in given.records for record in perf.read_jsonl(path)]
    settings = run.Settings(rounds=given.rounds)
    results = {item: check(item, settings, records, given.out) for item in chosen}
    if len(results) > 1:
        print("\n" + "\n".join(f"{item:9s} {'PASS' if fine else 'FAIL'}" for item, fine in results.items()))
    return 0 if all(results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
