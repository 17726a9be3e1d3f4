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
from edgeops.triton_kernels.offload import subspace, update
from edgeops.triton_kernels.ragged import (
    attention,
    attention_bias_bwd,
    attention_bwd,
    conv,
    fused,
    fused_bwd,
    gemm,
    norm,
    pack,
    pool,
    softmax,
    triangular,
)
from edgeops.triton_kernels.ragged.attention_config import (
    attention_bwd_config,
    attention_config,
    bwd_shared_memory,
)
from tests.triton.batching_cases import batching_cases

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
# all that one block may take on these very units: where the launcher asks the device first
ALL_SHARED = {"sm80": 163 * 1024, "sm90": 227 * 1024, "gfx942": 64 * 1024}
POINTERS = {"fp32": "*fp32", "fp16": "*fp16", "bf16": "*bf16", "i16": "*i16", "i32": "*i32", "i64": "*i64"}
REAL_NUMBERS = {
    "scale", "eps", "alpha", "factor", "keep", "beta1", "rest1", "beta2", "rest2", "scale1", "scale2",
}  # fmt: skip
WIDE_STORES = {
    "sm80": r"st\.global\.v4",
    "sm90": r"st\.global\.v4",
    "gfx942": r"global_store_dwordx4|buffer_store_dwordx4",
}
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
    asks_first: bool = False
    targets: tuple[str, ...] = tuple(TARGETS)
    divisible: tuple[str, ...] = ()


TENSOR_CORES = {"sm80": r"mma\.sync.*f16", "sm90": r"wgmma\.mma_async.*f16", "gfx942": r"v_mfma_f32_\w*f16"}
# the small products of backward use the older instruction on sm_90 too
MATRIX_UNITS = TENSOR_CORES | {"sm90": r"wgmma\.mma_async.*f16|mma\.sync.*f16"}
FULL_FLOAT = {"sm80": r"fma\.rn\.f32", "sm90": r"fma\.rn\.f32", "gfx942": r"v_mfma_f32_\d+x\d+x\d+_?f32"}
NO_TENSOR_CORES = {"sm80": r"mma\.sync", "sm90": r"wgmma\.mma|mma\.sync"}


# what the code of small products and of pointwise kernels must have, and must not
EXPECTED = {
    "fp32": (FULL_FLOAT, NO_TENSOR_CORES),
    "half": (MATRIX_UNITS, {}),
    "wide": (WIDE_LOADS, {}),
    "wide on nvidia": ({name: WIDE_LOADS[name] for name in ("sm80", "sm90")}, {}),
    "any": ({}, {}),
}


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
            "DROPOUT": flags.get("dropout", False),
            "PRECISION": flags.get("precision", "ieee"),
            "BLOCK_M": config.block_m,
            "BLOCK_N": config.block_n,
        }
        if bias:
            types["bias"] = "fp32"
            constants["stride_bn"] = 1
        else:
            constants["bias"] = None
        for name_of, kind_of in (("tile_map", "i32"), ("seed", "i64")):
            if flags.get("dropout" if name_of == "seed" else name_of):
                types[name_of] = kind_of
            else:
                constants[name_of] = None
        cases[f"attention-{name}-{target}"] = Case(
            attention._ragged_attention_fwd_kernel,
            types,
            constants,
            expected,
            forbidden or {},
            {"num_warps": config.num_warps, "num_stages": config.num_stages},
            stack_limit,
            targets=(target,),
        )
    return cases


def backward_cases(dtype, name, expected, *, forbidden=None, head_size=64, head_size_v=None, stack_limit=0, **flags):
    """The backward attention kernels as their launcher would start them."""
    head_size_v = head_size_v or head_size
    kind = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}[dtype]
    bias = flags.get("bias", False)
    types = dict.fromkeys(("q", "k", "v", "grad_out", "dq", "dk", "dv", "out"), kind)
    types |= dict.fromkeys(("lse", "grad_lse", "log_sum", "delta", "bias", "dbias"), "fp32")
    types |= {"cu_q": "i32", "cu_k": "i32", "seed": "i64"}
    common = {
        "D": head_size,
        "DV": head_size_v,
        "HAS_LEFT": flags.get("left", False),
        "HAS_RIGHT": flags.get("right", False),
        "DROPOUT": flags.get("dropout", False),
        "PRECISION": flags.get("precision", "ieee"),
    }
    common |= {} if common["DROPOUT"] else {"seed": None}
    plain = common | {"HAS_BIAS": bias, "HAS_MAP": False, "tile_map": None}
    plain |= {"stride_bn": 1} if bias else {"bias": None}
    kernels = {
        "keys": (attention_bwd._ragged_attention_bwd_keys_kernel, plain, 0),
        "queries": (attention_bwd._ragged_attention_bwd_queries_kernel, plain, 1),
    }
    if bias:
        forms = {"matrix": (False, False), "row": (True, False), "column": (False, True), "scalar": (True, True)}
        rows, cols = forms[flags.get("form", "matrix")]
        whole = common | {"stride_bn": 1, "ALL_ROWS": rows, "ALL_COLS": cols}
        kernels["bias"] = (attention_bias_bwd._ragged_attention_bwd_bias_kernel, whole, 1)
    cases = {}
    for target in flags.get("targets", TARGETS):
        configs = attention_bwd_config(dtype, head_size, head_size_v, has_bias=bias, arch=target)
        for part, (kernel, constants, which) in kernels.items():
            launch = configs[which].launch_bwd()
            options = {n: launch.pop(n) for n in ("num_warps", "num_stages")}
            names = kernel.arg_names
            cases[f"attention-bwd-{part}-{name}-{target}"] = Case(
                kernel,
                {n: t for n, t in types.items() if n in names and n not in constants},
                {n: c for n, c in (constants | launch).items() if n in names},
                expected,
                forbidden or {},
                options,
                stack_limit,
                bwd_shared_memory(dtype, head_size, head_size_v) > SHARED_LIMIT["sm80"],
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
        "attention-bwd-rows": Case(
            attention_bwd._ragged_attention_bwd_rows_kernel,
            {"out": "fp16", "grad_out": "fp16", **dict.fromkeys(("lse", "grad_lse", "log_sum", "delta"), "fp32")},
            {"DV": 64, "BLOCK_DV": 64, "HAS_GRAD_LSE": True, "BLOCK_R": 64},
            WIDE_LOADS,
        ),
        "norm": Case(fused._add_layer_norm_fwd_kernel, norm, {"HAS_X_BIAS": True, "BLOCK_C": 2048}, WIDE_LOADS),
    }


def row_backward_cases():
    """Gradients of the row kernels."""
    floats = dict.fromkeys(("grad", "x", "bias", "dx", "x_bias", "residual", "weight", "dsum", "out"), "fp16")
    wide = {"mean": "fp32", "rstd": "fp32", "partial": "fp32"}
    gelu = {"BLOCK_T": 8, "BLOCK_C": 256, "ROWS": fused_bwd.BLOCK_ROWS}
    norm = {"HAS_X_BIAS": True, "BLOCK_C": 2048, "ROWS": fused_bwd.BLOCK_ROWS}
    pooled = {"BLOCK_R": 32, "BLOCK_C": 128}
    return {
        "gelu-erf-bwd": Case(fused_bwd._bias_gelu_bwd_kernel, floats | wide, {"TANH": False, **gelu}, WIDE_LOADS),
        "gelu-tanh-bwd": Case(fused_bwd._bias_gelu_bwd_kernel, floats | wide, {"TANH": True, **gelu}, WIDE_LOADS),
        "norm-bwd": Case(fused_bwd._add_layer_norm_bwd_kernel, floats | wide, norm, WIDE_LOADS),
        "add-columns": Case(fused_bwd._add_columns_kernel, {"partial": "fp32", "out": "fp16"}, {"BLOCK_C": 128}, {}),
        "pool-mean-bwd": Case(pool._ragged_pool_bwd_kernel, floats | {"offsets": "i64"}, {"MODE": 1, **pooled}, {}),
        "pool-max-bwd": Case(
            pool._ragged_pool_bwd_kernel, floats | {"offsets": "i32"}, {"MODE": 2, **pooled}, WIDE_LOADS
        ),
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


def gemm_case(kernel, dtype, tensors, constants, stack_limit=0):
    """A kernel of products as its launcher would start it for large ones; `tensors` names those of the dtype."""
    config = gemm.gemm_config(dtype, 512, 512)
    kind = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}[dtype]
    indices = {"offs": "i32"} if "FORM" in constants else {"table": "i64", "ends": "i64"}
    blocks = {"BLOCK_M": config.block_m, "BLOCK_N": config.block_n, "BLOCK_K": config.block_k, "PRECISION": "ieee"}
    return Case(
        kernel,
        {name: t for name, t in (dict.fromkeys(tensors, kind) | indices).items() if name not in constants},
        constants | blocks,
        {"fp32": FULL_FLOAT, "fp16": TENSOR_CORES, "bf16": {}}[kind],
        NO_TENSOR_CORES if kind == "fp32" else {},
        {"num_warps": config.num_warps, "num_stages": config.num_stages},
        stack_limit,
    )


def gemm_cases():
    """Products in every form and every dtype."""
    half, full = torch.float16, torch.float32
    cases = {}
    for name, dtype, major in (("fp32", full, 1), ("fp16", half, 1), ("fp16-backward", half, 2)):
        constants = {"MAJOR_A": major, "MAJOR_B": major, "ALIGN": 4 if dtype == full else 8, "STEPS": 5}
        cases[f"vgemm-{name}"] = gemm_case(gemm._vgemm_kernel, dtype, ("a", "b", "c"), constants)
    for name, dtype, form, major in (
        ("rows-fp32", full, gemm.ROWS, 1),
        ("rows-bf16", torch.bfloat16, gemm.ROWS, 1),
        ("columns-fp16", half, gemm.COLUMNS, 1),
        ("inner-fp16", half, gemm.INNER, 2),
        ("batch-fp16", half, gemm.BATCH, 1),
    ):
        constants = {"FORM": form, "MAJOR_X": major, "MAJOR_W": 1, "BLOCK_G": 16}
        constants |= {"offs": None} if form == gemm.BATCH else {}
        stack = 96 if form == gemm.COLUMNS else 0
        cases[f"grouped-{name}"] = gemm_case(gemm._grouped_mm_kernel, dtype, ("x", "w", "out"), constants, stack)
    return cases


def subspace_cases():
    """Sparse projectors: what is gathered must come 16 bytes at a time, and spill nothing."""
    cases = {}
    for name, kind, block in (("fp32", "fp32", 128), ("bf16", "bf16", 256)):
        floats = dict.fromkeys(("x", "y", "out"), kind) | {"value": "fp32", "index": "i16"}
        wide = WIDE_LOADS
        cases |= {
            f"subspace-transpose-{name}": Case(
                subspace._transpose_kernel,
                {"x": kind, "out": kind},
                {"TILE": subspace.TILE},
                wide,
                options={"num_warps": 8 if kind == "fp32" else 4},
                divisible=("height",),
            ),
            f"subspace-project-{name}": Case(
                subspace._subspace_project_kernel,
                {"x": kind, "out": kind, "value": "fp32", "starts": "i32", "order": "i32"},
                {"BLOCK_E": subspace.BLOCK_E, "BLOCK_N": block},
                wide,
            ),
            f"subspace-expand-{name}": Case(
                subspace._subspace_expand_kernel,
                {n: t for n, t in floats.items() if n != "x"},
                {"TURNED": False, "BLOCK_I": subspace.BLOCK_I, "BLOCK_N": block},
                wide,
            ),
            f"subspace-value-grad-{name}": Case(
                subspace._subspace_value_grad_kernel,
                {n: t for n, t in floats.items() if n != "value"} | {"out": "fp32"},
                {"BLOCK_K": 4, "BLOCK_N": 2 * block},
                wide,
            ),
        }
    for name, kind, chance in (("fp32", "fp32", False), ("fp16", "fp16", False), ("bf16-by-chance", "bf16", True)):
        cases[f"subspace-apply-{name}"] = Case(
            update._subspace_apply_kernel,
            {"weight": kind, "side": "fp32", "index": "i16", "value": "fp32"},
            {"CHANCE": chance, "BLOCK_I": update.BLOCK_I, "BLOCK_J": update.BLOCK_J, "CHUNK": update.CHUNK},
            WIDE_LOADS,
        )
    cases["subspace-expand-turned"] = Case(
        subspace._subspace_expand_kernel,
        {"y": "fp32", "out": "fp32", "value": "fp32", "index": "i32"},
        {"TURNED": True, "BLOCK_I": 32, "BLOCK_N": 64},
        WIDE_STORES,
        divisible=("m",),
    )
    cases["subspace-adam"] = Case(
        update._subspace_adam_kernel,
        dict.fromkeys(("grad", "exp_avg", "exp_avg_sq"), "fp32"),
        {"BLOCK": update.BLOCK_ADAM},
        # as exact as the CPU: no approximate roots or quotients
        {"sm80": r"sqrt\.rn\.f32", "sm90": r"sqrt\.rn\.f32"},
        {"sm80": r"sqrt\.approx|div\.full", "sm90": r"sqrt\.approx|div\.full"},
    )
    return cases


CASES = {
    **{
        name: Case(
            kernel, types, constants, EXPECTED[expected][0], EXPECTED[expected][1], options, stack, divisible=wide
        )
        for name, kernel, types, constants, expected, options, stack, wide in batching_cases()
    },
    **subspace_cases(),
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
    **attention_cases(torch.float32, "fp32-dropout", FULL_FLOAT, forbidden=NO_TENSOR_CORES, dropout=True),
    **backward_cases(torch.float16, "fp16", MATRIX_UNITS),
    **backward_cases(torch.float32, "fp32", FULL_FLOAT, forbidden=NO_TENSOR_CORES, stack_limit=16),
    **backward_cases(
        torch.float32,
        "fp32-all",
        FULL_FLOAT,
        forbidden=NO_TENSOR_CORES,
        head_size=40,
        head_size_v=24,
        bias=True,
        form="column",
        left=True,
        right=True,
        dropout=True,
        stack_limit=64,
    ),
    **row_cases(),
    **row_backward_cases(),
    **segment_cases(),
    **gemm_cases(),
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
            signature[name] = "fp32" if name in REAL_NUMBERS else "i32"
        aligned = (
            name in case.types
            or (name.startswith("stride_") and name not in ("stride_lt", "stride_lh", "stride_jt", "stride_jh"))
            or name == "width"
            or name in case.divisible
        )
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


for wide in (128, 256, 512):
    for wide_dtype in (torch.float32, torch.float16):
        # at 512 the accumulators alone fill the registers, most of all on gfx942 without a bias
        spilled = {"stack_limit": 1536 if wide == 512 else 64}
        name = f"{wide_dtype}-d{wide}"
        TABLE |= backward_cases(wide_dtype, f"{name}-bias", {}, head_size=wide, bias=True, right=True, **spilled)
        TABLE |= backward_cases(wide_dtype, f"{name}-plain", {}, head_size=wide, **spilled)


TABLE |= backward_cases(
    torch.bfloat16, "bf16-bias-dropout-d64", {}, bias=True, dropout=True, form="scalar", stack_limit=64
)
TABLE |= backward_cases(
    torch.float32, "tf32x3", {"sm90": r"tf32"}, left=True, precision="tf32x3", targets=["sm80", "sm90"], stack_limit=128
)
TABLE |= backward_cases(
    torch.bfloat16, "bf16-all", {}, head_size=128, bias=True, left=True, right=True, dropout=True, stack_limit=64
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
    limit = ALL_SHARED if case.asks_first else SHARED_LIMIT
    assert shared <= limit[target], f"{shared} bytes of shared memory"


if __name__ == "__main__":
    for case_name, entry in CASES.items():
        for where in entry.targets:
            spilled, memory, _ = resources(compiled(entry, where), where)
            print(f"{case_name} {where}: {spilled} bytes spilled, {memory} bytes of shared memory", flush=True)
