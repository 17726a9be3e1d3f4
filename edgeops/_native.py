# SPDX-License-Identifier: Apache-2.0
"""Loads the native binaries, says what is active, and holds what every op's Python side is made of.

Subsystems register the rules of their own ops (`edgeops/<subsystem>/_ops.py`) with the pieces given here:
`differentiable` (one definition of backward for eager, functorch and compile), `loop_vmap`, `translate`.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import os
import platform
import re
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgeops._common import message

NAMESPACE = "edgeops"
_FOLDER = Path(__file__).resolve().parent
_KINDS = {kind.__name__: kind for kind in (TypeError, ValueError, NotImplementedError)}
_MARKER = re.compile(rf"edgeops:({'|'.join(_KINDS)})\|(.*)")


def _load(stem: str) -> str:
    """Load one op library; returns "" or the reason why it is not there."""
    path = _FOLDER / f"{stem}.abi3.so"
    if not path.exists():
        return f"{path.name} is not built; run: pip install --no-build-isolation -e . (or make test)"
    try:
        torch.ops.load_library(path)
    except OSError as error:
        return f"{path.name} does not load: {error}"
    return ""


_WHY_NO_OPS = _load("_C")
if _WHY_NO_OPS:
    _WHY_NO_CUDA = "the op library is not loaded"
elif torch.version.cuda is None:
    _WHY_NO_CUDA = "this torch has no CUDA"
else:
    _WHY_NO_CUDA = _load("_C_cuda")


def available() -> bool:
    """Whether the native ops are loaded."""
    return not _WHY_NO_OPS


def require(who: str) -> None:
    """Raise an `ImportError` that says why the native ops are missing and what to do."""
    if _WHY_NO_OPS:
        raise ImportError(message(who, "needs the native ops", _WHY_NO_OPS, "`edgeops info` prints the whole picture."))


def cpu_isa() -> str:
    """The instruction set of the native CPU kernels: "base", "avx2", "avx512" or "none" without the binary.

    Chosen from the CPU when first needed; the environment variable EDGEOPS_ISA overrides it.

    Raises:
        ValueError: EDGEOPS_ISA names an unknown instruction set or one that this CPU lacks.

    >>> cpu_isa() in ("base", "avx2", "avx512", "none")
    True
    """
    if _WHY_NO_OPS:
        return "none"
    read = ctypes.CDLL(str(_FOLDER / "_C.abi3.so")).edgeops_cpu_isa
    read.restype = ctypes.c_char_p
    text = read().decode()
    if text.startswith("!"):
        raise translate(RuntimeError(text))
    return str(text)


def native_status() -> dict[str, str]:
    """Which paths are active, and why the others are off: name -> "on" or "off: reason".

    >>> sorted(native_status())
    ['cuda', 'isa', 'ops', 'runtime', 'triton']
    """
    status = {"ops": f"off: {_WHY_NO_OPS}" if _WHY_NO_OPS else "on: edgeops/_C.abi3.so"}
    try:
        isa = cpu_isa()
        override = os.environ.get("EDGEOPS_ISA")
        status["isa"] = f"on: {isa}{' (EDGEOPS_ISA)' if override else ''} on {platform.machine()}"
    except ValueError as error:
        status["isa"] = f"off: {error}"
    found = PathFinder.find_spec("edgeops._runtime", [str(_FOLDER)])
    status["runtime"] = "on: edgeops/_runtime" if found else "off: edgeops/_runtime is not built for this Python"
    status["cuda"] = f"off: {_WHY_NO_CUDA}" if _WHY_NO_CUDA else "on: edgeops/_C_cuda.abi3.so"
    if PathFinder.find_spec("triton") is None:
        status["triton"] = "off: triton is not installed; pip install 'edgeops[triton]'"
    elif not torch.cuda.is_available():
        status["triton"] = "off: no GPU that torch can use"
    else:
        status["triton"] = "on"
    return status


def translate(error: RuntimeError) -> Exception:
    """The exception that a native check meant: the kind and text behind its marker, or the error as it is."""
    found = _MARKER.search(str(error))
    return _KINDS[found[1]](found[2]) if found else error


# Whether a functorch transform (vmap, grad, jvp) runs: the question `autograd.Function.apply` itself asks.
_functorch_active: Callable[[], bool] = getattr(torch._C, "_are_functorch_transforms_active", lambda: False)


def runtime(part: str, who: str, what: str) -> Any:
    """`edgeops._runtime.<part>`, host-side structures without tensors.

    Raises:
        ImportError: it is not built for this Python; in the name of `who`, whose `what` need it.
    """
    try:
        return getattr(importlib.import_module("edgeops._runtime"), part)
    except (ImportError, AttributeError) as error:
        rule, advice = f"{what} the native runtime", "`edgeops info` prints the whole picture."
        got = f"{error}; run: pip install --no-build-isolation -e . (or make test)"
        raise ImportError(message(who, rule, got, advice)) from error


def kernel(name: str, who: str) -> Callable[..., Any]:
    """The kernel op `torch.ops.edgeops.<name>`, resolved once; without the binary, an error in the name of `who`."""
    if _WHY_NO_OPS:

        def missing(*_: Any) -> Any:
            require(who)

        return missing
    op: Callable[..., Any] = getattr(getattr(torch.ops, NAMESPACE), name).default
    return op


def differentiable(
    who: str,
    forward: Callable[..., Any],
    save: Callable[[Any, Sequence[Any], Any], None],
    backward: Callable[..., Any],
    inputs: Sequence[int] | None = (0,),
    *,
    twice: bool = False,
) -> Callable[..., Any]:
    """Make a function of kernel ops differentiable, with one definition of backward.

    Args:
        who: the public op, for errors.
        forward: `forward(*args) -> outputs`, a kernel op or a function that calls kernel ops only.
        save: `save(ctx, args, outputs)` keeps what backward needs.
        backward: `backward(ctx, *grads) -> one gradient per argument`.
        inputs: positions of the differentiable arguments, tensors or `None`; without positions, all tensors.
        twice: backward consists of differentiable functions; otherwise a second derivative is refused.

    Returns:
        A function of the same arguments. Without a gradient to compute it is `forward` itself; in eager mode a cheap
        `autograd.Function`; under functorch one with `setup_context`, which vmap and grad can transform.
    """
    grad_enabled, compiling = torch.is_grad_enabled, torch.compiler.is_compiling

    def once(ctx: Any, *grads: Any) -> Any:
        if compiling() or not grad_enabled():  # the compiler refuses second derivatives itself
            return backward(ctx, *grads)
        with torch.no_grad():
            results = backward(ctx, *grads)
        return refuse_second_order(who, results, (*grads, *ctx.saved_tensors))

    class Eager(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *args: Any) -> Any:
            ctx.set_materialize_grads(False)
            outputs = forward(*args)
            save(ctx, args, outputs)
            return outputs

    class Functorch(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(*args: Any) -> Any:
            return forward(*args)

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            ctx.set_materialize_grads(False)
            save(ctx, inputs, output)

    Eager.backward = Functorch.backward = staticmethod(backward if twice else once)  # type: ignore[method-assign]
    # what Function.apply calls after asking about functorch and setup_context, which costs as much as the rest
    apply = super(torch.autograd.Function, Eager).apply

    def call(*args: Any) -> Any:
        wanted = False
        if grad_enabled():
            for i in range(len(args)) if inputs is None else inputs:
                x = args[i]
                if x is not None and (inputs is not None or isinstance(x, Tensor)) and x.requires_grad:
                    wanted = True
                    break
        if compiling():
            return Eager.apply(*_distinct(args)) if wanted else forward(*args)
        try:
            if _functorch_active():
                return Functorch.apply(*args)
            return apply(*args) if wanted else forward(*args)
        except RuntimeError as error:
            meant = translate(error)
            if meant is error:
                raise
            raise meant from None

    return call


class _NoSecondOrder(torch.autograd.Function):
    """Gradients that depend on everything they were made of, by a derivative that only says it does not exist."""

    generate_vmap_rule = True

    @staticmethod
    def forward(who: str, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(x.view_as(x) for x in tensors[:count])

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.who = inputs[0]

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        rule = "has first derivatives only"
        advice = "Compute the penalty from first derivatives, or use torch's own functions on padded tensors."
        raise NotImplementedError(message(ctx.who, rule, "a second derivative (create_graph=True)", advice))


def refuse_second_order(who: str, results: Sequence[Any], made_of: Sequence[Any]) -> tuple[Any, ...]:
    """The gradients `results`, such that differentiating them raises instead of giving zeros."""
    needed = [x for x in made_of if isinstance(x, Tensor) and x.requires_grad]
    places = [i for i, x in enumerate(results) if isinstance(x, Tensor)]
    if not needed or not places:
        return tuple(results)
    marked = _NoSecondOrder.apply(who, len(places), *[results[i] for i in places], *needed)
    given = list(results)
    for i, x in zip(places, marked):
        given[i] = x
    return tuple(given)


def _distinct(args: Sequence[Any]) -> list[Any]:
    """The same arguments, no tensor twice: the compiler refuses that of an `autograd.Function` (self-attention)."""
    given: list[Any] = []
    for x in args:
        twice = isinstance(x, Tensor) and any(x is y for y in given)
        given.append(x.view_as(x) if twice else x)
    return given


def eager_only(function: Callable[..., Any]) -> Callable[..., Any]:
    """Keep a function that reads values on the host out of compiled graphs.

    As `torch.compiler.disable`, which would import the compiler (seconds) where the function is defined.
    """

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        compiler = sys.modules.get("torch._dynamo")
        return (function if compiler is None else compiler.disable(function))(*args, **kwargs)

    call._torchdynamo_disable = True  # type: ignore[attr-defined]
    call._torchdynamo_disable_msg = "reads values on the host"  # type: ignore[attr-defined]
    return call


def writes_only(*_: Any, **__: Any) -> None:
    """The fake kernel of an op that only writes to its arguments."""


def refuse_vmap(name: str, rule: str, advice: str) -> Callable[..., Any]:
    """The batching rule of an op that writes to its arguments: an error that says so."""

    def refuse(*_: Any) -> Any:
        raise NotImplementedError(message(name.removeprefix("_"), rule, "a call under vmap", advice))

    return refuse


def loop_vmap(op: Any) -> Callable[..., Any]:
    """A batching rule that calls the op once for each slice: right for every op, fast for none.

    Outputs are stacked along a new first dimension; a mutated argument is written through its slices.
    """

    def rule(info: Any, in_dims: Sequence[int | None], *args: Any) -> Any:
        def slice_of(x: Any, d: Any, i: int) -> Any:
            if isinstance(d, (list, tuple)):
                return [slice_of(y, e, i) for y, e in zip(x, d, strict=True)]
            return x if d is None else x.select(d, i)

        results = [op(*(slice_of(x, d, i) for x, d in zip(args, in_dims, strict=True))) for i in range(info.batch_size)]
        if not results or results[0] is None:
            return None, None
        if isinstance(results[0], Tensor):
            return torch.stack(results), 0
        return tuple(torch.stack(parts) for parts in zip(*results)), (0,) * len(results[0])

    return rule


_any_autocast: Callable[[], bool] = getattr(torch._C, "_is_any_autocast_enabled", lambda: True)


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The dtype that autocast wants of matrix products on x's device, or `None` where autocast is off."""
    if not _any_autocast():
        return None
    device = x.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return None
