"""Compiled kernels and their tuned configurations as a file, to carry to a fresh machine.

Compiling and tuning is nine tenths of a first sweep. Triton keeps both in one directory (tuning
because workers set TRITON_CACHE_AUTOTUNING); Inductor keeps flex_attention's. Only what loading
needs is packed: binaries, launchers and JSON, not the stages between.
"""

from __future__ import annotations

import os
import tarfile
import tempfile
from collections.abc import Iterator
from getpass import getuser
from pathlib import Path

from planner.errors import EnvironmentProblem, UsageError

KEPT_OF_TRITON = {".json", ".cubin", ".hsaco", ".so"}


def cache_dirs() -> dict[str, Path]:
    """By name in the archive: where Triton and Inductor keep what they compile."""
    triton = os.environ.get("TRITON_CACHE_DIR") or Path.home() / ".triton" / "cache"
    inductor = os.environ.get("TORCHINDUCTOR_CACHE_DIR") or (
        Path(tempfile.gettempdir()) / f"torchinductor_{getuser()}"
    )
    return {"triton": Path(triton), "inductor": Path(inductor)}


def kept_files(name: str, root: Path) -> Iterator[Path]:
    for path in sorted(root.rglob("*")):
        needed = name != "triton" or path.suffix in KEPT_OF_TRITON
        if path.is_file() and not path.is_symlink() and needed:
            yield path


def save(path: Path) -> int:
    """Packs the caches of this machine; returns the number of files.

    Raises: UsageError if there is nothing compiled yet, EnvironmentProblem if `path` cannot be
    written.
    """
    found = [
        (f"{name}/{file.relative_to(root)}", file)
        for name, root in cache_dirs().items()
        for file in kept_files(name, root)
    ]
    if not found:
        raise UsageError("nothing compiled yet: run a sweep on a GPU first")
    try:
        with tarfile.open(path, "w:gz") as archive:
            for name, file in found:
                archive.add(file, arcname=name)
    except OSError as error:
        raise EnvironmentProblem(f"cannot write {path}: {error.strerror}") from None
    return len(found)


def load(path: Path) -> int:
    """Unpacks what `save` wrote to where this machine's compilers look; returns the files.

    Raises: EnvironmentProblem if it cannot be read, UsageError if it is something else.
    """
    roots = cache_dirs()
    try:
        with tarfile.open(path) as archive:
            members = [m for m in archive.getmembers() if m.isfile()]
            strange = [m.name for m in members if m.name.split("/")[0] not in roots]
            if strange or not members:
                raise UsageError(f"{path.name} is not a compile cache that `cache save` wrote")
            for member in members:
                name, _, rest = member.name.partition("/")
                member.name = rest
                archive.extract(member, roots[name], filter="data")
    except tarfile.FilterError as error:
        raise UsageError(f"{path.name} reaches outside the cache: {error}") from None
    except tarfile.TarError as error:
        raise UsageError(f"{path.name} is not a compile cache: {error}") from None
    except OSError as error:
        raise EnvironmentProblem(f"cannot read {path}: {error.strerror or error}") from None
    return len(members)
