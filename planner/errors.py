"""What can go wrong by a user's hand or in their environment, and the exit code of each.

    PlannerError                 1   a failure that is not a bug
    ├─ UsageError                2   what was asked for cannot be: wrong value, unknown name
    │  └─ UnknownName            2   a lookup that failed; lists what exists
    ├─ EnvironmentProblem        3   device, package, file or store not usable
    └─ Infeasible                5   no candidate meets the limits

The command lines print the message as one line and exit with the code. Anything else that
escapes is a bug and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class PlannerError(Exception):
    """Base of every error that is not a bug."""

    exit_code = 1


class UsageError(PlannerError):
    """The request itself is wrong: says what, what was got, what is allowed."""

    exit_code = 2


class UnknownName(UsageError):
    """A name that is not registered: lists what is, nearest first."""

    def __init__(self, what: str, name: str, known: Iterable[str]) -> None:
        known = sorted(known)
        near = get_close_matches(name.lower(), known, n=1)
        hint = f" did you mean {near[0]!r}?" if near else ""
        super().__init__(f"unknown {what} {name!r};{hint} known: {', '.join(known)}")


class EnvironmentProblem(PlannerError):
    """Something outside the request is missing or unusable: device, package, file, store."""

    exit_code = 3


class Infeasible(PlannerError):
    """No candidate meets the limits of the use case."""

    exit_code = 5
