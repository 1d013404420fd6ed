"""Surface: a crossover as frames for a page. No drawing.

cells      one row per context and batch: who is ahead, by how much, on what basis
line       one row per batch: from which context the second side stays ahead
measured   contexts and batches where both sides were measured
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from planner.cost.basis import Basis
from planner.cost.crossover import Crossover
from planner.cost.curves import Floats, Ints

LAUNCH_BOUND_S = 30e-6
"""Calls shorter than this are mostly launches; calibration shows them apart too."""


def cells(found: Crossover) -> pd.DataFrame:
    """The surface in long form, with the edges of each cell."""
    batch, context = np.meshgrid(found.batches, found.contexts, indexing="ij")
    context_edges, batch_edges = _edges(found.contexts), _edges(found.batches)
    doublings = found.log_ratio / np.log(2)
    low, high = (np.exp(found.log_ratio + sign * found.half) for sign in (-1, 1))
    return pd.DataFrame(
        {
            "context": context.ravel(),
            "batch_size": batch.ravel(),
            "context_low": np.broadcast_to(context_edges[:-1], batch.shape).ravel(),
            "context_high": np.broadcast_to(context_edges[1:], batch.shape).ravel(),
            "batch_low": np.broadcast_to(batch_edges[:-1, None], batch.shape).ravel(),
            "batch_high": np.broadcast_to(batch_edges[1:, None], batch.shape).ravel(),
            "first_ms": 1e3 * found.first_s.ravel(),
            "second_ms": 1e3 * found.second_s.ravel(),
            "doublings": np.nan_to_num(doublings, posinf=99.0, neginf=-99.0).ravel(),
            "sure": (found.winner != 0).astype(int).ravel(),
            "verdict": [_verdict(found, w, r) for w, r in _pairs(found)],
            "interval": [f"{a:.2f} to {b:.2f}" for a, b in zip(low.flat, high.flat, strict=True)],
            "first_provider": found.first_provider.ravel(),
            "second_provider": found.second_provider.ravel(),
            "basis": [Basis(int(b)).label for b in found.basis.flat],
        }
    )


def _edges(values: Ints) -> Floats:
    """Half way to the neighbours, in logarithm."""
    x = np.log(values)
    inner = (x[1:] + x[:-1]) / 2
    edges: Floats = np.exp(np.concatenate([[2 * x[0] - inner[0]], inner, [2 * x[-1] - inner[-1]]]))
    return edges


def _pairs(found: Crossover) -> list[tuple[int, float]]:
    return list(zip(found.winner.ravel().tolist(), found.log_ratio.ravel().tolist(), strict=True))


def _verdict(found: Crossover, winner: int, log_ratio: float) -> str:
    if np.isnan(log_ratio):
        return "neither runs"
    if winner == 0:
        return "no clear winner"
    side, times = (found.second, log_ratio) if winner == 2 else (found.first, -log_ratio)
    return (
        f"{side.name}, {np.exp(times):.2f}x" if np.isfinite(times) else f"{side.name} alone runs"
    )


def line(found: Crossover) -> pd.DataFrame:
    """`context`, `low`, `high` per batch (see `Crossover.line`), and `launch_bound`: the greatest
    context up to which both sides take less than 30 us."""
    return pd.DataFrame(
        {
            "batch_size": found.batches,
            "context": found.line.context,
            "low": np.fmin(found.line.low, found.contexts[-1]),
            "high": np.nan_to_num(found.line.high, nan=float(found.contexts[-1])),
            "launch_bound": _launch_bound(found),
        }
    )


def _launch_bound(found: Crossover) -> Floats:
    short = np.maximum(found.first_s, found.second_s) < LAUNCH_BOUND_S
    last = np.where(short.any(axis=1), short.shape[1] - 1 - np.argmax(short[:, ::-1], axis=1), -1)
    return np.where(last >= 0, found.contexts[last].astype(float), np.nan)


def launch_bound_share(found: Crossover) -> float:
    """The share of the surface where both sides take less than 30 us."""
    return float((np.maximum(found.first_s, found.second_s) < LAUNCH_BOUND_S).mean())
