# SPDX-License-Identifier: Apache-2.0
"""Two processes of `torch.distributed` with gloo, for tests."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

needs_gloo = pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(), reason="this torch has no gloo"
)
Work = Callable[..., Any]


def _process(rank: int, folder: str, work: Work, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    store = torch.distributed.FileStore(os.path.join(folder, "store"), 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    try:
        torch.save(work(rank, *arguments), os.path.join(folder, f"{rank}.pt"))
    finally:
        gc.collect()  # wrappers hold the group in circles
        torch.distributed.destroy_process_group()
    os._exit(0)  # an interpreter that ends under gloo's threads, which call Python for a hook, aborts now and then


def both(folder: Path, work: Work, *arguments: Any) -> tuple[Any, Any]:
    """What `work(rank, *arguments)`, a function of a module, gives in each of two processes."""
    (folder / "store").unlink(missing_ok=True)
    torch.multiprocessing.spawn(_process, args=(str(folder), work, arguments), nprocs=2)
    first, second = (torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2))
    return first, second
