"""Points: which of a device's points calibration looks at."""

from __future__ import annotations

import pandas as pd


def current(points: pd.DataFrame) -> pd.DataFrame:
    """Of one device's points those of its newest own environment, and all imported ones.

    Points of an older environment are other kernels' times: judged together with the newest they
    would make its predictions look worse than they are.
    """
    imported = points["device_kind"] == "imported"
    own = points[~imported]
    if own.empty:
        return points
    newest = own.sort_values("measured_at")["environment_id"].iloc[-1]
    keep: pd.Series[bool] = imported | (points["environment_id"] == newest)
    return points[keep]
