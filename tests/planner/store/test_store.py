"""The store: one commit a point, keys that resume, statistics derived, files that come back."""

from __future__ import annotations

import errno
import json
import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.errors import EnvironmentProblem, UnknownName, UsageError
from planner.mixers import MixerSpec
from planner.store import Environment, Outcome, Point, Store, thin
from planner.store.files import environments_path, load_points
from planner.workload import DenseOp, MixerOp, Workload

SPEC = MixerSpec(
    mixer="full_attention",
    num_q_heads=8,
    num_k_heads=2,
    num_v_heads=2,
    k_head_dim=64,
    v_head_dim=64,
)
HERE = Environment(device="test cpu", device_kind="cpu", versions={"torch": "2.13.0"})


def point(tokens: int = 1024, outcome: Outcome = Outcome.OK, **changes: object) -> Point:
    facts: dict[str, object] = {
        "workload": Workload(op=MixerOp(SPEC), batch_size=1, new_tokens=tokens, dtype="fp32"),
        "provider": "sdpa_cpu",
        "environment_id": HERE.id,
        "outcome": outcome,
        "reason": "" if outcome is Outcome.OK else "because",
        "samples_s": [0.3, 0.1, 0.2] if outcome is Outcome.OK else [],
    }
    return Point(**{**facts, **changes})  # type: ignore[arg-type]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "store.db"), shipped=False)


@pytest.fixture
def run_id(store: Store) -> int:
    return store.start_run("first", HERE, command="attn-profile run", planned_points=3)


def test_statistics_are_derived_from_the_samples(store: Store, run_id: int) -> None:
    store.record(point(), run_id)
    row = store.points().iloc[0]
    assert row["samples_s"] == [0.3, 0.1, 0.2]
    assert row["median_s"] == 0.2
    assert row["p20_s"] == pytest.approx(0.14)
    assert row["model_flops"] == 2 * 8 * (64 + 64) * 1024 * 1025 / 2


def test_the_same_key_again_replaces_the_row(store: Store, run_id: int) -> None:
    store.record(point(), run_id)
    store.record(point(samples_s=[0.5]), run_id)
    assert list(store.points()["median_s"]) == [0.5]


def test_of_failures_only_a_mismatch_takes_a_times_place(store: Store, run_id: int) -> None:
    """A lack of memory or a crash tells of the day, a wrong output of the kernel."""
    store.record(point(), run_id)
    for outcome in (Outcome.OUT_OF_MEMORY, Outcome.ERROR, Outcome.TIMEOUT, Outcome.SKIPPED):
        store.record(point(outcome=outcome), run_id)
        assert list(store.points()["outcome"]) == ["ok"]
    store.record(point(outcome=Outcome.MISMATCH), run_id)
    assert list(store.points()["outcome"]) == ["mismatch"]
    store.record(point(), run_id)
    assert list(store.points()["outcome"]) == ["ok"]


def test_a_newer_method_replaces_the_row_and_an_older_one_does_not(
    store: Store, run_id: int
) -> None:
    """Times of two timing methods or kernel versions are never mixed."""
    then, now = (datetime(2026, 11, day, tzinfo=UTC) for day in (1, 2))
    other = point(2, measured_at=then)
    for p in (point(measured_at=then), other, point(method_version="2+3", measured_at=now)):
        store.record(p, run_id)
    assert sorted(store.points()["method_version"]) == ["1", "2+3"]
    assert other.key in set(store.points()["key"])
    store.record(point(method_version="2", measured_at=then), run_id)
    assert "2+3" in set(store.points()["method_version"])


def test_a_newer_methods_failure_leaves_the_older_time(store: Store, run_id: int) -> None:
    """It takes the place of older failures; of the time only what the new one cannot do does."""
    days = [datetime(2026, 11, day, tzinfo=UTC) for day in range(1, 8)]

    def record(method: str, day: int, outcome: Outcome = Outcome.OK) -> list[tuple[str, str]]:
        p = point(method_version=method, outcome=outcome, measured_at=days[day])
        store.record(p, run_id)
        frame = store.points()
        return sorted(zip(frame["method_version"], frame["outcome"], strict=True))

    record("1", 0)
    assert record("2", 1, Outcome.TIMEOUT) == [("1", "ok"), ("2", "timeout")]
    assert record("3", 2, Outcome.ERROR) == [("1", "ok"), ("3", "error")]
    assert record("4", 3) == [("4", "ok")]
    assert record("5", 4, Outcome.MISMATCH) == [("5", "mismatch")]
    record("6", 5)
    assert record("7", 6, Outcome.UNSUPPORTED) == [("7", "unsupported")]


@pytest.mark.parametrize(
    "changes",
    [
        {"provider": "other"},
        {"variant": "segments=8192"},
        {"mode": "graph"},
        {"cache_state": "warm"},
        {"method_version": "2"},
        {"environment_id": "0" * 32},
    ],
)
def test_whatever_changes_a_time_changes_the_key(changes: dict[str, str]) -> None:
    assert point(**changes).key != point().key


def test_facts_do_not_make_a_new_environment() -> None:
    warm = Environment(
        device="test cpu",
        device_kind="cpu",
        versions={"torch": "2.13.0"},
        facts={"temperature": 60},
    )
    upgraded = Environment(device="test cpu", device_kind="cpu", versions={"torch": "2.14.0"})
    assert warm.id == HERE.id != upgraded.id


def test_resuming_skips_results_and_retries_faults_on_request(store: Store, run_id: int) -> None:
    ok, oom, crash = point(1), point(2, Outcome.OUT_OF_MEMORY), point(3, Outcome.ERROR)
    for p in (ok, oom, crash):
        store.record(p, run_id)
    assert store.finished_keys(HERE.id) == {ok.key, oom.key, crash.key}
    assert store.finished_keys(HERE.id, retry_faults=True) == {ok.key, oom.key}


@pytest.mark.parametrize("latency", [0.0, -1.0, math.nan, math.inf])
def test_a_time_that_is_none_is_refused(latency: float) -> None:
    with pytest.raises(UsageError, match="finite and positive"):
        point(samples_s=[0.1, latency])


def test_a_failure_needs_its_reason() -> None:
    with pytest.raises(UsageError, match="needs a reason"):
        point(outcome=Outcome.ERROR, reason="")


@given(st.lists(st.floats(1e-6, 10), min_size=1, max_size=500))
def test_thinning_keeps_order_ends_and_limit(samples: list[float]) -> None:
    kept = thin(samples)
    assert len(kept) == min(len(samples), 64)
    assert (kept[0], kept[-1]) == (samples[0], samples[-1])
    positions = iter(samples)
    assert all(any(s == k for s in positions) for k in kept)


def test_an_unknown_run_lists_what_there_is(store: Store, run_id: int) -> None:
    with pytest.raises(UnknownName, match="first"):
        store.run("frist")
    assert store.run().id == store.run("first").id == run_id


def test_export_and_import_give_the_same_points(store: Store, run_id: int, tmp_path: Path) -> None:
    dense = Workload(op=DenseOp(512, 1024), batch_size=1, new_tokens=64, dtype="fp32")
    for p in (point(), point(2048, Outcome.OUT_OF_MEMORY), point(workload=dense, gate_error=1e-7)):
        store.record(p, run_id)
    path = tmp_path / "out.csv"
    assert store.export_csv(path) == 3
    other = Store.open(str(tmp_path / "other.db"), shipped=False)
    assert other.import_csv(path) == (3, 0)
    assert other.import_csv(path) == (3, 0), "importing twice doubles nothing"
    columns = ["key", "spec", "outcome", "reason", "model_flops", "gate_error", "measured_at"]
    ours = store.points().sort_values("key")[columns].reset_index(drop=True)
    theirs = other.points().sort_values("key")[columns].reset_index(drop=True)
    assert ours.equals(theirs)
    assert np.allclose(
        store.points().sort_values("key")["median_s"].dropna(),
        other.points().sort_values("key")["median_s"].dropna(),
    )


def test_a_point_measured_here_is_not_overwritten_by_an_import(
    store: Store, run_id: int, tmp_path: Path
) -> None:
    store.record(point(samples_s=[0.5]), run_id)
    path = tmp_path / "theirs.csv"
    store.export_csv(path)
    path.write_text(path.read_text().replace("[0.5]", "[0.7]"))
    assert store.import_csv(path) == (1, 1)
    assert list(store.points()["median_s"]) == [0.5]


def test_files_of_one_name_in_two_folders_are_two(tmp_path: Path) -> None:
    reader = Store.open(str(tmp_path / "reader.db"), shipped=False)
    for tokens, gpu in ((1024, "h100"), (2048, "h200")):
        writer = Store.open(str(tmp_path / f"{gpu}.db"), shipped=False)
        writer.add_environment(HERE)
        writer.record(point(tokens))
        (tmp_path / gpu).mkdir()
        writer.export_csv(tmp_path / gpu / "points.csv")
        assert reader.import_csv(tmp_path / gpu / "points.csv") == (1, 0)
    assert len(reader.points()) == 2


def test_of_two_files_with_the_same_point_the_newer_one_stays(tmp_path: Path) -> None:
    late, early = datetime(2026, 11, 24, tzinfo=UTC), datetime(2026, 11, 23, tzinfo=UTC)
    files = {
        "tuesday.csv": point(samples_s=[0.7], measured_at=late),
        "monday.csv": point(samples_s=[0.5], measured_at=early),
        "failed.csv": point(outcome=Outcome.ERROR, measured_at=late + timedelta(days=1)),
    }
    for name, only in files.items():
        writer = Store.open(str(tmp_path / f"{name}.db"), shipped=False)
        writer.add_environment(HERE)
        writer.record(only)
        writer.export_csv(tmp_path / name)
    for order in (("monday.csv", "tuesday.csv"), ("tuesday.csv", "monday.csv")):
        reader = Store.open(str(tmp_path / f"{order[0]} first.db"), shipped=False)
        left_out = [reader.import_csv(tmp_path / name)[1] for name in order]
        assert left_out == [0, int(order[0] == "tuesday.csv")]
        assert reader.import_csv(tmp_path / "failed.csv") == (1, 1), "a crash is no time"
        assert list(reader.points()["median_s"]) == [0.7]


def test_what_a_file_no_longer_holds_stays(store: Store, tmp_path: Path) -> None:
    """A download of the same name holds another run's points."""
    path = tmp_path / "points.csv"
    for tokens in (1024, 2048):
        writer = Store.open(str(tmp_path / f"{tokens}.db"), shipped=False)
        writer.add_environment(HERE)
        writer.record(point(tokens))
        writer.export_csv(path)
        assert store.import_csv(path) == (1, 0)
    assert len(store.points()) == 2
    assert store.point_counts() == {str(path): 2}


def test_imported_points_are_exported_too_and_shipped_ones_are_not(
    store: Store, tmp_path: Path
) -> None:
    """Or `import` and `run --export` to the same file would leave only the new ones there."""
    writer = Store.open(str(tmp_path / "writer.db"), shipped=False)
    writer.add_environment(HERE)
    for tokens in (1024, 2048):
        writer.record(point(tokens))
    path = tmp_path / "points.csv"
    writer.export_csv(path)
    store.import_csv(path)
    store.record(point(4096))
    assert store.export_csv(path) == 3
    elsewhere = Store.open(str(tmp_path / "shipped.db"), shipped=False)
    load_points(elsewhere, path, name="measurements/points.csv")
    with pytest.raises(UsageError, match="attn-profile run"):
        elsewhere.export_csv(path)
    assert elsewhere.finished_keys(HERE.id) == set(), "a user's own GPU is measured all the same"
    assert len(store.finished_keys(HERE.id)) == 3


def test_what_was_seen_of_the_own_machine_is_not_overwritten(
    store: Store, run_id: int, tmp_path: Path
) -> None:
    store.record(point(), run_id)
    path = tmp_path / "points.csv"
    store.export_csv(path)
    store.add_environment(replace(HERE, facts={"ceilings": {"flops": 1e12}}))
    store.import_csv(path)
    assert store.environments()[HERE.id].facts == {"ceilings": {"flops": 1e12}}


def test_of_one_files_rows_the_newest_counts_whatever_the_time_zone(
    store: Store, tmp_path: Path
) -> None:
    path = tmp_path / "points.csv"
    writer = Store.open(str(tmp_path / "writer.db"), shipped=False)
    writer.add_environment(HERE)
    writer.record(point(samples_s=[0.7], measured_at=datetime(2026, 11, 24, 11, tzinfo=UTC)))
    writer.export_csv(path)
    header, row = path.read_text().splitlines()
    older = row.replace("[0.7]", "[9.0]").replace(
        "2026-11-24T11:00:00+00:00", "2026-11-24T12:30:00+02:00"
    )
    path.write_text("\ufeff" + "\n".join((header, row, older)) + "\n", encoding="utf-8")
    assert store.import_csv(path) == (1, 0)
    assert list(store.points()["median_s"]) == [0.7]
    assert list(store.points()["measured_at"]) == ["2026-11-24T11:00:00+00:00"]


def test_a_write_that_fails_leaves_the_file(
    store: Store, run_id: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.record(point(), run_id)
    path = tmp_path / "points.csv"
    store.export_csv(path)
    before, names = path.read_text(), {p.name for p in tmp_path.iterdir()}
    store.record(point(2048), run_id)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("planner.store.whole.os.chmod", full)
    with pytest.raises(EnvironmentProblem, match="No space left"):
        store.export_csv(path)
    assert path.read_text() == before
    assert {p.name for p in tmp_path.iterdir()} == names


def test_names_with_dots_keep_their_environments_apart() -> None:
    assert environments_path(Path("run-v1.0")) != environments_path(Path("run-v1.1"))
    assert environments_path(Path("a/h200.csv")) == Path("a/h200.environments.json")


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("outcome", "fine", "fine"),
        ("samples_s", "[0.1,-1]", "finite and positive"),
        ("samples_s", "not json", "row 2"),
        ("batch_size", "0", "batch_size"),
        ("family", "mamba9", "mamba9|names mixer"),
        ("environment_id", "nowhere", "environment"),
        ("mode", "fast", "eager, graph"),
    ],
)
def test_a_broken_file_is_refused_whole(
    store: Store, run_id: int, tmp_path: Path, column: str, value: str, message: str
) -> None:
    import pandas as pd

    store.record(point(1), run_id)
    store.record(point(2), run_id)
    path = tmp_path / "broken.csv"
    store.export_csv(path)
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    frame.loc[0, column] = value
    frame.to_csv(path, index=False)
    other = Store.open(str(tmp_path / "other.db"), shipped=False)
    with pytest.raises(UsageError, match=message) as caught:
        other.import_csv(path)
    assert "\n" not in str(caught.value)
    assert other.points().empty


def test_a_file_without_its_environments_is_refused(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "alone.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(UsageError, match=r"alone\.environments\.json"):
        store.import_csv(path)


def test_an_edited_environment_is_noticed(store: Store, run_id: int, tmp_path: Path) -> None:
    store.record(point(), run_id)
    store.export_csv(tmp_path / "out.csv")
    beside = tmp_path / "out.environments.json"
    meta = json.loads(beside.read_text())
    meta["environments"][HERE.id]["device"] = "a faster cpu"
    beside.write_text(json.dumps(meta))
    with pytest.raises(UsageError, match="does not match its content"):
        store.import_csv(tmp_path / "out.csv")


def test_exporting_nothing_says_what_to_run(store: Store, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="attn-profile run"):
        store.export_csv(tmp_path / "out.csv")


def test_the_pragmas_are_set(store: Store) -> None:
    with store.engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1


def test_a_point_of_an_unknown_environment_is_refused(store: Store) -> None:
    with pytest.raises(EnvironmentProblem):
        store.record(point(environment_id="f" * 32))
    assert store.points().empty
