# SPDX-License-Identifier: Apache-2.0
"""Progress of a tour: one bar for the chapters, one for what the current chapter does."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from edgeops._common import missing_extra

from .chapter import Step

if TYPE_CHECKING:
    from rich.console import Console


class Progress(Protocol):
    """What the runner tells a display."""

    def begin(self, chapter: str) -> None:
        """A chapter starts."""

    def step(self, description: str) -> Step:
        """The current chapter starts a new part; the returned function moves its bar."""

    def end(self) -> None:
        """The current chapter is over, well or not."""


class Silent:
    """Shows nothing."""

    def begin(self, chapter: str) -> None:
        """Ignore."""

    def step(self, description: str) -> Step:
        """Return a function that ignores its arguments."""
        return lambda done, total: None

    def end(self) -> None:
        """Ignore."""


class RichProgress:
    """Bars on a terminal, one plain line per step elsewhere. Use as a context manager.

    Args:
        chapters: how many there will be.
        console: where to draw; standard error keeps standard output free for results.

    Raises:
        ImportError: rich is not installed.
    """

    def __init__(self, chapters: int, console: Console) -> None:
        try:
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
            from rich.progress import Progress as Bars
        except ImportError as error:
            raise missing_extra("edgeops tour", "rich", "cli") from error
        self._bars = Bars(
            TextColumn("{task.description:<34}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._console = console
        self._overall = self._bars.add_task("chapters", total=chapters)
        self._chapter = ""

    def __enter__(self) -> RichProgress:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def begin(self, chapter: str) -> None:
        """Name the chapter that the following steps belong to."""
        self._chapter = chapter

    def step(self, description: str) -> Step:
        """Add a bar that pulses until the first call tells the total."""
        label = f"{self._chapter}: {description}"
        if not self._console.is_terminal:
            self._console.print(label, highlight=False)
        task = self._bars.add_task(label, total=None)
        return lambda done, total: self._bars.update(task, completed=done, total=total)

    def end(self) -> None:
        """Count the chapter."""
        self._bars.advance(self._overall)
