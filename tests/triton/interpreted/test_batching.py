# SPDX-License-Identifier: Apache-2.0
"""Sessions through the GPU executor, its kernels in the interpreter: results, gradients, uploads, refusals."""

from __future__ import annotations

import copy
from unittest import mock

import numpy as np
import pytest
import torch
import triton.language as tl
from triton.runtime import interpreter

from bench.batching.instances import MODELS
from edgeops import batching
from edgeops.batching import _gpu_execute, _gpu_graphs, _program
from edgeops.batching._gpu_graphs import Launcher
from edgeops.batching._gpu_upload import counts
from edgeops.batching._program import Program
from edgeops.batching.cells import GRU, LSTM, BinaryTreeLSTM, Classifier, Embedding
from tests.batching.instances import drawn

UNALIGNED = ("TreeLSTM", "TreeGRU", "LatticeLSTM")  # whose rows are no multiples of 16 bytes
LATTICES = ("LatticeLSTM", "LatticeGRU")
DECIDING = ("StackRNN", "DRNN")  # decisions have no kernel here: the twin runs such sessions on a GPU
SLOW = pytest.mark.slow
EPS = {torch.float32: 2e-5, torch.float16: 2e-2, torch.bfloat16: 1e-1}


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch):
    """CPU tensors take the way of a GPU's."""
    monkeypatch.setattr(_program, "PANELS", set())
    counts.clear()


@pytest.fixture
def products_of_bfloat16(monkeypatch):
    """The interpreter multiplies the bits of bfloat16 as integers: let it multiply what they stand for."""
    builder = interpreter.InterpreterBuilder
    plain = builder.create_dot

    def create_dot(self, a, b, *rest):
        return plain(self, *(_wide(x) for x in (a, b)), *rest)

    monkeypatch.setattr(builder, "create_dot", create_dot)


def _wide(x):
    if x.dtype.scalar != tl.bfloat16:
        return x
    return interpreter.TensorHandle((x.data.astype(np.uint32) << 16).view(np.float32), tl.float32)


def close(got, want, dtype=torch.float32):
    got, want = got.detach().double(), want.detach().double()
    assert bool(got.isfinite().all())
    scale = max(float(want.abs().max()), 1e-3)
    torch.testing.assert_close(got, want, rtol=EPS[dtype], atol=EPS[dtype] * scale)


def gradients(model, given):
    loss = model(given)
    return loss.detach(), torch.autograd.grad(loss, list(model.parameters()))


QUICK = {("TreeLSTM", 16), ("LatticeGRU", 16), *((name, 6) for name in UNALIGNED)}
LONG = {(name, 16) for name in MODELS if name not in DECIDING} - QUICK


@pytest.mark.parametrize(("name", "width"), [*sorted(QUICK), *(pytest.param(*x, marks=SLOW) for x in sorted(LONG))])
def test_models_equal_eager(name, width):
    torch.manual_seed(0)
    model, given = MODELS[name].model(width), drawn(name, 2)
    want, wanted = gradients(copy.deepcopy(model).double(), given)
    with batching.session():
        got, found = gradients(model, given)
    close(got, want)
    for (what, _), a, b in zip(model.named_parameters(), found, wanted, strict=True):
        assert b.abs().max() > 0, what
        close(a, b)
    assert counts["launches"] > 0 or name == "early exit"  # which has no built-in cells


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
@pytest.mark.parametrize("name", ["TreeGRU", *(pytest.param(x, marks=SLOW) for x in ("TreeLSTM", *LATTICES))])
def test_halves_equal_float64(name, dtype, products_of_bfloat16):
    """Parameters rounded first, so that what differs is rounding on the way."""
    torch.manual_seed(0)
    model, given = MODELS[name].model(16).to(dtype), drawn(name, 2)
    want, wanted = gradients(copy.deepcopy(model).double(), given)
    with batching.session():
        got, found = gradients(model, given)
    close(got, want, dtype)
    for a, b in zip(found, wanted, strict=True):
        assert a.dtype == dtype
        close(a, b, dtype)


def lattice(step, words, count):
    """States that several calls of a batch read: rows whose gradients add up."""
    first = step(words.look_up(0), torch.zeros(5))
    second = [step(words.look_up(1 + i % 3), first) for i in range(count)]
    return [step(words.look_up(i % 2), state) for i, state in enumerate(second * 2)]


@pytest.mark.parametrize("mode", ["index", "copy"])
def test_rows_read_several_times(mode):
    words, cell = Embedding(4, 3), GRU(3, 5)
    parameters = [*words.parameters(), *cell.parameters()]
    found = []
    for _ in range(2):
        with batching.session(gather_mode=mode) as s:
            loss = s.stack(lattice(cell.step, words, 4)).square().sum()
        found.append((loss.detach(), *torch.autograd.grad(loss, parameters)))
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)  # sums in one order: the same bits
    eager = torch.stack(lattice(cell.step, words, 4)).square().sum()
    for a, b in zip(found[0], (eager.detach(), *torch.autograd.grad(eager, parameters)), strict=True):
        close(a, b)


def test_copies_are_launches_of_their_own():
    launches = []
    for mode in ("index", "copy"):
        torch.manual_seed(0)
        counts.clear()
        model = MODELS["LatticeLSTM"].model(6)
        with torch.no_grad(), batching.session(gather_mode=mode):
            model(drawn("LatticeLSTM", 2))
        launches.append(counts["launches"])
    assert launches[1] > launches[0]


def test_a_flush_is_one_upload():
    model, given = MODELS["TreeLSTM"].model(6), drawn("TreeLSTM", 4)
    with torch.no_grad(), batching.session():
        model(given)
    assert counts["uploads"] == 1
    with batching.session():
        loss = model(given)
    assert counts["uploads"] == 2
    loss.backward()
    assert counts["uploads"] == 3  # addresses of gradients
    assert counts["captures"] == 0


def test_launches_do_not_depend_on_values():
    """Two mini-batches of one shape: the same kernels with the same arguments but for the records."""
    tree, seen = BinaryTreeLSTM(4, 4, num_embeddings=9), []
    launch = Launcher.launch

    def spy(self, plan, size, aligned, cell, skipped=False):
        seen[-1].append((id(plan), size, aligned, skipped))
        launch(self, plan, size, aligned, cell, skipped)

    with mock.patch.object(Launcher, "launch", spy):
        for ids in ((1, 2, 3), (6, 4, 5)):
            seen.append([])
            with batching.session(cache=batching.PlanCache()) as s:
                leaves = [tree.leaf(i) for i in ids]
                tops = [tree.inner(*leaves[i], *leaves[j])[0] for i, j in ((0, 1), (2, 0))[:: 1 if ids[0] == 1 else -1]]
            s.sum(tops).sum().backward()
    assert seen[0] == seen[1]


def test_what_no_gradient_reaches_and_a_second_backward():
    words, classes, cell = Embedding(9, 4), Classifier(4, 3), LSTM(4, 4)
    start = torch.zeros(4)
    parameters = [*words.parameters(), *cell.parameters(), *classes.parameters()]

    def run():
        states = [cell.step(words.look_up(i), start, start) for i in range(3)]
        later = [cell.step(words.look_up(i), *states[i]) for i in range(3)]
        return classes.loss(states[0][0], 1), later, classes.loss(later[2][0], 2)

    with batching.session() as s:
        first, _, second = run()
    a, b = s.tensor(first), s.tensor(second)
    eager_a, _, eager_b = run()
    for ours, eager in ((a, eager_a), (b, eager_b), (a, eager_a)):
        got = torch.autograd.grad(ours, parameters, retain_graph=True)
        want = torch.autograd.grad(eager, parameters, retain_graph=True)
        for x, y in zip(got, want, strict=True):
            close(x, y)


def test_several_flushes_of_a_session():
    torch.manual_seed(0)
    cell, x = GRU(3, 3), torch.randn(4, 3, requires_grad=True)
    leaves = [*cell.parameters(), x]

    def run(look):
        h = cell.step(x[0], x[1])
        look(h)
        other = [cell.step(x[i], h) for i in range(4)]
        look(other[0])
        return [*other, cell.step(x[2], other[3])]

    with batching.session() as s:
        ours = s.sum(run(s.tensor))
    want = torch.stack(run(lambda _: None)).sum(0)
    close(ours, want)
    for a, b in zip(torch.autograd.grad(ours.sum(), leaves), torch.autograd.grad(want.sum(), leaves), strict=True):
        close(a, b)
    assert counts["uploads"] == 6  # three flushes, there and back


def test_integers_are_checked_before_anything_runs():
    tree, classes = BinaryTreeLSTM(4, 4, num_embeddings=9), Classifier(4, 3)
    for record, told in (
        (lambda: tree.leaf(9), r"BinaryTreeLSTM.leaf: ids must lie in 0..8; got 9. Check num_embeddings"),
        (lambda: tree.leaf(-1), r"ids must lie in 0..8; got -1"),
        (lambda: classes.loss(tree.leaf(1)[0], 3), r"Classifier.loss: labels must lie in 0..2; got 3"),
    ):
        counts.clear()
        with batching.session() as s:
            kept = record()
        with pytest.raises(ValueError, match=told):
            s.flush()
        assert counts["launches"] == 0
        del kept


class Graph:
    """Stands in for a CUDA graph: runs again what was captured, with the arguments of then."""

    def __init__(self, device, run):
        self.replay = run


@pytest.fixture
def graphs(monkeypatch):
    monkeypatch.setattr(_gpu_graphs, "has_graphs", lambda device: True)
    monkeypatch.setattr(_gpu_graphs, "capture", Graph)


@pytest.mark.usefixtures("graphs")
@pytest.mark.parametrize("choice", ["auto", True])
def test_graphs_of_one_size_serve_all_batches(choice):
    torch.manual_seed(0)
    model, given = MODELS["TreeLSTM"].model(6), drawn("TreeLSTM", 3)
    want, wanted = gradients(copy.deepcopy(model).double(), given)
    seen = []
    for _ in range(4):
        before = dict(counts)
        with batching.session(graphs=choice):
            got, found = gradients(model, given)
        close(got, want)
        for a, b in zip(found, wanted, strict=True):
            close(a, b)
        seen.append({what: counts[what] - before.get(what, 0) for what in ("captures", "replays")})
    assert seen[0]["captures"] > 0
    assert seen[-1]["captures"] == seen[-2]["captures"] == 0  # as many kinds and sizes as there are
    assert seen[-1]["replays"] == seen[-2]["replays"] > seen[0]["replays"]


@pytest.mark.usefixtures("graphs")
def test_graphs_go_on_behind_what_is_left_out():
    """Batches that no gradient has reached leave a gap in the records."""
    torch.manual_seed(0)
    cell, words = GRU(3, 3), Embedding(9, 3)
    parameters = [*cell.parameters(), *words.parameters()]
    start = torch.zeros(3)

    def chains():
        found = []
        for length in (2, 5, 3):
            h = start
            for i in range(length):
                h = cell.step(words.look_up(i), h)
            found.append(h)
        return found

    for which in (0, 1, 2, 0):
        with batching.session(graphs=True) as s:
            ends = chains()
        got = torch.autograd.grad(s.tensor(ends[which]).square().sum(), parameters)
        want = torch.autograd.grad(chains()[which].square().sum(), parameters)
        for a, b in zip(got, want, strict=True):
            close(a, b)
    assert counts["replays"] > 0


@pytest.mark.usefixtures("graphs")
def test_no_graphs_where_none_are_wanted():
    model, given = MODELS["TreeLSTM"].model(6), drawn("TreeLSTM", 2)
    for _ in range(2):
        with torch.no_grad(), batching.session(graphs=False):
            model(given)
    assert counts["captures"] == counts["replays"] == 0


def test_what_it_does_not_serve():
    tree = BinaryTreeLSTM(4, 4, num_embeddings=9)
    cpu = torch.device("cpu")
    for module, served in ((tree, True), (copy.deepcopy(tree).double(), False)):
        made = _program.Program(module, module.leaf_weight.dtype, cpu)
        assert _gpu_execute.serves(cpu, [None, made]) is served
    tree.leaf_weight.data = torch.empty(tree.leaf_weight.shape[::-1]).T
    assert not _gpu_execute.serves(cpu, [_program.Program(tree, torch.float32, cpu)])
    with mock.patch.object(_program, "PANELS", {"cpu"}):
        assert not _gpu_execute.serves(cpu, [])


def test_refuses_another_choice_of_graphs():
    with pytest.raises(ValueError, match="graphs must be 'auto', True or False"):
        batching.session(graphs="yes")


def test_gradients_add_up_over_flushes():
    """A value that is asked for ends a flush: the second one's gradients are added to the first one's."""
    torch.manual_seed(0)
    modules = torch.nn.ModuleList([Embedding(4, 3), GRU(3, 5)])
    found = []
    for kinds in ({"cpu"}, set()):
        words, cell = copy.deepcopy(modules)
        with mock.patch.object(_program, "PANELS", kinds):
            with batching.session() as s:
                first = [cell.step(words.look_up(i % 3), torch.zeros(5)) for i in range(4)]
                early = s.stack(first)
                second = [cell.step(words.look_up(i), state) for i, state in enumerate(first[:3])]
                total = early.square().sum() + s.stack(second).sum()
            found.append(torch.autograd.grad(total, [*words.parameters(), *cell.parameters()]))
        assert s.report.flushes == 2
    assert counts["launches"] > 0
    for a, b in zip(*found, strict=True):
        close(b, a)


def test_sessions_with_decisions_are_left_to_the_twin():
    scores = Program(None, torch.float32, torch.device("cpu"))
    scores.decide(0, 2, 0)
    assert not _gpu_execute.serves(torch.device("cpu"), [scores])
    assert _gpu_execute.serves(torch.device("cpu"), [Program(None, torch.float32, torch.device("cpu"))])
