# SPDX-License-Identifier: Apache-2.0
"""CUDA sources without a GPU: nvcc for every architecture, the module linked, the kernels run on the CPU."""

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch.utils.cpp_extension import include_paths, library_paths

ROOT = Path(__file__).resolve().parents[2]
STUB = Path(__file__).parent / "cuda_stub"


def load_build():
    """csrc/build_cuda.py, which is no package."""
    spec = importlib.util.spec_from_file_location("build_cuda", ROOT / "csrc" / "build_cuda.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


build = load_build()
NVCC = build.find_nvcc()
SOURCES = build.cuda_sources(ROOT)
needs_nvcc = pytest.mark.skipif(NVCC is None, reason="nvcc is not installed: set CUDA_HOME or NVCC")


def run(command, **options):
    result = subprocess.run([str(c) for c in command], capture_output=True, text=True, **options)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    return result.stdout + result.stderr


def test_there_are_sources():
    assert SOURCES


@needs_nvcc
@pytest.mark.parametrize("architecture", build.ARCHITECTURES)
@pytest.mark.parametrize("source", SOURCES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_compiles_without_spills(source, architecture, tmp_path):
    command = build.nvcc_command(NVCC, source, tmp_path / "kernel.o", ROOT, (architecture,))
    report = run([*command, "-Xptxas", "-v"])
    spills = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", report)
    assert spills, report
    assert {s for entry in spills for s in entry} == {"0"}, report
    assert (tmp_path / "kernel.o").stat().st_size > 0


@needs_nvcc
def test_module_links_against_this_torch_and_stays_in_the_stable_abi(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEOPS_CUDA", "1")
    objects = build.compile_cuda(ROOT, tmp_path / "cuda", NVCC)
    extension = build.cuda_extension(ROOT, [], "0x020b000000000000")
    flags = ["-std=c++20", "-fPIC", "-fvisibility=hidden", *extension.extra_compile_args["cxx"]]
    includes = [f"-I{p}" for p in include_paths()]
    for source in extension.sources:
        objects.append(tmp_path / f"{Path(source).stem}.o")
        run(["g++", "-c", ROOT / source, "-o", objects[-1], "-O1", *flags, *includes])
    folders = [f"-L{p}" for p in (*extension.library_dirs, *library_paths())]
    libraries = [f"-l{name}" for name in (*extension.libraries, "c10", "torch_cpu")]
    module = tmp_path / "_C_cuda.abi3.so"
    run(["g++", "-shared", *objects, "-o", module, *folders, *libraries, *extension.extra_link_args])

    missing = run(["nm", "-D", "--undefined-only", module])
    from_torch = [name for name in re.findall(r" U (\S+)", missing) if re.search(r"torch|aoti|c10|ATen|_ZN2at", name)]
    assert "aoti_torch_get_current_cuda_stream" in from_torch
    assert not [name for name in from_torch if not name.startswith(("aoti_torch_", "torch_"))]
    # the stream symbol lives in libtorch_cuda, which is found through libtorch
    assert "libtorch.so" in run(["readelf", "-d", module])


@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")
def test_pack_kernels_on_the_cpu(tmp_path):
    text = (ROOT / "csrc" / "ragged" / "pack.cu").read_text()
    text, launches = re.subn(r"run<<<(.*?)>>>\(", r"emulated_launch(run, \1, ", text, flags=re.DOTALL)
    assert launches == 1
    (tmp_path / "pack.inl").write_text(text)
    program = tmp_path / "check"
    flags = ["-std=c++20", "-O1", "-g", "-Wall", "-Wextra", "-fsanitize=address,undefined", "-fno-sanitize-recover"]
    run(["g++", *flags, f"-I{tmp_path}", f"-I{STUB}", f"-I{ROOT}/csrc/ragged", STUB / "pack_check.cpp", "-o", program])
    assert "800 cases agree" in run([program])


def test_switch_is_checked(monkeypatch):
    monkeypatch.setenv("EDGEOPS_CUDA", "yes")
    with pytest.raises(SystemExit, match="EDGEOPS_CUDA must be auto, 0 or 1; got 'yes'"):
        build.cuda_extension(ROOT, [], "0x020b000000000000")
    monkeypatch.setenv("EDGEOPS_CUDA", "0")
    assert build.cuda_extension(ROOT, [], "0x020b000000000000") is None
    assert build.cuda_summary(None) == "off (EDGEOPS_CUDA=0)"


def test_missing_nvcc_is_reported(monkeypatch):
    monkeypatch.setattr(build, "find_nvcc", lambda: None)
    monkeypatch.setenv("EDGEOPS_CUDA", "1")
    with pytest.raises(SystemExit, match="needs nvcc"):
        build.cuda_extension(ROOT, [], "0x020b000000000000")
    monkeypatch.setenv("EDGEOPS_CUDA", "auto")
    assert build.cuda_extension(ROOT, [], "0x020b000000000000") is None
    assert "no nvcc found" in build.cuda_summary(None)


def test_module_is_not_loaded_without_cuda():
    if torch.version.cuda is not None:
        pytest.skip("this torch has CUDA")
    from edgeops import _native

    assert _native.native_status()["cuda"].startswith("off")
