"""Somebody else's file, read with care: bytes, JSON, and the values in it.

A foreign file is read whole before anything is made of it. Numbers have to be finite numbers in
range, names lose control characters, no key may stand twice, and what is not understood is an
error that names the file and the place.

    >>> whole(16.0, "heads", "config.json")
    16
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from planner.errors import EnvironmentProblem, UsageError

MAX_BYTES = 256 << 20
MAX_NAME = 200


def read_bytes(path: Path, most: int = MAX_BYTES) -> bytes:
    """The file's content. Raises EnvironmentProblem, or UsageError for an oversized file."""
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise EnvironmentProblem(f"{path} is not a file")
        if size > most:
            raise UsageError(f"{path.name} is {size >> 20} MiB, at most {most >> 20} are read")
        return path.read_bytes()
    except FileNotFoundError:
        raise EnvironmentProblem(f"{path} does not exist") from None
    except OSError as error:
        raise EnvironmentProblem(f"cannot read {path}: {error.strerror}") from None


def sha256_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def parse_json(content: bytes, name: str) -> Any:
    """JSON in UTF-8 with finite numbers and no key twice. Raises UsageError, naming the file."""
    try:
        return json.loads(content.decode("utf-8"), object_pairs_hook=_no_key_twice)
    except UnicodeDecodeError as error:
        raise UsageError(f"{name} is not UTF-8 text (byte {error.start})") from None
    except json.JSONDecodeError as error:
        raise UsageError(
            f"{name} is not JSON: {error.msg} (line {error.lineno}, column {error.colno})"
        ) from None
    except RecursionError:
        raise UsageError(f"{name} is nested too deeply to be a results file") from None
    except ValueError as error:
        raise UsageError(f"{name} is not usable JSON: {str(error)[:MAX_NAME]}") from None


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"key {clean(twice)!r} stands twice in one object")
    return found


def mapping(data: Any, key: str, name: str) -> Mapping[str, Any]:
    """`data[key]`, which has to be an object."""
    found = data.get(key)
    if not isinstance(found, dict):
        raise UsageError(f"{name}: {key} must be an object, got {_kind(found)}")
    return found


def text(value: Any, what: str, name: str) -> str:
    """A name: non-empty text without control characters, at most 200 of them."""
    if not isinstance(value, str):
        raise UsageError(f"{name}: {what} must be text, got {_kind(value)}")
    if not clean(value):
        raise UsageError(f"{name}: {what} is blank")
    return clean(value)


def clean(value: str) -> str:
    """Printable characters only, blanks collapsed, at most 200."""
    printable = "".join(ch if ch.isprintable() else " " for ch in value)
    return re.sub(r" +", " ", printable).strip()[:MAX_NAME]


def number(value: Any, what: str, name: str) -> float:
    """A finite number; true and false are none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UsageError(f"{name}: {what} must be a number, got {_kind(value)}")
    try:
        found = float(value)
    except OverflowError:
        found = math.inf
    if not math.isfinite(found):
        raise UsageError(f"{name}: {what} must be a finite number, got {found}")
    return found


def percent(value: Any, what: str, name: str, *, fraction: bool) -> float:
    """A score as percent, from a fraction or from percent; out of range is an error."""
    found = number(value, what, name) * (100.0 if fraction else 1.0)
    if not -1e-6 <= found <= 100.0 + 1e-6:
        span = "0 and 1" if fraction else "0 and 100"
        raise UsageError(f"{name}: {what} must be between {span}, got {value!r:.40}")
    return min(max(found, 0.0), 100.0)


def whole(value: Any, what: str, name: str, low: int = 0) -> int | None:
    """A whole number of at least `low`, or None where the file has null or nothing."""
    if value is None:
        return None
    found = number(value, what, name)
    if found != int(found) or not low <= found < 1 << 40:
        raise UsageError(f"{name}: {what} must be a whole number, got {value!r:.40}")
    return int(found)


def _kind(value: Any) -> str:
    if value is None:
        return "nothing"
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false"}
    return names.get(type(value), f"{value!r:.40}")
