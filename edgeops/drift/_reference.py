# SPDX-License-Identifier: Apache-2.0
"""The readable twin of the drift ops: what they compute, step by step."""

from __future__ import annotations

import torch
from torch import Tensor

from edgeops._common import message


def strsaga_run_reference(
    x: Tensor,
    y: Tensor,
    order: Tensor,
    starts: Tensor,
    w: Tensor,
    sum: Tensor,
    alpha: Tensor,
    window: Tensor,
    eta: float,
    mu: float,
) -> None:
    """STRSAGA steps of independent learners of L2-regularised logistic regression (drift spec, section 4.1).

    Model j visits the points `order[starts[j]:starts[j + 1]]` of `x[j]`, `y[j]`; a point right behind its window enters
    it. Updates `w`, `sum`, `alpha`, `window` in place.
    """
    for j in range(x.shape[0]):
        start, end = window[j].tolist()
        for i in order[int(starts[j]) : int(starts[j + 1])].tolist():
            if not (start <= i <= end and i < x.shape[1]):
                rule = f"order must name points of the window [{start}, {end}) or the next one, of {x.shape[1]}"
                raise ValueError(message("strsaga_run", rule, str(i), "Points enter one by one, in order."))
            point, label = x[j, i], y[j, i]
            g = -label / (1 + torch.exp(label * (w[j] @ point)))
            change = g if i == end else g - alpha[j, i]
            w[j] = (1 - eta * mu) * w[j] - eta * change * point - eta / max(1, end - start) * sum[j]
            sum[j] += change * point
            alpha[j, i] = g
            end += i == end
        window[j, 1] = end
