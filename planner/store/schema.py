"""The tables of measurements. Only this package speaks SQL.

Version history (bump SCHEMA_VERSION with every change and add its migration):
    1   first release
    2   points may be `skipped`
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, CheckConstraint, Float, ForeignKey, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from planner.store.base import Base

SCHEMA_VERSION = 2


class SchemaInfo(Base):
    """One row: the version of the tables and of the package that wrote them."""

    __tablename__ = "schema_info"
    __table_args__ = (CheckConstraint("id = 1"),)

    id: Mapped[int] = mapped_column(primary_key=True, default=1)
    version: Mapped[int]
    tool_version: Mapped[str]


class DatasetRow(Base):
    """A shipped or imported file whose rows are in the store: loaded once per content."""

    __tablename__ = "datasets"

    name: Mapped[str] = mapped_column(primary_key=True)
    sha256: Mapped[str]
    rows: Mapped[int]
    loaded_at: Mapped[datetime]


class EnvironmentRow(Base):
    __tablename__ = "environments"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    device: Mapped[str]
    device_kind: Mapped[str]
    versions: Mapped[dict[str, Any]] = mapped_column(JSON)
    switches: Mapped[dict[str, Any]] = mapped_column(JSON)
    facts: Mapped[dict[str, Any]] = mapped_column(JSON)


class RunRow(Base):
    __tablename__ = "runs"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    environment_id: Mapped[str] = mapped_column(ForeignKey("environments.id"))
    command: Mapped[str]
    started_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]
    status: Mapped[str]
    planned_points: Mapped[int]
    tool_version: Mapped[str]
    commit: Mapped[str]


class PointRow(Base):
    """One measured point. Raw samples are kept; median and quantiles are derived on reading."""

    __tablename__ = "points"
    __table_args__ = (
        CheckConstraint(
            "outcome in ('ok','out_of_memory','unsupported','skipped',"
            "'mismatch','timeout','error')",
            name="points_outcome",
        ),
        CheckConstraint("mode in ('eager','graph')"),
        CheckConstraint("cache_state in ('cold','warm')"),
        Index("points_by_workload", "family", "environment_id", "provider"),
    )

    key: Mapped[str] = mapped_column(String(32), primary_key=True)
    environment_id: Mapped[str] = mapped_column(ForeignKey("environments.id"))
    run_id: Mapped[int | None] = mapped_column(ForeignKey("runs.id"))
    dataset: Mapped[str | None] = mapped_column(ForeignKey("datasets.name"))
    family: Mapped[str]
    spec: Mapped[str]
    batch_size: Mapped[int]
    new_tokens: Mapped[int]
    cached_tokens: Mapped[int]
    dtype: Mapped[str]
    training: Mapped[bool]
    phase: Mapped[str]
    provider: Mapped[str]
    variant: Mapped[str]
    mode: Mapped[str]
    cache_state: Mapped[str]
    method_version: Mapped[str]
    outcome: Mapped[str]
    reason: Mapped[str]
    samples_s: Mapped[str]
    num_samples: Mapped[int]
    timing_method: Mapped[str]
    peak_bytes: Mapped[int | None]
    workspace_bytes: Mapped[int | None]
    energy_j: Mapped[float | None] = mapped_column(Float)
    gate_error: Mapped[float | None] = mapped_column(Float)
    model_flops: Mapped[float] = mapped_column(Float)
    executed_flops: Mapped[float] = mapped_column(Float)
    min_bytes: Mapped[float] = mapped_column(Float)
    telemetry: Mapped[str]
    measured_at: Mapped[str]
