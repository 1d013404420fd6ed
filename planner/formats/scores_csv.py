"""Our own CSV of scores, for results that no harness wrote.

    task,task_class,metric,value,eval_length
    contract clauses,retrieval,accuracy,81.5,32768

Columns: task, task_class, value; and where known metric (accuracy), eval_length, k_shot,
num_samples, chance, subclass. Values are percent, lengths whole tokens.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping

from planner.errors import UsageError
from planner.formats.foreign import clean, text
from planner.formats.scores import Score, task_facts
from planner.store.evidence_rules import METRICS, TASK_CLASSES, VALUE_RANGE

NAME = "csv"

REQUIRED = ("task", "value")
OPTIONAL = ("task_class", "metric", "eval_length", "k_shot", "num_samples", "chance", "subclass")


def is_mine(content: bytes) -> bool:
    header = content[:4096].decode("utf-8", "replace").lstrip("\ufeff").splitlines()[:1]
    return bool(header) and set(REQUIRED) <= {c.strip() for c in header[0].split(",")}


def parse(content: bytes, name: str) -> list[Score]:
    """The scores. Raises UsageError with the row for the first thing that is wrong."""
    try:
        lines = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True)
        header = [c.strip() for c in next(lines, [])]
        _check_header(header, name)
        return [
            _score(
                _cells(header, line, f"{name} row {lines.line_num}"),
                f"{name} row {lines.line_num}",
            )
            for line in lines
            if line
        ]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{name} is not a CSV file in UTF-8: {error}") from None


def _check_header(header: list[str], name: str) -> None:
    known = (*REQUIRED, *OPTIONAL)
    for column in header:
        if column not in known:
            raise UsageError(
                f"{name}: unknown column {clean(column)!r}; known: {', '.join(known)}"
            )
    for column in REQUIRED:
        if header.count(column) != 1:
            raise UsageError(f"{name}: column {column!r} has to be there once")
    if len(set(header)) != len(header):
        raise UsageError(f"{name}: a column stands twice in the header")


def _cells(header: list[str], line: list[str], where: str) -> dict[str, str]:
    if len(line) != len(header):
        raise UsageError(f"{where}: {len(line)} cells, the header has {len(header)}")
    return {column: cell.strip() for column, cell in zip(header, line, strict=True)}


def _score(cells: Mapping[str, str], where: str) -> Score:
    task = text(cells["task"], "task", where)
    facts = task_facts(task)
    task_class = cells.get("task_class") or facts.task_class
    if task_class and task_class not in TASK_CLASSES:
        raise UsageError(
            f"{where}: task_class must be one of {', '.join(TASK_CLASSES)}, "
            f"got {clean(task_class)!r}"
        )
    metric = cells.get("metric") or "accuracy"
    if metric not in METRICS or metric.startswith("delta_"):
        allowed = ", ".join(m for m in METRICS if not m.startswith("delta_"))
        raise UsageError(f"{where}: metric must be one of {allowed}, got {clean(metric)!r}")
    value = _number(cells["value"], "value", where, *VALUE_RANGE[metric])
    if value is None:
        raise UsageError(f"{where}: value is blank")
    chance = _number(cells.get("chance", ""), "chance", where, 0.0, 100.0)
    return Score(
        task=task,
        task_class=task_class,
        subclass=clean(cells.get("subclass", "")) or facts.subclass,
        metric=metric,
        value=value,
        eval_length=_whole(cells.get("eval_length", ""), "eval_length", where, 1),
        k_shot=_whole(cells.get("k_shot", ""), "k_shot", where, 0),
        num_samples=_whole(cells.get("num_samples", ""), "num_samples", where, 1),
        chance=facts.chance if chance is None else chance,
    )


def _number(cell: str, what: str, where: str, low: float, high: float) -> float | None:
    if not cell:
        return None
    try:
        found = float(cell)
    except ValueError:
        found = float("nan")
    if not low <= found <= high or found in (float("inf"), float("-inf")):
        raise UsageError(
            f"{where}: {what} must be a number from {low:g} to {high:g}, got {cell[:40]!r}"
        )
    return found


def _whole(cell: str, what: str, where: str, low: int) -> int | None:
    if not cell:
        return None
    if not (cell.isascii() and cell.isdecimal()) or len(cell) > 12 or int(cell) < low:
        raise UsageError(
            f"{where}: {what} must be a whole number of at least {low}, got {cell[:40]!r}"
        )
    return int(cell)
