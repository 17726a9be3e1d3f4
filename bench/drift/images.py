# SPDX-License-Identifier: Apache-2.0
"""Digits, and what happens to pictures: corruptions, and streams of them whose classes come unevenly."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "images"


def digits(kind: str, folder: Path = DATA) -> tuple[Tensor, Tensor]:
    """MNIST, "train" or "t10k": pictures `[n, 1, 28, 28]` in [0, 1] and classes `[n]`."""
    with gzip.open(folder / f"mnist-{kind}-images-idx3-ubyte.gz") as file:
        pixels = torch.frombuffer(bytearray(file.read()[16:]), dtype=torch.uint8)
    with gzip.open(folder / f"mnist-{kind}-labels-idx1-ubyte.gz") as file:
        labels = torch.frombuffer(bytearray(file.read()[8:]), dtype=torch.uint8)
    return pixels.view(-1, 1, 28, 28).float() / 255, labels.long()


def generated(count: int, classes: int, size: int, seed: int, channels: int = 1) -> tuple[Tensor, Tensor]:
    """Pictures of gratings, one direction a class, at random phases: `[count, channels, size, size]` in [0, 1]."""
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(0, classes, (count,), generator=g)
    angle = y * (torch.pi / classes) + 0.05 * torch.randn(count, generator=g)
    grid = torch.arange(size) * (4 * torch.pi / size)
    across = angle.cos()[:, None, None] * grid[:, None] + angle.sin()[:, None, None] * grid
    phase = 2 * torch.pi * torch.rand(count, channels, 1, 1, generator=g)
    return (across[:, None] + phase).sin() / 2 + 0.5, y


def noise(x: Tensor, strength: float, g: torch.Generator) -> Tensor:
    """Gaussian noise of this deviation."""
    return x + strength * torch.randn(x.shape, generator=g)


def blur(x: Tensor, strength: float, g: torch.Generator) -> Tensor:
    """A Gaussian of this deviation in pixels."""
    reach = int(3 * strength) + 1
    kernel = torch.exp(-(torch.arange(-reach, reach + 1.0) ** 2) / (2 * strength**2))
    kernel = (kernel / kernel.sum()).view(1, 1, 1, -1)
    flat = x.reshape(-1, 1, *x.shape[2:])
    for weight in (kernel, kernel.transpose(2, 3)):
        flat = torch.nn.functional.conv2d(flat, weight, padding="same")
    return flat.view_as(x)


def contrast(x: Tensor, strength: float, g: torch.Generator) -> Tensor:
    """Towards a bright grey by this share."""
    return x * (1 - strength) + 0.8 * strength


CORRUPTIONS = {"noise": noise, "blur": blur, "contrast": contrast}


def stream(
    x: Tensor,
    y: Tensor,
    strengths: dict[str, float],
    *,
    batches: int,
    size: int,
    rounds: int,
    few: int,
    seed: int = 0,
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Batches and what they are: of each corruption `batches` of all classes, then as many of `few` classes each."""
    g = torch.Generator().manual_seed(seed)
    classes = int(y.max()) + 1
    for _ in range(rounds):
        for name, strength in strengths.items():
            for turn in range(2 * batches):
                even = turn < batches
                # `few` classes next to one another, changing slowly
                first = (turn - batches) * classes // batches
                allowed = torch.ones(classes) if even else torch.zeros(classes)
                allowed[[(first + i) % classes for i in range(few)]] = 1
                index = torch.multinomial(allowed[y], size, generator=g)
                yield f"{name}, {'all' if even else 'few'}", CORRUPTIONS[name](x[index], strength, g), y[index]
