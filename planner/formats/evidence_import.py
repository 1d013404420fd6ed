"""Accuracy of the user's own models into the store: "measure retrieval on your own tasks".

    >>> results = read_scores(Path("results_2026-11-01.json"))            # doctest: +SKIP
    >>> hybrid = EvaluatedModel(architecture=arch, results=results)       # doctest: +SKIP
    >>> import_evidence(store, "mine", hybrid, control=full)              # doctest: +SKIP

With the results of a full-attention run of the same recipe the numbers become comparisons, the
user's own source, which outweighs published ones. Without one they say an absolute level only.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from planner.architecture import Architecture
from planner.errors import UsageError
from planner.formats import helmet, inspect_log, lm_eval, ruler, scores_csv
from planner.formats.foreign import clean, parse_json, read_bytes, sha256_of
from planner.formats.scores import Score, ScoreFile, check_class
from planner.store.evidence import EvidenceFiles, replace_evidence
from planner.store.evidence_rules import (
    FITTED_METRICS,
    MAX_SIZE_RATIO,
    MIN_ABOVE_CHANCE,
    MIN_CONTROL,
    Comparison,
    EvidenceRow,
    Source,
)
from planner.store.layer_facts import LayerFacts
from planner.store.store import Store

FORMATS = (lm_eval.NAME, ruler.NAME, helmet.NAME, inspect_log.NAME, scores_csv.NAME)

PREFIX = "import:"
"""Datasets of imports are named so; the shipped ones are not."""

_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,39}")


@dataclass(frozen=True, kw_only=True)
class EvaluatedModel:
    """A model as trained, and what was measured on it. Sizes in 10⁹; blank is unknown."""

    architecture: Architecture
    results: ScoreFile
    params_b: float | None = None
    train_tokens_b: float | None = None
    train_length: int | None = None


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What an import put into the store."""

    dataset: str
    num_rows: int
    num_compared: int
    skipped: tuple[str, ...]

    @property
    def is_absolute_only(self) -> bool:
        return self.num_compared == 0


def read_scores(
    path: Path,
    *,
    format: str | None = None,
    length: int | None = None,
    is_percent: bool = False,
    classes: Mapping[str, str] | None = None,
) -> ScoreFile:
    """The scores of a results file; the format is told from its content unless given.

    `length` is the context in tokens for formats that do not say it; `classes` gives tasks that
    are not known by name their class.

    Raises: UsageError for anything in the file that is not understood.
    """
    if format is not None and format not in FORMATS:
        raise UsageError(f"unknown format {format!r}; known: {', '.join(FORMATS)}")
    if length is not None and not 1 <= length < 1 << 40:
        raise UsageError(f"length must be at least 1 token, got {length}")
    content = read_bytes(path)
    name = clean(path.name)
    found, model, scores = _read(content, name, format, length, is_percent)
    scores = [_classified(score, name, classes or {}) for score in scores]
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
        key = (score.task, score.metric, score.eval_length, score.k_shot)
        if key in seen:
            raise UsageError(f"{name}: task {score.task!r} stands twice")
        seen.add(key)


def import_evidence(
    store: Store,
    name: str,
    model: EvaluatedModel,
    *,
    control: EvaluatedModel | None = None,
) -> Imported:
    """Stores a model's scores as the source `name`, all or nothing; an earlier import of the name
    is replaced.

    Raises: UsageError for a name that is taken, or a control that is not full attention.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"name must be lower-case letters, digits and _ . -, at most 40, got {clean(name)!r}"
        )
    if control is not None:
        _check_recipe(model, control)
    rows = _rows(name, "model", model)
    controls = _rows(name, "control", control) if control is not None else []
    comparisons, skipped = _compare(rows, controls)
    files = EvidenceFiles(
        sources=(_source(name, model),),
        rows=(*rows, *controls),
        comparisons=tuple(comparisons),
        sha256=model.results.sha256,
    )
    dataset = PREFIX + name
    with store.begin() as session:
        replace_evidence(session, dataset, files, imported_file_sha256=model.results.sha256)
        store.mark_dataset(session, dataset, model.results.sha256, len(files.rows))
    return Imported(
        dataset=dataset,
        num_rows=len(files.rows),
        num_compared=sum(c.use != "show" for c in comparisons),
        skipped=tuple(skipped),
    )


def _check_recipe(model: EvaluatedModel, control: EvaluatedModel) -> None:
    facts = LayerFacts.of(control.architecture)
    if facts.linear is not None:
        raise UsageError(
            f"the control has to be full attention in every layer, got "
            f"{control.architecture.describe()}"
        )
    if LayerFacts.of(model.architecture).linear is None:
        raise UsageError("the model is full attention itself: there is nothing to compare")
    for what, a, b in (
        ("size", model.params_b, control.params_b),
        ("training tokens", model.train_tokens_b, control.train_tokens_b),
    ):
        if a and b and max(a, b) > MAX_SIZE_RATIO * min(a, b):
            raise UsageError(
                f"the control is not of the same recipe: {what} {a:g} and {b:g} (10⁹) differ by "
                f"more than a quarter"
            )


def _source(name: str, model: EvaluatedModel) -> Source:
    results = model.results
    return Source(
        key=name,
        title=results.model or clean(model.architecture.name),
        authors="",
        year=None,
        source=f"{results.format} results {clean(results.path.name)}",
        tier="imported",
        read_from=f"{results.format} results, sha256 {results.sha256}",
        read_on=datetime.now(UTC).date().isoformat(),
    )


def _rows(name: str, role: str, model: EvaluatedModel) -> list[EvidenceRow]:
    facts = LayerFacts.of(model.architecture)
    return [
        _row(f"{name}:{role}:{i:04d}", name, model, facts, score)
        for i, score in enumerate(model.results.scores, start=1)
    ]


def _row(
    id: str, source: str, model: EvaluatedModel, facts: LayerFacts, score: Score
) -> EvidenceRow:
    arch, linear = model.architecture, facts.linear
    return EvidenceRow(
        id=id,
        source=source,
        location=clean(model.results.path.name),
        model=model.results.model or clean(arch.name),
        mixer=linear.mixer if linear else "",
        second_mixer=facts.second.mixer if facts.second else "",
        full_mixer=facts.full.mixer if facts.full else "",
        layout="layers",
        ratio=facts.ratio,
        n_layers=facts.n_layers,
        n_full=facts.n_full,
        full_indices=facts.full_indices,
        placement=facts.placement,
        origin=arch.origin,
        params_b=model.params_b,
        active_params_b=None,
        train_tokens_b=model.train_tokens_b,
        train_length=model.train_length or arch.max_context,
        eval_length=score.eval_length,
        needle_distance=None,
        window=linear.window if linear else None,
        state_elements=facts.state_elements or None,
        kv_heads=facts.full.num_k_heads if facts.full else None,
        position="",
        task=score.task,
        task_class=score.task_class,
        subclass=score.subclass,
        k_shot=score.k_shot,
        metric=score.metric,
        value=score.value,
        chance=score.chance,
        seeds=None,
        tier="imported",
        figure_read=False,
        selected_best=False,
        aggregate_of=score.aggregate_of,
        duplicate_of="",
        note=f"{score.num_samples} samples" if score.num_samples else "",
    )


def _compare(
    rows: list[EvidenceRow], controls: list[EvidenceRow]
) -> tuple[list[Comparison], list[str]]:
    """Rows against the control's number of the same task, length, shots and metric."""

    def key(row: EvidenceRow) -> tuple[object, ...]:
        return row.task, row.metric, row.eval_length, row.k_shot

    by_key = {key(row): row for row in controls}
    comparisons, skipped = [], []
    for row in rows:
        control = by_key.get(key(row))
        if control is None:
            if controls:
                skipped.append(f"{row.task}: the control has no such number")
            continue
        why = _why_not_fitted(row, control)
        comparisons.append(
            Comparison(
                row=row.id,
                control=control.id,
                assumed_control=None,
                use="show" if why else "fit",
                reason=why or "the user's own comparison",
            )
        )
        skipped += [f"{row.task}: {why}"] if why else []
    return comparisons, skipped


def _why_not_fitted(row: EvidenceRow, control: EvidenceRow) -> str:
    if row.metric not in FITTED_METRICS:
        return f"{row.metric} is another scale"
    if control.value < MIN_CONTROL:
        return f"control below {MIN_CONTROL:g}"
    if row.chance is not None and control.value < row.chance + MIN_ABOVE_CHANCE:
        return f"control less than {MIN_ABOVE_CHANCE:g} above chance"
    if row.window and row.eval_length and row.window >= row.eval_length:
        return "the window covers the inputs"
    if row.eval_length and control.train_length and row.eval_length > control.train_length:
        return "beyond the control's trained length"
    return ""
