# SPDX-License-Identifier: Apache-2.0
"""Adam's direction in place beside DeepSpeed's CPU Adam, turn by turn in one run.

    python -m bench.offload.side_by_side

DeepSpeed runs in an environment of its own, whose Python `EDGEOPS_DEEPSPEED` names (`make deepspeed` makes
`.venv-deepspeed`). Its parameters must be those of `torch.optim.AdamW` before it is timed.
"""

from __future__ import annotations

import json
import time

import torch

from bench.peer import Peer
from bench.registry import Unavailable
from edgeops import perf
from edgeops.perf.stats import Ratio, Samples, paired_ratio

SIZE = 1 << 24  # as in the specification's figures
ROUNDS, WARMUP = 25, 3
SETTINGS = {"lr": 1e-3, "weight_decay": 0.01}


class DeepSpeed(Peer):
    """The same number of elements in a process of its own.

    Raises:
        Unavailable: there is no such environment.
    """

    def __init__(self, size: int, program: str = "deepspeed_adam.py") -> None:
        absent = "DeepSpeed is not there: make deepspeed"
        super().__init__(f"offload/peers/{program}", "deepspeed", "EDGEOPS_DEEPSPEED", absent, OMP_NUM_THREADS="1")
        try:
            self.ask(json.dumps({"n": size, **SETTINGS}), "ready")
        except Unavailable:
            self.close()
            raise

    def ask(self, line: str, until: str = "") -> str:
        answer = super().ask(line, until)
        if not answer:
            raise Unavailable("DeepSpeed does not run: make deepspeed, or run bench/offload/peers/deepspeed_adam.py")
        return answer

    def step(self) -> tuple[float, list[float]]:
        """Process seconds of one step, and the first parameters after it."""
        seconds, parameters = json.loads(self.ask(""))
        return seconds, parameters


def _expected(steps: int) -> list[torch.Tensor]:
    """The first parameters after each step, by PyTorch."""
    p = torch.zeros(1000, requires_grad=True)
    p.grad = torch.arange(1000).float() / 1000 - 0.5
    optimizer, found = torch.optim.AdamW([p], **SETTINGS), []
    for _ in range(steps):
        optimizer.step()
        found.append(p.detach().clone())
    return found


def measure(other: DeepSpeed, size: int = SIZE, rounds: int = ROUNDS) -> Ratio:
    """How many times as fast as DeepSpeed's Adam ours is, by process time with one thread each.

    Raises:
        AssertionError: DeepSpeed's parameters are not those of PyTorch.
    """
    ours = [torch.randn(size), torch.zeros(size), torch.zeros(size)]
    seconds: tuple[list[float], list[float]] = ([], [])
    for t, wanted in enumerate(_expected(WARMUP + rounds), 1):
        taken, parameters = other.step()
        torch.testing.assert_close(torch.tensor(parameters), wanted[: len(parameters)], rtol=1e-4, atol=1e-6)
        begin = time.process_time()
        torch.ops.edgeops._subspace_adam(*ours, t, 0.9, 0.999, 1e-8)
        seconds[0].append(time.process_time() - begin)
        seconds[1].append(taken)
    own, peer = (Samples(tuple(each[WARMUP:])) for each in seconds)
    print(f"  edgeops {1e3 * own.median:.2f} ms, DeepSpeed CPU Adam {1e3 * peer.median:.2f} ms, {size} elements")
    return paired_ratio(peer, own)


def show() -> None:
    """One line for `bench.check O3`."""
    try:
        other = DeepSpeed(SIZE)
        try:
            text = f"{measure(other)} as fast as DeepSpeed CPU Adam"
        finally:
            other.close()
    except Unavailable as reason:
        text = str(reason)
    print(f"O3       {text}")


if __name__ == "__main__":
    with perf.thread_count(1):
        show()
