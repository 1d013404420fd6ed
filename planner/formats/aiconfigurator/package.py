"""Reads an installed or unpacked aiconfigurator-core; hands its rows on as points or a file."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd

from planner.errors import EnvironmentProblem
from planner.formats.aiconfigurator.checks import drop_impossible, mark_slow, settle_repeats
from planner.formats.aiconfigurator.tables import Frame, Table, read_table, tables
from planner.store.files import COLUMNS, FORMAT_VERSION, OF_OTHERS, environments_path
from planner.store.records import Environment, Outcome, Point, content_hash
from planner.store.store import Store, point_columns
from planner.workload import Op, Workload, operation_from

SLOW_FLAG = "slow"
"""Telemetry key of a flagged row; its value is how many times slower than the best it is."""

METHOD_VERSION = "aiconfigurator-1"
TIMING_METHOD = "imported_mean"


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What a package held: usable rows, their environments, and what became of the others.

    `rows` has one row per point: the KEY columns, `device`, `environment_id`, `samples_s` (a list
    of seconds), `latency_s` (their median) and `slow` (NaN unless flagged). `dropped` counts rows
    by reason; `repeats` those that became further samples of a point; `left_out` those that `keep`
    did not ask for.
    """

    rows: Frame
    environments: dict[str, Environment]
    tables: tuple[Table, ...]
    read: int
    repeats: int
    dropped: dict[str, int]
    left_out: int

    @property
    def flagged(self) -> int:
        return int(self.rows["slow"].notna().sum())

    def summary(self) -> str:
        """One line: rows read, kept, merged, and dropped by reason."""
        lost = ", ".join(f"{n:,} {why}" for why, n in sorted(self.dropped.items()))
        return (
            f"{self.read:,} rows of {len(self.tables)} tables: {len(self.rows):,} points kept "
            f"({self.flagged:,} of slow kernels), {self.repeats:,} repeats merged, "
            f"{self.left_out:,} not asked for; dropped {lost or 'none'}"
        )


def find_root(path: Path) -> Path:
    """The package's folder, given it, or the site-packages or unpacked wheel that holds it."""
    for candidate in (path, path / "aiconfigurator_core"):
        if (candidate / "systems" / "data").is_dir():
            return candidate
    raise EnvironmentProblem(
        f"{path} holds no aiconfigurator-core (no systems/data in it): run `pip download "
        f"aiconfigurator-core==0.12.0 --no-deps`, unzip the wheel and give its folder"
    )


def package_version(root: Path) -> str:
    """From the dist-info beside the package; "unknown" without one."""
    found = sorted(root.parent.glob("aiconfigurator_core-*.dist-info"))
    return found[-1].name.split("-")[1].removesuffix(".dist") if found else "unknown"


def read_package(
    path: Path,
    *,
    systems: Iterable[str] | None = None,
    keep: Callable[[Frame], Frame] | None = None,
) -> Imported:
    """Reads every table that has a reader, one device after the other.

    `systems` are the package's folder names ("h200_sxm"), all of them if None. `keep` narrows a
    device's rows after the checks, which need all of them.

    Raises: EnvironmentProblem if there is no package at `path`, UnknownName for a system it lacks,
    UsageError for a table that is not as expected.
    """
    root = find_root(path)
    release = package_version(root)
    found = list(tables(root, systems))
    dropped: Counter[str] = Counter()
    environments: dict[str, Environment] = {}
    read = repeats = left_out = 0
    kept: list[Frame] = []
    for system in dict.fromkeys(t.system for t in found):
        settled = []
        for table in (t for t in found if t.system == system):
            rows, count = read_table(table, dropped)
            read += count
            if not rows.empty:
                rows = settle_repeats(rows, dropped)
                repeats += int(rows["samples_s"].map(len).sum()) - len(rows)
                settled.append(_in_environments(rows, table, release, environments))
        if settled:
            rows = mark_slow(drop_impossible(pd.concat(settled, ignore_index=True), dropped))
            kept.append(keep(rows) if keep else rows)
            left_out += len(rows) - len(kept[-1])
    if not kept:
        raise EnvironmentProblem(f"{root} has no table that can be read")
    return Imported(
        rows=pd.concat(kept, ignore_index=True),
        environments=environments,
        tables=tuple(found),
        read=read,
        repeats=repeats,
        dropped=dict(dropped),
        left_out=left_out,
    )


def _in_environments(
    rows: Frame, table: Table, release: str, known: dict[str, Environment]
) -> Frame:
    """Adds `environment_id`, one for each device and exact version, to rows and to `known`."""
    ids: dict[tuple[str, str], str] = {}
    for device, version in rows[["device", "exact_version"]].drop_duplicates().to_numpy():
        environment = Environment(
            device=device,
            device_kind="imported",
            versions={"aiconfigurator-core": release, table.framework: version},
            facts={
                "license": "Apache-2.0",
                "measured_at": "not told; the day the package was read stands in its place",
                "source": "https://github.com/ai-dynamo/aiconfigurator",
                "statistic": "mean over replays of the same buffers: warm, without spread",
            },
        )
        known[environment.id] = environment
        ids[device, version] = environment.id
    pairs = zip(rows["device"], rows["exact_version"], strict=True)
    return rows.assign(environment_id=[ids[pair] for pair in pairs])


def points(found: Imported, *, read_on: datetime) -> Iterator[Point]:
    """The rows as points of the store, marked imported by their environment, and warm."""
    ops: dict[tuple[str, str], Op] = {}
    for row in found.rows.to_dict("records"):
        name = row["family"], row["spec"]
        if name not in ops:
            ops[name] = operation_from(row["family"], json.loads(row["spec"]))
        yield Point(
            workload=Workload(
                op=ops[name],
                batch_size=row["batch_size"],
                new_tokens=row["new_tokens"],
                cached_tokens=row["cached_tokens"],
                dtype=row["dtype"],
            ),
            provider=row["provider"],
            environment_id=row["environment_id"],
            outcome=Outcome.OK,
            variant=row["variant"],
            mode=row["mode"],
            cache_state="warm",
            method_version=METHOD_VERSION,
            samples_s=row["samples_s"],
            timing_method=TIMING_METHOD,
            telemetry={} if np.isnan(row["slow"]) else {SLOW_FLAG: round(row["slow"], 1)},
            measured_at=read_on,
        )


def into_store(found: Imported, store: Store, *, read_on: datetime) -> int:
    """Puts the rows into a store as a dataset, in place of an earlier import of the same systems.

    Returns how many points there were.
    """
    release = {e.versions["aiconfigurator-core"] for e in found.environments.values()}
    systems = "+".join(dict.fromkeys(t.system for t in found.tables))
    name = f"{OF_OTHERS}{'+'.join(sorted(release))} {systems}"
    rows = [point_columns(p) for p in points(found, read_on=read_on)]
    digest = content_hash([name, sorted(row["key"] for row in rows)])
    store.replace_dataset(name, digest, found.environments.values(), rows)
    return len(rows)


ORDER = [
    "family",
    "spec",
    "provider",
    "batch_size",
    "cached_tokens",
    "new_tokens",
    "dtype",
    "mode",
]


def write_csv(found: Imported, path: Path, *, read_on: datetime) -> int:
    """Writes the rows as a measurements file with its environments beside it; returns how many."""
    frame = Frame([point_columns(p) for p in points(found, read_on=read_on)])
    used = sorted(frame["environment_id"].unique())
    meta = {
        "format_version": FORMAT_VERSION,
        "environments": {i: found.environments[i].to_dict() for i in used},
    }
    frame.sort_values(ORDER, kind="stable")[list(COLUMNS)].to_csv(
        path, index=False, lineterminator="\n"
    )
    environments_path(path).write_text(json.dumps(meta, indent=1, sort_keys=True) + "\n")
    return len(frame)
