"""Results: a file that an evaluation harness wrote, as scores; the format is told by its content.

>>> read_scores(Path("results_2026-11-01.json")).scores[0].task           # doctest: +SKIP
'niah_single_1'
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from planner.errors import UsageError
from planner.formats import helmet, inspect_log, lm_eval, ruler, scores_csv
from planner.formats.foreign import clean, parse_json, read_bytes, sha256_of
from planner.formats.scores import Score, ScoreFile, check_class

FORMATS = (lm_eval.NAME, ruler.NAME, helmet.NAME, inspect_log.NAME, scores_csv.NAME)


def read_scores(
    path: Path,
    *,
    format: str | None = None,
    length: int | None = None,
    is_percent: bool = False,
    classes: Mapping[str, str] | None = None,
) -> ScoreFile:
    """The scores of a results file; the format is told from its content unless given.

    `length` is the context in tokens of scores whose own is not in the file; `classes` gives tasks
    that are not known by name their class.

    Raises: UsageError for anything in the file that is not understood.
    """
    if format is not None and format not in FORMATS:
        raise UsageError(f"unknown format {format!r}; known: {', '.join(FORMATS)}")
    if length is not None and not 1 <= length < 1 << 40:
        raise UsageError(f"length must be at least 1 token, got {length}")
    content = read_bytes(path)
    name = clean(path.name)
    found, model, scores = _read(content, name, format, length, is_percent)
    scores = [_classified(_placed(score, length), name, classes or {}) for score in scores]
    if not scores:
        raise UsageError(f"{name} has no score that is understood (read as {found})")
    _refuse_doubles(scores, name)
    return ScoreFile(
        format=found,
        model=clean(model),
        scores=tuple(scores),
        sha256=sha256_of(content),
        path=path,
    )


def _read(
    content: bytes, name: str, format: str | None, length: int | None, is_percent: bool
) -> tuple[str, str, list[Score]]:
    """(format, model, scores)."""
    if content[:4] == b"PK\x03\x04" or name.endswith(".eval"):
        _expect(format, inspect_log.NAME, name)
        data = inspect_log.header(content, name)
        if not inspect_log.is_mine(data):
            raise UsageError(f"{name}: header.json is not the head of an Inspect log")
        return (
            inspect_log.NAME,
            *inspect_log.parse(data, name, length=length, is_percent=is_percent),
        )
    if format == ruler.NAME or (format is None and ruler.is_mine(content)):
        return ruler.NAME, "", ruler.parse(content, name, length=length)
    if format == scores_csv.NAME or (format is None and scores_csv.is_mine(content)):
        return scores_csv.NAME, "", scores_csv.parse(content, name)
    if format is None and name.lower().endswith(".csv"):
        raise UsageError(
            f"{name} is neither a RULER summary (rows Tasks, Score) nor a table with columns "
            f"{', '.join(scores_csv.REQUIRED)}"
        )
    return _read_json(parse_json(content, name), name, format, length, is_percent)


def _read_json(
    data: Any, name: str, format: str | None, length: int | None, is_percent: bool
) -> tuple[str, str, list[Score]]:
    readers: dict[str, tuple[bool, Callable[[], tuple[str, list[Score]]]]] = {
        inspect_log.NAME: (
            inspect_log.is_mine(data),
            lambda: inspect_log.parse(data, name, length=length, is_percent=is_percent),
        ),
        helmet.NAME: (helmet.is_mine(data, name), lambda: helmet.parse(data, name, length=length)),
        lm_eval.NAME: (lm_eval.is_mine(data), lambda: lm_eval.parse(data, name)),
    }
    for known, (is_mine, read) in readers.items():
        if is_mine and format in (None, known):
            return known, *read()
    wanted = format or "lm-evaluation-harness, HELMET or Inspect results"
    raise UsageError(f"{name} is JSON, but not {wanted}")


def _expect(format: str | None, found: str, name: str) -> None:
    if format not in (None, found):
        raise UsageError(f"{name} is not {format}: it is a zip file, as {found} writes")


def _placed(score: Score, length: int | None) -> Score:
    """At the given length, where the file states none."""
    return score if score.eval_length is not None else replace(score, eval_length=length)


def _classified(score: Score, name: str, classes: Mapping[str, str]) -> Score:
    if score.task in classes:
        return replace(score, task_class=check_class(classes[score.task]))
    if not score.task_class:
        raise UsageError(
            f"{name}: the class of task {score.task!r} is not known; give it with "
            f"--task-class '{score.task}=CLASS'"
        )
    return score


def _refuse_doubles(scores: list[Score], name: str) -> None:
    seen = set()
    for score in scores:
        if score.key in seen:
            raise UsageError(f"{name}: task {score.task!r} stands twice")
        seen.add(score.key)
