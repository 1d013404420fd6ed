"""Price: dollars a million input and output tokens, from GPU seconds and an hourly price.

    $ per input token  = devices x hourly price x prefill seconds / prompt tokens / utilisation
    $ per output token = devices x hourly price x TPOT(b) / b / utilisation

An input price is the mean over a prompt's tokens, those found in the prefix cache included: hits
make it lower, a longer prompt higher. b is the concurrency asked for, or what fits in memory.
Utilisation is the share of paid time that serves requests. No margin, no staff, no network: what
the devices cost.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from planner.architecture import Architecture
from planner.catalog import Price
from planner.cost.basis import Basis
from planner.cost.crossover import stays_positive
from planner.cost.model import CostModel, ModelCost, PhaseCost
from planner.workload import Traffic

MILLION = 1_000_000
HOUR_S = 3600.0

Side = Literal["input", "output"]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A value with its 80 % interval and the worst basis in it; NaN where there is none."""

    value: float
    low: float
    high: float
    basis: Basis

    def scaled(self, factor: float) -> Estimate:
        return replace(
            self, value=self.value * factor, low=self.low * factor, high=self.high * factor
        )


@dataclass(frozen=True, kw_only=True)
class TokenPrice:
    """US dollars: a million input tokens, a million output tokens, and one request."""

    input: Estimate
    output: Estimate
    request: Estimate


def token_price(cost: ModelCost, usd_per_hour: float) -> TokenPrice:
    """What the tokens of `cost` come to on devices of `usd_per_hour` each; NaN if none fits."""
    a_second = usd_per_hour / HOUR_S / cost.traffic.utilisation
    if cost.batch_size == 0:
        nothing = Estimate(value=math.nan, low=math.nan, high=math.nan, basis=cost.basis)
        return TokenPrice(input=nothing, output=nothing, request=nothing)
    all_devices = MILLION * a_second * cost.devices
    low, high = cost.gpu_seconds_interval()
    whole = Estimate(value=cost.gpu_seconds_per_request, low=low, high=high, basis=cost.basis)
    return TokenPrice(
        input=_seconds(cost.prefill).scaled(all_devices / cost.traffic.prompt_tokens),
        output=_seconds(cost.decode).scaled(all_devices / cost.batch_size),
        request=whole.scaled(a_second),
    )


def _seconds(phase: PhaseCost) -> Estimate:
    return Estimate(value=phase.seconds, low=phase.low, high=phase.high, basis=phase.basis)


# Over context length


@dataclass(frozen=True, kw_only=True)
class AtContext:
    """A model's cost with prompts of `context` tokens."""

    context: int
    cost: ModelCost


def over_context(
    model: CostModel, arch: Architecture, traffic: Traffic, contexts: Iterable[int]
) -> tuple[AtContext, ...]:
    """The same traffic with prompts of other lengths; the batch is what fits at each of them."""
    return tuple(
        AtContext(context=n, cost=model.estimate(arch, replace(traffic, prompt_tokens=n)))
        for n in contexts
    )


@dataclass(frozen=True, kw_only=True)
class Crossing:
    """From which context on the second model is the cheaper one, with an 80 % interval; NaN where
    it never is, the first context where it always is."""

    context: float
    low: float
    high: float


def crossing(first: Sequence[AtContext], second: Sequence[AtContext], side: Side) -> Crossing:
    """Where `second`'s tokens become cheaper than `first`'s, at the same contexts."""
    gains = np.array([_gain(a.cost, b.cost, side) for a, b in zip(first, second, strict=True)])
    contexts = np.array([a.context for a in first], np.int64)
    found = [
        float(stays_positive(contexts, gains[:, 0:1].T + sign * gains[:, 1:2].T)[0])
        for sign in (0, 1, -1)
    ]
    return Crossing(context=found[0], low=found[1], high=found[2])


def _gain(first: ModelCost, second: ModelCost, side: Side) -> tuple[float, float]:
    """(log of first / second, its 80 % half-width). What does not fit or run has lost.

    An error group moves both models alike, so only the difference of their shares is uncertain.
    """
    one, two = _per_token(first, side), _per_token(second, side)
    if not math.isfinite(one) or not math.isfinite(two):
        return (math.inf if two < one else -math.inf), 0.0
    mine, theirs = _shares(first, side), _shares(second, side)
    differences = (mine.get(g, 0.0) - theirs.get(g, 0.0) for g in mine.keys() | theirs.keys())
    return math.log(one / two), math.hypot(*differences)


def _per_token(cost: ModelCost, side: Side) -> float:
    """GPU seconds a token, infinite where there is no figure."""
    if not cost.batch_size or cost.blocked:
        return math.inf
    if side == "input":
        return cost.ttft_s / cost.traffic.prompt_tokens
    return cost.tpot_s / cost.batch_size


def _shares(cost: ModelCost, side: Side) -> dict[str, float]:
    """Relative half-width of a phase by error group."""
    phase = cost.prefill if side == "input" else cost.decode
    return {group: half / phase.seconds for group, half in phase.half_widths("high").items()}


# Whose price


def usual_price(prices: Iterable[Price], hardware: str) -> Price | None:
    """The cheapest price of a device in a list that is the user's own; without one the cheapest
    on-demand, then reserved, then marketplace price; None where the list lacks the device."""
    order = ("own", "on-demand", "reserved", "marketplace")
    rows = [p for p in prices if p.hardware == hardware]
    return min(rows, key=lambda p: (order.index(p.kind), p.usd_per_hour), default=None)
