"""Reading the evidence: masks over comparisons, and what-if copies of them.

    >>> found = store.comparisons()                                       # doctest: +SKIP
    >>> perfect = with_retention(found, is_pure(found) & is_class(found, "retrieval"), 1.0)

A frame of comparisons (`Store.comparisons`) has a line per number with a control: the columns of
`EvidenceRow`, `kind`, `full_share`, `control_value`, `assumed`, `use`, `reason` and `points`.
"""

from __future__ import annotations

import pandas as pd

from planner.errors import UnknownName, UsageError
from planner.store.evidence_rules import TASK_CLASSES


def is_pure(frame: pd.DataFrame) -> pd.Series[bool]:
    """Rows of models with linear mixers and no full-attention layer."""
    return (frame["full_share"] == 0) & frame["kind"].isin(("recurrent", "windowed"))


def is_hybrid(frame: pd.DataFrame) -> pd.Series[bool]:
    """Rows of models with both linear and full-attention layers."""
    return (frame["full_share"] > 0) & (frame["full_share"] < 1)


def is_class(frame: pd.DataFrame, task_class: str) -> pd.Series[bool]:
    """Rows of one class of tasks. Raises UnknownName, listing the classes."""
    if task_class not in TASK_CLASSES:
        raise UnknownName("task class", task_class, TASK_CLASSES)
    return frame["task_class"] == task_class


def with_retention(frame: pd.DataFrame, mask: pd.Series[bool], retention: float) -> pd.DataFrame:
    """A copy in which the masked rows kept `retention` of their control's accuracy: a what-if."""
    if not 0 <= retention <= 2:
        raise UsageError(f"retention must be between 0 and 2, got {retention}")
    found = frame.copy()
    found.loc[mask, "value"] = retention * found.loc[mask, "control_value"]
    found.loc[mask, "points"] = found.loc[mask, "value"] - found.loc[mask, "control_value"]
    return found
