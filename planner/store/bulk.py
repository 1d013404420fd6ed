"""The rows of a measurements file, thousands at a time: what `files.py` reads one by one.

Shipped files hold tens of thousands of points, and loading them is the first thing a new user
waits for. Here each check and each formula runs once per column or once per distinct operation.
A file with anything unusual in it is left to the slow reader, which names the row.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.errors import UsageError
from planner.store.records import Environment, Outcome, thin, to_the_second
from planner.workload import (
    BACKWARD_OVER_FORWARD,
    canonical_json,
    dtype_bytes,
    operation_from,
)

ALLOWED = {
    "mode": {"eager", "graph"},
    "cache_state": {"cold", "warm"},
    "outcome": {o.value for o in Outcome},
    "training": {"True", "False"},
}
AT_LEAST = {"batch_size": 1, "new_tokens": 1, "cached_tokens": 0, "num_samples": 0}
OPTIONAL: Mapping[str, Callable[[float], float]] = {
    "peak_bytes": int,
    "workspace_bytes": int,
    "energy_j": float,
    "gate_error": float,
}
COSTS = ("model_flops", "executed_flops", "min_bytes")
KEY_FIELDS = ("batch_size", "cache_state", "cached_tokens", "dtype", "family", "method_version",
              "mode", "new_tokens", "provider", "spec", "training", "variant")  # fmt: skip
PLAIN = ("environment_id", "family", "dtype", "provider", "variant", "mode", "cache_state",
         "method_version", "outcome", "reason", "timing_method")  # fmt: skip


Columns = dict[str, list[str]]
Ints = NDArray[np.int64]


class _NotPlain(Exception):
    """Something only the slow reader can judge."""


def table_rows(
    path: Path, columns: tuple[str, ...], environments: Mapping[str, Environment]
) -> list[dict[str, Any]] | None:
    """The file as rows of the points table; None if some row is not plainly right."""
    try:
        return _rows(_read(path, columns), environments)
    except (_NotPlain, OSError, csv.Error, ValueError, KeyError, TypeError, UsageError):
        return None


def _read(path: Path, wanted: tuple[str, ...]) -> Columns:
    with path.open(newline="", encoding="utf-8-sig") as handle:
        reader = csv.reader(handle)
        header = next(reader, [])
        values = list(zip(*reader, strict=True))
    if len(values) != len(header):
        raise _NotPlain("no rows, or rows of several lengths")
    columns = {name: list(column) for name, column in zip(header, values, strict=True)}
    return {name: columns[name] for name in wanted}


def _rows(raw: Columns, environments: Mapping[str, Environment]) -> list[dict[str, Any]]:
    counts = _checked(raw, environments)
    training = [text == "True" for text in raw["training"]]
    specs, costs = _operations(raw, counts, np.array(training))
    columns: dict[str, list[Any]] = {
        **{name: raw[name] for name in PLAIN},
        **{name: array.tolist() for name, array in (counts | costs).items()},
        **{name: _optional(raw[name], kind) for name, kind in OPTIONAL.items()},
        **_samples(raw, counts["num_samples"].tolist()),
        "spec": specs,
        "training": training,
        "phase": _phases(counts, np.array(training)),
        "telemetry": _each(raw["telemetry"], lambda t: canonical_json(dict(json.loads(t)))),
        "measured_at": _each(raw["measured_at"], _to_the_second),
    }
    columns["key"] = _keys(columns)
    names = list(columns)
    return [dict(zip(names, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _checked(raw: Columns, environments: Mapping[str, Environment]) -> dict[str, Ints]:
    """The counts as arrays, once every column holds only what is allowed."""
    for name, allowed in {**ALLOWED, "environment_id": set(environments)}.items():
        if not set(raw[name]) <= allowed:
            raise _NotPlain(name)
    counts = {name: np.array(list(map(int, raw[name])), np.int64) for name in AT_LEAST}
    if any((counts[name] < least).any() for name, least in AT_LEAST.items()):
        raise _NotPlain("count")
    if any(r == "" and o != "ok" for r, o in zip(raw["reason"], raw["outcome"], strict=True)):
        raise _NotPlain("reason")
    return counts


def _operations(
    raw: Columns, counts: dict[str, Ints], training: NDArray[np.bool_]
) -> tuple[list[str], dict[str, Any]]:
    """Each row's canonical spec, and its FLOPs and bytes by the operation's own formulas."""
    groups: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for i, name in enumerate(zip(raw["family"], raw["spec"], raw["dtype"], strict=True)):
        groups[name].append(i)
    specs = [""] * len(training)
    costs = {name: np.empty(len(training)) for name in COSTS}
    passes = np.where(training, 1 + BACKWARD_OVER_FORWARD, 1.0)
    for (family, text, dtype), part in groups.items():
        op = operation_from(family, json.loads(text))
        canonical = canonical_json(op.to_dict())
        for i in part:
            specs[i] = canonical
        batch, new, cached = (
            counts[n][part] for n in ("batch_size", "new_tokens", "cached_tokens")
        )
        costs["model_flops"][part] = op.model_flops(batch, new, cached)
        costs["executed_flops"][part] = op.executed_flops(batch, new, cached)
        costs["min_bytes"][part] = op.min_bytes(batch, new, cached, dtype_bytes(dtype))
    return specs, {name: passes * cost for name, cost in costs.items()}


def _samples(raw: Columns, counts: list[int]) -> dict[str, list[Any]]:
    """Samples as the store keeps them: thinned, six digits, and possible where the point is ok."""
    found, numbers = [], []
    for text, outcome, count in zip(raw["samples_s"], raw["outcome"], counts, strict=True):
        samples = [float(s) for s in json.loads(text)]
        possible = bool(samples) and all(math.isfinite(s) and s > 0 for s in samples)
        if outcome == "ok" and not possible:
            raise _NotPlain("samples")
        found.append(json.dumps([float(f"{s:.6g}") for s in thin(samples)]))
        numbers.append(count or len(samples))
    return {"samples_s": found, "num_samples": numbers}


def _each(column: Iterable[Any], make: Callable[[Any], Any]) -> list[Any]:
    """`make` of each value, called once per distinct one."""
    values = list(column)
    made = {value: make(value) for value in set(values)}
    return [made[value] for value in values]


def _optional(column: list[str], kind: Callable[[float], float]) -> list[Any]:
    def read(text: str) -> float | None:
        if text == "":
            return None
        if not math.isfinite(float(text)):
            raise _NotPlain("number")
        return kind(float(text))

    return _each(column, read)


def _to_the_second(text: str) -> str:
    return to_the_second(datetime.fromisoformat(text))


def _phases(counts: dict[str, Ints], training: NDArray[np.bool_]) -> list[str]:
    decode = (counts["new_tokens"] == 1) & (counts["cached_tokens"] > 0)
    phases: list[str] = np.where(
        training, "training", np.where(decode, "decode", "prefill")
    ).tolist()
    return phases


def _keys(columns: Mapping[str, list[Any]]) -> list[str]:
    """The points' keys: `records.point_key`, its canonical JSON put together from parts."""
    fields = {name: name for name in KEY_FIELDS} | {"environment": "environment_id"}
    parts = []
    for field in sorted(fields):
        values = columns[fields[field]]
        as_json = values if field == "spec" else _each(values, json.dumps)
        parts.append([f'"{field}":{text}' for text in as_json])
    return [
        hashlib.sha256(("{" + ",".join(row) + "}").encode()).hexdigest()[:32]
        for row in zip(*parts, strict=True)
    ]
