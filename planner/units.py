"""Numbers for people: seconds, bytes and factors as text. SI units inside, converted here.

>>> seconds_text(0.0123)
'12.3 ms'
>>> bytes_text(3 * 2**30)
'3.00 GiB'
"""

from __future__ import annotations

import math
import re

from planner.errors import UsageError

_TIME = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))
_SIZE = ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))
_RATE = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"))


def seconds_text(seconds: float) -> str:
    """Three significant digits with s, ms or µs; "n/a" for NaN."""
    if not math.isfinite(seconds):
        return "n/a"
    for scale, unit in _TIME:
        if abs(seconds) >= scale or unit == "µs":
            return f"{seconds / scale:,.3g} {unit}" if abs(seconds) < 1000 else f"{seconds:,.0f} s"
    raise AssertionError


_SECONDS = re.compile(r"(\d+(?:\.\d+)?|\.\d+)\s*(s|ms|us|µs)?")
_UNIT_S = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6}


def parse_seconds(text: str, what: str) -> float:
    """ "300ms", "2s" or plain seconds. Raises UsageError, which says `what` it is for.

    >>> parse_seconds("30ms", "--tpot")
    0.03
    """
    match = _SECONDS.fullmatch(text.strip().lower())
    if match is None:
        raise UsageError(f"{what} must be a time such as 2s or 30ms, got {text!r}")
    return float(match[1]) * _UNIT_S[match[2] or "s"]


def bytes_text(count: float) -> str:
    """Binary units, which are named as such: GiB is 2**30."""
    if not math.isfinite(count):
        return "n/a"
    for scale, unit in _SIZE:
        if abs(count) >= scale:
            return f"{count / scale:,.2f} {unit}"
    return f"{count:,.0f} B"


def rate_text(per_second: float, unit: str) -> str:
    """A rate in decimal units: "4.80 TB/s", "790 TFLOP/s"."""
    if not math.isfinite(per_second):
        return "n/a"
    for scale, prefix in _RATE:
        if abs(per_second) >= scale:
            return f"{per_second / scale:,.3g} {prefix}{unit}"
    return f"{per_second:,.3g} {unit}"


def percent(share: float) -> str:
    return "n/a" if not math.isfinite(share) else f"{100 * share:.4g} %"


def times(factor: float) -> str:
    """A factor: "0.43x"."""
    return "n/a" if not math.isfinite(factor) else f"{factor:.2f}x"


def usd_text(dollars: float) -> str:
    """Three significant digits: "$0.0172", "$12.3"; "n/a" for NaN."""
    if not math.isfinite(dollars):
        return "n/a"
    return f"${dollars:,.0f}" if abs(dollars) >= 1000 else f"${dollars:#,.3g}".rstrip(".")
