"""Options that several commands share, and how their text is read."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from planner.errors import EnvironmentProblem, UsageError

StoreOption = Annotated[
    str | None,
    typer.Option("--store", help="Store: a file or URL. Default: ATTN_STORE or the user's own."),
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
CsvOption = Annotated[bool, typer.Option("--csv", help="CSV on stdout.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")]
RunArgument = Annotated[
    str | None, typer.Argument(help="Run by name or number; default: the newest.")
]

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(s|m|h)?")


def parse_duration(text: str) -> float:
    """ "8m" as 480 seconds; a bare number is seconds. Raises UsageError."""
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"budget must be a time such as 90s, 8m or 1h, got {text!r}")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2] or ""]


def words(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def require_torch() -> None:
    """Raises EnvironmentProblem without torch: the planner does not need it, measuring does."""
    try:
        import torch  # noqa: F401
    except ImportError:
        raise EnvironmentProblem(
            "measuring needs torch: pip install 'attention-planner[gpu]'"
        ) from None
