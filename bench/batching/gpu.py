# SPDX-License-Identifier: Apache-2.0
"""Sessions on a GPU: results, overhead, copies and captures, against eager and batching by hand (spec, section 13).

Items BG1 to BG5 are those of "On one GPU". Instances are real where their data lies beside the checkout, otherwise
drawn in about the same sizes. Ratios are pairs of one interleaved run; every step ends with a wait for the GPU.
"""

from __future__ import annotations

import copy
import functools
import random
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from bench.batching import by_hand
from bench.batching.instances import CHARACTERS, EDGES, LENGTH, MODELS, TAGS, TOKEN_KINDS
from bench.batching.tree_lstm import WORDS
from bench.registry import Unavailable
from edgeops import batching
from edgeops.batching._gpu_upload import counts
from edgeops.batching.models import Model
from edgeops.perf.stats import Samples, paired_ratio

Figures = dict[str, float]
NAMED = ("TreeLSTM", "TreeGRU", "LatticeLSTM", "LatticeGRU", "tagger")  # those of the specification
LATTICES = ("LatticeLSTM", "LatticeGRU")
WIDTH, BATCH = 256, 64


def _tree(rng: random.Random, words: int) -> Any:
    if words == 1:
        return rng.randrange(5), rng.randrange(WORDS)
    left = rng.randrange(1, words)
    return rng.randrange(5), _tree(rng, left), _tree(rng, words - left)


def _lattice(rng: random.Random, length: int) -> Any:
    def arcs(at: int) -> list[tuple[int, int]]:
        found = [(at - 1, rng.randrange(WORDS))] if at else []
        words = rng.choice((0, 0, 1, 1, 2)) if at > 1 else 0
        return found + [(max(0, at - rng.randrange(2, 5)), rng.randrange(WORDS)) for _ in range(words)]

    return [(arcs(at), rng.randrange(TAGS)) for at in range(length)]


def _sentence(rng: random.Random, length: int) -> Any:
    def word() -> int | tuple[int, ...]:
        rare = rng.random() < 0.1
        return tuple(rng.randrange(CHARACTERS) for _ in range(rng.randrange(3, 12))) if rare else rng.randrange(WORDS)

    return [(word(), rng.randrange(TOKEN_KINDS)) for _ in range(length)]


def drawn(name: str, count: int, seed: int = 0, length: int = 20) -> list[Any]:
    """Instances of a model, `length` words each on average."""
    rng = random.Random(seed)
    sizes = [rng.randrange(max(1, length // 4), 2 * length) for _ in range(count)]
    if name in ("TreeLSTM", "TreeGRU", "MV-RNN"):
        return [_tree(rng, size) for size in sizes]
    if name in LATTICES:
        return [_lattice(rng, 2 * size) for size in sizes]
    if name == "tagger":
        return [_sentence(rng, size) for size in sizes]
    if name == "NestedRNN":
        nodes = [
            [[rng.randrange(2) for _ in range(min(node, EDGES))] for node in range(1 + size % 9)] for size in sizes
        ]
        return nodes
    if name == "StackRNN":
        return [([rng.randrange(WORDS) for _ in range(size)], rng.randrange(5)) for size in sizes]
    if name == "DRNN":
        return [(rng.randrange(WORDS), rng.randrange(1000)) for _ in sizes]
    window = [torch.tensor([rng.randrange(128) for _ in range(LENGTH)]) for _ in sizes]
    return [(bytes_, rng.randrange(5), rng.randrange(1000)) for bytes_ in window]


@functools.cache
def instances(name: str, count: int, length: int = 20) -> list[Any]:
    """Real instances of a model, or drawn ones."""
    try:
        return MODELS[name].instances(count)
    except Unavailable:
        print(f"  {name}: instances are drawn")
        return drawn(name, count, length=length)


def model_of(name: str, width: int, device: torch.device, dtype: torch.dtype = torch.float32) -> Model:
    """A model with the same parameters on every device."""
    torch.manual_seed(0)
    return MODELS[name].model(width).to(dtype).to(device)


def step(model: Model, given: Sequence[Any], train: bool, **options: Any) -> Tensor:
    """The loss of a mini-batch in a session; with its gradients where `train`."""
    if not train:
        with torch.no_grad(), batching.session(**options):
            return model(given)
    model.zero_grad()
    with batching.session(**options):
        loss = model(given)
    loss.backward()
    return loss.detach()


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(ways: Sequence[Callable[[], Any]], device: torch.device, rounds: int) -> list[Samples]:
    """Seconds of each way, turn by turn, after a few calls that are not counted."""
    seen: list[list[float]] = [[] for _ in ways]
    for again in range(rounds + 3):
        for way, taken in zip(ways, seen, strict=True):
            _wait(device)
            begin = time.perf_counter()
            way()
            _wait(device)
            if again >= 3:
                taken.append(time.perf_counter() - begin)
    return [Samples(tuple(taken)) for taken in seen]


def deviation(name: str, device: torch.device, dtype: torch.dtype, width: int = 32, batch: int = 16) -> float:
    """Largest difference of the loss or a gradient from float64 on the CPU, as a share of its largest entry."""
    given = instances(name, batch)
    model = model_of(name, width, torch.device("cpu"), dtype)
    exact = copy.deepcopy(model).double()
    found = []
    for each in (model.to(device), exact):
        with batching.session():
            loss = each(given)
        gradients = torch.autograd.grad(loss, list(each.parameters()))
        found.append([x.detach().cpu().double() for x in (loss, *gradients)])
    return max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-30)) for a, b in zip(*found, strict=True))


def correctness(
    device: torch.device, names: Sequence[str] = tuple(MODELS), width: int = 32, batch: int = 16
) -> Figures:
    """BG1: models that take no decisions in both dtypes; decisions flip with rounding, so those in float32 alone."""
    figures: Figures = {}
    for dtype in (torch.float32, torch.bfloat16):
        chosen = [n for n in names if dtype is torch.float32 or not MODELS[n].decides]
        seen = {name: deviation(name, device, dtype, width, batch) for name in chosen}
        what = str(dtype).removeprefix("torch.")
        for name, share in seen.items():
            print(f"  {name}, {what}: {share:.1e}")
        figures[f"largest deviation from the CPU, {what}"] = max(seen.values())
    return figures


def busy(run: Callable[[], Any], device: torch.device) -> tuple[float, int]:
    """From the profiler: seconds in which kernels ran, and copies from the host."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        run()
        _wait(device)
    return busy_of([(e.name, e.time_range.start, e.time_range.end) for e in seen.events() if _on_gpu(e)])


def _on_gpu(event: Any) -> bool:
    return bool(event.device_type == torch.autograd.DeviceType.CUDA)


def busy_of(events: Sequence[tuple[str, float, float]]) -> tuple[float, int]:
    """Seconds of what ran on the GPU, `(name, begin, end)` in microseconds, overlaps once; and copies to it."""
    total = through = 0.0
    for _, begin, end in sorted(events, key=lambda e: e[1]):
        total += max(0.0, end - max(begin, through))
        through = max(through, end)
    return total / 1e6, sum("HtoD" in name for name, _, _ in events)


def waits(run: Callable[[], Any]) -> int:
    """How often the host waits for the GPU."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchron" in str(w.message) for w in seen)


def overhead(device: torch.device, names: Sequence[str] = NAMED, width: int = WIDTH, batch: int = BATCH) -> Figures:
    """BG2: the share of a flush, scheduling included, in which no kernel runs; uploads; waits.

    A mini-batch is timed as a whole, without a profiler. Recording, which is the program's own Python, is taken off;
    the share with it is printed.
    """
    share, uploads, waited = 0.0, 0, 0
    for name in names:
        model, given = model_of(name, width, device), instances(name, batch)

        recorded: list[float] = []

        def run(model: Model = model, given: Sequence[Any] = given, recorded: list[float] = recorded) -> Any:
            with torch.no_grad(), batching.session() as s:
                loss = model(given)
            recorded.append(s.report.record_s)
            return loss

        (whole,) = timed([run], device, 15)
        before = counts["uploads"]
        run()
        uploads = max(uploads, counts["uploads"] - before)
        if device.type == "cuda":
            recording = statistics.median(recorded)
            ran, copies = busy(run, device)
            share = max(share, 1 - ran / (whole.median - recording))
            waited = max(waited, waits(run))
            times = ", ".join(f"{1e3 * x:.2f} ms" for x in (whole.median, recording, ran))
            print(f"  {name}: mini-batch, recording, kernels {times}; copies to the GPU {copies}")
            print(f"  {name}: without a kernel {1 - ran / whole.median:.2f} of all")
    return {
        "largest share without a kernel": share,
        "uploads of a flush": float(uploads),
        "waits of the host": float(waited),
    }


def ratios(
    device: torch.device,
    names: Sequence[str] = NAMED,
    width: int = WIDTH,
    batch: int = BATCH,
    rounds: int = 15,
) -> Figures:
    """BG3: how many times as fast as copying operands together, and as eager; inference."""
    over_copies, over_eager = [], []
    for name in names:
        model, given = model_of(name, width, device), instances(name, batch)

        def eager(model: Model = model, given: Sequence[Any] = given) -> Any:
            with torch.no_grad():
                return model(given)

        ways: list[Callable[[], Any]] = [functools.partial(step, model, given, False)]
        ways.append(functools.partial(step, model, given, False, gather_mode="copy"))
        ours, copies = timed(ways, device, rounds)
        ratio = paired_ratio(copies, ours)
        again, one_by_one = timed([ways[0], eager], device, max(2, rounds // 5))
        faster = paired_ratio(one_by_one, again)
        print(f"  {name}: {ratio} as fast as with copies, {faster} as fast as eager")
        if name in LATTICES:
            over_copies.append(ratio.median)
        over_eager.append(faster.median)
    figures = {"least over eager": min(over_eager)}
    return figures | ({"lattices, least over copies": min(over_copies)} if over_copies else {})


def captures(
    device: torch.device, name: str = "TreeLSTM", width: int = WIDTH, batch: int = 16, steps: int = 100
) -> Figures:
    """BG4: graphs captured in training on random mini-batches, after as many others."""
    model = model_of(name, width, device)
    seen = 0
    for seed in range(2 * steps):
        if seed == steps:
            seen = counts["captures"]
        step(model, drawn(name, batch, seed), train=True, graphs=True if seed < steps else "auto")
    return {"captures after warm-up": float(counts["captures"] - seen)}


def training(device: torch.device, width: int = WIDTH, batch: int = BATCH, rounds: int = 15) -> Figures:
    """BG5: a step of LatticeLSTM without the update, over the same batched by hand."""
    model, given = model_of("LatticeLSTM", width, device), instances("LatticeLSTM", batch)
    assert isinstance(model, batching.models.LatticeLSTM)

    def hand() -> Tensor:
        model.zero_grad()
        loss = by_hand.loss_of(model, given)
        loss.backward()
        return loss.detach()

    ours = step(model, given, train=True)
    torch.testing.assert_close(ours, hand(), rtol=1e-3, atol=1e-3)
    seconds = timed([functools.partial(step, model, given, True), hand], device, rounds)
    ratio = paired_ratio(seconds[1], seconds[0])
    times = ", ".join(f"{1e3 * statistics.median(x.seconds):.2f} ms" for x in seconds)
    print(f"  LatticeLSTM, forward and backward: {times}: {ratio} as fast as by hand")
    return {"LatticeLSTM, training over by hand": ratio.median}
