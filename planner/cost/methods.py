"""Methods: ways to read a curve between its nodes, and past their end.

Between nodes each method sees a stencil, two nodes on either side. Past the end there are two
kinds: a line in a cost driver through the row's last nodes, and a surface through all rows,

    seconds = c0 + c1 length + row (c2 length + c3 driver),

a launch cost, a serial chain that one sequence cannot hide, work per token and work per driver.
Rows of large batches, where the device is full, tell what a long sequence at batch 1 will do.
All values are logs of seconds; all functions take arrays of N targets.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import numpy as np

from planner.cost.curves import Curve, Floats, Ints, Nodes, Stencil


def log_linear(nodes: Nodes, s: Stencil, x: Floats, d: Floats, at_nodes: Floats) -> Floats:
    """A power law between the two nodes."""
    t = _fraction(nodes.log_axis, s, x)
    return nodes.log_s[s.left] + t * (nodes.log_s[s.right] - nodes.log_s[s.left])


def affine(nodes: Nodes, s: Stencil, x: Floats, d: Floats, at_nodes: Floats) -> Floats:
    """Fixed cost plus a rate times the driver; a power law where the driver stands still."""
    low, high = at_nodes[s.left], at_nodes[s.right]
    span = high - low
    moving = span > 1e-9 * high
    along = _fraction(nodes.log_axis, s, x)
    t = np.where(moving, (d - low) / np.where(moving, span, 1.0), along)
    t = np.clip(t, 0.0, 1.0)
    a, b = nodes.latency[s.left], nodes.latency[s.right]
    power = nodes.log_s[s.left] + t * (nodes.log_s[s.right] - nodes.log_s[s.left])
    return np.where(moving, np.log(a + t * (b - a)), power)


def monotone_cubic(nodes: Nodes, s: Stencil, x: Floats, d: Floats, at_nodes: Floats) -> Floats:
    """A monotone cubic in log length through log(seconds / driver).

    Slopes as in PCHIP (Fritsch and Butland 1984); at a row's end the secant serves.
    """
    position = nodes.log_axis
    value = nodes.log_s - np.log(at_nodes)
    h = position[s.right] - position[s.left]
    h = np.where(h > 0, h, 1.0)
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
    step = position[inner] - position[outer]
    alone = step == 0
    other = (value[inner] - value[outer]) / np.where(alone, 1.0, step)
    same_sign = ~alone & (other * secant > 0)
    a, b = 2 * h + np.abs(step), h + 2 * np.abs(step)
    mean = (a + b) / (a / np.where(same_sign, other, 1.0) + b / np.where(same_sign, secant, 1.0))
    return np.where(alone, secant, np.where(same_sign, mean, 0.0))


def _fraction(position: Floats, s: Stencil, x: Floats) -> Floats:
    span = position[s.right] - position[s.left]
    return np.where(span > 0, (x - position[s.left]) / np.where(span > 0, span, 1.0), 0.0)


METHODS: dict[str, Callable[[Nodes, Stencil, Floats, Floats, Floats], Floats]] = {
    "log_linear": log_linear,
    "affine": affine,
    "monotone_cubic": monotone_cubic,
}


# Past the end. `last` is the index of the node that counts as a row's last, `first` of its first.


def line(nodes: Nodes, count: int, last: Ints, first: Ints, d: Floats, at_nodes: Floats) -> Floats:
    """Fixed cost plus rate times driver through the last `count` nodes; one: proportional.

    Least squares in relative error; never below the last node, since work only grows.
    """
    proportional = nodes.log_s[last] + np.log(d / at_nodes[last])
    if count == 1:
        return proportional
    reach = last[:, None] - np.arange(count)
    there = np.maximum(reach, first[:, None])
    y = nodes.latency[there]
    w = (reach >= first[:, None]) / y**2
    scale = at_nodes[last]
    z = at_nodes[there] / scale[:, None]
    total = w.sum(-1)
    mean_z, mean_y = (w * z).sum(-1) / total, (w * y).sum(-1) / total
    off_z = z - mean_z[:, None]
    spread = (w * off_z**2).sum(-1)
    moving = spread > 1e-12 * total
    rate = (w * off_z * (y - mean_y[:, None])).sum(-1) / np.where(moving, spread, 1.0)
    value = mean_y + rate * (d / scale - mean_z)
    log_value = np.where(moving, np.log(np.maximum(value, 1e-300)), proportional)
    return np.maximum(log_value, nodes.log_s[last])


SURFACE_WEIGHT_POWER = 3.0
"""Nodes weigh as (length / longest) to this power, over their time: chosen on the published H200
prefill tables, where 2 to 4 do as well."""


def surface_problems(curve: Curve, driver: str, longest: Floats) -> tuple[Floats, Floats]:
    """([M, 4, 4], [M, 4]) normal equations of the surfaces that see nodes of all rows no longer
    than each `longest`."""
    features = _surface_features(
        curve.axis, curve.rows[curve.row_of], curve.driver_at_nodes(driver)
    )
    weight = (curve.axis / longest[:, None]) ** SURFACE_WEIGHT_POWER / curve.latency
    weight[curve.axis[None] > longest[:, None] * (1 + 1e-9)] = 0.0
    weighted = features * weight[..., None]
    gram = np.swapaxes(weighted, 1, 2) @ weighted
    return gram, np.einsum("mnk,mn->mk", weighted, weight * curve.latency)


def on_surface(coefficients: Floats, length: Floats, row: Floats, d: Floats) -> Floats:
    """Log seconds on surfaces [4], one for all targets, or [N, 4]."""
    seconds = (_surface_features(length, row, d) * coefficients).sum(-1)
    log_s: Floats = np.log(np.maximum(seconds, 1e-300))
    return log_s


def _surface_features(length: Floats, row: Floats, d: Floats) -> Floats:
    return np.stack([np.ones(len(length)), length, row * length, d], axis=-1)


def non_negative_least_squares(gram: Floats, target: Floats) -> Floats:
    """[M, K] the x >= 0 that minimise x G x - 2 x t, for M problems of few columns K.

    Tries every subset of columns and keeps the best whose solution is feasible.
    """
    columns = target.shape[1]
    scale = np.sqrt(np.maximum(np.einsum("mkk->mk", gram), 1e-300))
    unit, goal = gram / (scale[:, :, None] * scale[:, None]), target / scale
    unit = unit + 1e-12 * np.eye(columns)
    best, most = np.zeros_like(target), np.zeros((len(target), 1))
    for size in range(1, columns + 1):
        for subset in combinations(range(columns), size):
            use = list(subset)
            x = np.zeros_like(target)
            x[:, use] = np.linalg.solve(unit[:, use][:, :, use], goal[:, use, None])[..., 0]
            gain = (x * goal).sum(-1, keepdims=True)
            better = (x.min(-1, keepdims=True) >= 0) & (gain > most)
            best, most = np.where(better, x, best), np.where(better, gain, most)
    found: Floats = best / scale
    return found


SHORTEST_CALL_S = 1.8e-6
"""No kernel call in a graph takes less: the shortest of some 20,000 imported and measured ones."""


def before_start(nodes: Nodes, first: Ints, second: Ints, d: Floats, at_nodes: Floats) -> Floats:
    """Short of a row: fixed cost plus rate times driver through its first two nodes.

    Kept between the first node's time (all fixed cost) and its share of work (none), but for a
    call's least.
    """
    y0, y1 = nodes.latency[first], nodes.latency[second]
    d0, d1 = at_nodes[first], at_nodes[second]
    span = d1 - d0
    rate = np.where(span > 0, (y1 - y0) / np.where(span > 0, span, 1.0), y0 / d0)
    share = np.maximum(y0 * np.minimum(d / d0, 1.0), np.minimum(SHORTEST_CALL_S, y0))
    return np.log(np.clip(y0 + rate * (d - d0), share, y0))
