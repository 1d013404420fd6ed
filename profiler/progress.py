"""How a sweep shows itself on stderr: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any

LINE_EVERY_S = 5.0


class Quiet:
    """Nothing at all."""

    def start(self, what: str, total: int) -> None:
        return

    def advance(self, line: str) -> None:
        return

    def note(self, line: str) -> None:
        return

    def __enter__(self) -> Quiet:
        return self

    def __exit__(self, *_: object) -> None:
        return


class Lines(Quiet):
    """Plain lines, at most one in five seconds, and every one that is not a plain success."""

    def __init__(self) -> None:
        self._total = self._done = 0
        self._started = self._said = time.monotonic()

    def start(self, what: str, total: int) -> None:
        self._total = total
        self._say(f"{total} {what} to measure")

    def advance(self, line: str) -> None:
        self._done += 1
        if not line.endswith(" ok") or time.monotonic() - self._said > LINE_EVERY_S:
            self._say(f"[{self._done}/{self._total}] {line}")

    def note(self, line: str) -> None:
        if time.monotonic() - self._said > LINE_EVERY_S:
            self._say(line)

    def _say(self, line: str) -> None:
        self._said = time.monotonic()
        print(f"{self._said - self._started:7.1f} s  {line}", file=sys.stderr, flush=True)

    def __enter__(self) -> Lines:
        return self


class Bar(Quiet):
    """A rich bar with the remaining time; what is not a success is printed above it."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.progress import TimeRemainingColumn as Remaining

        self._progress = Progress(
            TextColumn("{task.percentage:3.0f}%"),
            BarColumn(),
            MofNCompleteColumn(),
            Remaining(),
            TextColumn("{task.description}"),
            console=Console(stderr=True, highlight=False),
        )
        self._task: Any = None

    def start(self, what: str, total: int) -> None:
        self._task = self._progress.add_task(what, total=total)

    def advance(self, line: str) -> None:
        self._progress.update(self._task, advance=1, description=line[:70])
        if not line.endswith(" ok"):
            self._progress.console.print(line, markup=False)

    def note(self, line: str) -> None:
        if self._task is not None:
            self._progress.update(self._task, description=line[:70])

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()


def make_progress(*, quiet: bool) -> Quiet:
    if quiet:
        return Quiet()
    return Bar() if sys.stderr.isatty() else Lines()
