# SPDX-License-Identifier: Apache-2.0
"""The GPU executor of sessions: models against the CPU, uploads, waits of the host, graphs and their captures."""

from __future__ import annotations

import copy

import pytest
import torch

from bench.batching import gpu
from bench.batching.instances import MODELS
from edgeops import batching
from edgeops.batching._gpu_graphs import Launcher
from edgeops.batching._gpu_upload import counts
from edgeops.batching.cells import GRU, LSTM, BinaryTreeLSTM
from tests.batching.instances import drawn

pytest.importorskip("triton", reason="triton is not installed: pip install 'edgeops[triton]'")
EPS = {torch.float32: 1e-4, torch.float16: 3e-2, torch.bfloat16: 1e-1}
TWINS = ("early exit", "StackRNN", "DRNN")  # no built-in cells; decisions, which have no kernel
DECIDING = [name for name, entry in MODELS.items() if entry.decides]


@pytest.fixture(autouse=True)
def fresh():
    counts.clear()


def gradients(model, given, **options):
    with batching.session(**options):
        loss = model(given)
    return [x.detach().cpu().double() for x in (loss, *torch.autograd.grad(loss, list(model.parameters())))]


def close(found, wanted, eps):
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=eps, atol=eps * max(float(b.abs().max()), 1e-3))


@pytest.mark.parametrize("graphs", [False, "auto", True], ids=str)
@pytest.mark.parametrize("width", [6, 64])
@pytest.mark.parametrize("dtype", EPS, ids=["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("name", list(MODELS))
def test_models_agree_with_the_cpu(name, dtype, width, graphs):
    if name in DECIDING and dtype != torch.float32:
        pytest.skip("its decisions change with rounding")
    model, given = MODELS[name].model(width).to(dtype), drawn(name, 8)
    want = gradients(copy.deepcopy(model).double(), given)
    model.cuda()
    for _ in range(3):  # launches, captures, replays
        close(gradients(model, given, graphs=graphs), want, EPS[dtype])
    assert name in TWINS or counts["launches"] > 0


@pytest.mark.parametrize("name", gpu.NAMED)
def test_a_flush_is_one_upload_without_a_wait(name, no_sync):
    model, given = gpu.model_of(name, 32, torch.device("cuda")), gpu.drawn(name, 8, length=6)
    for _ in range(3):  # compiles and captures
        gpu.step(model, given, train=False)
    counts.clear()
    with no_sync:
        gpu.step(model, given, train=False)
    assert counts["uploads"] == 1
    assert counts["captures"] == 0


def test_training_waits_for_nothing(no_sync):
    model, given = gpu.model_of("TreeLSTM", 32, torch.device("cuda")), gpu.drawn("TreeLSTM", 8, length=6)
    for _ in range(3):
        gpu.step(model, given, train=True)
    counts.clear()
    with no_sync:
        gpu.step(model, given, train=True)
    assert counts["uploads"] == 2  # there, and back: the addresses of gradients
    assert counts["captures"] == 0


def test_no_captures_after_warm_up():
    assert gpu.captures(torch.device("cuda"), "TreeLSTM", 16, 8, 100) == {"captures after warm-up": 0}


def test_a_batch_is_one_replay():
    tree = BinaryTreeLSTM(8, 8, num_embeddings=9).cuda()
    for again in range(3):
        counts.clear()
        with torch.no_grad(), batching.session(graphs=True) as s:
            leaves = [tree.leaf(i) for i in range(6)]
            top = tree.inner(*tree.inner(*leaves[0], *leaves[1]), *tree.inner(*leaves[2], *leaves[3]))
        s.flush()
        assert s.report.batches == 3
        if again:
            assert counts["replays"] == 3
            assert counts["launches"] == 0
        del top


def test_graphs_outlive_the_memory_they_were_captured_with():
    """Records hold addresses: tables that grow or move need no other graph."""
    cell = GRU(16, 16).cuda()
    x = torch.randn(512, 16, device="cuda")
    expected = torch.nn.GRUCell.forward(cell, x, x[:1].expand(512, -1)).detach()
    counts.clear()
    kept = []
    for _ in range(4):
        kept.append(torch.empty(1 << 20, device="cuda"))
        with torch.no_grad(), batching.session(graphs=True) as s:
            out = s.stack([cell.step(row, x[0]) for row in x])
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
        kept.append(out)
    assert counts["captures"] == 2  # of x, and of h


def test_the_same_bits_in_every_run():
    model, given = gpu.model_of("LatticeLSTM", 64, torch.device("cuda")), gpu.drawn("LatticeLSTM", 8, length=6)
    found = []
    for _ in range(3):
        gpu.step(model, given, train=True)
        found.append([p.grad.clone() for p in model.of_word.parameters()])
    for again in found[1:]:
        for a, b in zip(found[0], again, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_rows_have_the_same_bits_alone(dtype):
    cell, x = LSTM(64, 64).to("cuda", dtype), torch.randn(200, 64, device="cuda", dtype=dtype)
    with torch.no_grad():
        with batching.session(batch_invariant=True) as s:
            together = s.stack([cell.step(row, x[0], x[1])[0] for row in x])
        for i in (0, 7, 199):
            with batching.session(batch_invariant=True) as s:
                alone = cell.step(x[i], x[0], x[1])[0]
            assert torch.equal(s.tensor(alone), together[i])


def test_streams_of_their_own():
    model, given = gpu.model_of("TreeLSTM", 16, torch.device("cuda")), gpu.drawn("TreeLSTM", 4, length=4)
    want = gpu.step(model, given, train=False)
    streams = [torch.cuda.Stream() for _ in range(2)]
    torch.cuda.synchronize()
    found = []
    for _ in range(3):
        for stream in streams:
            with torch.cuda.stream(stream):
                found.append(gpu.step(model, given, train=False))
    torch.cuda.synchronize()
    for loss in found:
        torch.testing.assert_close(loss, want)


def test_copies_give_the_same():
    model, given = gpu.model_of("LatticeGRU", 32, torch.device("cuda")), gpu.drawn("LatticeGRU", 4, length=4)
    found = [gpu.step(model, given, train=False, gather_mode=mode) for mode in ("index", "copy")]
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)


def test_wrong_integers_are_refused():
    tree = BinaryTreeLSTM(8, 8, num_embeddings=9).cuda()
    with batching.session() as s:
        kept = tree.leaf(9)
    with pytest.raises(ValueError, match=r"ids must lie in 0..8; got 9"):
        s.flush()
    del kept


def test_float64_runs_the_twin(monkeypatch):
    monkeypatch.setattr(Launcher, "run", lambda *_: pytest.fail("kernels have no float64"))
    model, given = gpu.model_of("TreeLSTM", 8, torch.device("cuda"), torch.float64), gpu.drawn("TreeLSTM", 2, length=3)
    assert bool(gpu.step(model, given, train=True).isfinite())
