"""The store: the only SQL in the project. See `Store`."""

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
from planner.store.store import Store

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
