# SPDX-License-Identifier: Apache-2.0
"""The CUDA part of the build: nvcc on every csrc/**/*.cu, the objects linked into edgeops/_C_cuda.abi3.so.

Needs nvcc and no CUDA build of torch: kernels hold no torch header, and `torch.utils.cpp_extension` refuses .cu files
where torch has no CUDA. `setup.py` imports this file by path:

    from build_cuda import CudaBuildExtension, cuda_extension, cuda_summary
    cuda = cuda_extension(ROOT, FLAGS, TARGET)         # an Extension, or None
    setup(..., ext_modules=[..., *filter(None, [cuda])], cmdclass={"build_ext": CudaBuildExtension})

Switches: EDGEOPS_CUDA=auto|0|1 (auto: build where nvcc is found), CUDA_HOME, NVCC (path of the compiler).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from torch.utils.cpp_extension import BuildExtension, CppExtension

# oldest data-centre card first; PTX of the newest lets later cards compile it when they load it
ARCHITECTURES = ("80", "90")
NAME = "edgeops._C_cuda"


def find_nvcc() -> str | None:
    """Path of nvcc: $NVCC, $CUDA_HOME/bin, the usual place, or the search path."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    candidates = [os.environ.get("NVCC"), *(f"{home}/bin/nvcc" for home in homes if home), shutil.which("nvcc")]
    return next((c for c in candidates if c and os.access(c, os.X_OK)), None)


def toolkit_of(nvcc: str) -> Path:
    """Root of the toolkit that holds headers and libraries for `nvcc`."""
    homes = [Path(nvcc).resolve().parent.parent, Path("/usr/local/cuda")]
    return next((h for h in homes if (h / "include" / "cuda_runtime.h").exists()), homes[0])


def nvcc_command(nvcc: str, source: Path, target: Path, root: Path, architectures: tuple[str, ...]) -> list[str]:
    """The compilation of one .cu file to one object with machine code for every architecture and PTX for the last."""
    code = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in architectures]
    code.append(f"-gencode=arch=compute_{architectures[-1]},code=compute_{architectures[-1]}")
    host = f"-fPIC,-fvisibility=hidden,-fmacro-prefix-map={root}/="
    return [
        nvcc, "-c", str(source), "-o", str(target), "-std=c++17", "-O3", "-DNDEBUG",
        "--Werror", "all-warnings", "-Xcompiler", host, *code,
    ]  # fmt: skip


def cuda_sources(root: Path) -> list[Path]:
    """Every CUDA file of the package."""
    return sorted((root / "csrc").rglob("*.cu"))


def compile_cuda(root: Path, folder: Path, nvcc: str, *, force: bool = False) -> list[str]:
    """Compile every .cu file that is newer than its object; returns the objects."""
    folder.mkdir(parents=True, exist_ok=True)
    headers = [p for pattern in ("*.h", "*.cuh") for p in (root / "csrc").rglob(pattern)]
    newest_header = max((h.stat().st_mtime for h in headers), default=0.0)
    objects = []
    for source in cuda_sources(root):
        target = folder / f"{source.parent.name}_{source.stem}.o"
        fresh = target.exists() and target.stat().st_mtime > max(source.stat().st_mtime, newest_header)
        if force or not fresh:
            command = nvcc_command(nvcc, source, target, root, ARCHITECTURES)
            print(" ".join(command), flush=True)
            subprocess.run(command, check=True)
        objects.append(str(target))
    return objects


def cuda_extension(root: Path, flags: list[str], target: str) -> object | None:
    """The extension `_C_cuda`, or `None` where it is switched off or nvcc is missing.

    Raises:
        SystemExit: EDGEOPS_CUDA=1 without nvcc, or another value of the switch.
    """
    switch = os.environ.get("EDGEOPS_CUDA", "auto")
    if switch not in ("auto", "0", "1"):
        sys.exit(f"edgeops: EDGEOPS_CUDA must be auto, 0 or 1; got {switch!r}. Leave it out for auto.")
    nvcc = find_nvcc()
    if switch == "0" or (nvcc is None and switch == "auto"):
        return None
    if nvcc is None:
        sys.exit("edgeops: EDGEOPS_CUDA=1 needs nvcc; got none. Set CUDA_HOME or NVCC, or EDGEOPS_CUDA=0.")
    toolkit = toolkit_of(nvcc)
    folders = [
        toolkit / "lib64",
        toolkit / "targets" / "x86_64-linux" / "lib",
        toolkit / "targets" / "sbsa-linux" / "lib",
    ]
    extension = CppExtension(
        NAME,
        sources=[str(p.relative_to(root)) for p in sorted((root / "csrc" / "cuda").glob("*.cpp"))],
        extra_compile_args={"cxx": [*flags, f"-DTORCH_TARGET_VERSION={target}", "-DUSE_CUDA"]},
        library_dirs=[str(f) for f in folders if f.exists()],
        libraries=["cudart_static", "rt", "dl", "pthread"],
        # the CUDA-stream symbol comes from libtorch_cuda, which libtorch pulls in; some linkers drop a library that
        # resolves nothing at link time
        extra_link_args=["-Wl,--no-as-needed", "-ltorch", "-Wl,--exclude-libs,ALL"],
        py_limited_api=True,
    )
    extension.edgeops_nvcc = nvcc
    extension.edgeops_root = root
    return extension


def cuda_summary(extension: object | None) -> str:
    """One line for the build's summary."""
    if extension is not None:
        names = ", ".join(f"sm_{a}" for a in ARCHITECTURES)
        return f"edgeops/_C_cuda.abi3.so for {names} and PTX, {extension.edgeops_nvcc}"
    switch = os.environ.get("EDGEOPS_CUDA", "auto")
    return "off (EDGEOPS_CUDA=0)" if switch == "0" else "off: no nvcc found; set CUDA_HOME or NVCC"


class CudaBuildExtension(BuildExtension):
    """`BuildExtension` that first runs nvcc for the extension made by `cuda_extension`."""

    def build_extension(self, ext):  # type: ignore[no-untyped-def]
        """Compile the kernels, then let torch compile and link the rest."""
        nvcc = getattr(ext, "edgeops_nvcc", None)
        if nvcc is not None:
            folder = Path(self.build_temp).absolute() / "cuda"
            ext.extra_objects = compile_cuda(ext.edgeops_root, folder, nvcc, force=bool(self.force))
        super().build_extension(ext)
