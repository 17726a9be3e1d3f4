# SPDX-License-Identifier: Apache-2.0
"""Sparse projectors, the fused update and LSPAdamW on a GPU."""

import copy

import pytest
import torch
from torch import nn

from edgeops.offload import LSPAdamW, Pair, SparseProjector
from edgeops.offload import _reference as twin

OPS = torch.ops.edgeops
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def projector(m, d, r, seed=0):
    return SparseProjector.draw(m, d, r, generator=torch.Generator().manual_seed(seed)).to("cuda")


def close(got, exact, dtype):
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(got.double(), exact, rtol=2 * eps, atol=1e-5 + eps / 8)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", ["plain", "turned", "spread"])
@pytest.mark.parametrize(
    ("m", "d", "r", "width"), [(1, 1, 1, 1), (1000, 33, 4, 77), (4096, 1024, 4, 2048), (7, 7, 7, 0)]
)
def test_products(m, d, r, width, form, dtype):
    p = projector(m, d, r)

    def matrix(rows):
        if form == "turned":
            return torch.randn(width, rows, device="cuda").to(dtype).T
        if form == "spread":
            return torch.randn(rows, width, 2, device="cuda").to(dtype)[..., 0]
        return torch.randn(rows, width, device="cuda").to(dtype)

    x, y, dense = matrix(m), matrix(d), p.dense().double()
    close(p.project(x), dense.T @ x.double(), dtype)
    close(p.expand(y), dense @ y.double(), dtype)
    got = OPS._subspace_value_grad(x, y, p.index)
    exact = (x.double() @ y.double().T).gather(1, p.index.long())
    torch.testing.assert_close(got.double(), exact, rtol=1e-4, atol=1e-3)


def test_the_same_bits_in_every_run():
    p, x = projector(4096, 512, 8), torch.randn(4096, 1000, device="cuda")
    first = p.project(x)
    assert all(torch.equal(p.project(x), first) for _ in range(5))


def test_nothing_waits_for_the_gpu(no_sync):
    p, x, y = projector(64, 16, 4), torch.randn(80, 64, device="cuda"), torch.randn(16, 80, device="cuda")
    pair, weight = Pair(p, p), torch.zeros(64, 64, device="cuda", dtype=torch.bfloat16)
    m, v = torch.zeros(2, 16, 16, device="cuda")
    pair.scale()

    def all_of_them():
        small = pair.grad(x, x)
        OPS._subspace_value_grad(x.T, y, p.index)
        OPS._subspace_adam(small, m, v, 1, 0.9, 0.999, 1e-8)
        pair.apply_(weight, small, -0.1, 1.0, 3)

    all_of_them()
    with no_sync:
        all_of_them()
    torch.cuda.synchronize()


def test_gradients_of_the_public_ops():
    p = projector(40, 12, 3)
    x = torch.randn(40, 9, device="cuda", requires_grad=True)
    value = p.value.clone().requires_grad_()
    out = p.with_value(value).expand(p.with_value(value).project(x))
    got = torch.autograd.grad(out.square().sum(), (x, value))
    wide_x, wide = x.detach().double().requires_grad_(), value.detach().double().requires_grad_()
    dense = twin.dense_of_rows(p.index, wide, 12)
    want = torch.autograd.grad((dense @ (dense.T @ wide_x)).square().sum(), (wide_x, wide))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("m", "n", "d", "r"), [(1, 1, 1, 1), (1000, 1500, 33, 4), (4096, 2048, 512, 8)])
def test_apply(m, n, d, r, dtype):
    p, q = projector(m, d, r), projector(n, d, r, 1)
    weight, delta = torch.randn(m, n, device="cuda").to(dtype), torch.randn(d, d, device="cuda")
    exact = 0.9 * weight.double() - 0.3 * p.dense().double() @ delta.double() @ q.dense().double().T
    Pair(p, q).apply_(weight, delta, -0.3, 0.9)
    close(weight, exact, dtype)


@pytest.mark.parametrize("seed", [0, 2**63 - 1])
def test_rounding_has_the_bits_of_the_cpu(seed):
    chosen = torch.arange(300)
    p = SparseProjector.select(300, chosen)
    delta = torch.randn(300, 300)
    on_cpu, on_gpu = torch.zeros(300, 300, dtype=torch.bfloat16), torch.zeros(300, 300, dtype=torch.bfloat16).cuda()
    Pair(p, p).apply_(on_cpu, delta, -0.5, 1.0, seed)
    Pair(p, p).to("cuda").apply_(on_gpu, delta.cuda(), -0.5, 1.0, seed)
    assert torch.equal(on_gpu.cpu(), on_cpu)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_adam(dtype):
    grad = torch.randn(100_003).to(dtype)
    m, v = torch.zeros(2, 100_003)
    there = [x.cuda() for x in (grad, m, v)]
    for step in (1, 2, 3):
        OPS._subspace_adam(grad, m, v, step, 0.9, 0.999, 1e-8)
        OPS._subspace_adam(*there, step, 0.9, 0.999, 1e-8)
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(there[0].cpu(), grad, rtol=4 * eps, atol=eps)
        torch.testing.assert_close([x.cpu() for x in there[1:]], [m, v], rtol=1e-5, atol=1e-6)


def trained(device, projector_kind, state_device, dtype=torch.float32, steps=6):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(48, 64), nn.GELU(), nn.Linear(64, 48))
    x, y = torch.randn(2, 96, 48)
    model, x, y = model.to(device, dtype), x.to(device, dtype), y.to(device, dtype)
    optimizer = LSPAdamW(
        model, lr=1e-2, d=16, r=4, projector=projector_kind, check_every=3, fit_steps=3, state_device=state_device
    )
    losses = []
    for _ in range(steps):
        loss = nn.functional.mse_loss(model(x).float(), y.float())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, model, optimizer


@pytest.mark.parametrize("state_device", ["cpu", "cuda"])
@pytest.mark.parametrize("kind", ["learned", "random", "svd", "rows", "identity"])
def test_the_optimizer_trains(kind, state_device):
    losses, _, optimizer = trained("cuda", kind, state_device)
    assert losses[-1] < losses[0]
    state = optimizer.state[optimizer.targets[0].leaf]
    assert state["exp_avg"].device.type == state_device
    if kind in ("random", "identity"):  # nothing there depends on the rounding of a fit
        torch.testing.assert_close(
            torch.tensor(losses), torch.tensor(trained("cpu", kind, "cpu")[0]), rtol=1e-3, atol=1e-4
        )


def test_bfloat16_weights_and_resuming():
    losses, model, optimizer = trained("cuda", "learned", "cpu", torch.bfloat16)
    assert losses[-1] < losses[0]
    saved = copy.deepcopy(optimizer.state_dict())
    _, other, resumed = trained("cuda", "learned", "cpu", torch.bfloat16, steps=1)
    resumed.load_state_dict(saved)
    other.load_state_dict(model.state_dict())
    x = torch.randn(8, 48, device="cuda", dtype=torch.bfloat16)
    for net, opt in ((model, optimizer), (other, resumed)):
        net(x).float().square().mean().backward()
        opt.step()
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
