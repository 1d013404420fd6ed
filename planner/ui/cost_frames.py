"""Cost frames: a cost report as the Cost page's charts and tables show it. No drawing.

prices   one row per model, context and side (input, output): $ a million tokens
parts    one row per model, phase and role: milliseconds
memory   one row per model, rules (ideal, reserved) and what holds bytes: GiB
fits     one row per model, context and rules: sequences that fit
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pandas as pd

from planner.cost.basis import worst
from planner.cost.price import token_price
from planner.report.cost import SIDES, CostReport, ModelReport
from planner.workload import format_tokens

ROLES = {
    "mixer": "mixers",
    "projection": "projections",
    "convolution": "convolutions",
    "channel": "MLP or experts",
    "lm_head": "LM head",
    "all_reduce": "all-reduce",
    "elementwise": "norms, gates, activations",
    "launch": "launches",
}


def prices(report: CostReport) -> pd.DataFrame:
    """Empty without an hourly price; rows of contexts that do not fit are left out."""
    return pd.DataFrame(list(_prices(report)))


def _prices(report: CostReport) -> Iterator[dict[str, Any]]:
    if report.price is None:
        return
    for m in report.models:
        for point in m.over:
            price = token_price(point.cost, report.price.usd_per_hour)
            for side in SIDES:
                found = price.input if side == "input" else price.output
                if math.isfinite(found.value):
                    yield {
                        "model": m.name,
                        "side": f"{side} tokens",
                        "length": point.context,
                        "usd": found.value,
                        "low": found.low,
                        "high": found.high,
                        "basis": found.basis.label,
                        "batch_size": point.cost.batch_size,
                    }


def crossings(report: CostReport) -> pd.DataFrame:
    """Where each later model's tokens become cheaper than the first one's."""
    rows = [
        {
            "side": f"{side} tokens",
            "model": m.name,
            "length": found.context,
            "at": format_tokens(round(found.context)),
        }
        for m in report.models[1:]
        for side, found in m.crossings.items()
        if math.isfinite(found.context) and found.context > m.over[0].context
    ]
    return pd.DataFrame(rows, columns=["side", "model", "length", "at"])


def parts(report: CostReport) -> pd.DataFrame:
    """By role, in the order of `ROLES`; the basis is the worst of the role's parts."""
    rows = []
    for m in report.models:
        for name, phase in (("TTFT", m.cost.prefill), ("TPOT", m.cost.decode)):
            for order, (role, title) in enumerate(ROLES.items()):
                mine = [p for p in phase.parts if p.role == role]
                if mine and not phase.blocked:
                    rows.append(
                        {
                            "model": m.name,
                            "phase": name,
                            "role": title,
                            "order": order,
                            "ms": 1e3 * sum(p.seconds for p in mine),
                            "share": sum(p.seconds for p in mine) / phase.seconds,
                            "basis": worst(p.basis for p in mine).label,
                            "providers": ", ".join(dict.fromkeys(p.provider for p in mine)),
                        }
                    )
    return pd.DataFrame(rows)


def calls(report: CostReport) -> pd.DataFrame:
    """Every kernel of both phases, in milliseconds."""
    rows = [
        {
            "model": m.name,
            "phase": name,
            "role": ROLES[p.role],
            "part": p.name,
            "calls": p.count,
            "ms": 1e3 * p.seconds,
            "low": 1e3 * p.low,
            "high": 1e3 * p.high,
            "share": 100 * p.seconds / phase.seconds,
            "basis": p.basis.label,
            "provider": p.provider,
        }
        for m in report.models
        for name, phase in (("prefill", m.cost.prefill), ("decode", m.cost.decode))
        for p in sorted(phase.parts, key=lambda p: -p.seconds)
    ]
    return pd.DataFrame(rows)


def memory(report: CostReport) -> pd.DataFrame:
    """Of one device, at the batch that is decoded."""
    return pd.DataFrame([row for m in report.models for row in _memory(m)])


def _memory(m: ModelReport) -> Iterator[dict[str, Any]]:
    batch = max(m.cost.batch_size, 1)
    for rules, model in (("ideal", m.ideal), ("reserved", m.reserved)):
        at = model.at(m.context, batch)
        held = {
            "weights": at.weights,
            "KV cache": at.kv_cache,
            "state": at.state,
            "activations": at.workspace,
        }
        for order, (what, size) in enumerate(held.items()):
            if size:
                yield {
                    "model": m.name,
                    "rules": rules,
                    "what": what,
                    "order": order,
                    "gib": size / 2**30,
                    "batch_size": batch,
                }


def fits(report: CostReport) -> pd.DataFrame:
    """Sequences that fit at each length; none where not even one does."""
    output = report.traffic.output_tokens
    rows = [
        {
            "model": m.name,
            "rules": rules,
            "length": point.context,
            "sequences": model.max_concurrency(point.context + output),
            "limit": model.limited_by(point.context + output).replace("_", " "),
        }
        for m in report.models
        for rules, model in (("ideal", m.ideal), ("reserved", m.reserved))
        for point in m.over
    ]
    frame = pd.DataFrame(rows)
    return frame[frame["sequences"] > 0]
