"""Measurements as files: a CSV of points, and a JSON of their environments beside it.

`h200.csv` holds one point a row, raw samples included; `h200.environments.json` says on what they
were measured. Both together are enough to rebuild the rows elsewhere.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from planner.errors import UsageError
from planner.store.records import Environment, Outcome, Point
from planner.store.whole import write_whole
from planner.workload import Workload, operation_from

if TYPE_CHECKING:
    from planner.store.store import Store

FORMAT_VERSION = 1
SHIPPED = "measurements"
"""Folder of the points that come with the program; their datasets are named by it."""
OF_OTHERS = "aiconfigurator-core "
"""How the names of datasets begin that were read from tables measured by others."""
COLUMNS = (
    "environment_id",
    "family",
    "spec",
    "batch_size",
    "new_tokens",
    "cached_tokens",
    "dtype",
    "training",
    "provider",
    "variant",
    "mode",
    "cache_state",
    "method_version",
    "outcome",
    "reason",
    "samples_s",
    "num_samples",
    "timing_method",
    "peak_bytes",
    "workspace_bytes",
    "energy_j",
    "gate_error",
    "telemetry",
    "measured_at",
)


def environments_path(path: Path) -> Path:
    stem = path.stem if path.suffix.lower() == ".csv" else path.name
    return path.with_name(f"{stem}.environments.json")


def is_shipped(dataset: str) -> bool:
    """Whether points of this dataset came with the program, and not by an import of the user's."""
    return dataset.startswith(f"{SHIPPED}/")


def is_own(dataset: str) -> bool:
    """Whether points were measured here or read from a file of such points."""
    return not dataset or not (is_shipped(dataset) or dataset.startswith(OF_OTHERS))


def file_sha256(*paths: Path) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def write_points(store: Store, path: Path, *, run: str | int | None = None) -> int:
    """Writes the points of one run, or all that are the user's, measured or read from such a
    file; returns how many.

    Raises: EnvironmentProblem if the file cannot be written, UsageError if there is nothing to.
    """
    frame = store.points(run=run)
    frame = frame[frame["dataset"].fillna("").map(is_own).astype(bool)].sort_values(
        ["family", "spec", "provider", "phase", "batch_size", "new_tokens", "cached_tokens", "key"]
    )
    if frame.empty:
        raise UsageError(
            "nothing to export: the store holds no points measured here; "
            "run `attn-profile run` first"
            if run is None
            else f"nothing to export: run {run} found all its points there already; "
            "leave out --run for all of yours"
        )
    known = store.environments()
    meta = {
        "format_version": FORMAT_VERSION,
        "environments": {i: known[i].to_dict() for i in sorted(set(frame["environment_id"]))},
    }
    frame["samples_s"] = [json.dumps(s, separators=(",", ":")) for s in frame["samples_s"]]
    write_whole(
        {
            path: frame[list(COLUMNS)].to_csv(index=False, lineterminator="\n"),
            environments_path(path): json.dumps(meta, indent=1, sort_keys=True) + "\n",
        }
    )
    return len(frame)


def read_environments(path: Path) -> dict[str, Environment]:
    """The environments file beside `path`. Raises UsageError with the file's name."""
    beside = environments_path(path)
    try:
        meta = json.loads(beside.read_text())
        if meta["format_version"] != FORMAT_VERSION:
            raise UsageError(
                f"{beside.name} has format {meta['format_version']}, this version "
                f"reads {FORMAT_VERSION}: run `pip install --upgrade "
                f"attention-planner`"
            )
        found = {key: Environment(**value) for key, value in meta["environments"].items()}
    except FileNotFoundError:
        raise UsageError(
            f"{path.name} needs {beside.name} beside it; export writes both"
        ) from None
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{beside.name} is not an environments file: {error}") from None
    for key, environment in found.items():
        if environment.id != key:
            raise UsageError(f"{beside.name}: environment {key} does not match its content")
    return found


def read_points(path: Path) -> tuple[dict[str, Environment], list[Point]]:
    """All points of a file, each checked as if it had just been measured.

    Raises: UsageError naming file and row for anything that is not a point.
    """
    environments = read_environments(path)
    return environments, list(_parse(path, environments))


def _parse(path: Path, environments: dict[str, Environment]) -> Iterator[Point]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as handle:
            reader = csv.DictReader(handle)
            missing = set(COLUMNS) - set(reader.fieldnames or ())
            if missing and ";" in "".join(reader.fieldnames or ()):
                raise UsageError(f"{path.name} has semicolons between its columns: use commas")
            if missing:
                raise UsageError(
                    f"{path.name} is not a measurements file: column "
                    f"{sorted(missing)[0]!r} is missing"
                )
            for number, row in enumerate(reader, start=2):
                try:
                    yield point_from_row(row, environments)
                except (UsageError, ValueError, KeyError, TypeError) as error:
                    raise UsageError(f"{path.name} row {number}: {error}") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"cannot read {path}: {error}") from None


def point_from_row(row: dict[str, str], environments: dict[str, Environment]) -> Point:
    from datetime import datetime

    if row["environment_id"] not in environments:
        raise UsageError(f"environment {row['environment_id']!r} is not in the environments file")
    workload = Workload(
        op=operation_from(row["family"], json.loads(row["spec"])),
        batch_size=int(row["batch_size"]),
        new_tokens=int(row["new_tokens"]),
        cached_tokens=int(row["cached_tokens"]),
        dtype=row["dtype"],
        training=_flag(row["training"]),
    )
    return Point(
        workload=workload,
        provider=row["provider"],
        environment_id=row["environment_id"],
        outcome=Outcome(row["outcome"]),
        reason=row["reason"],
        variant=row["variant"],
        mode=_one_of(row["mode"], ("eager", "graph")),  # type: ignore[arg-type]
        cache_state=_one_of(row["cache_state"], ("cold", "warm")),  # type: ignore[arg-type]
        method_version=row["method_version"],
        samples_s=[float(s) for s in json.loads(row["samples_s"])],
        num_samples=int(row["num_samples"]),
        timing_method=row["timing_method"],
        peak_bytes=_optional_int(row["peak_bytes"]),
        workspace_bytes=_optional_int(row["workspace_bytes"]),
        energy_j=_optional_float(row["energy_j"]),
        gate_error=_optional_float(row["gate_error"]),
        telemetry=json.loads(row["telemetry"]),
        measured_at=datetime.fromisoformat(row["measured_at"]),
    )


def _one_of(text: str, allowed: tuple[str, ...]) -> str:
    if text not in allowed:
        raise UsageError(f"expected one of {', '.join(allowed)}, got {text!r}")
    return text


def _flag(text: str) -> bool:
    return _one_of(text, ("True", "False", "0", "1")) in ("True", "1")


def _optional_float(text: str) -> float | None:
    if text == "":
        return None
    value = float(text)
    if not math.isfinite(value):
        raise UsageError(f"expected a finite number, got {text!r}")
    return value


def _optional_int(text: str) -> int | None:
    value = _optional_float(text)
    return None if value is None else int(value)


def load_points(store: Store, path: Path, *, name: str, merge: bool = False) -> tuple[int, int]:
    """Reads a file into the store as the dataset `name`, all or nothing, in place of an earlier
    version of it or, with `merge`, beside what that held. Of rows with the same key the newest
    counts.

    Returns how many points it has, and how many of them the store left out for newer ones or the
    user's own.
    """
    from planner.store.bulk import table_rows
    from planner.store.store import point_columns

    environments = read_environments(path)
    found = table_rows(path, COLUMNS, environments)
    if found is None:
        found = [point_columns(point) for point in _parse(path, environments)]
    rows = {row["key"]: row for row in sorted(found, key=lambda row: row["measured_at"])}
    left_out = store.replace_dataset(
        name,
        file_sha256(path, environments_path(path)),
        environments.values(),
        list(rows.values()),
        merge=merge,
    )
    return len(rows), left_out
