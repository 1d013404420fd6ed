"""Accuracy of the user's own models into the store: "measure retrieval on your own tasks".

    >>> results = read_scores(Path("results_2026-11-01.json"))            # doctest: +SKIP
    >>> hybrid = EvaluatedModel(architecture=arch, files=(results,))      # doctest: +SKIP
    >>> import_evidence(store, "mine", hybrid, control=full)              # doctest: +SKIP

With the results of a full-attention run of the same recipe the numbers become comparisons, the
user's own source, which outweighs published ones. Without one they say an absolute level only.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from typing import NamedTuple

from sqlalchemy import select
from sqlalchemy.orm import Session

from planner.architecture import Architecture
from planner.errors import UnknownName, UsageError
from planner.formats import ruler
from planner.formats.foreign import clean
from planner.formats.scores import Score, ScoreFile
from planner.store.evidence import (
    EvidenceFiles,
    EvidenceTable,
    delete_evidence,
    replace_evidence,
)
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

PREFIX = "import:"
"""Datasets of imports are named so; the shipped ones are not."""

SURELY_PERCENT = 10.0
"""Beside such a score, ones of at most 1 on every task are another scale."""

_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,39}")


@dataclass(frozen=True, kw_only=True)
class EvaluatedModel:
    """A model as trained, and the files of what was measured on it. Sizes in 10⁹; blank is
    unknown."""

    architecture: Architecture
    files: tuple[ScoreFile, ...]
    params_b: float | None = None
    train_tokens_b: float | None = None
    train_length: int | None = None

    @property
    def name(self) -> str:
        return self.files[0].model or clean(self.architecture.name)

    def scores(self) -> Iterator[tuple[ScoreFile, Score]]:
        """Every score with its file, and RULER's mean where all its tasks are there.

        Raises: UsageError for a number that stands in two files.
        """
        seen: dict[tuple[object, ...], ScoreFile] = {}
        for file in self.files:
            for score in file.scores:
                if score.key in seen:
                    raise UsageError(
                        f"task {score.task!r} stands in {seen[score.key].path.name} and in "
                        f"{file.path.name}; of RULER give each file its length"
                    )
                seen[score.key] = file
                yield file, score
        for mean in ruler.means([score for file in self.files for score in file.scores]):
            if mean.key not in seen:
                yield self.files[-1], mean


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What an import put into the store."""

    dataset: str
    num_rows: int
    num_compared: int
    skipped: tuple[str, ...]
    num_replaced: int = 0
    """Numbers of other results that the name stood for before."""

    @property
    def is_absolute_only(self) -> bool:
        return self.num_compared == 0


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
    mine = _read(name, "model", model)
    controls = _read(name, "control", control) if control is not None else []
    _check_scale(mine, controls)
    comparisons, skipped = _compare(mine, controls)
    files = EvidenceFiles(
        sources=(_source(name, model),),
        rows=tuple(read.row for read in (*mine, *controls)),
        comparisons=tuple(comparisons),
        sha256=_joined(model, control),
        raw_sha256={read.row.id: read.sha256 for read in (*mine, *controls)},
    )
    dataset = PREFIX + name
    earlier = store.datasets().get(dataset)
    with store.begin() as session:
        _check_new(session, dataset, [read.sha256 for read in mine])
        replace_evidence(session, dataset, files)
        store.mark_dataset(session, dataset, files.sha256, len(files.rows))
    return Imported(
        dataset=dataset,
        num_rows=len(files.rows),
        num_compared=sum(c.use != "show" for c in comparisons),
        skipped=tuple(skipped),
        num_replaced=earlier.rows if earlier and earlier.sha256 != files.sha256 else 0,
    )


def import_names(store: Store) -> list[str]:
    """The names of what the user imported."""
    return sorted(n.removeprefix(PREFIX) for n in store.datasets() if n.startswith(PREFIX))


def remove_import(store: Store, name: str) -> int:
    """Takes an import out again; returns how many numbers it held. Published evidence stays.

    Raises: UnknownName, listing the imports there are.
    """
    known = store.datasets().get(PREFIX + name)
    if known is None:
        names = import_names(store)
        if not names:
            raise UsageError("nothing was imported yet; `attn-plan evidence import` does it")
        raise UnknownName("import", clean(name), names)
    with store.begin() as session:
        delete_evidence(session, known.name)
    return known.rows


def _joined(model: EvaluatedModel, control: EvaluatedModel | None) -> str:
    """One hash for all raw files of an import."""
    files = (*model.files, *(control.files if control else ()))
    return sha256("".join(file.sha256 for file in files).encode()).hexdigest()


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


def _check_new(session: Session, dataset: str, hashes: Sequence[str]) -> None:
    """The same results under two names would count as two sources that agree."""
    there = session.scalar(
        select(EvidenceTable.dataset).where(
            EvidenceTable.dataset != dataset,
            EvidenceTable.imported_file_sha256.in_(set(hashes)),
            EvidenceTable.id.like("%:model:%"),
        )
    )
    if there:
        name = str(there).removeprefix(PREFIX)
        raise UsageError(
            f"these results are in the store already, under the name {name!r}: import them as "
            f"{name} to replace them, or remove them first (`attn-plan evidence remove {name}`)"
        )


def _check_scale(mine: Sequence[_Read], controls: Sequence[_Read]) -> None:
    """Scores of at most 1 on one side, of tens on the other: fractions read as percent."""
    highest = [max((read.row.value for read in side), default=0.0) for side in (mine, controls)]
    if 0 < min(highest) <= 1 and max(highest) >= SURELY_PERCENT:
        whose = "the model's" if highest[0] < highest[1] else "the control's"
        raise UsageError(
            f"{whose} scores are at most {min(highest):g} %, the other's up to "
            f"{max(highest):g} %: fractions where this format has percent; multiply them by 100"
        )


def _source(name: str, model: EvaluatedModel) -> Source:
    files = model.files
    names = ", ".join(dict.fromkeys(clean(file.path.name) for file in files))
    formats = ", ".join(dict.fromkeys(file.format for file in files))
    hashes = ", ".join(file.sha256 for file in files)
    return Source(
        key=name,
        title=model.name,
        authors="",
        year=None,
        source=f"{formats} results: {names}",
        tier="imported",
        read_from=f"{formats} results, sha256 {hashes}",
        read_on=datetime.now(UTC).date().isoformat(),
    )


class _Read(NamedTuple):
    """A number as the store has it, as the file has it, and the file's hash."""

    row: EvidenceRow
    score: Score
    sha256: str


def _read(name: str, role: str, model: EvaluatedModel) -> list[_Read]:
    facts = LayerFacts.of(model.architecture)
    return [
        _Read(_row(f"{name}:{role}:{i:04d}", name, model, facts, file, score), score, file.sha256)
        for i, (file, score) in enumerate(model.scores(), start=1)
    ]


def _row(
    id: str,
    source: str,
    model: EvaluatedModel,
    facts: LayerFacts,
    file: ScoreFile,
    score: Score,
) -> EvidenceRow:
    arch, linear = model.architecture, facts.linear
    return EvidenceRow(
        id=id,
        source=source,
        location=clean(file.path.name),
        model=file.model or clean(arch.name),
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
        active_params_b=arch.active_parameters() / 1e9 if arch.moe else None,
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
    mine: Sequence[_Read], controls: Sequence[_Read]
) -> tuple[list[Comparison], list[str]]:
    """Numbers against the control's of the same task, length, shots and metric."""
    by_key = {control.score.key: control for control in controls}
    tasks = {control.score.task for control in controls}
    comparisons, skipped = [], []
    for row, score, _ in mine:
        control = by_key.get(score.key)
        if control is None:
            other = (
                "it at other lengths, shots or metrics" if score.task in tasks else "no such task"
            )
            skipped += [f"{row.task}: the control has {other}"] if controls else []
            continue
        why = _why_not_fitted(row, control.row)
        if score.measure != control.score.measure:
            why = f"measured by {score.measure}, the control by {control.score.measure}"
        comparisons.append(
            Comparison(
                row=row.id,
                control=control.row.id,
                assumed_control=None,
                use="show" if why else "fit",
                reason=why or "the user's own comparison",
            )
        )
        if why and not row.aggregate_of:
            skipped.append(f"{row.task}: {why}")
    return comparisons, skipped


def _why_not_fitted(row: EvidenceRow, control: EvidenceRow) -> str:
    if row.aggregate_of:
        return "the mean of numbers that are here themselves"
    if row.metric not in FITTED_METRICS:
        return f"{row.metric} is another scale"
    if control.value < MIN_CONTROL:
        return f"control below {MIN_CONTROL:g}"
    if row.chance is not None and control.value < row.chance + MIN_ABOVE_CHANCE:
        return f"control less than {MIN_ABOVE_CHANCE:g} above chance"
    if row.window and row.eval_length and row.window >= row.eval_length:
        return "the window covers the inputs"
    for trained, whose in ((control.train_length, "the control's"), (row.train_length, "its")):
        if row.eval_length and trained and row.eval_length > trained:
            return f"beyond {whose} trained length"
    return ""
