"""RULER's `summary.csv` (or `summary-<task>.csv`): transposed, percent, length only in the path.

    0,1,2
    Tasks,niah_single_1,vt
    Score,100.0,83.2
    Nulls,0/500,0/500

Source: NVIDIA/RULER, scripts/eval/evaluate.py.
"""

from __future__ import annotations

import csv
import io
import re
from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean

from planner.errors import UsageError
from planner.formats.foreign import percent, text
from planner.formats.scores import Score, task_facts

NAME = "ruler"

_NULLS = re.compile(r"(\d{1,9})/(\d{1,9})")


def is_mine(content: bytes) -> bool:
    head = content[:4096].decode("utf-8", "replace")
    return any(line.startswith("Tasks,") for line in head.splitlines())


def parse(content: bytes, name: str, *, length: int | None) -> list[Score]:
    """The scores. Raises UsageError without `length`: the file does not say it."""
    if length is None:
        raise UsageError(
            f"{name}: RULER's summary does not say the context length; give it with --length"
        )
    rows = _rows(content, name)
    tasks, values = rows.get("Tasks"), rows.get("Score")
    if tasks is None or values is None or not tasks or len(tasks) != len(values):
        raise UsageError(
            f"{name} is not a RULER summary: it needs rows Tasks and Score of one length"
        )
    counts = rows.get("Nulls", [])
    scores = []
    for i, (task, value) in enumerate(zip(tasks, values, strict=True)):
        task_name = text(task, "a task's name", name)
        facts = task_facts(task_name)
        nulls = _NULLS.fullmatch(counts[i].strip()) if i < len(counts) else None
        scores.append(
            Score(
                task=task_name,
                task_class=facts.task_class,
                subclass=facts.subclass,
                chance=facts.chance,
                metric="accuracy",
                value=percent(_float(value, task_name, name), task_name, name, fraction=False),
                eval_length=length,
                num_samples=int(nulls[2]) if nulls else None,
            )
        )
    return scores


TASKS = (
    "niah_single_1", "niah_single_2", "niah_single_3", "niah_multikey_1", "niah_multikey_2",
    "niah_multikey_3", "niah_multivalue", "niah_multiquery", "vt", "cwe", "fwe", "qa_1", "qa_2",
)  # fmt: skip
"""The 13 that RULER's score is the mean of (Hsieh et al. 2024, table 2)."""

_ALIASES = {"qa_squad": "qa_1", "qa_hotpot": "qa_2"}
"""As lm-evaluation-harness names them, after "ruler_"."""


def means(scores: Sequence[Score]) -> list[Score]:
    """RULER's own score at each length where all 13 tasks are there: an absolute level."""
    by_length: dict[tuple[int | None, int | None], dict[str, Score]] = defaultdict(dict)
    for score in scores:
        name = score.task.removeprefix("ruler_")
        if score.metric == "accuracy":
            by_length[score.eval_length, score.k_shot][_ALIASES.get(name, name)] = score
    return [
        Score(
            task="RULER",
            task_class="retrieval",
            subclass="suite",
            metric="accuracy",
            value=fmean(found[name].value for name in TASKS),
            eval_length=length,
            k_shot=k_shot,
            chance=0.0,
            aggregate_of="RULER tasks",
        )
        for (length, k_shot), found in by_length.items()
        if set(TASKS) <= set(found)
    ]


def _rows(content: bytes, name: str) -> dict[str, list[str]]:
    try:
        lines = list(csv.reader(io.StringIO(content.decode("utf-8"), newline=""), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{name} is not a CSV file in UTF-8: {error}") from None
    found: dict[str, list[str]] = {}
    for line in lines:
        if line and line[0] in ("Tasks", "Score", "Nulls"):
            if line[0] in found:
                raise UsageError(f"{name}: row {line[0]} stands twice")
            found[line[0]] = line[1:]
    return found


def _float(value: str, task: str, name: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise UsageError(f"{name}: {task} must be a number, got {value[:40]!r}") from None
