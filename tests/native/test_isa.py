# SPDX-License-Identifier: Apache-2.0
"""Run-time choice of the instruction set: every choice gives results within the budget, wrong ones a clear error."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import edgeops
from tests.budget import assert_within_budget

ROOT = Path(__file__).resolve().parents[2]
BINARY = ROOT / "edgeops/_C.abi3.so"
SETS = ("base", "avx2", "avx512")
Results = list[dict[torch.dtype, dict[str, Tensor]]]
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

x86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="only x86-64 has more than the base instruction set")


def run(code: str, isa: str | None) -> subprocess.CompletedProcess[str]:
    """Python in a process of its own: the instruction set is chosen once in a process."""
    environment = {name: value for name, value in os.environ.items() if name != "EDGEOPS_ISA"}
    if isa is not None:
        environment["EDGEOPS_ISA"] = isa
    environment["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def best() -> str:
    done = run("import edgeops; print(edgeops.cpu_isa())", None)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def compute(dtype: torch.dtype, exact: bool = False) -> dict[str, Tensor]:
    """One result of every kernel, over lengths on both sides of the tiles, masked and biased.

    With `exact` the same input is computed in float64.
    """
    from edgeops.ragged import add_layer_norm, bias_gelu, ragged_attention, ragged_pool
    from tests.peers import offsets_of

    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        x = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        return x.double() if exact else x

    lengths = [1, 0, 7, 17, 36, 100, 530]
    total, cu = sum(lengths), offsets_of(lengths)
    q, k, v = normal(total, 4, 20), normal(total, 2, 20), normal(total, 2, 33)
    bias = normal(1, 4, 530, 530).masked_fill(normal(1, 4, 530, 530) > 1, -torch.inf)
    rows, residual, vectors = normal(40, 77), normal(40, 77), normal(3, 77)
    found = {
        "gelu": bias_gelu(rows, vectors[0]),
        "gelu tanh": bias_gelu(rows, vectors[0], "tanh"),
        "norm": add_layer_norm(rows, residual, vectors[0], vectors[1], x_bias=vectors[2]),
    }
    for name, options in {
        "full": {},
        "causal": {"causal": True},
        "window": {"window": (40, 3)},
        "bias": {"bias": bias},
    }.items():
        out, lse = ragged_attention(q, k, v, cu, cu, 530, 530, return_lse=True, **options)  # type: ignore[arg-type]
        found |= {f"{name} out": out, f"{name} lse": lse}
    for reduction in ("sum", "mean", "max"):
        found[reduction] = ragged_pool(rows, offsets_of([0, 1, 39]), reduction)
    leaves = [x.clone().requires_grad_() for x in (rows, residual, *vectors)]
    x, other, weight, shift, x_bias = leaves
    outs = [bias_gelu(x, shift), bias_gelu(x, shift, "tanh"), add_layer_norm(x, other, weight, shift, x_bias=x_bias)]
    outs += [ragged_pool(x, offsets_of([0, 1, 39]), reduction) for reduction in ("mean", "max")]
    for i, out in enumerate(outs):
        grads = torch.autograd.grad(out, leaves, normal(*out.shape), allow_unused=True)
        found |= {f"gradient {j} of {i}": g for j, g in enumerate(grads) if g is not None}
    return found


@pytest.fixture(scope="module")
def results(best: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Results]:
    """What each instruction set computes, each in its own process, run once."""
    folder = tmp_path_factory.mktemp("isa")

    def of(isa: str) -> Results:
        if SETS.index(isa) > SETS.index(best):
            pytest.skip(f"this CPU has no {isa}, its best is {best}")
        path = folder / f"{isa}.pt"
        if not path.exists():
            code = (
                "import torch; torch.set_num_threads(1)\n"
                "from tests.native.test_isa import DTYPES, compute\n"
                "import edgeops; assert edgeops.cpu_isa() == " + repr(isa) + "\n"
                f"torch.save([{{d: compute(d, e) for d in DTYPES}} for e in (False, True)], {str(path)!r})"
            )
            done = run(code, isa)
            assert done.returncode == 0, done.stderr
        loaded: Results = torch.load(path, weights_only=True)
        return loaded

    return of


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa", SETS[1:])
def test_equal_results(isa: str, dtype: torch.dtype, results: Callable[[str], Results]) -> None:
    """Wider sets are at most twice as wrong as the base set; rows without a key are without one in all."""
    got, (base, exact) = results(isa)[0], results("base")
    for name, value in got[dtype].items():
        assert_within_budget(f"{isa}, {name}", value, base[dtype][name], exact[dtype][name])


def test_empty_means_unset(best: str) -> None:
    assert run("import edgeops; print(edgeops.cpu_isa())", "").stdout.strip() == best


def test_this_process_tells_its_set() -> None:
    assert edgeops.cpu_isa() in SETS
    assert edgeops.native_status()["isa"].startswith(f"on: {edgeops.cpu_isa()}")


USES = """
import torch, edgeops
from edgeops.ragged import bias_gelu, ragged_attention
q, cu = torch.zeros(3, 1, 8), torch.tensor([0, 3])
uses = [
    edgeops.cpu_isa,
    lambda: ragged_attention(q, q, q, cu, cu, 3, 3),
    lambda: bias_gelu(q[:, 0], q[0, 0]),
]
for use in uses:
    try:
        use()
    except ValueError as error:
        print(error)
print(edgeops.native_status()["isa"])
"""


def test_unknown_set() -> None:
    """The package imports; every use says what is wrong, and `native_status` reports it without raising."""
    want = "EDGEOPS_ISA: must be base, avx2 or avx512; got 'sse9'. Unset it to let edgeops choose."
    done = run(USES, "sse9")
    assert done.stdout.splitlines() == [want, want, want, f"off: {want}"], done.stderr


@x86
def test_set_that_this_cpu_lacks(best: str) -> None:
    if best == "avx512":
        pytest.skip("this CPU has every set")
    done = run(USES, "avx512")
    want = (
        "EDGEOPS_ISA: must name an instruction set that this CPU has; "
        f"got 'avx512' where the best is '{best}'. Unset it, or choose a narrower one."
    )
    assert done.stdout.splitlines() == [want, want, want, f"off: {want}"], done.stderr


@pytest.fixture(scope="module")
def functions() -> dict[str, list[str]]:
    """Instructions of every function of the binary."""
    if shutil.which("objdump") is None:
        pytest.skip("needs objdump (binutils)")
    command = ["objdump", "-d", "-C", "--no-show-raw-insn", str(BINARY)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found: dict[str, list[str]] = defaultdict(list)
    name = ""
    for line in text.splitlines():
        if head := re.fullmatch(r"[0-9a-f]+ <(.*)>:", line):
            name = head[1]
        elif "\t" in line:
            found[name].append(line.split("\t", 1)[1])
    return found


@x86
def test_binary_has_every_set(functions: dict[str, list[str]]) -> None:
    """AVX-512 code is there, whether this CPU has it or not."""
    for isa, register in (("avx2", "%ymm"), ("avx512", "%zmm")):
        kernels = [n for n, code in functions.items() if f"::{isa}::" in n and any(register in line for line in code)]
        assert any("attention_run" in n for n in kernels), isa
        assert any("bias_gelu" in n for n in kernels), isa


@x86
def test_wide_code_stays_in_its_place(functions: dict[str, list[str]]) -> None:
    """Outside the kernels of a set nothing needs more than the baseline, or old CPUs would die there."""
    for name, code in functions.items():
        if "::avx512::" in name:
            continue
        assert not any("%zmm" in line for line in code), name
        if "::avx2::" not in name:
            assert not any(re.match(r"v[a-z]", line) for line in code), name
