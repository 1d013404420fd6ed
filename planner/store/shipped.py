"""The data that ships with the program, loaded into the user's store on first use.

Each file is loaded once per content: a new release with changed numbers replaces the old rows.
"""

from __future__ import annotations

from pathlib import Path

from planner.catalog import data_dir
from planner.store.evidence import PUBLISHED, load_published
from planner.store.files import SHIPPED, environments_path, file_sha256, load_points
from planner.store.store import Store


def measurement_files(root: Path) -> list[Path]:
    return sorted((root / SHIPPED).rglob("*.csv"))


def load_shipped(store: Store) -> list[str]:
    """Loads what is new or changed; returns the names of the files that were."""
    root = data_dir()
    known = store.datasets()
    loaded = []
    for path in measurement_files(root):
        name = path.relative_to(root).as_posix()
        digest = file_sha256(path, environments_path(path))
        if name not in known or known[name].sha256 != digest:
            load_points(store, path, name=name)
            loaded.append(name)
    if load_published(store):
        loaded.append(PUBLISHED)
    return loaded
