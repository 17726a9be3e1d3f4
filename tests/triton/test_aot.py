# SPDX-License-Identifier: Apache-2.0
"""Every Triton kernel compiled ahead of time for sm_80, sm_90 and gfx942: machine code, instructions, spills, memory.

A kernel without an entry in `CASES` fails `test_every_kernel_has_a_case`. `python tests/triton/test_aot.py` prints what
the compilers report for every case, which is how the tables of `attention_config.py` were chosen.
"""

import importlib
import pkgutil
import re
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

import edgeops.triton_kernels
from edgeops.triton_kernels.ragged import attention, conv, fused, norm, pack, pool, softmax, triangular
from edgeops.triton_kernels.ragged.attention_config import attention_config

triton = pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402
from triton.runtime.jit import JITFunction  # noqa: E402

TARGETS = {
    "sm80": GPUTarget("cuda", 80, 32),
    "sm90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
# bytes one block may take: what sm_86 and sm_89 have too, two blocks on sm_90, all of a gfx942 unit
SHARED_LIMIT = {"sm80": 99 * 1024, "sm90": 113 * 1024, "gfx942": 64 * 1024}
POINTERS = {"fp32": "*fp32", "fp16": "*fp16", "bf16": "*bf16", "i16": "*i16", "i32": "*i32", "i64": "*i64"}
WIDE_LOADS = {
    "sm80": r"ld\.global\.v4",
    "sm90": r"ld\.global\.v4",
    "gfx942": r"global_load_dwordx4|buffer_load_dwordx4",
}


@dataclass(frozen=True)
class Case:
    """One specialisation of one kernel: argument types, constants, and what must be in the code of each target."""

    kernel: JITFunction
    types: dict[str, str]
    constants: dict[str, object]
    expected: dict[str, str]
    forbidden: dict[str, str] = field(default_factory=dict)
    options: dict[str, int] = field(default_factory=lambda: {"num_warps": 4})
    stack_limit: int = 0
    targets: tuple[str, ...] = tuple(TARGETS)


TENSOR_CORES = {"sm80": r"mma\.sync.*f16", "sm90": r"wgmma\.mma_async.*f16", "gfx942": r"v_mfma_f32_\w*f16"}
FULL_FLOAT = {"sm80": r"fma\.rn\.f32", "sm90": r"fma\.rn\.f32", "gfx942": r"v_mfma_f32_\d+x\d+x\d+_?f32"}
NO_TENSOR_CORES = {"sm80": r"mma\.sync", "sm90": r"wgmma\.mma|mma\.sync"}


def attention_cases(dtype, name, expected, *, forbidden=None, head_size=64, head_size_v=None, stack_limit=0, **flags):
    """The attention kernel as its launcher would start it, per target because the tables differ."""
    head_size_v = head_size_v or head_size
    bias, left, right = (flags.get(f, False) for f in ("bias", "left", "right"))
    cases = {}
    for target in flags.get("targets", TARGETS):
        config = attention_config(dtype, head_size, head_size_v, has_bias=bias, arch=target)
        kind = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}[dtype]
        types = dict.fromkeys(("q", "k", "v", "out"), kind) | {"lse": "fp32", "cu_q": "i32", "cu_k": "i32"}
        constants = {
            "D": head_size,
            "DV": head_size_v,
            "BLOCK_D": config.block_d,
            "BLOCK_DV": config.block_dv,
            "HAS_BIAS": bias,
            "HAS_LEFT": left,
            "HAS_RIGHT": right,
            "HAS_MAP": flags.get("tile_map", False),
            "PRECISION": flags.get("precision", "ieee"),
            "BLOCK_M": config.block_m,
            "BLOCK_N": config.block_n,
        }
        if bias:
            types["bias"] = "fp32"
            constants["stride_bn"] = 1
        else:
            constants["bias"] = None
        if flags.get("tile_map"):
            types["tile_map"] = "i32"
        else:
            constants["tile_map"] = None
        cases[f"attention-{name}-{target}"] = Case(
            attention._ragged_attention_fwd_kernel,
            types,
            constants,
            expected,
            forbidden or {},
            {"num_warps": config.num_warps, "num_stages": config.num_stages},
            stack_limit,
            (target,),
        )
    return cases


def row_cases():
    """The memory-bound kernels, which must load 16 bytes at a time."""
    floats = {"x": "fp16", "out": "fp16", "bias": "fp16", "weight": "fp16", "residual": "fp16", "x_bias": "fp16"}
    copies = {"padded": "i16", "values": "i16", "out": "i16", "offsets": "i64"}
    norm = floats | {"mean": "fp32", "rstd": "fp32"}
    return {
        "pack": Case(pack._ragged_pack_kernel, copies, {"BLOCK_L": 4, "BLOCK_C": 1024}, WIDE_LOADS),
        "unpack": Case(pack._ragged_unpack_kernel, copies, {"BLOCK_L": 4, "BLOCK_C": 1024}, WIDE_LOADS),
        "pool-mean": Case(
            pool._ragged_pool_fwd_kernel,
            floats | {"offsets": "i64"},
            {"MODE": 1, "BLOCK_R": 32, "BLOCK_C": 128},
            WIDE_LOADS,
        ),
        "pool-max": Case(
            pool._ragged_pool_fwd_kernel,
            {"x": "fp32", "out": "fp32", "offsets": "i32"},
            {"MODE": 2, "BLOCK_R": 32, "BLOCK_C": 128},
            WIDE_LOADS,
        ),
        "gelu-erf": Case(
            fused._bias_gelu_fwd_kernel, floats, {"TANH": False, "BLOCK_T": 4, "BLOCK_C": 512}, WIDE_LOADS
        ),
        "gelu-tanh": Case(
            fused._bias_gelu_fwd_kernel, floats, {"TANH": True, "BLOCK_T": 4, "BLOCK_C": 512}, WIDE_LOADS
        ),
        "norm": Case(fused._add_layer_norm_fwd_kernel, norm, {"HAS_X_BIAS": True, "BLOCK_C": 2048}, WIDE_LOADS),
    }


def segment_cases():
    """Products of triangles and segment softmax: fp16 on tensor cores, fp32 in full precision; element-wise ops."""
    cases = {}
    for name, kind, wanted in (("fp16", "fp16", TENSOR_CORES), ("fp32", "fp32", FULL_FLOAT)):
        cases |= {
            f"trmm-{name}": Case(
                triangular._trmm_fwd_kernel,
                {"a": kind, "b": kind, "c": kind},
                {"REVERSED": False, "BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 32, "stride_ak": 1, "stride_bj": 1},
                wanted,
                stack_limit=16,
            ),
            f"trmm-bwd-{name}": Case(
                triangular._trmm_bwd_l_kernel,
                {"g": kind, "b": kind, "out": kind},
                {"UPPER": False, "BLOCK_M": 64, "BLOCK_K": 32, "stride_gn": 1, "stride_bn": 1},
                wanted,
            ),
        }
    cases["tri-binary"] = Case(
        triangular._tri_binary_kernel,
        {"x": "fp32", "y": "fp32", "out": "fp32"},
        {"MULTIPLY": True, "UPPER": False, "BLOCK_I": 8, "BLOCK_J": 128, "stride_xj": 1, "stride_yj": 1},
        {},
    )
    tables = {"first": "i64", "length": "i64", "place": "i64"}
    for name, kind, wanted in (("fp16", "fp16", TENSOR_CORES), ("fp32", "fp32", FULL_FLOAT)):
        floats = dict.fromkeys(("x", "weight", "bias", "out", "grad", "dw"), kind) | tables
        tiles = {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 32, "TAPS": 3, "HAS_BIAS": True, "stride_xc": 1}
        cases[f"conv-{name}"] = Case(conv._ragged_conv1d_fwd_kernel, floats, tiles, wanted, stack_limit=64)
        tiles = {"BLOCK_O": 64, "BLOCK_C": 64, "BLOCK_R": 32, "stride_xc": 1, "stride_gc": 1}
        cases[f"conv-bwd-{name}"] = Case(conv._ragged_conv1d_bwd_weight_kernel, floats, tiles, wanted, stack_limit=64)
    halves = dict.fromkeys(("x", "grad", "out", "dx", "weight", "bias"), "fp16") | {"offsets": "i64"}
    halves |= dict.fromkeys(("mean", "rstd"), "fp32")
    sizes = {"HAS_WEIGHT": True, "HAS_BIAS": True, "BLOCK_R": 32, "BLOCK_C": 64}
    cases["instance-norm"] = Case(norm._ragged_instance_norm_fwd_kernel, halves, sizes, WIDE_LOADS)
    halves |= dict.fromkeys(("dweight", "dbias"), "fp32")
    sizes = {"HAS_WEIGHT": True, "BLOCK_R": 32, "BLOCK_C": 64}
    cases["instance-norm-bwd"] = Case(norm._ragged_instance_norm_bwd_kernel, halves, sizes, WIDE_LOADS)
    sizes = {"LOG": False, "BLOCK_R": 32, "BLOCK_C": 64}
    halves = {"x": "fp16", "y": "fp16", "grad": "fp16", "out": "fp16", "dx": "fp16", "offsets": "i64"}
    cases["softmax"] = Case(softmax._ragged_softmax_fwd_kernel, halves, sizes, WIDE_LOADS)
    cases["softmax-bwd"] = Case(softmax._ragged_softmax_bwd_kernel, halves, sizes | {"LOG": True}, WIDE_LOADS)
    return cases


CASES = {
    **attention_cases(torch.float16, "fp16", TENSOR_CORES),
    **attention_cases(torch.bfloat16, "bf16-causal-bias-d128", {}, head_size=128, bias=True, right=True),
    **attention_cases(torch.float32, "fp32", FULL_FLOAT, forbidden=NO_TENSOR_CORES),
    **attention_cases(
        torch.float32,
        "fp32-all",
        FULL_FLOAT,
        forbidden=NO_TENSOR_CORES,
        head_size=40,
        head_size_v=24,
        bias=True,
        left=True,
        right=True,
        tile_map=True,
        stack_limit=64,
    ),
    **attention_cases(
        torch.float32, "tf32x3", {"sm90": r"wgmma\.mma_async.*tf32"}, precision="tf32x3", targets=["sm90"]
    ),
    **row_cases(),
    **segment_cases(),
}


def compiled(case, target):
    """Compile as the launcher's call would be: 16-byte aligned pointers, strides divisible by 16."""
    names = case.kernel.arg_names
    signature, attributes = {}, {}
    for i, name in enumerate(names):
        if name in case.constants:
            signature[name] = "constexpr"
        elif name in case.types:
            signature[name] = POINTERS[case.types[name]]
        else:
            signature[name] = "fp32" if name in ("scale", "eps", "alpha") else "i32"
        aligned = name in case.types or (name.startswith("stride_") and name != "stride_lt") or name == "width"
        if aligned and name not in case.constants:
            attributes[(i,)] = [["tt.divisibility", 16]]
    constants = {(names.index(name),): value for name, value in case.constants.items()}
    source = ASTSource(case.kernel, signature=signature, constexprs=constants, attrs=attributes)
    return triton.compile(source, target=TARGETS[target], options=dict(case.options))


def resources(binary, target):
    """(bytes of stack used for spills, bytes of shared memory, assembly) of a compiled kernel."""
    if target == "gfx942":
        text = binary.asm["amdgcn"]
        assert binary.asm["hsaco"]
        (spills,) = re.findall(r"\.vgpr_spill_count:\s*(\d+)", text)
        return 4 * int(spills), binary.metadata.shared, text
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        command = [str(tool), "--dump-resource-usage", file.name]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    (stack,) = re.findall(r"STACK:(\d+)", report)
    (local,) = re.findall(r"LOCAL:(\d+)", report)
    return int(stack) + int(local), binary.metadata.shared, binary.asm["ptx"]


def kernels():
    """Every jitted `*_kernel` below edgeops.triton_kernels."""
    found = {}
    for info in pkgutil.walk_packages(edgeops.triton_kernels.__path__, "edgeops.triton_kernels."):
        module = importlib.import_module(info.name)
        for name, value in vars(module).items():
            if isinstance(value, JITFunction) and name.endswith("_kernel"):
                found[name] = value
    return found


def test_every_kernel_has_a_case():
    found = kernels()
    assert found, "no kernel found: the package was not walked"
    for name, kernel in found.items():
        reached = {t for case in CASES.values() if case.kernel is kernel for t in case.targets}
        assert reached == set(TARGETS), f"{name}: add it to CASES for {set(TARGETS) - reached}"


@pytest.mark.parametrize(
    ("case", "target"),
    [pytest.param(c, t, id=f"{n}-{t}".replace(f"{t}-{t}", t)) for n, c in CASES.items() for t in c.targets],
)
def test_compiles(case, target):
    check(case, target)


TABLE = {
    name: case
    for head_size in (128, 256, 512)
    for dtype in (torch.float32, torch.float16)
    for bias in (False, True)
    for name, case in attention_cases(
        dtype, f"{dtype}-d{head_size}-{'bias' if bias else 'plain'}", {}, head_size=head_size, bias=bias, right=bias
    ).items()
}


for wide in (128, 256):
    TABLE |= attention_cases(
        torch.float32,
        f"tf32x3-d{wide}",
        {"sm80": r"mma\.sync.*tf32", "sm90": r"mma\.sync.*tf32"},
        head_size=wide,
        precision="tf32x3",
        stack_limit=64,
        targets=["sm80", "sm90"],
    )


@pytest.mark.slow
@pytest.mark.parametrize("case", TABLE.values(), ids=TABLE.keys())
def test_whole_table(case):
    check(case, case.targets[0])


def check(case, target):
    spills, shared, text = resources(compiled(case, target), target)
    if target in case.expected:
        assert re.search(case.expected[target], text), f"{case.expected[target]} is not in the code"
    if target in case.forbidden:
        assert not re.search(case.forbidden[target], text), f"{case.forbidden[target]} is in the code"
    assert spills <= case.stack_limit, f"{spills} bytes spilled"
    assert shared <= SHARED_LIMIT[target], f"{shared} bytes of shared memory"


if __name__ == "__main__":
    for case_name, entry in CASES.items():
        for where in entry.targets:
            spilled, memory, _ = resources(compiled(entry, where), where)
            print(f"{case_name} {where}: {spilled} bytes spilled, {memory} bytes of shared memory", flush=True)
