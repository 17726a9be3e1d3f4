# SPDX-License-Identifier: Apache-2.0
"""Run benchmarks: gate, interleave with the roof, print a table, write records.

    python -m bench.run --op ragged_attention --suite full --threads 1
    python -m bench.run --suite gpu        # on a GPU, with the workloads that only a GPU has
    python -m bench.run --smoke            # every workload, tiny: does everything still run and agree?
    python -m bench.run --list

What `make bench` and `edgeops bench` call. Times are CPU seconds of this process with one thread (other programs do not
count) and elapsed seconds with several. Results go to `bench/results/<machine>-<commit>.jsonl`, case by case, so an
interrupted run keeps what it has; `--resume` goes on from there.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from bench import registry
from bench.inputs import ROOT
from bench.registry import Built, Case, GateFailed, Unavailable, Workload
from edgeops import perf

ROOF = "roof"
RESULTS = ROOT / "bench" / "results"


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Args:
        suite: one of `registry.SUITES`.
        threads: intra-op threads.
        rounds: samples per candidate.
        min_block_s: shortest timed block, seconds.
        device: `"cpu"` or `"cuda"`.
        candidates: names to run, `None` = the defaults.
        cases: case names to run, `None` = all of the suite.
        memory: measure peak memory too.
        label: of the records.
    """

    suite: str = "full"
    threads: int = 1
    rounds: int = 9
    min_block_s: float = 0.02
    device: str = "cpu"
    candidates: tuple[str, ...] | None = None
    cases: tuple[str, ...] | None = None
    memory: bool = True
    label: str = "measured"

    @property
    def clock(self) -> str:
        """The clock of these settings."""
        return "cuda" if self.device.startswith("cuda") else perf.default_clock(self.threads)


SMOKE = Settings(suite="smoke", rounds=2, min_block_s=1e-4, memory=False)


def results_path(environment: perf.Environment) -> Path:
    """The file for this machine and commit; work on uncommitted code goes to a file of its own."""
    commit = environment.commit or "nocommit"
    return RESULTS / f"{environment.machine}-{commit}{'-dirty' if environment.dirty else ''}.jsonl"


def cases_of(workload: Workload, settings: Settings) -> list[Case]:
    """The cases that the settings select."""
    return [c for c in workload.cases(settings.suite) if settings.cases is None or c.name in settings.cases]


def _environment(settings: Settings) -> perf.Environment:
    with perf.thread_count(settings.threads):
        return perf.capture()


def _roof(built: Built, settings: Settings) -> tuple[Callable[[], object], float]:
    """The roof as one more candidate: a large product, or a copy where only bytes are counted.

    The product is float32 on a CPU, whatever the dtype: most have no faster arithmetic. On a GPU it is the dtype's own.
    """
    if built.flops is None and built.bytes is not None:
        return perf.copy_work(max(8, int(built.bytes)), settings.device)
    on_gpu = settings.device.startswith("cuda")
    size = 256 if settings.suite == "smoke" else 8192 if on_gpu else 1024
    dtype = getattr(torch, built.dtype) if on_gpu else torch.float32
    return perf.sgemm_work(size, settings.device, dtype)


def measure_case(
    workload: Workload,
    case: Case,
    settings: Settings,
    environment: perf.Environment,
    progress: Callable[[int, int], None] | None = None,
) -> list[perf.Record]:
    """Gate, then time all candidates of one case in one interleaved run, the roof among them.

    Raises:
        Unavailable: the case cannot run here.
        GateFailed: a candidate's result is wrong.
    """
    with perf.thread_count(settings.threads), torch.inference_mode():
        built = workload.build(case, torch.device(settings.device))
        worst = registry.check_gate(workload, case, built, settings.candidates)
        chosen = built.chosen(settings.candidates)
        roof_run, roof_work = _roof(built, settings)
        seen = perf.interleave(
            {**{name: c.run for name, c in chosen.items()}, ROOF: roof_run},
            rounds=settings.rounds,
            warmup=0,  # the gate has run every candidate already
            clock="wall" if workload.threads and settings.clock == "process" else settings.clock,
            min_block_s=settings.min_block_s,
            progress=progress,
        )
        method = "cuda" if settings.device.startswith("cuda") else "allocator"
        peaks = {n: perf.peak_memory(c.run, method=method).bytes for n, c in chosen.items() if settings.memory}
    roof = roof_work / seen[ROOF].median / 1e9
    own_work = built.bytes if built.flops is None else built.flops
    run = uuid.uuid4().hex[:12]
    records = []
    for name, candidate in chosen.items():
        notes: dict[str, object] = {"run": run, "suite": settings.suite, "max_abs_error": worst.get(name)}
        notes["roof_spread"] = seen[ROOF].iqr / seen[ROOF].median
        if case.synthetic:
            notes["synthetic"] = True
        if candidate.note:
            notes["tuned"] = candidate.note
        share = own_work and own_work / roof_work * perf.paired_ratio(seen[ROOF], seen[name]).median
        record = perf.Record(
            workload=workload.name,
            case=case.name,
            candidate=name,
            shapes=dict(built.shapes),
            source=case.source,
            dtype=built.dtype,
            environment=environment,
            samples=seen[name],
            label=settings.label,
            flops=built.flops,
            bytes=built.bytes,
            roof_gflops=None if built.flops is None else roof,
            roof_gbps=roof if built.flops is None and built.bytes is not None else None,
            paired_roof_share=share,
            peak_memory=peaks.get(name),
            notes=notes,
        )
        baseline = seen.get(workload.baseline)
        records.append(record if baseline is None else record.against(workload.baseline, baseline))
    return records


def run(
    workloads: Iterable[Workload],
    settings: Settings,
    *,
    out: Path | None = None,
    resume: bool = False,
    tell: Callable[[str], None] = lambda text: None,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[perf.Record]:
    """Measure workloads case by case; records are written as soon as a case is done.

    Args:
        workloads: what to run.
        settings: how.
        out: JSON-lines file to append to, or `None` to write nothing.
        resume: skip cases that `out` has for this thread count already.
        tell: gets one line for each case that is skipped, with the reason.
        progress: `progress(case, done, total)` within a case.

    Raises:
        GateFailed: a candidate's result is wrong.
    """
    environment = _environment(settings)
    done = set()
    if resume and out is not None and out.exists():
        done = {(r.workload, r.case, r.environment.threads) for r in perf.read_jsonl(out)}
    records: list[perf.Record] = []
    for workload in workloads:
        for case in cases_of(workload, settings):
            title = f"{workload.name} {case.name}"
            if (workload.name, case.name, settings.threads) in done:
                tell(f"{title}: in the file already")
                continue
            step = None if progress is None else (lambda i, n, title=title: progress(title, i, n))
            try:
                fresh = measure_case(workload, case, settings, environment, step)
            except Unavailable as reason:
                tell(f"{title}: skipped, {reason}")
                continue
            if out is not None:
                perf.append_jsonl(out, fresh)
            records += fresh
    return records


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.run", description="Run benchmarks and write their records.")
    parser.add_argument("--op", action="append", metavar="NAME", help="workload or op, may be repeated; default: all")
    parser.add_argument("--suite", choices=registry.SUITES, default="full")
    parser.add_argument("--smoke", action="store_true", help="all suites tiny, no file written: a check that all runs")
    parser.add_argument("--case", action="append", metavar="NAME", help="case of the suite, may be repeated")
    parser.add_argument("--candidate", action="append", metavar="NAME", help="candidate, may be repeated")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--no-memory", action="store_true", help="leave peak memory out")
    parser.add_argument("--out", type=Path, help="JSON-lines file; default: bench/results/<machine>-<commit>.jsonl")
    parser.add_argument("--resume", action="store_true", help="skip cases that the file has already")
    parser.add_argument("--list", action="store_true", help="name the workloads and stop")
    return parser.parse_args(argv)


def _settings(given: argparse.Namespace, chosen: Sequence[Workload]) -> Settings:
    """The settings that the arguments ask for.

    Raises:
        ValueError: a case that no chosen workload has, or a device that is not there.
    """
    device = "cuda" if given.suite == "gpu" else given.device
    if device == "cuda" and not torch.cuda.is_available():
        asked = "--suite gpu" if given.suite == "gpu" else "--device cuda"
        raise ValueError(f"bench.run: {asked} needs a CUDA device; got none. Leave the option out.")
    settings = Settings(
        suite=given.suite,
        threads=given.threads,
        rounds=given.rounds,
        device=device,
        candidates=None if given.candidate is None else tuple(given.candidate),
        memory=not given.no_memory,
    )
    if given.case is None:
        return settings
    known = {case.name for workload in chosen for case in workload.cases(given.suite)}
    unknown = sorted(set(given.case) - known)
    if unknown:
        raise ValueError(f"bench.run: --case must be among {', '.join(sorted(known))}; got {unknown}. Pick from these.")
    return dataclasses.replace(settings, cases=tuple(given.case))


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns 0 done, 1 a gate is red, 2 wrong use."""
    from bench import table

    given = _arguments(argv)
    if given.list:
        table.show_workloads(registry.workloads().values())
        return 0
    try:
        chosen = [registry.workload(name) for name in given.op] if given.op else list(registry.workloads().values())
        settings = SMOKE if given.smoke else _settings(given, chosen)
        out = given.out if given.smoke or given.out else results_path(_environment(settings))
        with table.progress() as (step, tell):
            records = run(chosen, settings, out=out, resume=given.resume, tell=tell, progress=step)
    except GateFailed as error:
        print(error, file=sys.stderr)
        return 1
    except (ValueError, ImportError) as error:
        print(error, file=sys.stderr)
        return 2
    table.show_records(records)
    if out is not None and records:
        print(f"{len(records)} records in {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
