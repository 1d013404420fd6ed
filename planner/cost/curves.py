"""Curve: the measured times of one kernel on one shape, and how to read between and beyond them.

A curve is a few rows of points. A row holds one batch size and runs along the length: new tokens
for a prefill, keys in sight for a decode step. Kernels that do not see a length (a recurrent
step, a matrix product) have a single row along the quantity they do see.

    row b=1   1k ──── 2k ──── 4k ──── 8k
    row b=4   1k ──── 2k ──── 4k
    row b=16  1k ──── 2k

This module is the data and what it may be proportional to; `methods` reads between and beyond the
nodes, `recipe` says which method to use and how wrong it has been.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from planner.cost.observations import Observation
from planner.mixers import get_mixer
from planner.workload import (
    AllReduceOp,
    ConvOp,
    DenseOp,
    ExpertsOp,
    MixerOp,
    Op,
    dtype_bytes,
)

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Layout = Literal["prefill", "segment", "decode", "tokens", "state"]

UNKNOWN_NOISE = 0.02
"""80 % half-width of a time whose source keeps no samples: shapes that the published H200 tables
hold twice differ by 0.2 to 2.3 % at the median, by framework."""

REPEATABILITY = 0.01
"""Least half-width of a measured time: another day's run, clocks not locked."""

LEAST_TOKENS = 1000
LEAST_SECONDS = 30e-6
"""Shorter calls are launches: how well they are read says nothing of the rest."""

_ROW_STRIDE = 128.0
"""Keeps rows apart in the one sorted search key; log lengths stay far below it."""


PHASELESS = (DenseOp, ExpertsOp, AllReduceOp)
"""Operations that see a number of tokens, not what they belong to."""


def layout_of(op: Op, phase: str) -> Layout:
    """Which quantity is the row and which runs along it.

    prefill: rows by batch, along new tokens. decode: rows by batch, along keys (cached + 1).
    tokens: one row along batch x new tokens. state: one row along the batch.
    """
    if isinstance(op, PHASELESS):
        return "tokens"
    recurrent = isinstance(op, MixerOp) and get_mixer(op.spec.mixer).kind == "recurrent"
    if phase == "decode" and (recurrent or isinstance(op, ConvOp)):
        return "state"
    return "decode" if phase == "decode" else "prefill"


def coordinates(layout: Layout, batch: Any, new: Any, cached: Any) -> tuple[Any, Any]:
    """(row, position along it) of a workload. A segment's position is its last token."""
    if layout == "prefill":
        return batch, new
    if layout == "segment":
        return batch, new + cached
    if layout == "decode":
        return batch, cached + 1
    row = 1 if isinstance(batch, int) else np.ones_like(batch)
    return row, batch * new if layout == "tokens" else batch


def workload_at(layout: Layout, row: Any, axis: Any, segment: int = 0) -> tuple[Any, Any, Any]:
    """(batch, new, cached) of a position: the inverse of `coordinates`."""
    if layout == "prefill":
        return row, axis, 0
    if layout == "segment":
        return row, segment, np.maximum(axis - segment, 0)
    if layout == "decode":
        return row, 1, axis - 1
    if layout == "tokens":
        return 1, axis, 0
    return axis, 1, 1


# Cost drivers: what a kernel's time may be proportional to. Kernels that waste tiles or read keys
# outside the window do not follow their useful work, so several are offered.

Driver = Callable[[Op, Any, Any, Any, float], Any]


def _every_pair(op: Op, batch: Any, new: Any, cached: Any, elem_bytes: float) -> Any:
    """New tokens times all tokens: a kernel that skips nothing."""
    return batch * (new * 1.0) * (new + cached)


DRIVERS: dict[str, Driver] = {
    "useful": lambda op, b, n, c, e: op.model_flops(b, n, c),
    "executed": lambda op, b, n, c, e: op.executed_flops(b, n, c),
    "bytes": lambda op, b, n, c, e: op.min_bytes(b, n, c, e),
    "pairs": _every_pair,
}


@dataclass(frozen=True)
class Identity:
    """What makes two points lie on the same curve, but for the shape."""

    family: str
    provider: str
    dtype: str
    mode: str
    phase: str

    @classmethod
    def of(cls, o: Observation) -> Identity:
        return cls(*cls.fields_of(o))

    @staticmethod
    def fields_of(o: Observation) -> tuple[str, str, str, str, str]:
        """What `of` makes an identity of: thousands of points share one."""
        phase = "prefill" if isinstance(o.op, PHASELESS) and not o.training else o.phase
        return o.op.family, o.provider, o.dtype, o.mode, phase


@dataclass(frozen=True)
class Stencil:
    """For each of N targets the two nodes left and right of it: indices into the flat arrays.

    Where a row ends, `outer_left == left` or `outer_right == right`.
    """

    outer_left: Ints
    left: Ints
    right: Ints
    outer_right: Ints


@dataclass(frozen=True, kw_only=True)
class Nodes:
    """Points in rows. Flat arrays are sorted by row, then along it.

    `rows` is the value of each row (a batch size), `start` and `count` its place in the flat
    arrays. `log_s` is the log of the latency in seconds; `noise` the relative 80 % half-width of
    each node, NaN if unknown; `filled` marks nodes estimated from neighbours, not measured.
    """

    rows: Floats
    start: Ints
    count: Ints
    axis: Floats
    log_s: Floats
    noise: Floats
    filled: NDArray[np.bool_]
    long: NDArray[np.bool_]
    _cache: dict[object, Floats] = field(default_factory=dict, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.axis)

    def driver_at_nodes(self, name: str) -> Floats:
        raise NotImplementedError

    def remember(self, what: object, compute: Callable[[], Floats]) -> Floats:
        """A value derived from these nodes, computed once."""
        if what not in self._cache:
            self._cache[what] = compute()
        return self._cache[what]

    @cached_property
    def log_axis(self) -> Floats:
        return np.log(self.axis)

    @cached_property
    def latency(self) -> Floats:
        return np.exp(self.log_s)

    @cached_property
    def row_of(self) -> Ints:
        return np.repeat(np.arange(len(self.rows)), self.count)

    @cached_property
    def last_of(self) -> Ints:
        """[rows] index of each row's last node."""
        return self.start + self.count - 1

    @cached_property
    def half(self) -> Floats:
        """80 % half-width of each node's log time."""
        known = np.where(np.isnan(self.noise), UNKNOWN_NOISE, self.noise)
        return np.maximum(known, REPEATABILITY)

    @cached_property
    def excess_noise(self) -> Floats:
        """What nodes scatter more than usual here: the usual noise is in left-out errors."""
        known = np.nan_to_num(self.noise, nan=0.0)
        usual = np.median(known[~self.filled]) if not self.filled.all() else 0.0
        return np.maximum(known - usual, 0.0)

    @cached_property
    def relevant(self) -> NDArray[np.bool_]:
        """Nodes by which methods are chosen: long enough to be no mere launch."""
        return self.long & (self.latency >= LEAST_SECONDS)

    @cached_property
    def _search_key(self) -> Floats:
        return self.row_of * _ROW_STRIDE + self.log_axis

    def locate(self, row_index: Ints, log_axis: Floats) -> Stencil:
        """The stencil around each target in its row; beyond an end, the two nodes nearest it."""
        first, last = self.start[row_index], self.last_of[row_index]
        right = np.searchsorted(self._search_key, row_index * _ROW_STRIDE + log_axis)
        left = np.clip(right - 1, first, np.maximum(last - 1, first))
        right = np.minimum(left + 1, last)
        return Stencil(np.maximum(left - 1, first), left, right, np.minimum(right + 1, last))

    def leave_one_out(self) -> tuple[Ints, Stencil]:
        """Measured inner nodes, and for each the stencil that is left when it is taken out."""
        first, last = self.start[self.row_of], self.last_of[self.row_of]
        at = np.arange(len(self))
        inside = at[(at > first) & (at < last) & ~self.filled]
        first, last = first[inside], last[inside]
        return inside, Stencil(
            np.maximum(inside - 2, first), inside - 1, inside + 1, np.minimum(inside + 2, last)
        )


@dataclass(frozen=True, kw_only=True)
class Curve(Nodes):
    """The nodes of one kernel on one shape. `keys` names the measured point of each.

    A curve of segments holds prefills of `segment` new tokens each, along what came before.
    """

    op: Op
    identity: Identity
    layout: Layout
    keys: tuple[str, ...]
    segment: int = 0

    @classmethod
    def build(
        cls, points: Sequence[Observation], identity: Identity, *, segment: int = 0
    ) -> Curve:
        """From ok observations of one operation. Repeats of a workload become their median."""
        op = points[0].op
        layout: Layout = "segment" if segment else layout_of(op, identity.phase)
        groups: dict[tuple[float, float], list[Observation]] = {}
        for p in points:
            row, axis = coordinates(layout, p.batch_size, p.new_tokens, p.cached_tokens)
            groups.setdefault((float(row), float(axis)), []).append(p)
        cells = sorted(groups)
        merged = [_merge(groups[cell]) for cell in cells]
        blank = cls(
            op=op,
            identity=identity,
            layout=layout,
            segment=segment,
            rows=np.empty(0),
            start=np.empty(0, np.int64),
            count=np.empty(0, np.int64),
            axis=np.empty(0),
            log_s=np.empty(0),
            noise=np.empty(0),
            filled=np.empty(0, bool),
            long=np.empty(0, bool),
            keys=(),
        )
        return blank.with_nodes(
            row=np.array([c[0] for c in cells]),
            axis=np.array([c[1] for c in cells]),
            log_s=np.array([m[0] for m in merged]),
            noise=np.array([m[1] for m in merged]),
            filled=np.zeros(len(cells), bool),
            keys=tuple(m[2] for m in merged),
        )

    def with_nodes(
        self,
        *,
        row: Floats,
        axis: Floats,
        log_s: Floats,
        noise: Floats,
        filled: NDArray[np.bool_],
        keys: tuple[str, ...],
    ) -> Curve:
        """These nodes, in any order, in place of this curve's; one value of each kind per node."""
        order = np.lexsort((axis, row))
        rows, start, count = np.unique(row[order], return_index=True, return_counts=True)
        along_tokens = self.layout in ("prefill", "segment", "decode")
        return replace(
            self,
            rows=rows,
            start=start.astype(np.int64),
            count=count.astype(np.int64),
            axis=axis[order],
            log_s=log_s[order],
            noise=noise[order],
            filled=filled[order],
            long=axis[order] >= LEAST_TOKENS if along_tokens else np.ones(len(axis), bool),
            keys=tuple(keys[i] for i in order),
            _cache={},
        )

    @property
    def measured_keys(self) -> tuple[str, ...]:
        return tuple(k for k, filled in zip(self.keys, self.filled, strict=True) if not filled)

    def measured(self) -> Curve:
        """Without nodes that were filled in."""
        if not self.filled.any():
            return self
        keep = ~self.filled
        return self.with_nodes(
            row=self.rows[self.row_of][keep],
            axis=self.axis[keep],
            log_s=self.log_s[keep],
            noise=self.noise[keep],
            filled=self.filled[keep],
            keys=self.measured_keys,
        )

    def driver(self, name: str, row: Any, axis: Any) -> Floats:
        """A cost driver at positions of this curve's shape."""
        b, n, c = workload_at(self.layout, row, axis, self.segment)
        value = DRIVERS[name](self.op, b, n, c, dtype_bytes(self.identity.dtype))
        return np.broadcast_to(np.asarray(value, float), np.shape(axis))

    def driver_at_nodes(self, name: str) -> Floats:
        return self.remember(name, lambda: self.driver(name, self.rows[self.row_of], self.axis))


@dataclass(frozen=True, kw_only=True)
class Pool(Nodes):
    """The nodes of many curves end to end, to judge a method on all of them at once.

    `curve_of` is the curve of each row.
    """

    curves: tuple[Curve, ...]
    curve_of: Ints

    @classmethod
    def of(cls, curves: Sequence[Curve]) -> Pool:
        def joined(name: str) -> NDArray[Any]:
            return np.concatenate([getattr(c, name) for c in curves])

        offset = np.cumsum([0, *(len(c) for c in curves)])
        rows = np.array([len(c.rows) for c in curves])
        return cls(
            rows=joined("rows"),
            start=np.concatenate([c.start + o for c, o in zip(curves, offset, strict=False)]),
            count=joined("count"),
            axis=joined("axis"),
            log_s=joined("log_s"),
            noise=joined("noise"),
            filled=joined("filled"),
            long=joined("long"),
            curves=tuple(curves),
            curve_of=np.repeat(np.arange(len(curves)), rows),
        )

    def driver_at_nodes(self, name: str) -> Floats:
        return self.remember(
            name, lambda: np.concatenate([c.driver_at_nodes(name) for c in self.curves])
        )


def _merge(points: Sequence[Observation]) -> tuple[float, float, str]:
    """(log latency, noise, key) of repeats: their median; half their spread counts as noise."""
    if len(points) == 1:
        return math.log(points[0].latency_s), points[0].noise, points[0].key
    latencies = np.array([p.latency_s for p in points])
    middle = float(np.median(latencies))
    nearest = points[int(np.argmin(np.abs(latencies - middle)))]
    noise = [p.noise for p in points if not math.isnan(p.noise)]
    spread = float(np.ptp(latencies)) / 2 / middle
    return math.log(middle), max([spread, *noise]), nearest.key
