"""Evidence in the store: sources, published numbers, comparisons; and the files they come from.

    >>> files = read_evidence(data_dir() / "published")                   # doctest: +SKIP
    >>> with store.begin() as session:                                    # doctest: +SKIP
    ...     replace_evidence(session, "published", files)
    ...     comparisons(session).groupby("source").size()

Rows of a file are a dataset: a newer file of the same name replaces them. Imports carry
the SHA-256 of the raw file they were read from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from sqlalchemy import CheckConstraint, ForeignKey, delete, insert, select
from sqlalchemy.orm import Mapped, Session, aliased, mapped_column

from planner import catalog
from planner.errors import UsageError
from planner.store.base import Base
from planner.store.evidence_rules import (
    COLUMNS,
    COMPARISON_COLUMNS,
    MIXER_KINDS,
    TIERS,
    Comparison,
    EvidenceRow,
    Source,
    layer_share,
    parse_comparison,
    parse_row,
    read_csv,
)
from planner.store.schema import DatasetRow

if TYPE_CHECKING:
    from planner.store.store import Store

PUBLISHED = "published"
"""The dataset of the numbers that ship with the program."""

_SOURCE_KEYS = ("id", "title", "authors", "year", "source", "tier", "read_from", "read_on")


class SourceTable(Base):
    """A citation."""

    __tablename__ = "evidence_sources"

    key: Mapped[str] = mapped_column(primary_key=True)
    title: Mapped[str]
    authors: Mapped[str]
    year: Mapped[int | None]
    source: Mapped[str]
    tier: Mapped[str]
    read_from: Mapped[str]
    read_on: Mapped[str]
    dataset: Mapped[str]
    imported_file_sha256: Mapped[str | None]


class EvidenceTable(Base):
    """One number; the columns are those of `EvidenceRow`, layer numbers as text."""

    __tablename__ = "evidence"

    id: Mapped[str] = mapped_column(primary_key=True)
    source: Mapped[str] = mapped_column(ForeignKey("evidence_sources.key", ondelete="CASCADE"))
    location: Mapped[str]
    model: Mapped[str]
    mixer: Mapped[str]
    second_mixer: Mapped[str]
    full_mixer: Mapped[str]
    layout: Mapped[str]
    ratio: Mapped[str]
    n_layers: Mapped[int | None]
    n_full: Mapped[int | None]
    full_indices: Mapped[str]
    placement: Mapped[str]
    origin: Mapped[str]
    params_b: Mapped[float | None]
    active_params_b: Mapped[float | None]
    train_tokens_b: Mapped[float | None]
    train_length: Mapped[int | None]
    eval_length: Mapped[int | None]
    needle_distance: Mapped[int | None]
    window: Mapped[int | None]
    state_elements: Mapped[int | None]
    kv_heads: Mapped[int | None]
    position: Mapped[str]
    task: Mapped[str]
    task_class: Mapped[str]
    subclass: Mapped[str]
    k_shot: Mapped[int | None]
    metric: Mapped[str]
    value: Mapped[float]
    chance: Mapped[float | None]
    seeds: Mapped[int | None]
    tier: Mapped[str]
    figure_read: Mapped[bool]
    selected_best: Mapped[bool]
    aggregate_of: Mapped[str]
    duplicate_of: Mapped[str]
    note: Mapped[str]
    dataset: Mapped[str]
    imported_file_sha256: Mapped[str | None]


class ComparisonTable(Base):
    """A number against its control."""

    __tablename__ = "evidence_comparisons"
    __table_args__ = (
        CheckConstraint("use in ('evaluate','fit','show')"),
        CheckConstraint("(control is null) <> (assumed_control is null)"),
    )

    row: Mapped[str] = mapped_column(
        ForeignKey("evidence.id", ondelete="CASCADE"), primary_key=True
    )
    control: Mapped[str | None] = mapped_column(ForeignKey("evidence.id", ondelete="CASCADE"))
    assumed_control: Mapped[float | None]
    use: Mapped[str]
    reason: Mapped[str]
    dataset: Mapped[str]


@dataclass(frozen=True, kw_only=True)
class EvidenceFiles:
    """A checked folder of evidence."""

    sources: tuple[Source, ...]
    rows: tuple[EvidenceRow, ...]
    comparisons: tuple[Comparison, ...]
    sha256: str
    raw_sha256: Mapping[str, str] = field(default_factory=dict)
    """Of an import: the hash of the raw file that each row was read from, by the row's id."""


def read_evidence(folder: Path) -> EvidenceFiles:
    """`sources/*.toml`, `quality.csv` and `comparisons.csv` of a folder, checked.

    Raises: UsageError naming file, row and reason for anything that breaks a rule.
    """
    sources = {key: _source(data) for key, data in catalog.read_folder(folder / "sources").items()}
    rows: dict[str, EvidenceRow] = {}
    quality = folder / "quality.csv"
    for line, cells in read_csv(quality, COLUMNS):
        where = f"{quality.name} row {line}"
        row = parse_row(cells, where)
        if row.source not in sources:
            raise UsageError(
                f"{where}: source {row.source!r} has no file sources/{row.source}.toml"
            )
        if row.id in rows:
            raise UsageError(f"{where}: id {row.id!r} stands twice")
        rows[row.id] = row
    return EvidenceFiles(
        sources=tuple(sources.values()),
        rows=tuple(rows.values()),
        comparisons=_comparisons(folder / "comparisons.csv", rows),
        sha256=folder_sha256(folder),
    )


def _comparisons(path: Path, rows: Mapping[str, EvidenceRow]) -> tuple[Comparison, ...]:
    found: dict[str, Comparison] = {}
    for line, cells in read_csv(path, COMPARISON_COLUMNS):
        where = f"{path.name} row {line}"
        comparison = parse_comparison(cells, rows, where)
        if comparison.row in found:
            raise UsageError(f"{where}: row {comparison.row!r} is compared twice")
        found[comparison.row] = comparison
    return tuple(found.values())


def _source(data: Mapping[str, Any]) -> Source:
    where = f"sources/{data['id']}.toml"
    catalog.check_keys(
        data,
        known=_SOURCE_KEYS,
        required=("title", "source", "tier", "read_from", "read_on"),
        where=where,
    )
    if data["tier"] not in TIERS:
        raise UsageError(f"{where}: tier must be one of {', '.join(TIERS)}, got {data['tier']!r}")
    year = data.get("year")
    if year is not None and (type(year) is not int or not 1950 < year < 2100):
        raise UsageError(f"{where}: year must be a year, got {year!r}")
    return Source(
        key=data["id"],
        title=str(data["title"]),
        authors=str(data.get("authors", "")),
        year=year,
        source=str(data["source"]),
        tier=data["tier"],
        read_from=str(data["read_from"]),
        read_on=data["read_on"],
    )


def folder_sha256(folder: Path) -> str:
    """Of the names and contents of all files that `read_evidence` reads."""
    digest = hashlib.sha256()
    paths = [folder / "quality.csv", folder / "comparisons.csv"]
    for path in [*paths, *sorted((folder / "sources").glob("*.toml"))]:
        if path.is_file():
            digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def replace_evidence(session: Session, dataset: str, files: EvidenceFiles) -> int:
    """Puts a dataset's rows in, in place of what an earlier version of it held; returns how many.

    Raises: UsageError if a row's id or a source's key belongs to another dataset.
    """
    _check_free(session, dataset, files)
    raw = files.raw_sha256
    own = {"dataset": dataset, "imported_file_sha256": files.sha256 if raw else None}
    delete_evidence(session, dataset)
    for table, records in (
        (SourceTable, [{**_record(s), **own} for s in files.sources]),
        (
            EvidenceTable,
            [{**_record(r), **own, "imported_file_sha256": raw.get(r.id)} for r in files.rows],
        ),
        (ComparisonTable, [{**_compared(c), "dataset": dataset} for c in files.comparisons]),
    ):
        if records:
            session.execute(insert(table.__table__), records)  # type: ignore[arg-type]
    return len(files.rows)


def _check_free(session: Session, dataset: str, files: EvidenceFiles) -> None:
    taken = dict(
        session.execute(
            select(EvidenceTable.id, EvidenceTable.dataset).where(EvidenceTable.dataset != dataset)
        ).all()
    )
    for row in files.rows:
        if row.id in taken:
            raise UsageError(f"row {row.id!r} is already in the store, from {taken[row.id]!r}")
    keys = dict(
        session.execute(
            select(SourceTable.key, SourceTable.dataset).where(SourceTable.dataset != dataset)
        ).all()
    )
    for source in files.sources:
        if source.key in keys:
            raise UsageError(
                f"source {source.key!r} is already in the store, from {keys[source.key]!r}"
            )


def delete_evidence(session: Session, dataset: str) -> None:
    """Takes a dataset's rows out, and the note that it was loaded."""
    for table in (ComparisonTable, EvidenceTable, SourceTable):
        session.execute(delete(table).where(table.dataset == dataset))
    session.execute(delete(DatasetRow).where(DatasetRow.name == dataset))


def _record(item: Source | EvidenceRow) -> dict[str, Any]:
    found = {f.name: getattr(item, f.name) for f in fields(item)}
    if "full_indices" in found:
        found["full_indices"] = " ".join(str(i) for i in found["full_indices"])
    return found


def _compared(item: Comparison) -> dict[str, Any]:
    return {
        **{f.name: getattr(item, f.name) for f in fields(item)},
        "control": item.control or None,
    }


def load_published(store: Store) -> bool:
    """Loads the shipped numbers if the store lacks them or has others; says whether it did."""
    folder = catalog.data_dir() / "published"
    digest = folder_sha256(folder)
    known = store.datasets().get(PUBLISHED)
    if known is not None and known.sha256 == digest:
        return False
    files = read_evidence(folder)
    with store.begin() as session:
        rows = replace_evidence(session, PUBLISHED, files)
        store.mark_dataset(session, PUBLISHED, digest, rows)
    return True


def _frame(session: Session, query: Any) -> pd.DataFrame:
    result = session.execute(query)
    columns = list(result.keys())
    return pd.DataFrame([tuple(row) for row in result], columns=columns)


def sources(session: Session) -> pd.DataFrame:
    """All citations, by key."""
    return _frame(session, select(*SourceTable.__table__.c).order_by(SourceTable.key))


def evidence(session: Session) -> pd.DataFrame:
    """All numbers, with `kind` of the mixer and `full_share` of its layers."""
    query = select(*EvidenceTable.__table__.c).order_by(EvidenceTable.source, EvidenceTable.id)
    return with_kinds(_frame(session, query))


def comparisons(session: Session) -> pd.DataFrame:
    """All comparisons: the row's columns, `control`, `control_value`, `control_params_b`, `use`,
    `reason`, `assumed`, and `points` = value - control_value."""
    control = aliased(EvidenceTable)
    query = (
        select(
            *EvidenceTable.__table__.c,
            ComparisonTable.control,
            ComparisonTable.assumed_control,
            ComparisonTable.use,
            ComparisonTable.reason,
            control.value.label("control_value"),
            control.params_b.label("control_params_b"),
        )
        .join(ComparisonTable, ComparisonTable.row == EvidenceTable.id)
        .outerjoin(control, control.id == ComparisonTable.control)
        .order_by(EvidenceTable.source, EvidenceTable.id)
    )
    frame = with_kinds(_frame(session, query))
    assumed = frame["control"].isna()
    control_value = frame["control_value"].where(~assumed, frame["assumed_control"])
    return frame.assign(
        assumed=assumed,
        control_value=control_value.astype(float),
        points=frame["value"] - control_value.astype(float),
    ).drop(columns="assumed_control")


def with_kinds(frame: pd.DataFrame) -> pd.DataFrame:
    """Adds `kind` (of the mixer; full for full attention) and `full_share` (NaN if unknown)."""
    counts = (
        frame[["n_layers", "n_full"]]
        .astype(object)
        .where(frame[["n_layers", "n_full"]].notna(), None)
    )
    shares = [
        layer_share(ratio, n_layers, n_full)
        for ratio, n_layers, n_full in zip(
            frame["ratio"], counts["n_layers"], counts["n_full"], strict=True
        )
    ]
    kinds = [
        MIXER_KINDS[mixer or full]
        for mixer, full in zip(frame["mixer"], frame["full_mixer"], strict=True)
    ]
    numeric = {
        name: pd.to_numeric(frame[name])
        for name in (
            "n_layers", "n_full", "params_b", "active_params_b", "train_tokens_b", "train_length",
            "eval_length", "needle_distance", "window", "state_elements", "kv_heads", "k_shot",
            "chance", "seeds",
        )
    }  # fmt: skip
    return frame.assign(
        **numeric,
        kind=kinds,
        full_share=pd.array(shares, dtype="Float64").to_numpy(dtype=float, na_value=float("nan")),
    )
