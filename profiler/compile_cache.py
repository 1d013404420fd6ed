"""Compiled kernels and their tuned configurations as a file, to carry to a fresh machine.

Compiling and tuning is nine tenths of a first sweep. Triton keeps both in one directory (tuning
because workers set TRITON_CACHE_AUTOTUNING), here one of its own: what other programs had tuned,
for other shapes, is not what a sweep measures. Inductor keeps flex_attention's. Only what loading
needs is packed: binaries, launchers and JSON, not the stages between.
"""

from __future__ import annotations

import os
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from getpass import getuser
from pathlib import Path

from planner.errors import EnvironmentProblem, UsageError

TUNING = 3  # bump it when tuners are made to choose in another way: older choices are not found
TRITON = f"triton-{TUNING}"
PART_BYTES = 14 << 20  # what is buffered or compressed last may add a little
COMPRESSION = 6  # of 365 MiB in 7 s; tarfile's own 9 takes 25 s for 2 % less
KEPT_OF_TRITON = {".json", ".cubin", ".hsaco", ".so"}


def cache_dirs() -> dict[str, Path]:
    """By name in the archive: where Triton and Inductor keep what they compile."""
    triton = os.environ.get("TRITON_CACHE_DIR") or (
        Path.home() / ".triton" / f"attention-planner-{TUNING}"
    )
    inductor = os.environ.get("TORCHINDUCTOR_CACHE_DIR") or (
        Path(tempfile.gettempdir()) / f"torchinductor_{getuser()}"
    )
    return {TRITON: Path(triton), "inductor": Path(inductor)}


def kept_files(name: str, root: Path) -> Iterator[Path]:
    for path in sorted(root.rglob("*")):
        needed = name != TRITON or path.suffix in KEPT_OF_TRITON
        if path.is_file() and not path.is_symlink() and needed:
            yield path


def save(path: Path) -> int:
    """Packs the caches of this machine; returns the number of files.

    Raises: UsageError if there is nothing compiled yet, EnvironmentProblem if `path` cannot be
    written.
    """
    found = compiled_files()
    if not found:
        raise UsageError("nothing compiled yet: run a sweep on a GPU first")
    _pack(found, lambda number: path, sys.maxsize)
    return len(found)


def save_parts(folder: Path, name: str, part_bytes: int = PART_BYTES) -> list[Path]:
    """The same in archives small enough to carry, `name` with a number each; none if empty.

    Archives of that name that an earlier run left there are replaced.
    """
    for old in folder.glob(name.format("*")):
        old.unlink()
    return _pack(compiled_files(), lambda number: folder / name.format(number), part_bytes)


def compiled_files() -> list[tuple[str, Path]]:
    """(name in the archive, file) of all that loading needs."""
    return [
        (f"{name}/{file.relative_to(root)}", file)
        for name, root in cache_dirs().items()
        for file in kept_files(name, root)
    ]


def _pack(
    found: list[tuple[str, Path]], path_of: Callable[[int], Path], part_bytes: int
) -> list[Path]:
    """Starts another archive when the current one has reached `part_bytes`."""
    written: list[Path] = []
    left = list(reversed(found))
    while left:
        path = path_of(len(written))
        try:
            with tarfile.open(path, "w:gz", compresslevel=COMPRESSION) as archive:
                while left and path.stat().st_size < part_bytes:
                    name, file = left.pop()
                    archive.add(file, arcname=name)
        except OSError as error:
            raise EnvironmentProblem(f"cannot write {path}: {error.strerror}") from None
        written.append(path)
    return written


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
                raise UsageError(
                    f"{path.name} is not a compile cache that this version's `cache save` wrote: "
                    "leave it out, a sweep compiles anew"
                )
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
