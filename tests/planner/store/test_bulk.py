"""The fast reader gives exactly the rows of the slow one, or leaves the file to it."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest

from planner.catalog import data_dir
from planner.store.bulk import table_rows
from planner.store.files import COLUMNS, environments_path, read_environments, read_points
from planner.store.store import point_columns

IMPORTED = sorted((data_dir() / "measurements").rglob("*.csv"))


def head(path: Path, tmp_path: Path, edit: Callable[[dict[str, str]], object]) -> Path:
    """A copy of every fortieth row, the first of them edited."""
    copy = tmp_path / path.name
    with path.open(newline="") as handle:
        rows = list(csv.DictReader(handle))[::40]
    edit(rows[0])
    with copy.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    environments_path(copy).write_text(environments_path(path).read_text())
    return copy


@pytest.mark.parametrize("path", IMPORTED, ids=lambda p: p.stem)
def test_the_same_rows_as_one_by_one(path: Path, tmp_path: Path) -> None:
    def vary(row: dict[str, str]) -> None:
        row |= {"variant": 'segments="8192" ü', "training": "True", "peak_bytes": "123",
                "energy_j": "0.5", "telemetry": '{"b": 1, "a": [2]}', "num_samples": "0",
                "samples_s": "[0.00123456789,0.002]"}  # fmt: skip

    copy = head(path, tmp_path, vary)
    environments, points = read_points(copy)
    fast = table_rows(copy, COLUMNS, environments)
    assert fast is not None
    assert fast == [point_columns(p) for p in points]


@pytest.mark.parametrize(
    "change",
    [
        {"batch_size": "0"},
        {"new_tokens": "many"},
        {"dtype": "fp7"},
        {"mode": "lazy"},
        {"outcome": "fine"},
        {"outcome": "timeout", "reason": ""},
        {"samples_s": "[-1.0]"},
        {"samples_s": "[]"},
        {"samples_s": "[NaN]"},
        {"spec": '{"mixer": "hyena"}'},
        {"family": "hyena"},
        {"environment_id": "elsewhere"},
        {"telemetry": "none"},
        {"measured_at": "yesterday"},
        {"energy_j": "inf"},
    ],
    ids=str,
)
def test_what_is_not_plain_is_left_to_the_slow_reader(
    tmp_path: Path, change: dict[str, str]
) -> None:
    copy = head(IMPORTED[0], tmp_path, lambda row: row.update(change))
    assert table_rows(copy, COLUMNS, read_environments(copy)) is None


def test_a_missing_column_or_file_is_left_to_the_slow_reader(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("family,spec\nfull_attention,{}\n")
    assert table_rows(tmp_path / "x.csv", COLUMNS, {}) is None
    assert table_rows(tmp_path / "none.csv", COLUMNS, {}) is None
