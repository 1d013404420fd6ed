"""Files that are written whole or not at all: a full disk leaves the earlier version as it was."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from tempfile import NamedTemporaryFile

from planner.errors import EnvironmentProblem


def write_whole(texts: Mapping[Path, str]) -> None:
    """Writes all texts beside their paths, then moves them there. What is no plain file (a pipe,
    a terminal) is written as it is.

    Raises: EnvironmentProblem; where there was no room, none of them has changed.
    """
    written: dict[Path, Path] = {}
    try:
        for path, text in texts.items():
            if path.exists() and not path.is_file():
                path.write_text(text, encoding="utf-8", newline="")
                continue
            goal = path.resolve()  # a link stays one
            with NamedTemporaryFile(
                "w", encoding="utf-8", newline="", dir=goal.parent, prefix=".", delete=False
            ) as handle:
                written[goal] = Path(handle.name)
                handle.write(text)
            os.chmod(written[goal], _mode(goal))
        for goal in list(written):
            os.replace(written[goal], goal)
            del written[goal]
    except OSError as error:
        raise EnvironmentProblem(f"cannot write {path}: {error.strerror}") from None
    finally:
        for left in written.values():
            left.unlink(missing_ok=True)


def _mode(path: Path) -> int:
    """The file's permissions; a new one's, as the shell would give them."""
    if path.exists():
        return path.stat().st_mode & 0o777
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask
