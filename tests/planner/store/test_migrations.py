"""Opening what is not ours, what is newer, and what is older."""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import Connection, inspect, text

from planner.errors import EnvironmentProblem, UsageError
from planner.store import Environment, Outcome, Point, Store
from planner.store.location import make_engine, store_url
from planner.store.migrations import prepare
from planner.store.schema import SCHEMA_VERSION
from planner.workload import DenseOp, Workload


def open_store(path: Path) -> Store:
    return Store.open(str(path), shipped=False)


def assert_one_line(error: pytest.ExceptionInfo[EnvironmentProblem]) -> None:
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 3


def test_a_text_file_is_not_a_store_and_survives(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("my notes, much longer than the header of a database file would be\n" * 20)
    before = path.read_bytes()
    with pytest.raises(EnvironmentProblem, match="not a SQLite file") as error:
        open_store(path)
    assert_one_line(error)
    assert path.read_bytes() == before


def test_a_newer_schema_is_refused_with_the_command_to_run(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    open_store(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE schema_info SET version = ?", (SCHEMA_VERSION + 1,))
    with pytest.raises(EnvironmentProblem, match="pip install --upgrade") as error:
        open_store(path)
    assert_one_line(error)


def test_someone_elses_database_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "photos.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE photos (id INTEGER)")
    with pytest.raises(EnvironmentProblem, match="photos") as error:
        open_store(path)
    assert_one_line(error)
    with sqlite3.connect(path) as connection:
        tables = connection.execute("SELECT name FROM sqlite_master").fetchall()
    assert tables == [("photos",)]


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_a_read_only_directory(tmp_path: Path) -> None:
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(EnvironmentProblem) as error:
        open_store(tmp_path / "store.db")
    assert_one_line(error)


def test_a_directory_that_cannot_exist(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentProblem, match="--store") as error:
        open_store(tmp_path / "file" / "below" / "store.db")
    assert_one_line(error)


@pytest.mark.parametrize("url", ["nosuchdb://x/y", "://", "sqlite:nothing://"])
def test_a_url_that_is_none(url: str) -> None:
    with pytest.raises(UsageError):
        Store.open(url, shipped=False)


def test_the_variable_names_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTN_STORE", str(tmp_path / "mine.db"))
    assert store_url().database == str(tmp_path / "mine.db")
    assert store_url("other.db").database == "other.db"


def _add_column(connection: Connection) -> None:
    connection.execute(text("ALTER TABLE runs ADD COLUMN note TEXT"))


def _fail(connection: Connection) -> None:
    connection.execute(text("ALTER TABLE no_such_table ADD COLUMN note TEXT"))


def test_an_older_store_is_migrated_step_by_step(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    open_store(path).close()
    engine = make_engine(store_url(str(path)))
    prepare(engine, target=SCHEMA_VERSION + 1, migrations={SCHEMA_VERSION: _add_column})
    with engine.connect() as connection:
        columns = [row[1] for row in connection.execute(text("PRAGMA table_info(runs)"))]
        version = connection.scalar(text("SELECT version FROM schema_info"))
    assert "note" in columns
    assert version == SCHEMA_VERSION + 1


def _half_done(connection: Connection) -> None:
    connection.execute(text("ALTER TABLE points RENAME TO points_before"))
    _fail(connection)


@pytest.mark.parametrize("step", [_fail, _half_done])
def test_a_failed_migration_leaves_version_and_tables(
    tmp_path: Path, step: Callable[[Connection], None]
) -> None:
    """SQLite's driver begins a transaction with rows that change, not with tables that do."""
    path = tmp_path / "store.db"
    open_store(path).close()
    engine = make_engine(store_url(str(path)))
    with pytest.raises(EnvironmentProblem):
        prepare(engine, target=SCHEMA_VERSION + 1, migrations={SCHEMA_VERSION: step})
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT version FROM schema_info")) == SCHEMA_VERSION
    tables = inspect(engine).get_table_names()
    assert "points" in tables and "points_before" not in tables


def test_two_may_open_a_new_store_at_once(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    with ThreadPoolExecutor(8) as pool:
        stores = list(pool.map(lambda _: open_store(path), range(8)))
    assert all(store.points().empty for store in stores)


def test_version_1_keeps_its_points_and_takes_skipped_ones(tmp_path: Path) -> None:
    """A store as the first version made it: without `skipped` among the outcomes."""
    path = tmp_path / "store.db"
    store = open_store(path)
    environment = Environment(device="a CPU", device_kind="cpu", versions={})
    store.add_environment(environment)
    spec = DenseOp(8, 8)
    ok = Point(
        workload=Workload(op=spec, batch_size=1, new_tokens=1, dtype="fp32"),
        provider="torch",
        environment_id=environment.id,
        outcome=Outcome.OK,
        samples_s=[1e-3],
    )
    store.record(ok)
    with store.engine.begin() as connection:
        made = connection.scalar(text("SELECT sql FROM sqlite_master WHERE name = 'points'"))
        connection.execute(text("PRAGMA writable_schema = 1"))
        connection.execute(
            text("UPDATE sqlite_master SET sql = :old WHERE name = 'points'"),
            {"old": made.replace("'skipped',", "")},
        )
        connection.execute(text("UPDATE schema_info SET version = 1"))
    store.close()
    skipped = replace(ok, provider="other", outcome=Outcome.SKIPPED, reason="slow", samples_s=())
    store = open_store(path)
    store.record(skipped)
    assert set(store.points()["outcome"]) == {"ok", "skipped"}
    assert store.finished_keys(environment.id) == {ok.key}
    names = {i["name"] for i in inspect(store.engine).get_indexes("points")}
    assert "points_by_workload" in names and not {
        name for name in inspect(store.engine).get_table_names() if name.endswith("_before")
    }
    store.close()
