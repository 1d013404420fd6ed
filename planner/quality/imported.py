"""What an import changes: the answer for its own architecture without it and with it.

>>> effect_of(store.comparisons(), "mine", arch)[0].after.points_median       # doctest: +SKIP
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from planner.architecture import Architecture
from planner.quality.features import MixFeatures
from planner.quality.retention import QualityModel, Retention


@dataclass(frozen=True, kw_only=True)
class Effect:
    """One class of tasks: `rows` imported comparisons with their median in points, and what the
    model says of the imported architecture at `context`, without them and with them."""

    task_class: str
    context: int | None
    rows: int
    points: float
    before: Retention
    after: Retention


def effect_of(comparisons: pd.DataFrame, source: str, arch: Architecture) -> list[Effect]:
    """For each class that the import's fitted comparisons speak of, at their longest length."""
    own = comparisons["source"] == source
    fitted = comparisons[own & (comparisons["use"] != "show")]
    if fitted.empty:
        return []
    asked = MixFeatures.of(arch)
    without, with_it = (QualityModel.fit(rows) for rows in (comparisons[~own], comparisons))
    found = []
    for task_class, rows in fitted.groupby("task_class"):
        longest = rows["eval_length"].max()
        context = None if pd.isna(longest) else int(longest)
        before, after = (
            model.predict(asked, str(task_class), context) for model in (without, with_it)
        )
        found.append(
            Effect(
                task_class=str(task_class),
                context=context,
                rows=len(rows),
                points=float(rows["points"].median()),
                before=before,
                after=after,
            )
        )
    return found
