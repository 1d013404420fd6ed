"""Where a sweep's wall time went, by kind: what its last line prints."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

KINDS = ("import", "compile", "gate", "warm", "timed", "energy", "bookkeeping", "idle")


@dataclass
class Accounts:
    """Seconds by kind. `idle` is what none of them explains."""

    started: float = field(default_factory=time.perf_counter)
    spent: dict[str, float] = field(default_factory=dict)

    def add(self, kind: str, seconds: float) -> None:
        self.spent[kind] = self.spent.get(kind, 0.0) + seconds

    @contextmanager
    def clock(self, kind: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(kind, time.perf_counter() - start)

    def share(self, wall_s: float, seconds: Mapping[str, float]) -> None:
        """Books wall time in which several workers reported `seconds`, in proportion to them."""
        total = sum(seconds.values())
        for kind, value in seconds.items():
            self.add(kind, wall_s * value / total if total else 0.0)

    @property
    def total_s(self) -> float:
        return time.perf_counter() - self.started

    def split(self) -> dict[str, float]:
        """Every kind, idle included; they sum to the total."""
        known = {kind: self.spent.get(kind, 0.0) for kind in KINDS[:-1]}
        return known | {"idle": max(0.0, self.total_s - sum(known.values()))}
