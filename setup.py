# SPDX-License-Identifier: Apache-2.0
"""The native build, and nothing else: metadata lives in pyproject.toml.

Switches (environment variables):
    EDGEOPS_CUDA=auto|0|1   CUDA module: when nvcc is found (auto, the default), never, or fail without nvcc
    EDGEOPS_DEBUG=1         -O0 -g and NaN-filled outputs
    EDGEOPS_SANITIZE=1      address and undefined-behaviour sanitizers
    MAX_JOBS=2              parallel compilations
"""

import os
import sys
from pathlib import Path

from setuptools import find_packages, setup

try:
    import torch
    from torch.utils.cpp_extension import CppExtension
except ImportError:
    sys.exit(
        "edgeops: the build needs torch; got no such package. "
        "Install torch first, then: pip install --no-build-isolation -e ."
    )
from pybind11.setup_helpers import Pybind11Extension

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "csrc"))
from build_cuda import CudaBuildExtension, cuda_extension, cuda_summary  # noqa: E402

os.environ.setdefault("MAX_JOBS", "2")
DEBUG = os.environ.get("EDGEOPS_DEBUG") == "1"
SANITIZE = os.environ.get("EDGEOPS_SANITIZE") == "1"
TARGET = "0x020b000000000000"  # torch 2.11: the oldest release whose stable ABI has all that is used here

# No -ffast-math anywhere: linked into a library it switches off denormals for the whole process.
FLAGS = ["-std=c++20", f"-fmacro-prefix-map={ROOT}/=", "-fvisibility=hidden", "-Wall", "-Wextra"]
# what torch's own headers and the compiler's AVX-512 intrinsics would say
FLAGS += ["-Wno-unused-parameter", "-Wno-unknown-pragmas", "-Wno-maybe-uninitialized"]
LINK = []
if SANITIZE:
    FLAGS += ["-O1", "-g", "-fsanitize=address,undefined", "-fno-omit-frame-pointer"]
    LINK += ["-fsanitize=address,undefined"]
elif DEBUG:
    FLAGS += ["-O0", "-g", "-DEDGEOPS_POISON=1"]
else:
    FLAGS += ["-O3", "-g0"]
if SANITIZE:
    FLAGS.append("-DEDGEOPS_POISON=1")


def sources(*folders: str) -> list[str]:
    return sorted(str(p.relative_to(ROOT)) for f in folders for p in (ROOT / "csrc" / f).glob("*.cpp"))


ops = CppExtension(
    "edgeops._C",
    sources=["csrc/module.cpp", *sources("common", "ragged", "batching", "offload", "drift")],
    extra_compile_args={"cxx": [*FLAGS, f"-DTORCH_TARGET_VERSION={TARGET}"]},
    extra_link_args=LINK,
    py_limited_api=True,
)
runtime = Pybind11Extension(
    "edgeops._runtime",
    sources=sources("runtime", "runtime/batching", "runtime/offload"),
    extra_compile_args=FLAGS,
    extra_link_args=LINK,
    cxx_std=20,
)
extensions = [ops, runtime]
cuda = cuda_extension(ROOT, FLAGS, TARGET)
if cuda is not None:
    extensions.append(cuda)

print(f"edgeops build: torch {torch.__version__}, Python {sys.version.split()[0]}, {os.environ['MAX_JOBS']} jobs")
print(f"  ops      edgeops/_C.abi3.so, {len(ops.sources)} files, stable ABI for torch >= 2.11")
mode = "sanitized" if SANITIZE else "debug" if DEBUG else "release"
print(f"  runtime  edgeops/_runtime, {len(runtime.sources)} files, {mode} build")
print(f"  cuda     {cuda_summary(cuda)}")


setup(
    packages=[
        *find_packages(include=["edgeops*"]),
        "edgeops.triton_kernels",
        *(f"edgeops.triton_kernels.{folder}" for folder in ("batching", "offload", "ragged")),
    ],
    package_dir={"edgeops": "edgeops", "edgeops.triton_kernels": "triton_kernels"},
    ext_modules=extensions,
    cmdclass={"build_ext": CudaBuildExtension},
)
