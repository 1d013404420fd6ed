"""The store: the only SQL in the project. See `Store`.

`Store` is imported on first use: it brings pandas and sqlalchemy, and a profiler's worker needs
only the records.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from planner.store.records import (
    MAX_SAMPLES,
    Environment,
    Outcome,
    Point,
    Run,
    content_hash,
    point_key,
    thin,
)

if TYPE_CHECKING:
    from planner.store.store import Store


def __getattr__(name: str) -> Any:
    if name == "Store":
        from planner.store.store import Store

        return Store
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "MAX_SAMPLES",
    "Environment",
    "Outcome",
    "Point",
    "Run",
    "Store",
    "content_hash",
    "point_key",
    "thin",
]
