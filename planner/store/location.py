"""Where the user's store lives, and opening its engine.

An embedded SQLite file by default; any SQLAlchemy URL works, PostgreSQL as
`postgresql+psycopg://…`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from sqlalchemy import Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from planner.errors import EnvironmentProblem, UsageError

ENV_VARIABLE = "ATTN_STORE"
_PRAGMAS = ("journal_mode=WAL", "synchronous=NORMAL", "busy_timeout=10000", "foreign_keys=ON")


def user_data_dir() -> Path:
    """The platform's directory for this user's data of this program."""
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Application Support"
    else:
        base = Path(os.environ.get("XDG_DATA_HOME", Path.home() / ".local" / "share"))
    return base / "attention-planner"


def store_url(given: str | None = None) -> URL:
    """The store's URL from `--store`, else ATTN_STORE, else the user data directory.

    A plain path means a SQLite file there.
    """
    text = given or os.environ.get(ENV_VARIABLE) or str(user_data_dir() / "store.db")
    if "://" not in text:
        return URL.create("sqlite", database=str(Path(text).expanduser()))
    try:
        return make_url(text)
    except ArgumentError:
        raise UsageError(
            f"store must be a file path or a database URL such as sqlite:///store.db, got {text!r}"
        ) from None


def make_engine(url: URL) -> Engine:
    """An engine with the pragmas a crash-safe store needs. Creates the file's directory."""
    if url.get_backend_name() == "sqlite" and url.database not in (None, "", ":memory:"):
        parent = Path(str(url.database)).parent
        try:
            parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EnvironmentProblem(
                f"cannot create the store's directory {parent}: {error.strerror}; choose another "
                f"with --store FILE or {ENV_VARIABLE}"
            ) from None
    try:
        engine = create_engine(url)
    except NoSuchModuleError:
        raise UsageError(
            f"unknown database kind {url.drivername!r}; use sqlite or postgresql+psycopg"
        ) from None
    except ModuleNotFoundError as error:
        raise EnvironmentProblem(
            f"the store's driver {error.name} is not installed: "
            f"pip install 'attention-planner[postgres]'"
        ) from None
    if engine.dialect.name == "sqlite":

        @event.listens_for(engine, "connect")
        def _set_pragmas(connection: object, _record: object) -> None:
            cursor = connection.cursor()  # type: ignore[attr-defined]
            for pragma in _PRAGMAS:
                cursor.execute(f"PRAGMA {pragma}")
            cursor.close()

    return engine
