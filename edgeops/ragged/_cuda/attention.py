# SPDX-License-Identifier: Apache-2.0
"""The GPU paths of ragged attention (ragged spec, section 12.3).

`flash`: PyTorch's own variable-length FlashAttention, half precision without a bias or dropout. `triton`: the kernels
of `edgeops.triton_kernels`, also float32, bias, dropout and any head size, forward and backward. `reference`: the
readable twin, which needs no compiler. `flash` needs the longest lengths and brings its own gradient, so the public
function asks for it before it calls the kernel op.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from edgeops import _native
from edgeops._common import describe, message
from edgeops.ragged import _reference as twin
from edgeops.ragged._cuda.paths import HALF, Path, dense_rows, pick, why_not_reference, why_not_triton_rows

MAX_FLASH_HEAD_SIZE = 256
MAX_TRITON_HEAD_SIZE = 512
# beyond it the three products no longer fit in registers
MAX_TF32_HEAD_SIZE = 256


def why_not_flash(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    max_q: int,
    max_k: int,
    bias: Tensor | None,
    needs_lse: bool,
    dropout_p: float = 0.0,
) -> Iterator[str]:
    """Reasons against PyTorch's FlashAttention for `q [Tq, Hq, D]`, `k [Tk, Hk, D]`, `v [Tk, Hk, Dv]`."""
    if not q.is_cuda:
        yield f"needs CUDA tensors, got {q.device.type}"
    elif torch.version.hip is None and torch.cuda.get_device_capability(q.device) < (8, 0):
        yield f"needs compute capability 8.0, this GPU has {torch.cuda.get_device_capability(q.device)}"
    elif torch.version.hip is not None:
        yield "its log-sum-exp has another layout on ROCm"
    if q.dtype not in HALF:
        yield f"needs float16 or bfloat16, got {q.dtype}"
    if bias is not None:
        yield "takes no bias"
    if dropout_p > 0:
        yield "draws another dropout mask"
    head_size = q.shape[2]
    if head_size != v.shape[2]:
        yield f"needs one head size, got {head_size} for q and k, {v.shape[2]} for v"
    if head_size % 8 or not 0 < head_size <= MAX_FLASH_HEAD_SIZE:
        yield f"needs a head size that is a multiple of 8 up to {MAX_FLASH_HEAD_SIZE}, got {head_size}"
    if q.shape[0] == 0 or k.shape[0] == 0 or max_q < 1 or max_k < 1:
        yield "has nothing to do for an empty batch"
    if max_q == 1 and q.shape[1] != k.shape[1]:
        # it then takes every sequence to have exactly one query, and zero-length ones would shift the rest
        yield "reshapes grouped heads when max_q is 1"
    for name, x in (("q", q), ("k", k), ("v", v)):
        # it loads 16 bytes at a time and does not check
        if x.stride(2) != 1 or x.stride(0) % 8 or x.stride(1) % 8 or x.storage_offset() % 8:
            yield f"needs rows of {name} on 16-byte boundaries with last stride 1, got strides {tuple(x.stride())}"
    wants_grad = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    if needs_lse and wants_grad:
        yield "has no gradient for the log-sum-exp"
    if _native._functorch_active():
        yield "has no rule for functorch transforms"


def flash_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_q: Tensor,
    cu_k: Tensor,
    max_q: int,
    max_k: int,
    scale: float,
    causal: bool,
    window: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """PyTorch's variable-length FlashAttention under our conventions: `(out [Tq, Hq, Dv], lse [Tq, Hq])`.

    The output is differentiable, lse is not. The caller has asked `why_not_flash`.
    """
    from torch.nn.attention import varlen

    left, right = window
    if causal:
        right = 0
    extra: dict[str, Any] = {}
    if q.shape[1] != k.shape[1] and "enable_gqa" in inspect.signature(varlen.varlen_attn).parameters:
        extra["enable_gqa"] = True
    out, lse = varlen.varlen_attn(
        q, k, v, cu_q.to(torch.int32), cu_k.to(torch.int32), max_q, max_k,
        return_aux=varlen.AuxRequest(lse=True), scale=scale, window_size=(left, right), **extra,
    )  # fmt: skip
    # its lse is [Hq, Tq], and +inf where a row has no key
    lse = lse.detach().T
    return out, lse.masked_fill(lse == torch.inf, -torch.inf)


def flash_or_none(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_q: Tensor,
    cu_k: Tensor,
    max_q: int,
    max_k: int,
    bias: Tensor | None,
    scale: float,
    causal: bool,
    window: Sequence[int],
    needs_lse: bool,
    dropout_p: float = 0.0,
) -> tuple[Tensor, Tensor] | None:
    """`flash_attention` where it fits, else `None`: then the kernel op `_ragged_attention_fwd` takes the call."""
    if any(True for _ in why_not_flash(q, k, v, max_q, max_k, bias, needs_lse, dropout_p)):
        return None
    _check_attention(q, k, v, cu_q, cu_k, bias)
    return flash_attention(q, k, v, cu_q, cu_k, max_q, max_k, scale, causal, window)


def _check_attention(q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, bias: Tensor | None) -> None:
    """What can be checked without reading from the GPU; the kernel clamps offsets to the rows that exist."""
    who = "ragged_attention"
    got = f"{describe(q)}, {describe(k)}, {describe(v)}"
    if any(x.dim() != 3 for x in (q, k, v)) or k.shape[:2] != v.shape[:2] or q.shape[2] != k.shape[2]:
        rule = "q, k, v must have shapes [Tq, Hq, D], [Tk, Hk, D], [Tk, Hk, Dv]"
        raise ValueError(message(who, rule, got, "Pack the batch with edgeops.ragged.pack."))
    if not q.dtype == k.dtype == v.dtype:
        raise TypeError(message(who, "q, k and v must have one dtype", got, "Convert them first."))
    if k.shape[1] == 0 or q.shape[1] % k.shape[1]:
        rule = "the heads of q must be a multiple of those of k"
        raise ValueError(message(who, rule, f"{q.shape[1]} and {k.shape[1]}", "Check the head dimension."))
    for name, cu in (("cu_q", cu_q), ("cu_k", cu_k)):
        if cu.dtype not in (torch.int32, torch.int64):
            raise TypeError(message(who, f"{name} must be int32 or int64", describe(cu), "Use layout.cu_seqlens."))
        if cu.dim() != 1 or cu.shape != cu_q.shape or cu.shape[0] < 1 or cu.device != q.device:
            rule = f"cu_q and cu_k must be [N + 1] offsets on {q.device}"
            raise ValueError(message(who, rule, f"{name}: {describe(cu)}", "Use layout.cu_seqlens of that device."))
    if bias is None:
        return
    fits = bias.dim() == 4 and bias.device == q.device and bias.is_floating_point()
    if not fits or bias.shape[0] not in (1, cu_q.shape[0] - 1) or bias.shape[1] not in (1, q.shape[1]):
        rule = f"bias must be floating point [{cu_q.shape[0] - 1} or 1, {q.shape[1]} or 1, M, M] on {q.device}"
        raise ValueError(message(who, rule, describe(bias), "Add dimensions of size 1 to broadcast."))


def _check_gradients(grad_out: Tensor, grad_lse: Tensor | None, q: Tensor, v: Tensor, out: Tensor, lse: Tensor) -> None:
    """Shapes and devices of what backward reads besides the inputs of forward."""
    want, rows = (q.shape[0], q.shape[1], v.shape[2]), tuple(q.shape[:2])
    for name, x, shape in (("grad_out", grad_out, want), ("out", out, want), ("lse", lse, rows)):
        if tuple(x.shape) != shape or x.device != q.device:
            rule = f"{name} must be {list(shape)} on {q.device}"
            raise ValueError(message("ragged_attention backward", rule, describe(x), "Pass what forward returned."))
    if grad_lse is not None and (tuple(grad_lse.shape) != rows or grad_lse.device != q.device):
        rule = f"grad_lse must be {list(rows)} on {q.device}"
        raise ValueError(message("ragged_attention backward", rule, describe(grad_lse), "It is shaped like lse."))


def _check_dropout(dropout_p: float, seed: Tensor | None, q: Tensor) -> None:
    if not 0.0 <= dropout_p <= 1.0:
        rule = "dropout_p must be a probability in [0, 1]"
        raise ValueError(message("ragged_attention", rule, describe(dropout_p), "Use 0.0 for no dropout."))
    if dropout_p == 0:
        return
    if seed is None or seed.dtype != torch.int64 or seed.dim() != 0 or seed.device != q.device:
        rule = f"seed must be a 0-dim int64 tensor on {q.device}"
        raise ValueError(message("ragged_attention", rule, describe(seed), "Draw it with torch.randint."))


def why_not_triton_attention(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> Iterator[str]:
    """Reasons against the Triton kernel."""
    yield from why_not_triton_rows(q)
    widest = max(q.shape[2], v.shape[2])
    if widest > MAX_TRITON_HEAD_SIZE:
        yield f"takes head sizes up to {MAX_TRITON_HEAD_SIZE}, got {widest}"
    if q.shape[1] > 65535:
        yield f"takes up to 65535 heads, got {q.shape[1]}"


def why_not_triton_attention_bwd(
    grad_out: Tensor, grad_lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, *rest: Any
) -> Iterator[str]:
    """Reasons against the Triton kernels of the gradient."""
    reasons = list(why_not_triton_attention(q, k, v))
    yield from reasons
    # small tiles of small heads fit on every GPU
    if reasons or not q.is_cuda or torch.version.hip is not None or max(q.shape[2], v.shape[2]) <= 128:
        return
    from edgeops.triton_kernels.ragged.attention_config import bwd_shared_memory

    needed = bwd_shared_memory(q.dtype, q.shape[2], v.shape[2])
    # every GPU that triton compiles for has 64 KiB; what it has beyond, torch tells
    there = getattr(torch.cuda.get_device_properties(q.device), "shared_memory_per_block_optin", 64 * 1024)
    if needed > there:
        yield f"needs {needed} bytes of shared memory at head sizes {q.shape[2]} and {v.shape[2]}, this GPU has {there}"


def _precision(q: Tensor, v: Tensor) -> str:
    # torch's own switch for float32 products: where it allows TF32, three TF32 products stand for one and lose little
    fast = torch.backends.cuda.matmul.fp32_precision == "tf32" and torch.version.hip is None
    return "tf32x3" if fast and max(q.shape[2], v.shape[2]) <= MAX_TF32_HEAD_SIZE else "ieee"


def _triton_attention(q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    from edgeops.triton_kernels.ragged.attention import ragged_attention_fwd

    precision = _precision(q, v)
    q, k, v = dense_rows(q), dense_rows(k), dense_rows(v)
    return ragged_attention_fwd(q, k, v, cu_q.contiguous(), cu_k.contiguous(), *rest, precision=precision)


def _triton_attention_bwd(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_q: Tensor,
    cu_k: Tensor,
    *rest: Any,
) -> tuple[Tensor, ...]:
    from edgeops.triton_kernels.ragged.attention_bwd import ragged_attention_bwd

    dense = [dense_rows(x) for x in (q, k, v, out)]
    return ragged_attention_bwd(
        dense_rows(grad_out), grad_lse, *dense, lse, cu_q.contiguous(), cu_k.contiguous(), *rest,
        precision=_precision(q, v),
    )  # fmt: skip


ATTENTION = (
    Path("triton", why_not_triton_attention, _triton_attention),
    Path("reference", why_not_reference, twin.ragged_attention_fwd_reference),
)
ATTENTION_BWD = (
    Path("triton", why_not_triton_attention_bwd, _triton_attention_bwd),
    Path("reference", why_not_reference, twin.ragged_attention_bwd_reference),
)


def ragged_attention_fwd_cuda(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_q: Tensor,
    cu_k: Tensor,
    bias: Tensor | None,
    scale: float,
    causal: bool,
    window_left: int,
    window_right: int,
    dropout_p: float = 0.0,
    seed: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`_ragged_attention_fwd` on a GPU."""
    _check_attention(q, k, v, cu_q, cu_k, bias)
    _check_dropout(dropout_p, seed, q)
    args = (q, k, v, cu_q, cu_k, bias, scale, causal, window_left, window_right, dropout_p, seed)
    result: tuple[Tensor, Tensor] = pick("ragged_attention", ATTENTION, *args).run(*args)
    return result


def ragged_attention_bwd_cuda(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_q: Tensor,
    cu_k: Tensor,
    bias: Tensor | None,
    scale: float,
    causal: bool,
    window_left: int,
    window_right: int,
    dropout_p: float = 0.0,
    seed: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`_ragged_attention_bwd` on a GPU."""
    _check_attention(q, k, v, cu_q, cu_k, bias)
    _check_dropout(dropout_p, seed, q)
    _check_gradients(grad_out, grad_lse, q, v, out, lse)
    args = (grad_out, grad_lse, q, k, v, out, lse, cu_q, cu_k, bias, scale, causal, window_left, window_right)
    path = pick("ragged_attention backward", ATTENTION_BWD, *args, dropout_p, seed)
    result: tuple[Tensor, Tensor, Tensor, Tensor] = path.run(*args, dropout_p, seed)
    return result


KERNELS: dict[str, Callable[..., Any]] = {
    "_ragged_attention_fwd": ragged_attention_fwd_cuda,
    "_ragged_attention_bwd": ragged_attention_bwd_cuda,
}
