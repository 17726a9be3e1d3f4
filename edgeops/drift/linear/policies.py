# SPDX-License-Identifier: Apache-2.0
"""What needs no detector, to judge detectors by: a new model every so many batches. Drift spec, section 13."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from edgeops._common import message
from edgeops.drift.linear.logistic import Logistic

FIXED = (1, 2, 5, 10, 20, 50)
"""Ages at which `Periodic` replaces its model when the best fixed policy is looked for; never is one more."""


class Periodic(Logistic):
    """A new logistic model with every so manieth batch, which is the first that it trains on.

    The detector that always fires: whoever resets as often has to be better than this.

    Args:
        features: as in `Logistic`.
        every: batches that a model lives.
        **settings: as in `Logistic`.

    Raises:
        ValueError: less than one batch.

    >>> import torch
    >>> learner = Periodic(2, 3, eta=0.1, mu=1e-3, seed=0)
    >>> for _ in range(7):
    ...     learner.observe(torch.ones(4, 2).double(), torch.ones(4).double())
    >>> learner.switches, learner.bank.window.tolist()
    (2, [[24, 28]])
    """

    def __init__(self, features: int, every: int, **settings: Any) -> None:
        if not (isinstance(every, int) and every >= 1):
            raise ValueError(message("Periodic", "every must be a whole number from 1", str(every), "Count batches."))
        super().__init__(features, **settings)
        self.every = every

    def _observe(self, x: Tensor, y: Tensor) -> None:
        if self.t and self.t % self.every == 0:
            self.switches += 1
            self.bank.start(0)
        super()._observe(x, y)
