"""Curve: the measured times of one kernel on one shape, and how to read between and beyond them.

A curve is a few rows of points. A row holds one batch size and runs along the length: new tokens
for a prefill, keys in sight for a decode step. Kernels that do not see a length (a recurrent
step, a matrix product) have a single row along the quantity they do see.

    row b=1   1k ──── 2k ──── 4k ──── 8k         between nodes: one of METHODS, on a stencil of
    row b=4   1k ──── 2k ──── 4k                 two nodes either side
    row b=16  1k ──── 2k                         beyond: affine in a cost driver

Nothing here decides which method or driver to use, or how wrong it is: `fit.py` does, by leaving
points out and asking the very same functions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from planner.cost.observations import Observation
from planner.mixers import get_mixer
from planner.workload import ConvOp, DenseOp, MixerOp, Op, dtype_bytes

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Layout = Literal["prefill", "decode", "tokens", "state"]

_ROW_STRIDE = 128.0
"""Keeps rows apart in the one sorted search key; log lengths stay far below it."""


def layout_of(op: Op, phase: str) -> Layout:
    """Which quantity is the row and which runs along it.

    prefill: rows by batch, along new tokens. decode: rows by batch, along keys (cached + 1).
    tokens: one row along batch x new tokens. state: one row along the batch.
    """
    if isinstance(op, DenseOp):
        return "tokens"
    recurrent = isinstance(op, MixerOp) and get_mixer(op.spec.mixer).kind == "recurrent"
    if phase == "decode" and (recurrent or isinstance(op, ConvOp)):
        return "state"
    return "decode" if phase == "decode" else "prefill"


def coordinates(layout: Layout, batch: Any, new: Any, cached: Any) -> tuple[Any, Any]:
    """(row, position along it) of a workload."""
    if layout == "prefill":
        return batch, new
    if layout == "decode":
        return batch, cached + 1
    if layout == "tokens":
        return np.ones_like(batch), batch * new
    return np.ones_like(batch), batch


def workload_at(layout: Layout, row: Any, axis: Any) -> tuple[Any, Any, Any]:
    """(batch, new, cached) of a position: the inverse of `coordinates`."""
    if layout == "prefill":
        return row, axis, 0
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
        phase = "prefill" if isinstance(o.op, DenseOp) and not o.training else o.phase
        return cls(o.op.family, o.provider, o.dtype, o.mode, phase)


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
class Curve:
    """Nodes in rows. Flat arrays are sorted by row, then along it.

    `log_s` is the log of the latency in seconds; `noise` the relative 80 % half-width of each
    node; `filled` marks nodes estimated from neighbouring rows rather than measured.
    """

    op: Op
    identity: Identity
    layout: Layout
    rows: Floats
    start: Ints
    count: Ints
    axis: Floats
    log_s: Floats
    noise: Floats
    filled: NDArray[np.bool_]
    keys: tuple[str, ...]
    _drivers: dict[str, Floats] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def build(cls, points: Sequence[Observation], identity: Identity) -> Curve:
        """From ok observations of one operation. Repeats of a workload become their median."""
        op = points[0].op
        layout = layout_of(op, identity.phase)
        groups: dict[tuple[float, float], list[Observation]] = {}
        for p in points:
            row, axis = coordinates(layout, p.batch_size, p.new_tokens, p.cached_tokens)
            groups.setdefault((float(row), float(axis)), []).append(p)
        cells = sorted(groups)
        merged = [_merge(groups[cell]) for cell in cells]
        return cls.from_nodes(
            op,
            identity,
            layout,
            row=np.array([c[0] for c in cells]),
            axis=np.array([c[1] for c in cells]),
            log_s=np.array([m[0] for m in merged]),
            noise=np.array([m[1] for m in merged]),
            filled=np.zeros(len(cells), bool),
            keys=tuple(m[2] for m in merged),
        )

    @classmethod
    def from_nodes(
        cls,
        op: Op,
        identity: Identity,
        layout: Layout,
        *,
        row: Floats,
        axis: Floats,
        log_s: Floats,
        noise: Floats,
        filled: NDArray[np.bool_],
        keys: tuple[str, ...],
    ) -> Curve:
        order = np.lexsort((axis, row))
        rows, start, count = np.unique(row[order], return_index=True, return_counts=True)
        return cls(
            op=op,
            identity=identity,
            layout=layout,
            rows=rows,
            start=start.astype(np.int64),
            count=count.astype(np.int64),
            axis=axis[order],
            log_s=log_s[order],
            noise=noise[order],
            filled=filled[order],
            keys=tuple(keys[i] for i in order),
        )

    def __len__(self) -> int:
        return len(self.axis)

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
    def _search_key(self) -> Floats:
        return self.row_of * _ROW_STRIDE + self.log_axis

    def driver(self, name: str, row: Any, axis: Any) -> Floats:
        """A cost driver at positions of this curve's shape."""
        b, n, c = workload_at(self.layout, row, axis)
        value = DRIVERS[name](self.op, b, n, c, dtype_bytes(self.identity.dtype))
        return np.broadcast_to(np.asarray(value, float), np.shape(axis))

    def driver_at_nodes(self, name: str) -> Floats:
        if name not in self._drivers:
            self._drivers[name] = self.driver(name, self.rows[self.row_of], self.axis)
        return self._drivers[name]

    def locate(self, row_index: Ints, log_axis: Floats) -> Stencil:
        """The stencil around each target in its row; beyond an end, the two nodes nearest it."""
        first = self.start[row_index]
        last = first + self.count[row_index] - 1
        right = np.searchsorted(self._search_key, row_index * _ROW_STRIDE + log_axis)
        left = np.clip(right - 1, first, np.maximum(last - 1, first))
        right = np.minimum(left + 1, last)
        return Stencil(np.maximum(left - 1, first), left, right, np.minimum(right + 1, last))

    def leave_one_out(self) -> tuple[Ints, Stencil]:
        """Interior nodes, and for each the stencil that is left when it is taken out."""
        first = self.start[self.row_of]
        last = first + self.count[self.row_of] - 1
        at = np.arange(len(self))
        inside = at[(at > first) & (at < last)]
        first, last = first[inside], last[inside]
        return inside, Stencil(
            np.maximum(inside - 2, first), inside - 1, inside + 1, np.minimum(inside + 2, last)
        )


def _merge(points: Sequence[Observation]) -> tuple[float, float, str]:
    """(log latency, noise, key) of repeats: their median; half their spread counts as noise."""
    latencies = np.array([p.latency_s for p in points])
    middle = float(np.median(latencies))
    nearest = points[int(np.argmin(np.abs(latencies - middle)))]
    spread = float(np.ptp(latencies)) / 2 / middle if len(points) > 1 else math.nan
    noise = [v for v in (*(p.noise for p in points), spread) if not math.isnan(v)]
    return math.log(middle), max(noise, default=math.nan), nearest.key


# Interpolation: log latency at a target from its stencil. `x` is the log position, `d` the driver
# at the target. All work on arrays of N targets.


def log_linear(curve: Curve, s: Stencil, x: Floats, d: Floats, at_nodes: Floats) -> Floats:
    """A power law between the two nodes."""
    t = _fraction(curve.log_axis, s, x)
    return curve.log_s[s.left] + t * (curve.log_s[s.right] - curve.log_s[s.left])


def affine(curve: Curve, s: Stencil, x: Floats, d: Floats, at_nodes: Floats) -> Floats:
    """Fixed cost plus a rate times the driver; a power law where the driver stands still."""
    low, high = at_nodes[s.left], at_nodes[s.right]
    span = high - low
    moving = span > 1e-9 * high
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(moving, (d - low) / span, _fraction(curve.log_axis, s, x))
    t = np.clip(t, 0.0, 1.0)
    a, b = curve.latency[s.left], curve.latency[s.right]
    between: Floats = np.where(
        moving, np.log(a + t * (b - a)), curve.log_s[s.left] + t * np.log(b / a)
    )
    return between


def monotone_cubic(curve: Curve, s: Stencil, x: Floats, d: Floats, at_nodes: Floats) -> Floats:
    """A monotone cubic in log length through log(latency / driver).

    Fritsch and Butland 1984 slopes, as in PCHIP; at a row's end the secant serves.
    """
    position = curve.log_axis
    value = curve.log_s - np.log(at_nodes)
    h = position[s.right] - position[s.left]
    secant = (value[s.right] - value[s.left]) / h
    slope_left = _harmonic(position, value, s.outer_left, s.left, h, secant)
    slope_right = _harmonic(position, value, s.outer_right, s.right, h, secant)
    t = (x - position[s.left]) / h
    u = 1 - t
    return (
        value[s.left] * (1 + 2 * t) * u * u
        + value[s.right] * (3 - 2 * t) * t * t
        + h * t * u * (slope_left * u - slope_right * t)
        + np.log(d)
    )


def _harmonic(
    position: Floats, value: Floats, outer: Ints, inner: Ints, h: Floats, secant: Floats
) -> Floats:
    """The slope at `inner`: a weighted harmonic mean of the secants on its two sides."""
    step = np.abs(position[inner] - position[outer])
    with np.errstate(divide="ignore", invalid="ignore"):
        other = (value[inner] - value[outer]) / (position[inner] - position[outer])
        a, b = 2 * h + step, h + 2 * step
        mean = (a + b) / (a / other + b / secant)
    return np.where(step == 0, secant, np.where(other * secant > 0, mean, 0.0))


def _fraction(position: Floats, s: Stencil, x: Floats) -> Floats:
    span = position[s.right] - position[s.left]
    safe = np.where(span > 0, span, 1.0)
    return np.where(span > 0, (x - position[s.left]) / safe, 0.0)


Interpolant = Callable[[Curve, Stencil, Floats, Floats, Floats], Floats]

METHODS: dict[str, Interpolant] = {
    "log_linear": log_linear,
    "affine": affine,
    "monotone_cubic": monotone_cubic,
}


# Beyond the last node: log latency from the last `nodes` of a row, affine in a driver. `last` is
# the index of the node that counts as the last, `first` that of the row's first.


def beyond_end(
    curve: Curve, nodes: int, last: Ints, first: Ints, d: Floats, at_nodes: Floats
) -> Floats:
    """Fixed cost plus rate times driver through the last `nodes`; with one node, proportional.

    Least squares in relative error; never below the last node, since work only grows.
    """
    if nodes == 1:
        return curve.log_s[last] + np.log(d / at_nodes[last])
    reach = np.maximum(last[..., None] - np.arange(nodes), first[..., None])
    weight = np.where(np.diff(reach, axis=-1, prepend=np.inf) == 0, 0.0, 1.0)
    y = curve.latency[reach]
    w = weight / y**2
    scale = at_nodes[last][..., None]
    z = at_nodes[reach] / scale
    total = w.sum(-1)
    mean_z, mean_y = (w * z).sum(-1) / total, (w * y).sum(-1) / total
    spread = (w * (z - mean_z[..., None]) ** 2).sum(-1)
    joint = (w * (z - mean_z[..., None]) * (y - mean_y[..., None])).sum(-1)
    moving = spread > 1e-18 * total
    alone = curve.latency[last] / np.maximum(z[..., 0], 1e-300)
    rate = np.where(moving, np.maximum(joint / np.where(moving, spread, 1.0), 0.0), alone)
    fixed = np.where(moving, mean_y - rate * mean_z, 0.0)
    value = fixed + rate * (d / scale[..., 0])
    return np.maximum(np.log(np.maximum(value, 1e-300)), curve.log_s[last])


def before_start(curve: Curve, first: Ints, second: Ints, d: Floats, at_nodes: Floats) -> Floats:
    """Fixed cost plus rate times driver through a row's first two nodes.

    Kept between the first node's time (all fixed cost) and its share of work (none).
    """
    y0, y1 = curve.latency[first], curve.latency[second]
    d0, d1 = at_nodes[first], at_nodes[second]
    span = d1 - d0
    rate = np.where(span > 0, (y1 - y0) / np.where(span > 0, span, 1.0), y0 / d0)
    share = y0 * np.minimum(d / d0, 1.0)
    return np.log(np.clip(y0 + rate * (d - d0), share, y0))
