"""Bringing a store to this version's tables, or refusing to touch it.

Each migration is a function from one version to the next, run in one transaction. A store of a
newer version is refused: this program could not know what it means.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from sqlalchemy import CheckConstraint, Connection, Engine, Table, inspect, select, text, update
from sqlalchemy.exc import DBAPIError

from planner import __version__
from planner.errors import EnvironmentProblem
from planner.store.base import Base
from planner.store.schema import SCHEMA_VERSION, PointRow, SchemaInfo


def allow_skipped(connection: Connection) -> None:
    """Points may be `skipped`. SQLite cannot change a constraint, so the table is made anew."""
    table = PointRow.__table__
    assert isinstance(table, Table)
    if connection.dialect.name == "postgresql":
        _replace_check(connection, table, "outcome")
        return
    columns = ", ".join(column["name"] for column in inspect(connection).get_columns(table.name))
    for index in inspect(connection).get_indexes(table.name):
        connection.execute(text(f"DROP INDEX {index['name']}"))
    connection.execute(text(f"ALTER TABLE {table.name} RENAME TO {table.name}_before"))
    table.create(connection)
    connection.execute(
        text(f"INSERT INTO {table.name} ({columns}) SELECT {columns} FROM {table.name}_before")
    )
    connection.execute(text(f"DROP TABLE {table.name}_before"))


def _replace_check(connection: Connection, table: Table, column: str) -> None:
    """Drops the checks on a column and adds this version's."""
    for check in inspect(connection).get_check_constraints(table.name):
        if column in check["sqltext"]:
            connection.execute(text(f'ALTER TABLE {table.name} DROP CONSTRAINT "{check["name"]}"'))
    for constraint in table.constraints:
        if isinstance(constraint, CheckConstraint) and column in str(constraint.sqltext):
            connection.execute(text(f"ALTER TABLE {table.name} ADD CHECK ({constraint.sqltext})"))


MIGRATIONS: Mapping[int, Callable[[Connection], None]] = {1: allow_skipped}
"""From version n to n + 1."""


def describe(engine: Engine) -> str:
    return str(engine.url.database or engine.url.render_as_string(hide_password=True))


def prepare(
    engine: Engine,
    *,
    target: int = SCHEMA_VERSION,
    migrations: Mapping[int, Callable[[Connection], None]] = MIGRATIONS,
) -> None:
    """Creates the tables in an empty store, migrates an older one, refuses anything else.

    Raises:
        EnvironmentProblem: not a database, not writable, someone else's tables, newer schema.
    """
    try:
        with engine.connect() as connection:
            if _is_current(connection, target):
                return
        with engine.begin() as connection:
            if connection.dialect.name == "sqlite":
                # its driver begins with the first change of rows, after tables were made
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            found = set(inspect(connection).get_table_names())
            if not found:
                Base.metadata.create_all(connection)
                connection.execute(
                    SchemaInfo.__table__.insert().values(  # type: ignore[attr-defined]
                        id=1, version=target, tool_version=__version__
                    )
                )
                return
            if SchemaInfo.__tablename__ not in found:
                raise EnvironmentProblem(
                    f"{describe(engine)} is a database of something else (tables: "
                    f"{', '.join(sorted(found)[:4])}…); choose another with --store FILE"
                )
            _upgrade(connection, engine, target, migrations)
    except DBAPIError as error:
        raise unusable(engine, error) from None


def _is_current(connection: Connection, target: int) -> bool:
    if not inspect(connection).has_table(SchemaInfo.__tablename__):
        return False
    return connection.scalar(select(SchemaInfo.version)) == target


def _upgrade(
    connection: Connection,
    engine: Engine,
    target: int,
    migrations: Mapping[int, Callable[[Connection], None]],
) -> None:
    version = connection.scalar(select(SchemaInfo.version))
    if version is None:
        raise EnvironmentProblem(
            f"{describe(engine)} was left half made, without points: delete it, or choose another "
            f"with --store"
        )
    if version > target:
        raise EnvironmentProblem(
            f"{describe(engine)} has schema {version}, this version knows up to {target}: "
            f"run `pip install --upgrade attention-planner`, or choose another store with --store"
        )
    for step in range(version, target):
        migrations[step](connection)
    if version < target:
        connection.execute(update(SchemaInfo).values(version=target, tool_version=__version__))


def unusable(engine: Engine, error: DBAPIError) -> EnvironmentProblem:
    """One line for what a database driver says when the store cannot be used."""
    said = str(error.orig).strip().splitlines()[0] if error.orig else str(error)
    hints = {
        "file is not a database": "it is not a SQLite file",
        "unable to open database file": "it cannot be opened or created there",
        "readonly database": "it is read-only",
        "disk I/O error": "the disk refused (full, or a network file system)",
        "database is locked": "another process is writing to it",
    }
    why = next((hint for text, hint in hints.items() if text in said), said)
    return EnvironmentProblem(
        f"store {describe(engine)} is not usable: {why}; choose another with "
        f"--store FILE or set ATTN_STORE"
    )
