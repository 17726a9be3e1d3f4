# SPDX-License-Identifier: Apache-2.0
"""Put the newest benchmark records into README.md, between `<!-- bench:NAME -->` and `<!-- /bench -->`.

    python -m bench.render             # write
    python -m bench.render --check     # fail where README.md does not show the newest records

NAME is a workload, or `workload@gpu` for its records with the CUDA clock. Figures in the README come from here only.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from bench import registry
from bench.inputs import ROOT
from bench.run import RESULTS
from bench.table import Group, groups, megabytes, milliseconds, percent
from edgeops import perf

_BLOCK = re.compile(r"(?P<open><!-- bench:(?P<name>[\w@]+) -->\n)(?P<body>.*?)(?P<close><!-- /bench -->)", re.DOTALL)


def load(folder: Path = RESULTS) -> list[perf.Record]:
    """All records of a folder, oldest first.

    Raises:
        ValueError: a file with a corrupt line; the message names it.
    """
    records = [record for path in sorted(folder.glob("*.jsonl")) for record in perf.read_jsonl(path)]
    return sorted(records, key=lambda record: record.time)


def newest(records: Iterable[perf.Record], name: str) -> list[Group]:
    """The newest run of each case of a table, all on the machine and thread count of the newest record.

    Committed code wins over uncommitted, the full suite is shown and not the smoke one.
    """
    workload, _, kind = name.partition("@")
    fitting = [
        r
        for r in records
        if r.workload == workload
        and r.notes.get("suite") in (("full", "gpu") if kind == "gpu" else ("full",))
        and (r.samples.clock == "cuda") == (kind == "gpu")
        and not r.notes.get("synthetic")
    ]
    fitting = [r for r in fitting if not r.environment.dirty] or fitting
    if not fitting:
        return []
    last = fitting[-1].environment
    same = [r for r in fitting if (r.environment.machine, r.environment.threads) == (last.machine, last.threads)]
    return list({group.case: group for group in groups(same)}.values())


def _ordered(found: Sequence[Group], entry: registry.Workload) -> list[Group]:
    """In the order of the suite, cases it no longer has at the end."""
    order = [case.name for case in entry.cases("full")]
    return sorted(found, key=lambda g: order.index(g.case) if g.case in order else len(order))


def table(found: Sequence[Group], entry: registry.Workload) -> list[str]:
    """Markdown lines: our time, our speed against each peer pair by pair, share of the roof, peak memory."""
    peers = [name for name in found[0].records if name != entry.ours]
    shared = [name for name in peers if all(name in group.records for group in found)]
    head = ["input", f"{entry.ours}, time", *(f"against {name}" for name in shared), "of the roof", "peak memory"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for group in found:
        ours = group.records[entry.ours]
        cells = [group.case, milliseconds(ours.median), *(str(group.ratio(name, entry.ours)) for name in shared)]
        lines.append("| " + " | ".join([*cells, percent(ours.roof_share), megabytes(ours.peak_memory)]) + " |")
    means = [perf.geomean(group.ratio(name, entry.ours).median for group in found) for name in shared]
    if len(found) > 1:
        lines.append("| geometric mean | | " + " | ".join(f"**{mean:.2f}x**" for mean in means) + " | | |")
    return lines


def footer(found: Sequence[Group]) -> str:
    """Where, when and how, in one line."""
    record = found[0].any
    env, commits = record.environment, sorted({g.any.environment.commit or "none" for g in found})
    rounds = sorted({len(g.any.samples.seconds) for g in found})
    clock = {"process": "CPU time", "wall": "elapsed time", "cuda": "elapsed time, device drained"}[
        record.samples.clock
    ]
    where = env.gpu if record.samples.clock == "cuda" else f"{env.cpu} ({env.isa}), {env.threads} thread(s)"
    return (
        f"{where}, torch {env.torch}, commit {', '.join(commits)}{' with changes' if env.dirty else ''}; {clock}, "
        f"{'/'.join(map(str, rounds))} interleaved rounds; peer's time / ours pair by pair, median [quartiles]. "
        f"Reproduce: `python -m bench.run --op {record.workload}`"
    )


def block(name: str, records: Sequence[perf.Record]) -> str:
    """The text between the markers.

    Raises:
        ValueError: no workload of that name.
    """
    entry = registry.workload(name.partition("@")[0])
    found = _ordered(newest(records, name), entry)
    if not found:
        return f"No record yet: `python -m bench.run --op {entry.name}`.\n"
    return "\n".join(["", *table(found, entry), "", footer(found), ""])


def render(text: str, records: Sequence[perf.Record]) -> str:
    """The text with every marked block replaced.

    Raises:
        ValueError: a block of an unknown workload, or one that is not closed.
    """
    if len(_BLOCK.findall(text)) != text.count("<!-- bench:"):
        raise ValueError(
            "render: every <!-- bench:NAME --> line needs its own <!-- /bench --> before the next one; "
            "got one without. Close it."
        )
    return _BLOCK.sub(lambda found: found["open"] + block(found["name"], records) + found["close"], text)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns 0 done or up to date, 1 stale, 2 wrong use."""
    parser = argparse.ArgumentParser(prog="python -m bench.render", description="Render README tables from records.")
    parser.add_argument("--check", action="store_true", help="write nothing, fail where the file is stale")
    parser.add_argument("--file", type=Path, default=ROOT / "README.md")
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args(argv)
    try:
        before = given.file.read_text(encoding="utf-8")
        after = render(before, load(given.results))
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    if given.check:
        fresh = before == after
        print(f"{given.file.name}: " + ("up to date" if fresh else "stale; run: python -m bench.render"))
        return 0 if fresh else 1
    if before != after:
        perf.replace_text(given.file, after)
    print(f"{given.file.name}: {'unchanged' if before == after else 'rendered'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
