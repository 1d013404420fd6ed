"""Store: measurements and evidence in one database, read as DataFrames.

    >>> store = Store.open("sqlite:///:memory:", shipped=False)
    >>> len(store.points())
    0

Writes commit one point at a time, so that a killed process loses at most the point in hand.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sqlalchemy import Engine, and_, delete, func, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, sessionmaker

from planner import __version__
from planner.errors import UnknownName, UsageError
from planner.store import evidence as evidence_tables
from planner.store import migrations
from planner.store.files import SHIPPED
from planner.store.location import make_engine, store_url
from planner.store.records import Environment, Outcome, Point, Run, thin, to_the_second
from planner.store.schema import DatasetRow, EnvironmentRow, PointRow, RunRow
from planner.workload import canonical_json

SAME_POINT = (
    "family", "environment_id", "provider", "spec", "batch_size", "new_tokens", "cached_tokens",
    "dtype", "training", "variant", "mode", "cache_state",
)  # fmt: skip
"""What two rows share that differ in method version alone."""

OVER_TIMES = (Outcome.OK, Outcome.MISMATCH)
"""Outcomes that take the place of a time of the same key; a crash says nothing against it."""

OVER_OLDER_TIMES = (*OVER_TIMES, Outcome.UNSUPPORTED)
"""Those that take the place of a time by an older method or kernel version: a new kernel may do
less than the one before."""

DERIVED = ("median_s", "p20_s", "p80_s", "min_s")


@dataclass(frozen=True)
class Dataset:
    """A file whose rows are in the store."""

    name: str
    sha256: str
    rows: int
    loaded_at: datetime


class Store:
    """Open it with `Store.open`. Safe for many readers and one writer at a time."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._sessions = sessionmaker(engine)

    @classmethod
    def open(cls, url: str | None = None, *, shipped: bool = True) -> Store:
        """Opens or creates the store; loads the shipped data that it does not have yet.

        Raises:
            UsageError: the URL is none.
            EnvironmentProblem: not a database, not writable, a newer schema.
        """
        engine = make_engine(store_url(url))
        migrations.prepare(engine)
        store = cls(engine)
        if shipped:
            from planner.store.shipped import load_shipped

            load_shipped(store)
        return store

    @contextmanager
    def begin(self) -> Iterator[Session]:
        """A session that commits at the end, or rolls back."""
        try:
            with self._sessions.begin() as session:
                yield session
        except DBAPIError as error:
            raise migrations.unusable(self.engine, error) from error

    def close(self) -> None:
        self.engine.dispose()

    # Writing

    def _upsert(self, session: Session, table: Any, rows: list[dict[str, Any]], key: str) -> None:
        dialect = postgresql if self.engine.dialect.name == "postgresql" else sqlite
        statement = dialect.insert(table)
        changed = {c: statement.excluded[c] for c in rows[0] if c != key}
        session.execute(statement.on_conflict_do_update(index_elements=[key], set_=changed), rows)

    def add_environment(self, environment: Environment) -> str:
        """Stores the environment under its id; later facts replace earlier ones."""
        with self.begin() as session:
            self._upsert(
                session, EnvironmentRow, [{"id": environment.id, **environment.to_dict()}], "id"
            )
        return environment.id

    def start_run(
        self,
        name: str,
        environment: Environment,
        *,
        command: str,
        planned_points: int,
        commit: str = "",
    ) -> int:
        self.add_environment(environment)
        with self.begin() as session:
            row = RunRow(
                name=name,
                environment_id=environment.id,
                command=command,
                started_at=datetime.now(UTC),
                ended_at=None,
                status="running",
                planned_points=planned_points,
                tool_version=__version__,
                commit=commit,
            )
            session.add(row)
            session.flush()
            return row.id

    def end_run(self, run_id: int, status: str = "done") -> None:
        with self.begin() as session:
            session.execute(
                update(RunRow)
                .where(RunRow.id == run_id)
                .values(status=status, ended_at=datetime.now(UTC))
            )

    def record(self, point: Point, run_id: int | None = None) -> None:
        """Commits one point. The same key measured again replaces the earlier row, and so does
        the same point by another method or kernel version: its time is of what is no more. A
        crash or a lack of memory takes the place of no time."""
        with self.begin() as session:
            self._record(session, point, run_id)

    def adopt(self, environments: Iterable[Environment], points: Iterable[Point]) -> int:
        """Takes points in as the user's own, all or none, as `record` does with each; what the
        store has of the same age or newer stays. Returns how many it took."""
        with self.begin() as session:
            columns = PointRow.key, PointRow.measured_at
            has = dict(session.execute(select(*columns)).all())
            new = [p for p in points if has.get(p.key, "") < to_the_second(p.measured_at)]
            known = set(session.scalars(select(EnvironmentRow.id)))
            for environment in environments:
                if environment.id not in known:
                    row = {"id": environment.id, **environment.to_dict()}
                    self._upsert(session, EnvironmentRow, [row], "id")
            for point in sorted(new, key=lambda point: to_the_second(point.measured_at)):
                self._record(session, point, None)
        return len(new)

    def _record(self, session: Session, point: Point, run_id: int | None) -> None:
        columns = point_columns(point)
        replaced = delete(PointRow).where(
            *(getattr(PointRow, name) == columns[name] for name in SAME_POINT),
            PointRow.method_version != point.method_version,
            PointRow.measured_at <= columns["measured_at"],
        )
        if point.outcome not in OVER_TIMES and session.scalar(
            select(PointRow.key).where(
                PointRow.key == columns["key"], PointRow.outcome == Outcome.OK.value
            )
        ):
            return
        if point.outcome not in OVER_OLDER_TIMES:
            replaced = replaced.where(PointRow.outcome != Outcome.OK.value)
        session.execute(replaced)
        row = {**columns, "run_id": run_id, "dataset": None}
        self._upsert(session, PointRow, [row], "key")

    def forget(self, keys: Iterable[str]) -> int:
        """Deletes points by key; returns how many there were."""
        with self.begin() as session:
            result = session.execute(delete(PointRow).where(PointRow.key.in_(list(keys))))
            return int(result.rowcount)  # type: ignore[attr-defined]

    # Reading

    def finished_keys(self, environment_id: str, *, retry_faults: bool = False) -> set[str]:
        """Keys that a resumed sweep skips; with `retry_faults` those of faults are left out.

        What ships is not among them: a user's own GPU is measured, also where its like was.
        """
        query = select(PointRow.key).where(
            PointRow.environment_id == environment_id,
            PointRow.outcome != Outcome.SKIPPED.value,
            or_(PointRow.dataset.is_(None), PointRow.dataset.not_like(f"{SHIPPED}/%")),
        )
        if retry_faults:
            faults = [o.value for o in Outcome if o.is_fault]
            query = query.where(PointRow.outcome.not_in(faults))
        with self.begin() as session:
            return set(session.scalars(query))

    def points(
        self,
        *,
        run: str | int | None = None,
        environment_id: str | None = None,
        device: str | None = None,
        family: str | None = None,
        outcome: str | None = None,
        device_kind: str | None = None,
    ) -> pd.DataFrame:
        """Points joined with their environment; times derived from the raw samples.

        Columns: those of the table, `device`, `device_kind`, `run`, and `median_s`, `p20_s`,
        `p80_s`, `min_s` (NaN unless the outcome is ok); `samples_s` is a list.
        """
        query = (
            select(
                *PointRow.__table__.c,
                EnvironmentRow.device,
                EnvironmentRow.device_kind,
                RunRow.name.label("run"),
            )
            .join(EnvironmentRow, EnvironmentRow.id == PointRow.environment_id)
            .outerjoin(RunRow, RunRow.id == PointRow.run_id)
        )
        wanted = {
            PointRow.environment_id: environment_id,
            EnvironmentRow.device: device,
            PointRow.family: family,
            PointRow.outcome: outcome,
            EnvironmentRow.device_kind: device_kind,
        }
        for column, value in wanted.items():
            if value is not None:
                query = query.where(column == value)
        if run is not None:
            query = query.where(PointRow.run_id == self.run(run).id)
        with self.begin() as session:
            result = session.connection().execute(query)  # plain rows, no ORM loading
            columns = list(result.keys())
            frame = pd.DataFrame([tuple(row) for row in result.all()], columns=columns)
        return with_statistics(frame)

    def runs(self) -> list[Run]:
        """All runs, the newest last."""
        with self.begin() as session:
            return [_run(row) for row in session.scalars(select(RunRow).order_by(RunRow.id))]

    def run(self, name: str | int | None = None) -> Run:
        """A run by id or name (of equal names the newest); the newest of all without one.

        Raises: UnknownName, listing the runs; UsageError where there are none.
        """
        runs = self.runs()
        if not runs:
            raise UsageError("this store has no runs yet: `attn-profile run` makes one")
        for run in reversed(runs):
            if name is None or str(name) in (str(run.id), run.name):
                return run
        raise UnknownName("run", str(name), {r.name for r in runs})

    def run_outcomes(self, run_id: int) -> dict[str, int]:
        with self.begin() as session:
            rows = session.execute(
                select(PointRow.outcome, func.count())
                .where(PointRow.run_id == run_id)
                .group_by(PointRow.outcome)
            )
            return {str(row[0]): int(row[1]) for row in rows}

    def last_measured(self, run_id: int) -> datetime | None:
        """When the run's newest point was measured."""
        query = select(func.max(PointRow.measured_at)).where(PointRow.run_id == run_id)
        with self.begin() as session:
            found = session.scalar(query)
        return datetime.fromisoformat(found) if found else None

    def environments(self) -> dict[str, Environment]:
        with self.begin() as session:
            return {
                row.id: Environment(
                    device=row.device,
                    device_kind=row.device_kind,  # type: ignore[arg-type]
                    versions=row.versions,
                    switches=row.switches,
                    facts=row.facts,
                )
                for row in session.scalars(select(EnvironmentRow))
            }

    def datasets(self) -> dict[str, Dataset]:
        with self.begin() as session:
            return {
                row.name: Dataset(row.name, row.sha256, row.rows, row.loaded_at)
                for row in session.scalars(select(DatasetRow))
            }

    def replace_dataset(
        self,
        name: str,
        sha256: str,
        environments: Iterable[Environment],
        points: list[dict[str, Any]],
        *,
        merge: bool = False,
    ) -> int:
        """Puts a file's points in, all or none, in place of what an earlier version of it held
        or, with `merge`, beside it; returns how many were left out.

        Under a key that is taken, a point the user measured stays, and of two files' the newer
        one does; of failures only a mismatch takes the place of a time. What is known of an
        environment that the user measured in stays, too.
        """
        with self.begin() as session:
            if not merge:
                session.execute(delete(PointRow).where(PointRow.dataset == name))
            self._upsert(
                session,
                DatasetRow,
                [
                    {
                        "name": name,
                        "sha256": sha256,
                        "rows": len(points),
                        "loaded_at": datetime.now(UTC),
                    }
                ],
                "name",
            )
            measured_in = set(
                session.scalars(
                    select(PointRow.environment_id).where(PointRow.dataset.is_(None)).distinct()
                )
            )
            for environment in environments:
                if environment.id in measured_in:
                    continue
                self._upsert(
                    session,
                    EnvironmentRow,
                    [{"id": environment.id, **environment.to_dict()}],
                    "id",
                )
            if points:
                dialect = postgresql if self.engine.dialect.name == "postgresql" else sqlite
                table = PointRow.__table__
                new = (statement := dialect.insert(table)).excluded
                takes = and_(
                    PointRow.dataset.is_not(None),
                    PointRow.measured_at <= new.measured_at,
                    or_(
                        PointRow.outcome != Outcome.OK.value,
                        *(new.outcome == o.value for o in OVER_TIMES),
                    ),
                )
                session.execute(
                    statement.on_conflict_do_update(
                        index_elements=["key"],
                        set_={c.name: new[c.name] for c in table.columns if c.name != "key"},
                        where=takes,
                    ),
                    [{**row, "dataset": name, "run_id": None} for row in points],
                )
            held = dict(
                session.execute(
                    select(PointRow.key, PointRow.measured_at).where(PointRow.dataset == name)
                ).all()
            )
            return sum(held.get(row["key"]) != row["measured_at"] for row in points)

    def mark_dataset(self, session: Session, name: str, sha256: str, rows: int) -> None:
        """Notes in an open session that a file's rows are in (for tables other than points)."""
        self._upsert(
            session,
            DatasetRow,
            [{"name": name, "sha256": sha256, "rows": rows, "loaded_at": datetime.now(UTC)}],
            "name",
        )

    def point_counts(self) -> dict[str, int]:
        """How many points the store has of each file; a newer file's take the place of others."""
        query = select(PointRow.dataset, func.count()).group_by(PointRow.dataset)
        with self.begin() as session:
            return {str(name): n for name, n in session.execute(query) if name}

    # Evidence

    def sources(self) -> pd.DataFrame:
        """The citations behind the evidence, by key."""
        with self.begin() as session:
            return evidence_tables.sources(session)

    def evidence(self) -> pd.DataFrame:
        """All published and imported accuracy numbers."""
        with self.begin() as session:
            return evidence_tables.evidence(session)

    def comparisons(self) -> pd.DataFrame:
        """All numbers that have a control of the same recipe, in points against it."""
        with self.begin() as session:
            return evidence_tables.comparisons(session)

    # Files

    def export_csv(self, path: Path, *, run: str | int | None = None) -> int:
        """Writes points (of one run, or all the user's own) and their environments beside them."""
        from planner.store.files import write_points

        return write_points(self, path, run=run)

    def import_csv(self, path: Path) -> tuple[int, int]:
        """Reads a file that `export_csv` wrote, all of it or nothing, beside what is there.

        Returns how many points it has, and of how many the store had newer ones or the user's own.
        """
        from planner.store.files import load_points

        return load_points(self, path, name=str(path.resolve()), merge=True)


def point_columns(point: Point) -> dict[str, Any]:
    """A point as the table's columns (without run and dataset)."""
    workload = point.workload
    return {
        "key": point.key,
        "environment_id": point.environment_id,
        "family": workload.op.family,
        "spec": canonical_json(workload.op.to_dict()),
        "batch_size": workload.batch_size,
        "new_tokens": workload.new_tokens,
        "cached_tokens": workload.cached_tokens,
        "dtype": workload.dtype,
        "training": workload.training,
        "phase": workload.phase,
        "provider": point.provider,
        "variant": point.variant,
        "mode": point.mode,
        "cache_state": point.cache_state,
        "method_version": point.method_version,
        "outcome": point.outcome.value,
        "reason": point.reason,
        "samples_s": json.dumps([float(f"{s:.6g}") for s in thin(point.samples_s)]),
        "num_samples": point.num_samples or len(point.samples_s),
        "timing_method": point.timing_method,
        "peak_bytes": point.peak_bytes,
        "workspace_bytes": point.workspace_bytes,
        "energy_j": point.energy_j,
        "gate_error": point.gate_error,
        "model_flops": workload.model_flops,
        "executed_flops": workload.executed_flops,
        "min_bytes": workload.min_bytes,
        "telemetry": canonical_json(dict(point.telemetry)),
        "measured_at": to_the_second(point.measured_at),
    }


def with_statistics(frame: pd.DataFrame) -> pd.DataFrame:
    """Parses samples and adds median and quantiles, in seconds."""
    frame = frame.copy()
    parsed = _parsed(list(frame["samples_s"]))
    frame["samples_s"] = parsed
    statistics = np.full((len(frame), len(DERIVED)), np.nan)
    by_count: dict[int, list[int]] = {}
    for i, values in enumerate(parsed):
        by_count.setdefault(len(values), []).append(i)
    for count, rows in by_count.items():
        if count:
            samples = np.array([parsed[i] for i in rows])
            statistics[rows, :3] = np.quantile(samples, (0.5, 0.2, 0.8), axis=1).T
            statistics[rows, 3] = samples.min(axis=1)
    for column, derived in zip(DERIVED, statistics.T, strict=True):
        frame[column] = derived
    return frame


def _parsed(texts: list[Any]) -> list[list[float]]:
    """JSON lists, read in one go; what is a list already stays."""
    if all(isinstance(text, str) for text in texts):
        found: list[list[float]] = json.loads(f"[{','.join(texts)}]")
        return found
    return [json.loads(text) if isinstance(text, str) else text for text in texts]


def _run(row: RunRow) -> Run:
    return Run(
        id=row.id,
        name=row.name,
        environment_id=row.environment_id,
        command=row.command,
        started_at=row.started_at,
        ended_at=row.ended_at,
        status=row.status,  # type: ignore[arg-type]
        planned_points=row.planned_points,
        tool_version=row.tool_version,
        commit=row.commit,
    )


__all__ = ["Dataset", "Store", "point_columns", "with_statistics"]
