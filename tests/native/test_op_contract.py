# SPDX-License-Identifier: Apache-2.0
"""Walks `torch.ops.edgeops` and fails where an op lacks a part of the contract.

The parts: schema in csrc/module.cpp, twin, fake kernel, batching rule, autocast behaviour, autograd, opcheck, property
test, benchmark entry. A new op needs an entry in op_samples.py.

Ops that write into their arguments (a mutable schema) are steps of an executor or of an optimizer, without public form:
they are measured themselves, their gradients are those of the executor, and functorch transforms of them are refused.
`STEPS` is all of them, and the tests below that speak of it are the whole rule.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from bench.registry import ops_covered
from edgeops import ragged
from edgeops.batching._ops import TWINS as BATCHING_TWINS
from edgeops.drift._ops import TWINS as DRIFT_TWINS
from edgeops.offload._ops import PUBLIC as OFFLOAD_PUBLIC
from edgeops.offload._ops import TWINS as OFFLOAD_TWINS
from edgeops.ragged._ops import PUBLIC as RAGGED_PUBLIC
from edgeops.ragged._ops import TWINS as RAGGED_TWINS
from tests.messages import refused
from tests.native.op_samples import ENTRIES, Sample, is_floating

PUBLIC = RAGGED_PUBLIC | OFFLOAD_PUBLIC
TWINS = RAGGED_TWINS | BATCHING_TWINS | OFFLOAD_TWINS | DRIFT_TWINS
ROOT = Path(__file__).resolve().parents[2]
OPS = sorted(
    {s.name.removeprefix("edgeops::") for s in torch._C._jit_get_all_schemas() if s.name.startswith("edgeops::")}
)
KERNELS = [name for name in OPS if name.startswith("_")]
PUBLICS = [name for name in OPS if not name.startswith("_")]

pytestmark = pytest.mark.usefixtures("clean_memory")


def op_of(name: str) -> Any:
    return getattr(torch.ops.edgeops, name).default


STEPS = [name for name in KERNELS if op_of(name)._schema.is_mutable]


def has_kernel(name: str, key: str) -> bool:
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(f"edgeops::{name}", key))


def each_sample(names: list[str]) -> list[Any]:
    known = [name for name in names if name in ENTRIES]
    return [pytest.param(n, i, id=f"{n}-{i}") for n in known for i in range(len(ENTRIES[n].samples()))]


def test_there_are_ops() -> None:
    assert len(OPS) >= 17
    assert len(PUBLICS) < len(OPS)


def test_every_op_has_samples() -> None:
    assert sorted(ENTRIES) == OPS


def test_module_cpp_lists_every_schema_and_nothing_else_does() -> None:
    listed = re.findall(r'm\.def\(\s*"(\w+)\(', (ROOT / "csrc/module.cpp").read_text())
    assert sorted(listed) == OPS
    for path in (ROOT / "csrc").rglob("*.c*"):
        if path.name != "module.cpp" or path.parent.name != "csrc":
            assert "STABLE_TORCH_LIBRARY(" not in path.read_text(), path.name


@pytest.mark.parametrize("name", KERNELS)
def test_twin(name: str) -> None:
    """A readable twin is registered as the fallback, and takes the op's arguments in order."""
    twin = TWINS[name]
    assert re.match(r"edgeops\.(ragged|batching|offload|drift)\._reference", twin.__module__)
    assert twin.__doc__
    wanted = [argument.name for argument in op_of(name)._schema.arguments]
    assert list(inspect.signature(twin).parameters) == wanted
    assert has_kernel(name, "CompositeExplicitAutograd")


@pytest.mark.parametrize("name", KERNELS)
def test_kernel_op_has_fake_and_batching_rule(name: str) -> None:
    assert has_kernel(name, "Meta"), "torch.library.register_fake is missing"
    assert has_kernel(name, "FuncTorchBatched"), "torch.library.register_vmap is missing"


@pytest.mark.parametrize("name", PUBLICS)
def test_public_op_is_composite(name: str) -> None:
    """Public ops are differentiable compositions of kernel ops: autograd, autocast and vmap see through them."""
    assert name in PUBLIC
    assert has_kernel(name, "CompositeImplicitAutograd")
    assert not any(has_kernel(name, key) for key in ("CPU", "CUDA", "CompositeExplicitAutograd"))


@pytest.mark.parametrize(("name", "i"), each_sample(KERNELS))
def test_native_agrees_with_twin(name: str, i: int) -> None:
    """On small samples; the twin tests of each op have the budgets."""
    ours, theirs = ENTRIES[name].samples()[i], ENTRIES[name].samples()[i]
    got, want = op_of(name)(*ours.args), TWINS[name](*theirs.args)
    torch.testing.assert_close((got, ours.args), (want, theirs.args))


@pytest.mark.parametrize(("name", "i"), each_sample(OPS))
def test_opcheck(name: str, i: int) -> None:
    sample = ENTRIES[name].samples()[i]
    if not name.startswith("_"):
        sample = sample.with_grad()
    if i == 0:  # in full, 0.5 s; schema and fake kernel on all samples
        torch.library.opcheck(op_of(name), sample.args, sample.kwargs)
    else:
        torch.library.opcheck(op_of(name), sample.args, sample.kwargs, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("name", KERNELS)
def test_kernel_op_does_not_drop_gradients_silently(name: str) -> None:
    sample = ENTRIES[name].samples()[0].with_grad()
    if name in STEPS:
        written = [i for i, a in enumerate(op_of(name)._schema.arguments) if a.alias_info and a.alias_info.is_write]
        plain = pytree.tree_map_only(Tensor, Tensor.detach, sample.args)
        args = [plain[i] if i in written else x for i, x in enumerate(sample.args)]
        if any(is_floating(x) and x.requires_grad for x in pytree.tree_leaves(args)):
            op_of(name)(*args)
            out = args[written[0]]
        else:
            pytest.skip("writes to all that it reads")
    else:
        out = op_of(name)(*sample.args)
        out = out[0] if isinstance(out, (tuple, list)) else out
    with pytest.raises((RuntimeError, UserWarning), match=r"autograd|does not require grad"):
        out.sum().backward()


@pytest.mark.parametrize(("name", "i"), each_sample(PUBLICS))
def test_public_op_is_differentiable(name: str, i: int) -> None:
    """Every floating argument gets a gradient, through the op as through the function."""
    sample = ENTRIES[name].samples()[i].with_grad()
    leaves = sample.tensors()

    def gradients(call: Callable[..., Any]) -> list[Tensor]:
        out = call(*sample.args, **sample.kwargs)
        outs = pytree.tree_leaves(out)
        finite = [x.masked_fill(x.isinf(), 0.0).square().sum() for x in outs]
        return list(torch.autograd.grad(sum(finite), leaves))

    for a, b in zip(gradients(op_of(name)), gradients(PUBLIC[name])):
        assert torch.equal(a, b)
        assert a.isfinite().all()


AUTOCAST = {
    "ragged_attention": (torch.bfloat16,),
    "ragged_attention_lse": (torch.bfloat16, torch.float32),
    "ragged_pack": (torch.float32,),
    "ragged_unpack": (torch.float32,),
    "ragged_pool": (torch.float32,),
    "bias_gelu": (torch.float32,),
    "add_layer_norm": (torch.float32,),
    "vgemm": (torch.bfloat16,),
    "vgemm_packed": (torch.bfloat16,),
    "grouped_mm": (torch.bfloat16,),
    "ragged_conv1d": (torch.bfloat16,),
    "ragged_instance_norm": (torch.float32,),
    "ragged_softmax": (torch.float32,),
    "trmm": (torch.bfloat16,),
    "subspace_expand": (torch.float32,),
    "subspace_project": (torch.float32,),
    "tradd": (torch.float32,),
    "trmul": (torch.float32,),
}


@pytest.mark.parametrize(("name", "i"), each_sample(PUBLICS))
def test_autocast(name: str, i: int) -> None:
    """Attention runs in the autocast dtype like matrix products, gradients keep the dtype of their tensors."""
    sample = ENTRIES[name].samples()[i].with_grad()
    for call in (op_of(name), PUBLIC[name]):
        with torch.autocast("cpu", torch.bfloat16):
            out = call(*sample.args, **sample.kwargs)
        outs = pytree.tree_leaves(out)
        assert tuple(dict.fromkeys(x.dtype for x in outs)) == AUTOCAST[name]
        leaves = sample.tensors()
        for x, grad in zip(leaves, torch.autograd.grad(sum(x.sum() for x in outs), leaves)):
            assert grad.dtype == x.dtype


def test_autocast_of_mixed_dtypes() -> None:
    """What a layer meets: half rows out of an autocast matrix product, float32 parameters and residual."""
    x, vector = torch.randn(4, 6, dtype=torch.bfloat16), torch.randn(6)
    with torch.autocast("cpu", torch.bfloat16):
        assert ragged.bias_gelu(x, vector).dtype == torch.bfloat16
        assert ragged.add_layer_norm(x, torch.randn(4, 6), vector, vector, x_bias=vector).dtype == torch.float32
        assert ragged.add_layer_norm(x, x, vector, vector).dtype in (torch.bfloat16, torch.float32)
        q, cu = torch.randn(5, 2, 4, dtype=torch.float64), torch.tensor([0, 2, 5])
        assert ragged.ragged_attention(q, q, q, cu, cu, 3, 3).dtype == torch.float64
        mixed = ragged.ragged_attention(q.float(), q.bfloat16(), q.half(), cu, cu, 3, 3)
        assert mixed.dtype == torch.bfloat16


@pytest.mark.parametrize("name", STEPS)
def test_vmap_of_an_op_that_writes_into_tables_is_refused(name: str) -> None:
    args, spec = pytree.tree_flatten(ENTRIES[name].samples()[0].args)
    stacked = [torch.stack([x, x]) if is_floating(x) else x for x in args]
    dims = [0 if is_floating(x) else None for x in args]

    def call(*flat: Any) -> Any:
        return op_of(name)(*pytree.tree_unflatten(list(flat), spec))

    with refused(
        NotImplementedError, name.removeprefix("_"), "cannot be transformed", "under vmap", "(Record|Call) .+"
    ):
        torch.func.vmap(call, in_dims=tuple(dims))(*stacked)


@pytest.mark.parametrize(("name", "i"), each_sample([name for name in KERNELS if name not in STEPS]))
def test_vmap_of_kernel_op_is_a_loop(name: str, i: int) -> None:
    def batch() -> tuple[Any, Any]:
        flat, spec = pytree.tree_flatten(ENTRIES[name].samples()[i].args)
        args, dims = [], []
        for position, x in enumerate(flat):
            dim = None if not is_floating(x) else position % (x.ndim + 1)
            args.append(x if dim is None else torch.stack([x, 2 * x, -x], dim))
            dims.append(dim)
        return pytree.tree_unflatten(args, spec), pytree.tree_unflatten(dims, spec)

    args, dims = batch()
    call = op_of(name)
    got = pytree.tree_leaves(torch.func.vmap(call, in_dims=dims)(*args))
    args, _ = batch()
    flat, spec = pytree.tree_flatten(args)
    flat_dims = pytree.tree_flatten(dims, is_leaf=lambda d: d is None)[0]
    want = []
    for b in range(3):
        one = [x if d is None else x.select(d, b) for x, d in zip(flat, flat_dims)]
        want.append(pytree.tree_leaves(call(*pytree.tree_unflatten(one, spec))))
    for g, *w in zip(got, *want):
        torch.testing.assert_close(g, torch.stack(w), equal_nan=True)


@pytest.mark.parametrize(("name", "i"), each_sample(PUBLICS))
def test_per_sample_gradients(name: str, i: int) -> None:
    """`vmap(grad(...))` through the wrapper equals a loop."""
    sample = ENTRIES[name].samples()[i]
    flat, spec = pytree.tree_flatten(sample.args)

    def loss(*leaves: Tensor) -> Tensor:
        these = iter(leaves)
        args = pytree.tree_unflatten([next(these) if is_floating(x) else x for x in flat], spec)
        outs = pytree.tree_leaves(PUBLIC[name](*args, **sample.kwargs))
        return sum(torch.where(x.isinf(), 0.0, x).square().sum() for x in outs)

    leaves = [torch.stack([x, 2 * x, -x]) for x in flat if is_floating(x)]
    grad = torch.func.grad(loss, argnums=tuple(range(len(leaves))))
    got = torch.func.vmap(grad)(*leaves)
    want = [grad(*(x[b] for x in leaves)) for b in range(3)]
    for g, *w in zip(got, *want):
        torch.testing.assert_close(g, torch.stack(w))


@pytest.mark.parametrize("name", OPS)
def test_property_test(name: str) -> None:
    for place in ENTRIES[name].properties:
        file, function = place.split("::")
        tree = ast.parse((ROOT / "tests/properties" / file).read_text())
        found = [x for x in ast.walk(tree) if isinstance(x, ast.FunctionDef) and x.name == function]
        assert found, f"no {place}"
        assert any("given" in ast.unparse(d) for d in found[0].decorator_list), f"{place} has no @given"


@pytest.mark.parametrize("name", OPS)
def test_benchmark_entry(name: str) -> None:
    assert ENTRIES[name].measured in PUBLICS + STEPS
    assert ENTRIES[name].measured in ops_covered()


def test_samples_say_what_they_are() -> None:
    assert all(2 <= len(entry.samples()) <= 3 for entry in ENTRIES.values())
    assert all(isinstance(s, Sample) for entry in ENTRIES.values() for s in entry.samples())
