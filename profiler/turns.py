"""Turns on a GPU that several workers prepare jobs on: many at once, or one tuner alone.

A tuner times its configurations; beside other processes it times those, too, and keeps a bad
choice for good. So kernels compile at once, a tuner's timing waits until it is alone, and calls of
other workers wait for it. What keeps the turns are file locks: a worker that dies gives its up.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


class Turns:
    """One worker's part in it. `finish` returns when all that it has on the GPU is done."""

    def __init__(self, folder: Path, finish: Callable[[], None]) -> None:
        self._finish = finish
        self._sharing = False
        # who waits for the door keeps others from entering, or a tuner would never be alone
        self._door, self._room = (
            os.open(folder / name, os.O_CREAT | os.O_RDWR, 0o600) for name in ("door", "room")
        )

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Others may use the GPU meanwhile."""
        self._enter()
        try:
            yield
        finally:
            self._leave()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Nobody else uses the GPU meanwhile; also from within `shared`."""
        sharing = self._sharing
        if sharing:
            self._leave()
        fcntl.flock(self._door, fcntl.LOCK_EX)
        fcntl.flock(self._room, fcntl.LOCK_EX)
        try:
            yield
            self._finish()
        finally:
            fcntl.flock(self._room, fcntl.LOCK_UN)
            fcntl.flock(self._door, fcntl.LOCK_UN)
            if sharing:
                self._enter()

    def _enter(self) -> None:
        assert not self._sharing, "a tuner that waits at the door would never let it in"
        fcntl.flock(self._door, fcntl.LOCK_EX)
        fcntl.flock(self._room, fcntl.LOCK_SH)
        fcntl.flock(self._door, fcntl.LOCK_UN)
        self._sharing = True

    def _leave(self) -> None:
        self._sharing = False
        try:
            self._finish()
        finally:
            fcntl.flock(self._room, fcntl.LOCK_UN)
