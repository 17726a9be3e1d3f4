# SPDX-License-Identifier: Apache-2.0
"""Fixtures and profiles of the whole suite."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # tests/, bench/ and triton_kernels/ are parts of the checkout, not of the package
    sys.path.insert(0, str(ROOT))

_COMMON: dict[str, Any] = {
    "deadline": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
}
settings.register_profile("ci", derandomize=True, max_examples=40, database=None, **_COMMON)
settings.register_profile("sanitize", derandomize=True, max_examples=12, database=None, **_COMMON)
settings.register_profile("long", max_examples=2000, print_blob=True, **_COMMON)
settings.load_profile("ci")  # another one: pytest --hypothesis-profile=long


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The test that runs a suite of its own in a process comes first: a worker left alone with it at the end idles."""
    items.sort(key=lambda item: "test_kernels_in_the_interpreter" not in item.nodeid)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Run with one thread, whatever a test sets, and give the number back."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def threads() -> Callable[[int], None]:
    """`threads(n)` sets the number of threads until the end of the test (`one_thread` restores it)."""
    return torch.set_num_threads


def _calls_from_package(depth: int) -> bool:
    return str(sys._getframe(depth).f_globals.get("__name__", "")).startswith("edgeops.")


def _poisoned(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @functools.wraps(make)
    def call(*args: Any, **kwargs: Any) -> torch.Tensor:
        out = make(*args, **kwargs)
        if _calls_from_package(2) and out.device.type != "meta" and not isinstance(out, torch._subclasses.FakeTensor):
            out.fill_(torch.nan if out.is_floating_point() else 0x55 if out.dtype != torch.bool else True)
        return out

    return call


@pytest.fixture
def clean_memory() -> None:
    """Ask for it to leave `torch.empty*` alone, for tests that trace (a replaced function is a graph break)."""


@pytest.fixture(autouse=True)
def poisoned_memory(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Uninitialised tensors that the package makes hold NaN: an element that it never writes shows."""
    if "clean_memory" in request.fixturenames:
        return
    monkeypatch.setattr(torch, "empty", _poisoned(torch.empty))
    monkeypatch.setattr(torch, "empty_like", _poisoned(torch.empty_like))
    monkeypatch.setattr(torch.Tensor, "new_empty", _poisoned(torch.Tensor.new_empty))


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """`shared_data("ragged/lengths")`: a path of the developers' data folder, or a skip where that is absent."""
    folder = ROOT.parent / "shared" / "data"

    def path(name: str) -> Path:
        found = folder / name
        if not found.exists():
            pytest.skip(f"needs shared/data/{name} beside the checkout, which only developers and CI have")
        return found

    return path
