"""Inspect evaluation logs: `.json`, or `.eval` (a zip whose header.json is the log's head).

Only logs with status "success" are read. Which unit a scorer uses is its own affair: values are
taken as fractions, unless `is_percent` says otherwise. Source: inspect_ai, EvalLog version 2.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from typing import Any

from planner.errors import UsageError
from planner.formats.foreign import MAX_BYTES, mapping, parse_json, percent, text, whole
from planner.formats.scores import Score, task_facts

NAME = "inspect"

PREFERRED = ("accuracy", "mean", "f1", "exact_match")


def is_mine(data: Any) -> bool:
    return isinstance(data, dict) and isinstance(data.get("eval"), dict) and "status" in data


def header(content: bytes, name: str) -> Any:
    """The log's head from an `.eval` file."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            info = archive.getinfo("header.json")
            if info.file_size > MAX_BYTES:
                raise UsageError(f"{name}: header.json is too large to be a log's head")
            with archive.open(info) as handle:
                return parse_json(handle.read(MAX_BYTES + 1), f"{name}/header.json")
    except KeyError:
        raise UsageError(f"{name} has no header.json: it is not an Inspect log") from None
    except (zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, RuntimeError,
            EOFError, OSError, ValueError) as error:  # fmt: skip
        raise UsageError(f"{name} is not an Inspect log: {error}") from None


def parse(
    data: Mapping[str, Any], name: str, *, length: int | None, is_percent: bool
) -> tuple[str, list[Score]]:
    """(model, scores): of each scorer its preferred metric."""
    if data.get("status") != "success":
        raise UsageError(
            f"{name}: only finished evaluations count, status is {str(data.get('status'))[:40]!r}"
        )
    about = mapping(data, "eval", name)
    task = text(about.get("task"), "eval.task", name)
    results = mapping(data, "results", name)
    found = results.get("scores")
    if not isinstance(found, list) or not found:
        raise UsageError(f"{name}: results.scores must be a list with at least one scorer")
    facts = task_facts(task)
    samples = whole(results.get("completed_samples"), "results.completed_samples", name)
    scores = []
    for scorer in found:
        if not isinstance(scorer, dict):
            raise UsageError(f"{name}: an entry of results.scores must be an object")
        metric, value = _value(scorer, name, is_percent)
        scores.append(
            Score(
                task=task if len(found) == 1 else f"{task} {_name(scorer, name)}",
                task_class=facts.task_class,
                subclass=facts.subclass,
                chance=facts.chance,
                metric="accuracy",
                value=value,
                eval_length=length,
                num_samples=samples,
                measure=metric,
            )
        )
    model = about.get("model")
    return (model if isinstance(model, str) else ""), scores


def _name(scorer: Mapping[str, Any], name: str) -> str:
    return text(scorer.get("name"), "a scorer's name", name)


def _value(scorer: Mapping[str, Any], name: str, is_percent: bool) -> tuple[str, float]:
    """(metric, percent) of the scorer's preferred metric."""
    metrics = mapping(scorer, "metrics", name)
    metric = next((m for m in PREFERRED if m in metrics), None)
    if metric is None:
        raise UsageError(f"{name}: none of the metrics {', '.join(PREFERRED)} is there")
    entry = metrics[metric]
    value = entry.get("value") if isinstance(entry, dict) else entry
    return metric, percent(value, metric, name, fraction=not is_percent)
