"""Do layers add up? Stacks against the sum of their layers, measured the same way.

A stack of one layer is that layer; a stack of several is compared with the sum of its letters'.
"""

from __future__ import annotations

import json
from typing import Any

import pandas as pd

CONDITIONS = (
    "environment_id",
    "batch_size",
    "new_tokens",
    "cached_tokens",
    "dtype",
    "mode",
    "cache_state",
)


def residuals(points: pd.DataFrame) -> pd.DataFrame:
    """One row per stack of several layers whose single layers were measured too.

    Columns: the conditions, `pattern`, `provider`, `stack_s`, `sum_s` and `residual`, the share
    by which the stack takes longer than its layers (negative: shorter).
    """
    stacks = points[(points["family"] == "stack") & (points["outcome"] == "ok")]
    specs = [json.loads(text) for text in stacks["spec"]]
    layers: dict[tuple[Any, ...], float] = {}
    for (_, row), spec in zip(stacks.iterrows(), specs, strict=True):
        if len(spec["pattern"]) == 1:
            layers[_layer_key(row, spec, spec["pattern"], row["provider"])] = row["median_s"]
    found = []
    for (_, row), spec in zip(stacks.iterrows(), specs, strict=True):
        if len(spec["pattern"]) == 1:
            continue
        by_letter = dict(zip(sorted(spec["kinds"]), row["provider"].split("+"), strict=True))
        keys = [_layer_key(row, spec, c, by_letter[c]) for c in spec["pattern"]]
        if all(key in layers for key in keys):
            total = sum(layers[key] for key in keys)
            found.append(
                {name: row[name] for name in CONDITIONS}
                | {"pattern": spec["pattern"], "provider": row["provider"], "phase": row["phase"]}
                | {"stack_s": row["median_s"], "sum_s": total}
                | {"residual": row["median_s"] / total - 1}
            )
    columns = [*CONDITIONS, "pattern", "provider", "phase", "stack_s", "sum_s", "residual"]
    return pd.DataFrame(found, columns=columns)


def _layer_key(row: Any, spec: dict[str, Any], letter: str, provider: str) -> tuple[Any, ...]:
    kind = json.dumps(spec["kinds"][letter], sort_keys=True)
    sizes = spec["hidden_size"], spec.get("mlp_size", 0)
    return (*(row[name] for name in CONDITIONS), *sizes, kind, provider)
