# SPDX-License-Identifier: Apache-2.0
"""What a figure was measured on: versions, processor, threads, commit, and a machine id without a host name."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path

import torch

from edgeops._native import cpu_isa


@dataclass(frozen=True)
class Environment:
    """Versions, hardware and commit; `None` where a thing is not there.

    `machine` is a hash of the hardware (processor model, cores, memory, GPU): stable over reboots and checkouts, the
    same on two equal machines, and it names no host. `threads` is torch's intra-op thread count, `isa` the instruction
    set that edgeops runs on.
    """

    python: str
    torch: str
    triton: str | None
    edgeops: str | None
    system: str
    cpu: str
    isa: str
    cores: int
    memory_gib: int
    threads: int
    gpu: str | None
    cuda: str | None
    commit: str | None
    dirty: bool | None
    machine: str


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@cache
def _cpu_model() -> str:
    """Model name: /proc/cpuinfo on Linux, what `platform` knows elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    for key in ("model name", "Hardware", "Model"):
        for line in lines:
            name, _, value = line.partition(":")
            if name.strip() == key and value.strip():
                return value.strip()
    return platform.processor() or platform.machine() or "unknown"


def _memory_gib() -> int:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)
    except (AttributeError, ValueError, OSError):
        return 0


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def repository_root(start: Path | None = None) -> Path | None:
    """Top folder of the git checkout that holds `start` (default: the edgeops sources), or `None` outside of one."""
    top = _git(start or Path(__file__).resolve().parent, "rev-parse", "--show-toplevel")
    return Path(top) if top else None


def _commit(root: Path | None) -> tuple[str | None, bool | None]:
    if root is None:
        return None, None
    commit = _git(root, "rev-parse", "--short=12", "HEAD")
    changes = _git(root, "status", "--porcelain", "--untracked-files=no")
    return commit, None if changes is None else bool(changes)


def machine_id(architecture: str, cpu: str, cores: int, memory_gib: int, gpu: str | None) -> str:
    """Eight hexadecimal digits from the hardware alone.

    >>> machine_id("x86_64", "AMD EPYC", 2, 23, None)
    '7871dd8d'
    """
    text = "|".join([architecture, cpu, str(cores), str(memory_gib), gpu or "no gpu"])
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def capture(repository: Path | None = None) -> Environment:
    """Describe this process's machine, versions and commit, as they are now.

    Args:
        repository: folder inside the git checkout whose commit counts; `None` = the one with the edgeops sources.

    >>> seen = capture()
    >>> seen.threads >= 1, len(seen.machine)
    (True, 8)
    """
    cpu, cores, memory = _cpu_model(), os.cpu_count() or 1, _memory_gib()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    commit, dirty = _commit(repository_root(repository))
    return Environment(
        python=platform.python_version(),
        torch=torch.__version__,
        triton=_version("triton"),
        edgeops=_version("edgeops"),
        system=f"{platform.system()} {platform.machine()}",
        cpu=cpu,
        isa=cpu_isa(),
        cores=cores,
        memory_gib=memory,
        threads=torch.get_num_threads(),
        gpu=gpu,
        cuda=torch.version.cuda,
        commit=commit,
        dirty=dirty,
        machine=machine_id(platform.machine(), cpu, cores, memory, gpu),
    )
